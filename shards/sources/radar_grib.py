"""The reader of MRMS, the composite of the United States, in GRIB2. See radar_readers.py for what a reader is."""

from __future__ import annotations

import gzip
import re
import zlib
from datetime import datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from shards.manifest import Codes, SourceInfo
from shards.sources.grid import Grid
from shards.sources.inputs import need, unreadable
from shards.sources.radar_readers import DBZ, rain_to_dbz, timestamp


class Mrms:
    """MRMS PrecipRate: 7000 x 3500 pixels of 0.01 degrees, mm/h, 2 minutes; GRIB2, gzipped or not.

    Negative values are no rates: -3 is outside coverage, -1 missing. Z = 200 R^1.6.
    """

    name = "mrms"
    scale = DBZ
    step_seconds = 120.0
    crop = "128,1280,384,384"  # the northern Great Plains; the centre of the grid is often dry
    looks_like = "PrecipRate_00.00_20190610-000000.grib2"
    source = SourceInfo(
        name="NOAA MRMS PrecipRate",
        licence="public domain (US Government work)",
        citation="Zhang et al., Multi-Radar Multi-Sensor (MRMS) quantitative precipitation estimation, BAMS 2016",
        url="https://www.nssl.noaa.gov/projects/mrms",
    )
    _name = re.compile(r"(?:MRMS_)?PrecipRate_[\d.]+_(\d{8}-\d{6})\.grib2(\.gz)?", re.IGNORECASE)

    def time_of(self, name: str) -> datetime | None:
        """The time in the name."""
        match = self._name.fullmatch(name)
        return timestamp(match[1], "%Y%m%d-%H%M%S") if match else None

    def read(self, path: Path) -> Codes:
        """The first message of the file."""
        eccodes = need("eccodes", "grib", "reading GRIB2")
        try:
            rate = first_message(eccodes, _bytes(path))
        except (ValueError, eccodes.CodesInternalError) as error:
            raise unreadable(path, error) from None
        codes = np.empty(rate.shape, dtype=np.uint8)
        for rows, target in zip(np.array_split(rate, 16), np.array_split(codes, 16), strict=True):
            # In parts: 24 million pixels with all their intermediate numbers would be a gigabyte.
            target[:] = DBZ.to_code(rain_to_dbz(np.where(rows < 0, np.nan, rows)))
        return codes

    def grid(self, path: Path) -> Grid | None:
        """Latitudes and longitudes of the first message."""
        eccodes = need("eccodes", "grib", "reading GRIB2")
        try:
            handle = eccodes.codes_new_from_message(_bytes(path))
        except eccodes.CodesInternalError as error:
            raise unreadable(path, error) from None
        try:
            north, south, west, east = (
                float(eccodes.codes_get(handle, f"{name}GridPointInDegrees"))
                for name in ("latitudeOfFirst", "latitudeOfLast", "longitudeOfFirst", "longitudeOfLast")
            )
            rows, columns = (int(eccodes.codes_get(handle, name)) for name in ("Nj", "Ni"))
        finally:
            eccodes.codes_release(handle)
        north, south = max(north, south), min(north, south)  # frames begin in the north, whatever the file does
        x, y = np.linspace(west, east, columns), np.linspace(north, south, rows)
        return Grid(np.where(x > 180, x - 360, x), y, "degrees", {"grid_mapping_name": "latitude_longitude"})


def _bytes(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) from None


def first_message(eccodes: ModuleType, data: bytes) -> npt.NDArray[np.float64]:
    """The grid of the first message, [rows, columns], row 0 in the north. Raises ValueError for another kind."""
    handle = eccodes.codes_new_from_message(data)
    try:
        kind = eccodes.codes_get(handle, "gridType")
        if kind != "regular_ll" or eccodes.codes_get(handle, "jPointsAreConsecutive"):
            raise ValueError(f"a grid of type {kind}, expected regular_ll row by row")
        if eccodes.codes_get(handle, "iScansNegatively"):
            raise ValueError("a grid that runs from east to west")
        shape = (eccodes.codes_get(handle, "Nj"), eccodes.codes_get(handle, "Ni"))
        grid = np.asarray(eccodes.codes_get_values(handle), dtype=np.float64).reshape(shape)
        return grid[::-1].copy() if eccodes.codes_get(handle, "jScansPositively") else grid
    finally:
        eccodes.codes_release(handle)
