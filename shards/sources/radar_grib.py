"""The reader of MRMS, the composite of the United States, in GRIB2. See radar_readers.py for what a reader is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.georeference import LONGLAT, Grid, grid_of
from shards.manifest import Scale, SourceInfo
from shards.sources.inputs import need, unreadable
from shards.sources.radar_readers import (
    DBZ,
    Composite,
    FileName,
    Values,
    check_pixels,
    coded,
    content,
    named,
    rain_to_dbz,
    side_in,
    timestamp,
    unlike,
)

RATE = (209, 6, 1)  # discipline, category, number of PrecipRate in NSSL's tables


@dataclass(frozen=True)
class Mrms:
    """MRMS on 7000 x 3500 pixels of 0.01 degrees, every 2 minutes; GRIB2, gzipped or not.

    PrecipRate is in mm/h (Z = 200 R^1.6): -3 is outside coverage, -1 missing, and both are missing here. Reflectivity
    (MergedReflectivityQCComposite and its like, SeamlessHSR) is in dBZ: -999 is outside coverage, missing; -99 is
    observed without an echo.
    """

    name = "mrms"
    scale: Scale = DBZ
    step_seconds = 120.0
    crop = "128,1280,384,384"  # the northern Great Plains; the centre of the grid is often dry
    looks_like = "PrecipRate_00.00_20190610-000000.grib2"
    suffixes = (".grib2",)
    source = SourceInfo(
        name="NOAA MRMS composite",
        licence="public domain (US Government work)",
        citation="Zhang et al., Multi-Radar Multi-Sensor (MRMS) quantitative precipitation estimation, BAMS 2016",
        url="https://www.nssl.noaa.gov/projects/mrms",
    )
    _name = re.compile(
        r"(?:MRMS_)?(?P<product>(?:PrecipRate|\w*Reflectivity\w*|SeamlessHSR)_[\d.]+)_(?P<time>\d{8}-\d{6})\.grib2"
        r"(\.gz)?",
        re.IGNORECASE,
    )

    def parse(self, name: str) -> FileName | None:
        """Return the time in the name."""
        return named(self._name.fullmatch(name), "%Y%m%d-%H%M%S")

    def read(self, path: Path) -> Composite:
        """Return the first message of the file; its header says whether it is rain or reflectivity."""
        eccodes = _eccodes()
        try:
            values, about = first_message(eccodes, path, content(path, _promised))
        except (ValueError, eccodes.CodesInternalError) as error:
            raise unreadable(path, error) from None
        rain = about["parameter"] == RATE
        name = self.parse(path.name)
        if name is not None and rain != name.product.startswith("preciprate"):
            what = "rain" if rain else "not PrecipRate"
            raise unlike(path, "parameter", f"{about['parameter']} ({what})", f"that of {name.product}, its name")
        codes, clipped = coded(values, _rain if rain else _reflectivity, self.scale)
        facts = {"parameter": str(about["parameter"]), "grid": str(about["grid"])}
        return Composite(codes, clipped, timestamp(about["time"], "%Y%m%d%H%M"), facts)

    def grid(self, path: Path) -> Grid | None:
        """Return the latitudes and longitudes of the first message."""
        eccodes = _eccodes()
        try:
            handle = opened(eccodes, content(path, _promised))
        except (ValueError, eccodes.CodesInternalError) as error:
            raise unreadable(path, error) from None
        try:
            north, south, west, east = (
                float(eccodes.codes_get(handle, f"{name}GridPointInDegrees"))
                for name in ("latitudeOfFirst", "latitudeOfLast", "longitudeOfFirst", "longitudeOfLast")
            )
            rows, columns = (side_in(path, name, eccodes.codes_get(handle, name)) for name in ("Nj", "Ni"))
        finally:
            eccodes.codes_release(handle)
        north, south = max(north, south), min(north, south)  # frames begin in the north, whatever the file does
        x, y = np.linspace(west, east, columns), np.linspace(north, south, rows)
        return grid_of(np.where(x > 180, x - 360, x), y, LONGLAT)


def _eccodes() -> ModuleType:
    """eccodes, after pyproj: it brings a PROJ of another version, and pyproj imported later finds no database."""
    need("pyproj", "grib", "reading GRIB2")
    return need("eccodes", "grib", "reading GRIB2")


def _rain(values: npt.NDArray[Any]) -> Values:
    return rain_to_dbz(np.where(values < 0, np.nan, values))


def _reflectivity(values: npt.NDArray[Any]) -> Values:
    return np.where(values <= -998, np.nan, values)


def _promised(path: Path, data: bytes) -> int:
    """Return how long a GRIB2 file of one message is by its header; what is no such header is left to eccodes."""
    whole = len(data) >= 16 and data[:4] == b"GRIB" and data[7] == 2
    return int.from_bytes(data[8:16], "big") if whole else len(data)


def opened(eccodes: ModuleType, data: bytes) -> Any:
    """Return eccodes' handle of the first message. Raises ValueError for data that isn't made of GRIB2's sections: on
    some of it, as on 9 bytes that begin with GRIB, eccodes ends the process.
    """
    if len(data) < 20 or data[:4] != b"GRIB" or data[7] != 2:
        raise ValueError("no GRIB2 message")
    total, at = int.from_bytes(data[8:16], "big"), 16
    while at <= min(total, len(data)) - 9:  # a section's length and number, and the end of the message
        length = int.from_bytes(data[at : at + 4], "big")
        if length < 5 or not 1 <= data[at + 4] <= 7:
            raise ValueError(f"section {data[at + 4]} of {length} bytes at byte {at}")
        at += length
    if at != total - 4 or data[at:total] != b"7777":
        raise ValueError(f"a message of {total} bytes whose sections end at byte {at} of {len(data)}, without 7777")
    return eccodes.codes_new_from_message(data)


def first_message(eccodes: ModuleType, path: Path, data: bytes) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    """Return the first message's grid, [rows, columns], row 0 in the north, and what it says of itself: parameter (its
    three numbers), time and grid. Raises ValueError for another kind.
    """
    handle = opened(eccodes, data)
    try:
        kind = eccodes.codes_get(handle, "gridType")
        if kind != "regular_ll" or eccodes.codes_get(handle, "jPointsAreConsecutive"):
            raise ValueError(f"a grid of type {kind}, expected regular_ll row by row")
        if eccodes.codes_get(handle, "iScansNegatively"):
            raise ValueError("a grid that runs from east to west")
        shape = (eccodes.codes_get(handle, "Nj"), eccodes.codes_get(handle, "Ni"))
        check_pixels(path, shape)  # a grid of one value has any size in a few bytes
        names = ("discipline", "parameterCategory", "parameterNumber")
        about: dict[str, Any] = {"parameter": tuple(int(eccodes.codes_get(handle, name)) for name in names)}
        about["time"] = f"{eccodes.codes_get(handle, 'dataDate')}{eccodes.codes_get(handle, 'dataTime'):04d}"
        corners = ("latitudeOfFirstGridPoint", "longitudeOfFirstGridPoint", "latitudeOfLastGridPoint")
        about["grid"] = (*shape, *(int(eccodes.codes_get(handle, name)) for name in corners))
        grid = np.asarray(eccodes.codes_get_values(handle), dtype=np.float64).reshape(shape)
        return (grid[::-1].copy() if eccodes.codes_get(handle, "jScansPositively") else grid), about
    finally:
        eccodes.codes_release(handle)
