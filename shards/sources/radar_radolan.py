"""The reader of RADOLAN composites of the German weather service (DWD): a text header that ends with ETX, then cells.

Products of 8 bits (RX, EX, WX) are reflectivity, dBZ = v / 2 - 32.5; 250 is outside the radars' reach, 249 clutter, and
both are missing. The others are rain of the header's interval in 16 bits, little-endian: bits 0..11 the amount in the
header's precision, bit 12 interpolated, 13 no data, 14 negative, 15 clutter. Rows begin in the south. Format: DWD,
RADOLAN/RADVOR Hoch aufgeloeste Niederschlagsanalyse und -vorhersage, "Kompositformat". See radar_readers.py for what a
reader is.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from shards.errors import SourceError
from shards.georeference import Grid, grid_of, project
from shards.manifest import Scale, SourceInfo
from shards.sources.inputs import by, unreadable
from shards.sources.radar_readers import (
    DBZ,
    Composite,
    FileName,
    Table,
    check_pixels,
    content,
    named,
    rain_to_dbz,
    table_of,
    timestamp,
    unlike,
)

REFLECTIVITY = ("RX", "EX", "WX")
RAIN = ("RY", "RZ", "RW", "RH", "RB", "RL", "RU", "RK", "RQ", "RE", "YW", "SF", "SH", "SQ")
STEREO = "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +x_0=0 +y_0=0 +R=6370040 +units=m +no_defs"
REFERENCE = (9.0, 51.0)  # longitude and latitude that all grids are tied to
# rows x columns -> kilometres from the left and the lower edge to the reference
GRIDS = {(900, 900): (450, 450), (1100, 900): (370, 550), (1200, 1100): (470, 600), (1500, 1400): (600, 800)}
HEADER = re.compile(r"(?P<product>[A-Z]{2})(?P<day>\d{6})(?P<station>\d{5})(?P<month>\d{4})BY\s*(?P<bytes>\d+)")


@dataclass(frozen=True)
class Header:
    """What the text before the cells says; `precision` in mm, `minutes` of the sum."""

    product: str
    time: datetime | None
    precision: float
    minutes: int
    shape: tuple[int, int]
    begin: int  # of the cells


@dataclass(frozen=True)
class Radolan:
    """See the module's docstring. Z = 200 R^1.6."""

    name = "radolan"
    scale: Scale = DBZ
    step_seconds = 300.0
    crop = "none"
    looks_like = "raa01-ry_10000-1605292355-dwd---bin"
    suffixes = ("---bin", ".bin")
    source = SourceInfo(
        name="DWD RADOLAN composite",
        licence="CC BY 4.0 (DWD open data)",
        citation="Deutscher Wetterdienst",
        url="https://opendata.dwd.de",
    )
    _name = re.compile(
        r"raa01-(?P<product>[a-z]{2})_(?P<radar>\d{5})-(?P<time>\d{10})-dwd---bin(\.gz|\.bz2)?", re.IGNORECASE
    )

    def parse(self, name: str) -> FileName | None:
        """Return the time: year (two digits), month, day, hour, minute."""
        return named(self._name.fullmatch(name), "%y%m%d%H%M")

    def read(self, path: Path) -> Composite:
        """Return the cells through a table, rows turned."""
        data = content(path, _promised)
        header = read_header(path, data)
        name = self.parse(path.name)
        if name is not None and name.product.upper() != header.product:
            raise unlike(path, "product", header.product, f"{name.product.upper()}, as the file's name says")
        one_byte = header.product in REFLECTIVITY
        kind = np.dtype(np.uint8 if one_byte else "<u2")
        size, found = math.prod(header.shape) * kind.itemsize, len(data) - header.begin
        if found != size or not size:
            raise unreadable(path, f"{by(header.shape)} cells are {size} bytes, it has {found}")
        cells = np.frombuffer(data, kind, offset=header.begin)
        table = _dbz_table(self.scale) if one_byte else _rain_table(header.precision, header.minutes, self.scale)
        codes, clipped = table.apply(cells.reshape(header.shape)[::-1])
        facts = {"product": header.product, "interval": f"{header.minutes} min", "precision": f"{header.precision:g}"}
        return Composite(np.ascontiguousarray(codes), clipped, header.time, facts)

    def grid(self, path: Path) -> Grid | None:
        """Return the grid by the number of rows and columns, which say where DWD's grids lie; None for another."""
        header = read_header(path, content(path, _promised))
        if header.shape not in GRIDS:
            return None
        left, below = GRIDS[header.shape]
        x, y = project(STEREO, *REFERENCE)
        rows, columns = header.shape
        across = x - 1000 * left + 1000 * (np.arange(columns) + 0.5)
        down = y - 1000 * below + 1000 * (np.arange(rows)[::-1] + 0.5)
        return grid_of(across, down, STEREO)


def _promised(path: Path, data: bytes) -> int:
    """Return how long a file is by its header. Raises SourceError."""
    header = read_header(path, data)
    check_pixels(path, header.shape)
    return header.begin + math.prod(header.shape) * (1 if header.product in REFLECTIVITY else 2)


def read_header(path: Path, data: bytes) -> Header:
    """Return what the header says. Raises SourceError for a file that isn't RADOLAN's, and for a product that is
    neither reflectivity nor rain.
    """
    end = data.find(b"\x03", 0, 4096)
    text = data[: max(end, 0)].decode("latin-1")
    match = HEADER.match(text)
    if match is None:
        raise unreadable(path, f"no RADOLAN header: it begins with {data[:20]!r}")
    product = match["product"]
    if product not in (*REFLECTIVITY, *RAIN):
        known = ", ".join((*REFLECTIVITY, *RAIN))
        raise unlike(path, "product", product, f"one of reflectivity or rain ({known})")
    time = timestamp(match["day"] + match["month"], "%d%H%M%m%y")
    size = re.search(r"GP\s*(\d{1,5})x\s*(\d{1,5})", text)
    if size is None:
        raise SourceError(f"{path}: the header says no rows and columns (GP): {text[:120]!r}; fetch it again")
    precision = re.search(r"PR\s*E([+-]\d\d)", text)
    minutes = re.search(r"INT\s*(\d{1,6})(?!\d)", text)
    if product in RAIN and (precision is None or minutes is None or int(minutes[1]) == 0):
        raise SourceError(
            f"{path}: the header says no precision (PR) or interval (INT): {text[:120]!r}; fetch it again"
        )
    return Header(
        product,
        time,
        10.0 ** int(precision[1]) if precision else 1.0,
        int(minutes[1]) if minutes else 0,
        (int(size[1]), int(size[2])),
        end + 1,
    )


@functools.lru_cache(maxsize=1)
def _dbz_table(scale: Scale) -> Table:
    value = np.arange(256)
    return table_of(np.where(value >= 249, np.nan, value / 2 - 32.5), scale)


@functools.lru_cache(maxsize=4)
def _rain_table(precision: float, minutes: int, scale: Scale) -> Table:
    cell = np.arange(65536)
    amount = precision * (cell & 0xFFF) * np.where(cell & 0x4000, -1, 1)
    amount[(cell & 0xA000) != 0] = np.nan  # no data, clutter
    return table_of(rain_to_dbz(amount * (60 / minutes)), scale)
