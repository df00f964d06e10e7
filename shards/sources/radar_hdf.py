"""Readers of radar composites in HDF5: KNMI's own layout, and the Australian Bureau's netCDF-4, which is HDF5 inside.

See radar_readers.py for what a reader is. Rain of a period becomes dBZ by Z = 200 R^1.6.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError
from shards.georeference import Grid, grid_of
from shards.manifest import Scale, SourceInfo
from shards.sources import hdf
from shards.sources.radar_readers import (
    DBZ,
    Composite,
    FileName,
    Table,
    check_pixels,
    code_in,
    gain_in,
    named,
    number_in,
    rain_to_dbz,
    side_in,
    table_of,
    timestamp,
    unlike,
)

LATEST = 1 << 36  # seconds since 1970: the year 4147


@dataclass(frozen=True)
class Knmi:
    """KNMI's Dutch composites: 700 x 765 km, uint16 or uint8 with a calibration formula: millimetres in five minutes,
    or dBZ.

    65535 is outside the radars' reach: three quarters of the grid, as the grid is much larger than the country.
    """

    name = "knmi"
    scale: Scale = DBZ
    step_seconds = 300.0
    crop = "240,176,384,384"  # 88 % observed; no square of 384 has all
    looks_like = "RAD_NL25_RAC_RT_201008260000.h5"
    suffixes = (".h5",)
    source = SourceInfo(
        name="KNMI radar composite, precipitation of 5 minutes",
        licence="CC BY 4.0 (KNMI open data)",
        citation="KNMI, Royal Netherlands Meteorological Institute",
        url="https://dataplatform.knmi.nl",
    )
    _name = re.compile(
        r"RAD_(?P<radar>NL\d+)_(?P<product>(?:RA|PC)[A-Z](?:_(?:[A-Z]+|5MIN))*?)_(?P<time>\d{12})(?:_[A-Z]+)?\.h5",
        re.IGNORECASE,
    )

    def parse(self, name: str) -> FileName | None:
        """Return the time in the name, the end of the five minutes."""
        return named(self._name.fullmatch(name), "%Y%m%d%H%M")

    def read(self, path: Path) -> Composite:
        """Read the numbers by the file's own calibration."""
        with hdf.opened(path, "reading KNMI radar files") as file:
            data = hdf.dataset(file, "image1/image_data", (None, None), ("uint8", "uint16"))
            check_pixels(path, data.shape)
            calibration = file["image1/calibration"].attrs if "image1/calibration" in file else {}
            formula = hdf.scalar(calibration, "calibration_formulas", "")
            match = re.fullmatch(r"GEO\s*=\s*([-\d.eE]+)\s*\*\s*PV\s*\+?\s*([-\d.eE]+)", str(formula))
            if match is None:
                raise SourceError(f"{path}: the calibration is {formula!r}, expected GEO=0.01*PV+0.0; another product?")
            quantity = str(hdf.scalar(file["image1"].attrs, "image_geo_parameter", ""))
            gain, offset = gain_in(path, "calibration", match[1]), number_in(path, "calibration", match[2])
            raw = np.ascontiguousarray(data[...])
            absent = {hdf.scalar(calibration, f"calibration_{why}") for why in ("missing_data", "out_of_image")}
            overview = file["overview"].attrs if "overview" in file else {}
            start, end = (_knmi_time(overview, name) for name in ("start", "end"))
            place = self._place(path, file)
        missing = tuple(sorted(code_in(path, "calibration", value) for value in absent if value is not None))
        if "[DBZ]" in quantity.upper():
            codes, clipped = _table(raw.dtype.str, gain, offset, 0.0, missing, self.scale).apply(_unsigned(raw))
        elif "[MM]" in quantity.upper():
            seconds = (end - start).total_seconds() if start and end and end > start else self.step_seconds
            codes, clipped = _table(raw.dtype.str, gain, offset, seconds, missing, self.scale).apply(_unsigned(raw))
        else:
            raise unlike(path, "image_geo_parameter", quantity or "absent", "rain in [MM] or reflectivity in [DBZ]")
        facts = {"quantity": quantity, **({} if place is None else {"grid": str(place)})}
        return Composite(codes, clipped, end, facts)

    def grid(self, path: Path) -> Grid | None:
        """Return the grid by the file's `geographic` group: offsets in pixels, sizes in kilometres."""
        with hdf.opened(path, "reading KNMI radar files") as file:
            place = self._place(path, file)
        if place is None:
            return None
        proj, columns, rows, left, top, wide, high = place
        x, y = (left + np.arange(columns) + 0.5) * wide, (top + np.arange(rows) + 0.5) * high
        return grid_of(x, y, _in_metres(proj), "km")

    @staticmethod
    def _place(path: Path, file: Any) -> tuple[str, int, int, float, float, float, float] | None:
        if "geographic/map_projection" not in file:
            return None
        about = file["geographic"].attrs
        proj = hdf.scalar(file["geographic/map_projection"].attrs, "projection_proj4_params")
        names = ("number_columns", "number_rows", "column_offset", "row_offset", "pixel_size_x", "pixel_size_y")
        columns, rows, *rest = (hdf.scalar(about, f"geo_{name}") for name in names)
        if None in (proj, columns, rows, *rest):
            return None
        columns, rows = side_in(path, "geo_number_columns", columns), side_in(path, "geo_number_rows", rows)
        left, top, wide, high = (number_in(path, name, value) for name, value in zip(names[2:], rest, strict=True))
        # The pixel size is above 0 down the rows in some files, and then the offset counts from the pole.
        return str(proj), columns, rows, left, top, wide, high


def _in_metres(proj: str) -> str:
    """KNMI writes the figure of the earth in kilometres; pyproj takes metres."""

    def metres(match: re.Match[str]) -> str:
        number = float(match[2])
        return f"+{match[1]}={number * 1000 if number < 1e5 else number:.12g}"

    return re.sub(r"\+([ab])=(\d+(?:\.\d*)?)", metres, proj)


def _knmi_time(overview: Any, which: str) -> datetime | None:
    text = str(hdf.scalar(overview, f"product_datetime_{which}", ""))
    return timestamp(text.split(".")[0].strip(), "%d-%b-%Y;%H:%M:%S")


@dataclass(frozen=True)
class Bom:
    """Rainfields of the Australian Bureau of Meteorology: 512 x 512 pixels of 500 m, millimetres of rain as int16 with
    CF's scale_factor; prcp-cscn is of 6 minutes, prcp-c10 of 10, and the file's two times say it.

    Outside the radar's disc the archive has 0. Some products hold a stray -0.1 mm: it becomes no rain.
    """

    name = "bom"
    scale: Scale = DBZ
    step_seconds = 360.0
    crop = "384"
    looks_like = "2_20180616_100000.prcp-cscn.nc"
    source = SourceInfo(
        name="Bureau of Meteorology Rainfields",
        licence="(c) Commonwealth of Australia, Bureau of Meteorology; http://www.bom.gov.au/other/copyright.shtml",
        citation="Commonwealth of Australia, Bureau of Meteorology (ABN 92 637 533 532)",
        url="http://www.bom.gov.au",
    )
    suffixes = (".nc",)
    _name = re.compile(r"(?P<radar>\d+)_(?P<time>\d{8}_\d{6})\.(?P<product>prcp-\w+)\.nc", re.IGNORECASE)

    def parse(self, name: str) -> FileName | None:
        """Return the time in the name, the end of the accumulation; the first number is the radar's."""
        return named(self._name.fullmatch(name), "%Y%m%d_%H%M%S")

    def read(self, path: Path) -> Composite:
        """Return the accumulation divided by its period."""
        with hdf.opened(path, "reading the Bureau's netCDF files") as file:
            data = hdf.dataset(file, "precipitation", (None, None), ("int16",))
            check_pixels(path, data.shape)
            end = int(hdf.dataset(file, "valid_time")[()])
            seconds = end - int(hdf.dataset(file, "start_time")[()])
            if seconds <= 0:
                raise SourceError(f"{path}: valid_time is {seconds} s after start_time; was the file edited?")
            if not 0 <= end < LATEST:
                raise unlike(path, "valid_time", end, f"seconds since 1970, below {LATEST}")
            raw = np.ascontiguousarray(data[...])
            fill = hdf.scalar(data.attrs, "_FillValue")
            gain, offset = hdf.scalar(data.attrs, "scale_factor", 1.0), hdf.scalar(data.attrs, "add_offset", 0.0)
            unit = str(hdf.scalar(data.attrs, "units", ""))
            station = hdf.scalar(file.attrs, "station_id")
            mapping = _attributes(file["proj"].attrs) if "proj" in file else {}
        if unit not in ("", "kg m-2", "mm"):
            raise unlike(path, "units of precipitation", unit, "kg m-2 or mm")
        radar = name.radar if (name := self.parse(path.name)) else ""
        if station is not None and radar and number_in(path, "station_id", station) != int(radar):
            raise unlike(path, "station_id", station, f"{radar}, as the file's name says")
        gain, offset = gain_in(path, "scale_factor", gain), number_in(path, "add_offset", offset)
        missing = () if fill is None else (code_in(path, "_FillValue", fill),)
        codes, clipped = _table(raw.dtype.str, gain, offset, float(seconds), missing, self.scale).apply(_unsigned(raw))
        facts = {"accumulation": f"{seconds} s", **({} if station is None else {"station_id": str(station)})}
        if mapping:
            facts["grid"] = str(mapping)
        return Composite(codes, clipped, datetime(1970, 1, 1) + timedelta(seconds=end), facts)

    def grid(self, path: Path) -> Grid | None:
        """Return the file's coordinates and grid mapping."""
        with hdf.opened(path, "reading the Bureau's netCDF files") as file:
            if any(name not in file for name in ("x", "y", "proj")):
                return None
            x, y = (np.asarray(file[name][...], dtype=np.float64) for name in "xy")
            units = str(hdf.scalar(file["x"].attrs, "units", "km"))
            mapping = _attributes(file["proj"].attrs)
        return grid_of(x, y, mapping, units)


def _attributes(attributes: Any) -> dict[str, Any]:
    """Those of a netCDF variable as plain Python."""
    return {
        str(name): [float(v) for v in value] if getattr(value, "size", 1) > 1 else hdf.scalar(attributes, name)
        for name, value in attributes.items()
    }


def _unsigned(raw: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the same bits as unsigned numbers, by which tables are indexed."""
    return raw.view(f"u{raw.dtype.itemsize}")


@functools.lru_cache(maxsize=8)
def _table(dtype: str, gain: float, offset: float, seconds: float, missing: tuple[int, ...], scale: Scale) -> Table:
    """Return the amounts gain * raw + offset, in mm of `seconds`, or of dBZ where that is 0: there are but 65,536
    different ones. By the unsigned number that has the same bits.
    """
    kind = np.dtype(dtype)
    numbers = np.arange(256**kind.itemsize).astype(f"u{kind.itemsize}").view(kind.newbyteorder("="))
    values = gain * numbers.astype(np.float64) + offset
    values[np.isin(numbers, missing)] = np.nan
    return table_of(rain_to_dbz(values * (3600 / seconds)) if seconds else values, scale)
