"""What a reader of radar composites is: one small class per format, each turning a file into codes.

Most give dBZ in quarters: code = round(dBZ / 0.25), 0..254 for 0..63.5 dBZ; no echo is 0 and no observation 255. What
lies above 63.5 dBZ is counted as clipped; echoes below 0 dBZ become 0. With uint16 a code is 1/1032 dBZ, 258 of them to
a quarter; where files have linear 16-bit numbers of their own, codes are those (`own_scale`). A reader knows its file
names, its own numbers and its own Z-R relation; what is common to all archives (runs, splits, crops) is radar.py's. Row
0 is north.

Readers: radar_pictures.py (MeteoSwiss GIF, FMI PGM, grey images), radar_hdf.py (KNMI, BoM), radar_odim.py,
radar_geotiff.py, radar_radolan.py, radar_grib.py (MRMS).
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError
from shards.georeference import Grid
from shards.manifest import LARGEST_SIDE, Codes, Scale, SourceInfo
from shards.sources.inputs import by, unreadable

DBZ = Scale(quantity="radar reflectivity", unit="dBZ", offset=0.0, gain=0.25, max_code=254, missing_code=255)
# All values of DBZ are values of it too.
FINE_DBZ = dataclasses.replace(DBZ, gain=DBZ.gain / 258, max_code=258 * DBZ.max_code, missing_code=65535)
PACKED = (".gz", ".bz2")  # of one file; read as it is
LARGEST = 1 << 29  # bytes of a file, unpacked: more is no composite's
LARGEST_PIXELS = 1 << 27  # of a composite: MRMS, the largest, has a fifth
PIECE = 1 << 20  # bytes that are unpacked at a time
_TIME = re.compile(
    r"(?<!\d)((?:19|20)\d\d)(?P<s>[-_]?)([01]\d)(?P=s)([0-3]\d)"
    r"[-_T]?([0-2]\d)[-_:]?([0-5]\d)(?:[-_:]?([0-5]\d))?Z?(?!\d)"
)
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FileName:
    """What a file's name says: the time (UTC), and which radar or composite and product it is, "" where it doesn't."""

    time: datetime
    radar: str = ""
    product: str = ""


@dataclass(frozen=True)
class Composite:
    """One file as read.

    Attributes:
        codes: [height, width] of the reader's scale.
        clipped: pixels whose value lies above the scale.
        time: what the file's header says, UTC; None where it doesn't.
        facts: of the header (quantity, unit, projection, ...), which all files of an archive share.
    """

    codes: Codes
    clipped: int = 0
    time: datetime | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


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
    def suffixes(self) -> tuple[str, ...]:
        """How its files' names end, small letters, before .gz or .bz2; for files named in another way."""

    @property
    def source(self) -> SourceInfo:
        """Origin and terms."""

    def parse(self, name: str) -> FileName | None:
        """Return what a file's name says, or None if the name isn't one of this archive's."""

    def read(self, path: Path) -> Composite:
        """Return the whole composite. Raises SourceError that names the file."""

    def grid(self, path: Path) -> Grid | None:
        """Return where the composite's pixels lie, or None where the archive doesn't say."""


@dataclass(frozen=True)
class Table:
    """Codes of every number that a file may hold, and which of them lie above the scale."""

    codes: Codes
    above: npt.NDArray[np.bool_]

    def apply(self, raw: npt.NDArray[Any]) -> tuple[Codes, int]:
        """Return the codes of unsigned numbers, and how many of them were clipped."""
        return np.asarray(self.codes[raw]), int(np.count_nonzero(self.above[raw])) if self.above.any() else 0


def table_of(dbz: Values, scale: Scale) -> Table:
    """Return the table of the dBZ that numbers 0, 1, ... stand for; NaN is missing."""
    return Table(scale.to_code(dbz), np.nan_to_num(dbz) > _highest(scale))


def _highest(scale: Scale) -> float:
    """Return the value above which values are clipped."""
    return scale.offset + scale.gain * (scale.max_code + 0.5)


def own_scale(dtype: np.dtype[Any], gain: float, offset: float) -> Scale | None:
    """Return the scale of a file's own numbers, dBZ = offset + gain * number up to 63.5 dBZ; None where they aren't
    unsigned and of 16 bits.
    """
    if dtype.kind != "u" or dtype.itemsize != 2 or gain <= 0:
        return None
    top = DBZ.offset + DBZ.gain * DBZ.max_code
    greatest = min(65534, math.floor((top - offset) / gain + 1e-9))
    return dataclasses.replace(FINE_DBZ, offset=offset, gain=gain, max_code=greatest) if greatest > 255 else None


def coded(raw: npt.NDArray[Any], to_dbz: Callable[[npt.NDArray[Any]], Values], scale: Scale) -> tuple[Codes, int]:
    """Return the codes of raw numbers [height, width], whose dBZ (NaN where missing) `to_dbz` gives, and how many were
    clipped.

    In parts: all the intermediate numbers of 24 million pixels would be a gigabyte.
    """
    codes, clipped = np.empty(raw.shape, dtype=scale.code_type), 0
    parts = max(1, raw.size >> 20)
    for rows, target in zip(np.array_split(raw, parts), np.array_split(codes, parts), strict=True):
        dbz = to_dbz(rows)
        target[:] = scale.to_code(dbz)
        clipped += int(np.count_nonzero(np.nan_to_num(dbz) > _highest(scale)))
    return codes, clipped


def rain_to_dbz(rate: npt.ArrayLike, a: float = 200, b: float = 1.6) -> npt.NDArray[np.float64]:
    """Return the dBZ of a rain rate in mm/h by Z = a R^b (Marshall and Palmer's by default); no rain becomes the
    scale's lower end, 0 dBZ, and so does a negative rate; NaN stays.
    """
    exact = np.asarray(rate, dtype=np.float64)
    dbz = np.where(np.isnan(exact), np.nan, 0.0)
    wet = exact > 0  # most pixels aren't, and logarithms are dear
    dbz[wet] = np.maximum(10 * (np.log10(a) + b * np.log10(exact[wet])), 0.0)
    return dbz


def timestamp(digits: str, format: str) -> datetime | None:
    """Return the time in a name, or None where the digits are no time after all."""
    try:
        return datetime.strptime(digits, format)
    except ValueError:
        return None


def named(match: re.Match[str] | None, format: str) -> FileName | None:
    """Return what a match says by its groups `time` and, where it has them, `radar` and `product`."""
    if match is None or (time := timestamp(match["time"], format)) is None:
        return None
    groups = match.groupdict()
    return FileName(time, groups.get("radar") or "", (groups.get("product") or "").lower())


def time_in(name: str) -> FileName | None:
    """Return the time YYYYmmddHHMM[SS], with or without -, _, : or T, in any name; the rest is the product.

    None where there is none, and where there are several that differ (begin and end, say): which one is the frame's,
    --name-pattern or --time-format says.
    """
    found = list(_TIME.finditer(name))
    times = {
        timestamp("".join(match[place] or "" for place in (1, 3, 4, 5, 6)) + (match[7] or "00"), "%Y%m%d%H%M%S")
        for match in found
    }
    if len(times) != 1 or (time := times.pop()) is None:
        return None
    return FileName(time, "", _TIME.sub("*", name))


def bare(name: str) -> str:
    """Return a name in small letters without the ending of one packed file."""
    lower = name.lower()
    return next((lower.removesuffix(ending) for ending in PACKED if lower.endswith(ending)), lower)


def content(path: Path, promised: Callable[[Path, bytes], int] | None = None) -> bytes:
    """Return a file's bytes, unpacked where its name ends in .gz or .bz2, all members of it.

    Args:
        promised: returns how many bytes the header says that the file has, from its first ones (1 MiB at most): no more
            are unpacked.

    Raises:
        SourceError: an unreadable file, or one of more bytes than promised, or than LARGEST; it names the file.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
    data, most, why = bytearray(), LARGEST, "the most that is read"
    try:
        with openers.get(path.suffix.lower(), open)(path, "rb") as file:
            while piece := file.read(min(PIECE, most + 1 - len(data))):
                data += piece
                if promised is not None and len(data) == len(piece):
                    size = promised(path, bytes(piece))
                    most, why = min(most, size), why if size > most else "what its header promises"
                if len(data) > most:
                    raise unreadable(path, f"more than {most} bytes unpacked, {why}")
        return bytes(data)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from None


def check_pixels(path: Path, shape: Sequence[int]) -> None:
    """Refuse a composite of more than LARGEST_PIXELS before memory is taken for it. Raises SourceError."""
    if math.prod(shape) > LARGEST_PIXELS or max(shape, default=0) > LARGEST_SIDE:
        raise unlike(path, "size", by(shape), f"{LARGEST_PIXELS} pixels at most, and sides of {LARGEST_SIDE}")


def number_in(path: Path, what: str, value: object, otherwise: float | None = None, finite: bool = True) -> float:
    """Return a header's number, or `otherwise` where the header has none. Raises SourceError for what is no number."""
    if value is None and otherwise is not None:
        return otherwise
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise unlike(path, what, f"{value!r:.60}", "a number") from None
    if finite and not math.isfinite(number):
        raise unlike(path, what, number, "a finite number")
    return number


def gain_in(path: Path, what: str, value: object, otherwise: float | None = None) -> float:
    """Return a header's gain, or `otherwise`. Raises SourceError for 0 too, which makes all values equal."""
    gain = number_in(path, what, value, otherwise)
    if gain == 0:
        raise unlike(path, what, gain, "a number that isn't 0")
    return gain


def code_in(path: Path, what: str, value: object) -> int:
    """Return the number by which a header marks pixels. Raises SourceError for a fraction."""
    code = number_in(path, what, value)
    if code != int(code):
        raise unlike(path, what, code, "a whole number")
    return int(code)


def side_in(path: Path, what: str, value: object) -> int:
    """Return a header's number of rows or columns. Raises SourceError for what can't be one."""
    side = number_in(path, what, value)
    if side != int(side) or not 1 <= side <= LARGEST_SIDE:
        raise unlike(path, what, side, f"a whole number of 1..{LARGEST_SIDE}")
    return int(side)


def unlike(path: Path, what: str, found: object, expected: str) -> SourceError:
    """Return the error of a header that isn't the format's."""
    return SourceError(f"{path}: the header's {what} is {found}, expected {expected}; another product? Move it away")
