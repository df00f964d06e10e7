"""Readers of single radar composites: one small class per archive format, each turning a file into codes.

Most give dBZ in quarters: code = round(dBZ / 0.25), 0..254 for 0..63.5 dBZ; no echo is 0 and no observation 255. A
reader knows its file names' time stamps, its own numbers and its own Z-R relation; what is common to all archives
(runs, splits, crops) is radar.py's. Row 0 is north. Here are the formats that Pillow and gzip read: MeteoSwiss's GIF,
FMI's PGM, and the PNG layout of the ModeRNN authors.
"""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shards.manifest import Codes, Scale, SourceInfo
from shards.sources.grid import Grid, from_proj
from shards.sources.inputs import read_image, unreadable

DBZ = Scale(quantity="radar reflectivity", unit="dBZ", offset=0.0, gain=0.25, max_code=254, missing_code=255)
CH1903 = (
    "+proj=somerc +lat_0=46.9524055555556 +lon_0=7.43958333333333 +k_0=1 +x_0=600000 +y_0=200000 +ellps=bessel "
    "+towgs84=674.374,15.056,405.346,0,0,0,0 +units=m"
)
AUTHORS_DBZ = Scale(quantity="radar reflectivity", unit="dBZ", offset=15.0, gain=0.5)  # (p + 30) / 2


class FrameReader(Protocol):
    """One archive format. Readers travel to worker processes by pickle."""

    @property
    def name(self) -> str:
        """For --reader, and in the store's name."""

    @property
    def scale(self) -> Scale:
        """What the codes mean."""

    @property
    def step_seconds(self) -> float:
        """The nominal time step; the archive's own is measured."""

    @property
    def crop(self) -> str:
        """The default of --crop: as much of the observed area as fits."""

    @property
    def looks_like(self) -> str:
        """A file name, for messages."""

    @property
    def source(self) -> SourceInfo:
        """Origin and terms."""

    def time_of(self, name: str) -> datetime | None:
        """The UTC time in a file's name, or None if the name isn't one of this archive's."""

    def read(self, path: Path) -> Codes:
        """The whole composite as codes, uint8 [height, width]. Raises SourceError that names the file."""

    def grid(self, path: Path) -> Grid | None:
        """Where the composite's pixels lie, or None where the archive doesn't say."""


def rain_to_dbz(rate: npt.ArrayLike, a: float = 200, b: float = 1.6) -> npt.NDArray[np.float64]:
    """dBZ of a rain rate in mm/h by Z = a R^b (Marshall and Palmer's by default); no rain becomes the scale's lower
    end, 0 dBZ, and so does a negative rate; NaN stays.
    """
    exact = np.asarray(rate, dtype=np.float64)
    dbz = np.where(np.isnan(exact), np.nan, 0.0)
    wet = exact > 0  # most pixels aren't, and logarithms are dear
    dbz[wet] = np.maximum(10 * (np.log10(a) + b * np.log10(exact[wet])), 0.0)
    return dbz


def timestamp(digits: str, format: str) -> datetime | None:
    """The time in a name, or None where the digits are no time after all."""
    try:
        return datetime.strptime(digits, format)
    except ValueError:
        return None


class MeteoSwissGif:
    """MeteoSwiss AQC composites as GIF: 710 x 640 km, 5 minutes, palette indexes that stand for rain rates.

    Index i is 12 (10^((i - 71.5) / 20) / 316)^(1/1.5) mm/h; 0, 1 and 251..254 are no rain, 255 is outside the radars'
    reach. Formula: pysteps, io/importers.py. Z = 316 R^1.5.
    """

    name = "meteoswiss"
    scale = DBZ
    step_seconds = 300.0
    crop = "384"  # all of it observed
    looks_like = "AQC151351545F_00005.801.gif"
    source = SourceInfo(
        name="MeteoSwiss radar composite (AQC)",
        licence="MeteoSwiss; the archive states none, ask before you pass it on",
        citation="MeteoSwiss; sample days: pySTEPS/pysteps-data",
        url="https://github.com/pySTEPS/pysteps-data",
    )
    _name = re.compile(r"AQC(\d{2})(\d{3})(\d{2})(\d{2})[A-Z]_.*\.gif", re.IGNORECASE)

    def __init__(self) -> None:
        index = np.arange(256)
        rate = 12 * (10 ** ((index - 71.5) / 20) / 316) ** (1 / 1.5)
        rate[(index < 2) | (index > 250)] = 0.0
        rate[255] = np.nan
        self._codes = DBZ.to_code(rain_to_dbz(rate, a=316, b=1.5))

    def time_of(self, name: str) -> datetime | None:
        """AQC, two digits of the year, three of the day in the year, hour and minute."""
        match = self._name.fullmatch(name)
        if not match:
            return None
        year, day, hour, minute = (int(group) for group in match.groups())
        if not (1 <= day <= 366 and hour < 24 and minute < 60):
            return None
        return datetime(2000 + year, 1, 1) + timedelta(days=day - 1, hours=hour, minutes=minute)

    def read(self, path: Path) -> Codes:
        """Palette indexes through the table; L is a palette that is the identity."""
        return np.asarray(self._codes[read_image(path, ["GIF"], ("P", "L"))])

    def grid(self, path: Path) -> Grid | None:
        """The file doesn't say it: Swiss coordinates (CH1903, EPSG:21781), 255 to 965 km east, -160 to 480 km north."""
        x, y = 255e3 + 1e3 * (np.arange(710) + 0.5), 480e3 - 1e3 * (np.arange(640) + 0.5)
        return Grid(x, y, "m", from_proj(CH1903))


class FmiPgm:
    """FMI's Finnish composites: gzipped PGM (P5) of dBZ in half steps from -32, 255 outside the radars' reach.

    dBZ = (v - 64) / 2. The echoes below 0 dBZ, and v = 0, no echo, become code 0.
    """

    name = "fmi"
    scale = DBZ
    step_seconds = 300.0
    crop = "384"
    looks_like = "201609281600_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz"
    source = SourceInfo(
        name="FMI radar composite",
        licence="CC BY 4.0 (FMI open data)",
        citation="Finnish Meteorological Institute",
        url="https://en.ilmatieteenlaitos.fi/open-data",
    )
    _name = re.compile(r"(\d{12})_.*fmi.*\.pgm(\.gz)?", re.IGNORECASE)

    def __init__(self) -> None:
        value = np.arange(256)
        self._codes = DBZ.to_code(np.where(value == 255, np.nan, (value - 64) / 2))

    def time_of(self, name: str) -> datetime | None:
        """The first twelve digits."""
        match = self._name.fullmatch(name)
        return timestamp(match[1], "%Y%m%d%H%M") if match else None

    def read(self, path: Path) -> Codes:
        """Numbers through the table."""
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(path, error) from None
        return np.asarray(self._codes[read_pgm(path, data)])

    def grid(self, path: Path) -> Grid | None:
        """Not read."""
        return None


def read_pgm(path: Path, data: bytes) -> Codes:
    """The pixels of a binary PGM of 8 bits, uint8 [height, width]; comments may stand anywhere in its header.

    Raises SourceError that names `path` for another format, and for a file shorter than its header says.
    """
    match = re.match(rb"P5\s(?:\s*#[^\n]*\n)*\s*(\d+)\s(?:\s*#[^\n]*\n)*\s*(\d+)\s(?:\s*#[^\n]*\n)*\s*(\d+)\s", data)
    if match is None:
        raise unreadable(path, f"no binary PGM: it begins with {data[:12]!r}, should with P5 and three numbers")
    width, height, greatest = (int(group) for group in match.groups())
    if not 0 < greatest < 256:
        raise unreadable(path, f"its greatest value is {greatest}, should be 255 at most")
    body = data[match.end() :]
    if len(body) != width * height:
        raise unreadable(path, f"{width}x{height} pixels are {width * height} bytes, it has {len(body)}")
    return np.frombuffer(body, dtype=np.uint8).reshape(height, width)


@dataclass(frozen=True)
class GreyImages:
    """The layout that the ModeRNN authors' loader reads: grey images ANYTHING_YYYYmmddHHMMSS.png, in any folders.

    Codes are kept as they are. What they mean no image says; it is dBZ = (p + 30) / 2, as the authors' evaluation has
    it, unless the user says otherwise.
    """

    name = "images"
    step_seconds = 360.0
    crop = "none"
    looks_like = "radar_20170501120600.png"
    source = SourceInfo(
        name="Radar images",
        licence="not stated",
        citation="Yao et al., ModeRNN, arXiv:2110.03882 (the layout)",
        url="https://github.com/thuml/ModeRNN",
    )
    scale: Scale = AUTHORS_DBZ

    def time_of(self, name: str) -> datetime | None:
        """Fourteen digits after the last underscore."""
        match = re.fullmatch(r".*_(\d{14})\.(png|jpe?g|bmp|tiff?)", name, re.IGNORECASE)
        return timestamp(match[1], "%Y%m%d%H%M%S") if match else None

    def read(self, path: Path) -> Codes:
        """The grey values."""
        return read_image(path, modes=("L",))

    def grid(self, path: Path) -> Grid | None:
        """An image doesn't say."""
        return None
