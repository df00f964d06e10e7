"""Readers of radar composites in HDF5: KNMI's own layout, and the Australian Bureau's netCDF-4, which is HDF5 inside.

See radar_readers.py for what a reader is. Both archives hold rain of a period; Z = 200 R^1.6.
"""

from __future__ import annotations

import functools
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError
from shards.manifest import Codes, SourceInfo
from shards.sources import hdf
from shards.sources.grid import Grid, from_proj
from shards.sources.radar_readers import DBZ, rain_to_dbz, timestamp


class Knmi:
    """KNMI's Dutch composites: 700 x 765 km, millimetres in five minutes as uint16 with a calibration formula.

    65535 is outside the radars' reach: three quarters of the grid, as the grid is much larger than the country.
    """

    name = "knmi"
    scale = DBZ
    step_seconds = 300.0
    crop = "240,176,384,384"  # 88 % observed; no square of 384 has all
    looks_like = "RAD_NL25_RAP_5min_201008260000.h5"
    source = SourceInfo(
        name="KNMI radar composite, precipitation of 5 minutes",
        licence="CC BY 4.0 (KNMI open data)",
        citation="KNMI, Royal Netherlands Meteorological Institute",
        url="https://dataplatform.knmi.nl",
    )
    _name = re.compile(r"RAD_NL25_RA[A-Z]_(?:[A-Z]+_)*5MIN_(\d{12})(?:_[A-Z]+)?\.h5", re.IGNORECASE)

    def time_of(self, name: str) -> datetime | None:
        """The end of the five minutes."""
        match = self._name.fullmatch(name)
        return timestamp(match[1], "%Y%m%d%H%M") if match else None

    def read(self, path: Path) -> Codes:
        """By the file's own calibration."""
        with hdf.opened(path, "reading KNMI radar files") as file:
            data = hdf.dataset(file, "image1/image_data", (None, None), ("uint8", "uint16"))
            calibration = file["image1/calibration"].attrs if "image1/calibration" in file else {}
            formula = hdf.scalar(calibration, "calibration_formulas", "")
            match = re.fullmatch(r"GEO\s*=\s*([-\d.eE]+)\s*\*\s*PV\s*\+?\s*([-\d.eE]+)", str(formula))
            if match is None:
                raise SourceError(f"{path}: the calibration is {formula!r}, expected GEO=0.01*PV+0.0; another product?")
            quantity = str(hdf.scalar(file["image1"].attrs, "image_geo_parameter", ""))
            if "[MM]" not in quantity.upper():
                raise SourceError(f"{path}: holds {quantity or 'an unnamed quantity'}, expected rain in [MM]")
            gain, offset = float(match[1]), float(match[2])
            raw = np.ascontiguousarray(data[...])
            absent = {hdf.scalar(calibration, f"calibration_{why}") for why in ("missing_data", "out_of_image")}
        missing = tuple(sorted(int(value) for value in absent if value is not None))
        return _codes_of(raw, gain, offset, self.step_seconds, missing)

    def grid(self, path: Path) -> Grid | None:
        """By the file's `geographic` group: offsets in pixels, sizes in kilometres."""
        with hdf.opened(path, "reading KNMI radar files") as file:
            if "geographic/map_projection" not in file:
                return None
            about = file["geographic"].attrs
            proj = hdf.scalar(file["geographic/map_projection"].attrs, "projection_proj4_params")
            names = ("geo_number_columns", "geo_number_rows", "geo_column_offset", "geo_row_offset")
            columns, rows, left, top = (hdf.scalar(about, name) for name in names)
            wide, high = (hdf.scalar(about, f"geo_pixel_size_{axis}") for axis in "xy")
        if None in (columns, rows, left, top, wide, high, proj):
            return None
        x, y = (left + np.arange(columns) + 0.5) * wide, (top + np.arange(rows) + 0.5) * high
        return Grid(x, y, "km", from_proj(str(proj)))


class Bom:
    """Rainfields of the Australian Bureau of Meteorology: 512 x 512 pixels of 500 m, millimetres of rain as int16 with
    CF's scale_factor; prcp-cscn is of 6 minutes, prcp-c10 of 10, and the file's two times say it.

    Outside the radar's disc the archive has 0. Some products hold a stray -0.1 mm: it becomes no rain.
    """

    name = "bom"
    scale = DBZ
    step_seconds = 360.0
    crop = "384"
    looks_like = "2_20180616_100000.prcp-cscn.nc"
    source = SourceInfo(
        name="Bureau of Meteorology Rainfields",
        licence="(c) Commonwealth of Australia, Bureau of Meteorology; http://www.bom.gov.au/other/copyright.shtml",
        citation="Commonwealth of Australia, Bureau of Meteorology (ABN 92 637 533 532)",
        url="http://www.bom.gov.au",
    )
    _name = re.compile(r"\d+_(\d{8}_\d{6})\.prcp-\w+\.nc", re.IGNORECASE)

    def time_of(self, name: str) -> datetime | None:
        """The end of the accumulation."""
        match = self._name.fullmatch(name)
        return timestamp(match[1], "%Y%m%d_%H%M%S") if match else None

    def read(self, path: Path) -> Codes:
        """Accumulation divided by its period."""
        with hdf.opened(path, "reading the Bureau's netCDF files") as file:
            data = hdf.dataset(file, "precipitation", (None, None), ("int16",))
            seconds = int(hdf.dataset(file, "valid_time")[()]) - int(hdf.dataset(file, "start_time")[()])
            if seconds <= 0:
                raise SourceError(f"{path}: valid_time is {seconds} s after start_time; was the file edited?")
            raw = np.ascontiguousarray(data[...])
            fill = hdf.scalar(data.attrs, "_FillValue")
            gain, offset = hdf.scalar(data.attrs, "scale_factor", 1.0), hdf.scalar(data.attrs, "add_offset", 0.0)
        return _codes_of(raw, gain, offset, seconds, () if fill is None else (int(fill),))

    def grid(self, path: Path) -> Grid | None:
        """The file's coordinates and grid mapping."""
        with hdf.opened(path, "reading the Bureau's netCDF files") as file:
            if any(name not in file for name in ("x", "y", "proj")):
                return None
            x, y = (np.asarray(file[name][...], dtype=np.float64) for name in "xy")
            units = str(hdf.scalar(file["x"].attrs, "units", "km"))
            mapping = file["proj"].attrs
            projection = {
                str(name): [float(v) for v in value] if getattr(value, "size", 1) > 1 else hdf.scalar(mapping, name)
                for name, value in mapping.items()
            }
        return Grid(x, y, units, projection)


def _codes_of(raw: npt.NDArray[Any], gain: float, offset: float, seconds: float, missing: tuple[int, ...]) -> Codes:
    """Codes of amounts gain * raw + offset, in mm of `seconds`: by a table, as there are but 65,536 different ones."""
    table = _table(raw.dtype.str, float(gain), float(offset), float(seconds), missing)
    return np.asarray(table[raw.view(f"u{raw.dtype.itemsize}")])


@functools.lru_cache(maxsize=8)
def _table(dtype: str, gain: float, offset: float, seconds: float, missing: tuple[int, ...]) -> Codes:
    """By the unsigned number that has the same bits."""
    kind = np.dtype(dtype)
    numbers = np.arange(256**kind.itemsize).astype(f"u{kind.itemsize}").view(kind.newbyteorder("="))
    rate = (gain * numbers.astype(np.float64) + offset) * (3600 / seconds)
    rate[np.isin(numbers, missing)] = np.nan
    return DBZ.to_code(rain_to_dbz(rate))
