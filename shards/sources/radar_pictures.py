"""Readers of radar composites that are pictures: MeteoSwiss's GIF, FMI's PGM, and the PNG layout of the ModeRNN
authors. Pillow and gzip read them. See radar_readers.py for what a reader is.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from shards.georeference import Grid, grid_of, project
from shards.manifest import Codes, Scale, SourceInfo
from shards.sources.inputs import read_image, unreadable
from shards.sources.radar_readers import (
    DBZ,
    Composite,
    FileName,
    Table,
    check_pixels,
    code_in,
    content,
    named,
    number_in,
    rain_to_dbz,
    table_of,
    timestamp,
    unlike,
)

AUTHORS_DBZ = Scale(quantity="radar reflectivity", unit="dBZ", offset=15.0, gain=0.5)  # (p + 30) / 2


@dataclass(frozen=True)
class MeteoSwissGif:
    """MeteoSwiss AQC composites as GIF: 710 x 640 km, 5 minutes, palette indexes that stand for rain rates.

    Index i is 12 (10^((i - 71.5) / 20) / 316)^(1/1.5) mm/h; 0, 1 and 251..254 are no rain, 255 is outside the radars'
    reach. Formula: pysteps, io/importers.py. Z = 316 R^1.5.
    """

    name = "meteoswiss"
    scale: Scale = DBZ
    step_seconds = 300.0
    crop = "384"  # all of it observed
    looks_like = "AQC151351545F_00005.801.gif"
    suffixes = (".gif",)
    source = SourceInfo(
        name="MeteoSwiss radar composite (AQC)",
        licence="MeteoSwiss; the archive states none, ask before you pass it on",
        citation="MeteoSwiss; sample days: pySTEPS/pysteps-data",
        url="https://github.com/pySTEPS/pysteps-data",
    )
    _name = re.compile(r"AQC(\d{2})(\d{3})(\d{2})(\d{2})[A-Z]_(.*)\.gif", re.IGNORECASE)

    def parse(self, name: str) -> FileName | None:
        """Return the time: AQC, two digits of the year, three of the day in the year, hour and minute; a letter of the
        quality.
        """
        match = self._name.fullmatch(name)
        if not match:
            return None
        year, day, hour, minute = (int(group) for group in match.groups()[:4])
        if not (1 <= day <= 366 and hour < 24 and minute < 60):
            return None
        return FileName(datetime(2000 + year, 1, 1) + timedelta(days=day - 1, hours=hour, minutes=minute), "", match[5])

    def read(self, path: Path) -> Composite:
        """Return palette indexes through the table; L is a palette that is the identity."""
        return Composite(*_swiss_table(self.scale).apply(read_image(path, ["GIF"], ("P", "L"))))

    def grid(self, path: Path) -> Grid | None:
        """Return Swiss coordinates (CH1903, EPSG:21781), 255 to 965 km east, -160 to 480 km north: no file names it."""
        x, y = 255e3 + 1e3 * (np.arange(710) + 0.5), 480e3 - 1e3 * (np.arange(640) + 0.5)
        return grid_of(x, y, "EPSG:21781")


@functools.lru_cache(maxsize=2)
def _swiss_table(scale: Scale) -> Table:
    index = np.arange(256)
    rate = 12 * (10 ** ((index - 71.5) / 20) / 316) ** (1 / 1.5)
    rate[(index < 2) | (index > 250)] = 0.0
    rate[255] = np.nan
    return table_of(rain_to_dbz(rate, a=316, b=1.5), scale)


@dataclass(frozen=True)
class FmiPgm:
    """FMI's Finnish composites: gzipped PGM (P5) of dBZ in half steps from -32, 255 outside the radars' reach.

    dBZ = (v - 64) / 2; v = 0 is no echo. Comments in the header say the product, the time and the grid.
    """

    name = "fmi"
    scale: Scale = DBZ
    step_seconds = 300.0
    crop = "384"
    looks_like = "201609281600_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz"
    suffixes = (".pgm",)
    source = SourceInfo(
        name="FMI radar composite",
        licence="CC BY 4.0 (FMI open data)",
        citation="Finnish Meteorological Institute",
        url="https://en.ilmatieteenlaitos.fi/open-data",
    )
    _name = re.compile(r"(?P<time>\d{12})_(?P<product>.*fmi.*)\.pgm(\.gz)?", re.IGNORECASE)
    # Header values of products that hold reflectivity; the others (ETOP: heights of echo tops) don't.
    _types = ("cappi", "pcappi", "ppi", "max", "lowest", "comp")

    def parse(self, name: str) -> FileName | None:
        """Return the first twelve digits."""
        return named(self._name.fullmatch(name), "%Y%m%d%H%M")

    def read(self, path: Path) -> Composite:
        """Return numbers through the table. Raises SourceError for a product that the header says isn't
        reflectivity.
        """
        data = content(path, pgm_bytes)
        header = pgm_comments(data)
        kind, quantity = header.get("producttype", ""), header.get("param", "")
        if kind and kind.lower() not in self._types:
            raise unlike(path, "producttype", kind, f"one of reflectivity ({', '.join(self._types).upper()})")
        if quantity and not re.search("reflectivity|dbz", quantity, re.IGNORECASE):
            raise unlike(path, "param", quantity, "reflectivity")
        value = np.arange(256)
        absent = code_in(path, "missingval", header.get("missingval", "255"))
        table = table_of(np.where(value == absent, np.nan, (value - 64) / 2), self.scale)
        codes, clipped = table.apply(read_pgm(path, data))
        names = ("producttype", "param", "bottomleft", "topright")
        facts: dict[str, str] = {name: header[name] for name in names if name in header}
        return Composite(codes, clipped, timestamp(header.get("obstime", ""), "%Y%m%d%H%M"), facts)

    def grid(self, path: Path) -> Grid | None:
        """Return a polar stereographic grid between the header's corners. The figure of the earth and the false origin
        aren't in the file: they are those that pysteps has for it.
        """
        data = content(path, pgm_bytes)
        header = pgm_comments(data)
        if header.get("type") != "stereographic" or "bottomleft" not in header or "topright" not in header:
            return None
        height, width = read_pgm(path, data).shape
        central, latitude, true = (header.get(f"{name}tude") for name in ("centrallongi", "centrallati", "truelati"))
        proj = (
            f"+proj=stere +lat_0={latitude} +lon_0={central} +lat_ts={true} +a=6371288 +x_0=380886.310 "
            "+y_0=3395677.920 +no_defs"
        )
        (left, bottom), (right, top) = (
            project(proj, *_corner(path, name, header[name])) for name in ("bottomleft", "topright")
        )
        wide, high = (right - left) / width, (top - bottom) / height
        return grid_of(left + wide * (np.arange(width) + 0.5), top - high * (np.arange(height) + 0.5), proj)


def _corner(path: Path, name: str, text: str) -> tuple[float, float]:
    """Return longitude and latitude."""
    parts = text.split()
    if len(parts) < 2:
        raise unlike(path, name, text, "a longitude and a latitude")
    return number_in(path, name, parts[0]), number_in(path, name, parts[1])


def pgm_comments(data: bytes) -> dict[str, str]:
    """Return the comments `# NAME VALUE ...` before the pixels of a PGM, by name in small letters; nested names too."""
    found: dict[str, str] = {}
    for line in data[:8192].split(b"\n"):
        if not line.startswith((b"P5", b"#")) and not re.fullmatch(rb"[\d\s]*", line):
            break
        parts = line.decode("latin-1").lstrip("#").split(None, 1)
        if line.startswith(b"#") and len(parts) == 2:
            found.setdefault(parts[0].lower(), parts[1].strip())
    return found


def _pgm_header(path: Path, data: bytes) -> tuple[int, int, int]:
    """Return width, height and the byte at which the pixels begin. Raises SourceError."""
    match = re.match(rb"P5\s(?:\s*#[^\n]*\n)*\s*(\d+)\s(?:\s*#[^\n]*\n)*\s*(\d+)\s(?:\s*#[^\n]*\n)*\s*(\d+)\s", data)
    if match is None or max(map(len, match.groups())) > 9:
        raise unreadable(path, f"no binary PGM: it begins with {data[:12]!r}, should with P5 and three numbers")
    width, height, greatest = (int(group) for group in match.groups())
    if not 0 < greatest < 256:
        raise unreadable(path, f"its greatest value is {greatest}, should be 255 at most")
    check_pixels(path, (height, width))
    return width, height, match.end()


def pgm_bytes(path: Path, data: bytes) -> int:
    """Return how long a PGM is by its header. Raises SourceError."""
    width, height, begin = _pgm_header(path, data)
    return begin + width * height


def read_pgm(path: Path, data: bytes) -> Codes:
    """Return the pixels of a binary PGM of 8 bits, uint8 [height, width]; comments may stand anywhere in its header.

    Raises SourceError that names `path` for another format, and for a file that isn't as long as its header says.
    """
    width, height, begin = _pgm_header(path, data)
    body = data[begin:]
    if len(body) != width * height:
        raise unreadable(path, f"{width}x{height} pixels are {width * height} bytes, it has {len(body)}")
    return np.frombuffer(body, dtype=np.uint8).reshape(height, width)


@dataclass(frozen=True)
class GreyImages:
    """The layout that the ModeRNN authors' loader reads: grey images ANYTHING_YYYYmmddHHMMSS.png, in any folders.

    Codes are kept as they are, of 8 bits, or of 16 where the scale is. What they mean no image says; it is
    dBZ = (p + 30) / 2, as the authors' evaluation has it, unless the user says otherwise.
    """

    name = "images"
    step_seconds = 360.0
    crop = "none"
    looks_like = "radar_20170501120600.png"
    suffixes = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".pgm")
    source = SourceInfo(
        name="Radar images",
        licence="not stated",
        citation="Yao et al., ModeRNN, arXiv:2110.03882 (the layout)",
        url="https://github.com/thuml/ModeRNN",
    )
    scale: Scale = AUTHORS_DBZ

    def parse(self, name: str) -> FileName | None:
        """Return the time, fourteen digits after the last underscore."""
        match = re.fullmatch(r".*_(?P<time>\d{14})\.(png|jpe?g|bmp)", name, re.IGNORECASE)
        return named(match, "%Y%m%d%H%M%S")

    def read(self, path: Path) -> Composite:
        """Return the grey values; more than the scale's greatest that aren't missing are clipped to it."""
        codes = read_image(path, modes=("L",), dtype=self.scale.code_type.name)
        above = codes > self.scale.max_code
        if self.scale.missing_code is not None:
            above &= codes != self.scale.missing_code
        return Composite(np.where(above, self.scale.max_code, codes).astype(codes.dtype), int(np.count_nonzero(above)))

    def grid(self, path: Path) -> Grid | None:
        """Return nothing: an image names none."""
        return None
