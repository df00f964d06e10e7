"""The reader of ODIM HDF5 composites (OPERA data information model, versions 2.0 to 2.4): OPERA's own, and those of
RMI, DWD (`*-hd5`), MeteoSwiss' open data and others. See radar_readers.py for what a reader is.

/what says object, date and time, /where the grid, /datasetN/what or /datasetN/dataM/what the quantity with its gain,
offset, nodata (outside the radars' reach: missing) and undetect (observed, no echo). A file may hold several
quantities: the one asked for is read, or the only one that is reflectivity or rain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError, UsageError
from shards.georeference import Grid, grid_of, project
from shards.manifest import Scale, SourceInfo
from shards.sources import hdf
from shards.sources.inputs import plural
from shards.sources.radar_readers import (
    DBZ,
    Composite,
    FileName,
    Values,
    bare,
    check_pixels,
    coded,
    gain_in,
    number_in,
    own_scale,
    rain_to_dbz,
    side_in,
    time_in,
    timestamp,
    unlike,
)

REFLECTIVITY = ("DBZH", "TH", "DBZV", "TV", "DBZ", "DBZH_CLEAN")
RAIN = {"RATE": 1.0}  # mm/h
AMOUNT = ("ACRR",)  # mm of the time from startdate to enddate
OBJECTS = ("COMP", "IMAGE", "CVOL", "RR", "VP")  # on a grid: not a polar volume or scan


@dataclass(frozen=True)
class Field:
    """One dataset of a file: where it lies, and the attributes of the `what` groups above it, the nearest first."""

    path: str
    what: dict[str, Any]

    @property
    def quantity(self) -> str:
        return str(self.what.get("quantity", "unnamed")).strip()


@dataclass(frozen=True)
class Odim:
    """See the module's docstring; `quantity` is the one asked for, or None."""

    quantity: str | None = None

    name = "odim"
    scale: Scale = DBZ
    step_seconds = 300.0
    crop = "none"
    looks_like = "T_PAAH21_C_EUOC_20180824180000.hdf"
    suffixes = (".h5", ".hdf", ".hdf5", ".hd5", "-hd5", ".odim")
    source = SourceInfo(
        name="Radar composite in ODIM HDF5",
        licence="not stated",
        citation="the service that the file's /what/source names; format: EUMETNET OPERA data information model",
        url="https://www.eumetnet.eu/activities/observations-programme/current-activities/opera",
    )
    _swiss = re.compile(r"(?P<product>[a-z]{3})(?P<time>\d{9})[0-9a-z]{1,2}[._].*", re.IGNORECASE)

    def parse(self, name: str) -> FileName | None:
        """Return the time, YYYYmmddHHMM[SS] anywhere, or MeteoSwiss' three letters, year, day of the year, hour and
        minute.
        """
        if not bare(name).endswith(self.suffixes) or name.upper().startswith("RAD_NL"):  # KNMI has a layout of its own
            return None
        found = time_in(name)
        if found is None and (match := self._swiss.fullmatch(name)):
            time = timestamp(match["time"], "%y%j%H%M")
            found = None if time is None else FileName(time, "", match["product"].upper())
        return found

    def read(self, path: Path) -> Composite:
        """Return the quantity asked for, or the only one."""
        with hdf.opened(path, "reading ODIM HDF5") as file:
            top = self._header(path, file)
            field = self._field(path, file)
            data = hdf.dataset(file, field.path, (None, None))
            check_pixels(path, data.shape)
            raw = data[...]
            where = _where(file, field.path)
        what = field.what
        gain, offset = (
            gain_in(path, "gain", what.get("gain"), 1.0),
            number_in(path, "offset", what.get("offset"), 0.0),
        )
        nodata, undetect = (
            number_in(path, name, what[name], finite=False) if name in what else None for name in ("nodata", "undetect")
        )
        rain = None if field.quantity.upper() in REFLECTIVITY else self._rate_factor(path, field)

        def to_dbz(numbers: npt.NDArray[Any]) -> Values:
            values = gain * numbers.astype(np.float64) + offset
            if nodata is not None:
                values[numbers == nodata] = np.nan
            if undetect is not None:  # of a number that stands for both, what was observed counts
                values[numbers == undetect] = self.scale.offset
            return values if rain is None else rain_to_dbz(values * rain)

        codes, clipped = coded(raw, to_dbz, self.scale)
        facts = {"quantity": field.quantity, "object": top["object"], "product": str(field.what.get("product", ""))}
        facts["grid"] = str({name: where[name] for name in _GRID_FACTS if name in where})
        return Composite(codes, clipped, top["time"], facts)

    def own_scale(self, path: Path) -> Scale | None:
        """Return the scale of the file's own reflectivities of 16 bits; None for others."""
        with hdf.opened(path, "reading ODIM HDF5") as file:
            field = self._field(path, file)
            dtype = hdf.dataset(file, field.path, (None, None)).dtype
        if field.quantity.upper() not in REFLECTIVITY:
            return None
        gain, offset = (
            number_in(path, name, field.what.get(name), otherwise)
            for name, otherwise in (("gain", 1.0), ("offset", 0.0))
        )
        return own_scale(dtype, gain, offset)

    def grid(self, path: Path) -> Grid | None:
        """Return the grid between the corners of /where, in its projection."""
        with hdf.opened(path, "reading ODIM HDF5") as file:
            where = _where(file, self._field(path, file).path)
        needed = ("projdef", "xsize", "ysize", "xscale", "yscale")
        if any(name not in where for name in needed):
            return None
        corner = next((name for name in ("UL", "LL") if f"{name}_lon" in where and f"{name}_lat" in where), None)
        if corner is None:
            return None
        projdef = str(where["projdef"])
        names = (f"{corner}_lon", f"{corner}_lat", "xscale", "yscale")
        lon, lat, wide, high = (number_in(path, name, where[name]) for name in names)
        left, edge = project(projdef, lon, lat)
        wide, high = abs(wide), abs(high)
        columns, rows = (side_in(path, name, where[name]) for name in ("xsize", "ysize"))
        top = edge if corner == "UL" else edge + high * rows
        return grid_of(left + wide * (np.arange(columns) + 0.5), top - high * (np.arange(rows) + 0.5), projdef)

    def _header(self, path: Path, file: Any) -> dict[str, Any]:
        if "what" not in file or "object" not in file["what"].attrs:
            holds = ", ".join(list(file)[:8]) or "nothing"
            raise SourceError(f"{path}: no ODIM HDF5: it has no /what with an object; it holds {holds}")
        what = file["what"].attrs
        kind = str(hdf.scalar(what, "object")).strip()
        if kind not in OBJECTS:
            raise unlike(path, "object", kind, f"a composite or image on a grid ({', '.join(OBJECTS[:2])})")
        stamp = f"{hdf.scalar(what, 'date', '')}{hdf.scalar(what, 'time', '')}".replace("\x00", "")
        return {"object": kind, "time": timestamp(stamp, "%Y%m%d%H%M%S")}

    def _field(self, path: Path, file: Any) -> Field:
        """Return the dataset to read. Raises UsageError that lists what the file holds, where the quantity isn't
        clear.
        """
        fields = _fields(file)
        holds = ", ".join(f"{field.quantity} ({field.path})" for field in fields) or "none"
        if self.quantity is not None:
            asked, below = self.quantity.upper(), f"{self.quantity.strip('/')}/"
            found = [field for field in fields if field.quantity.upper() == asked or f"{field.path}/".startswith(below)]
        else:
            known = (*REFLECTIVITY, *RAIN, *AMOUNT)
            found = [field for field in fields if field.quantity.upper() in known]
        if len(found) != 1:
            what = "reflectivity or rain" if self.quantity is None else f"--quantity {self.quantity}"
            raise UsageError(
                f"{path}: {plural(len(found), 'dataset')} of {what}; name one with --quantity QUANTITY or --quantity "
                f"datasetN; it holds {holds}"
            )
        if found[0].quantity.upper() not in (*REFLECTIVITY, *RAIN, *AMOUNT):
            raise UsageError(
                f"{path}: --quantity {self.quantity}: neither reflectivity nor rain, which this source takes "
                f"({', '.join((*REFLECTIVITY[:2], *RAIN, *AMOUNT))}); it holds {holds}"
            )
        return found[0]

    @staticmethod
    def _rate_factor(path: Path, field: Field) -> float:
        """Return the factor to mm/h. Raises SourceError for an amount without a period."""
        if field.quantity.upper() in RAIN:
            return RAIN[field.quantity.upper()]
        start, end = (
            timestamp(f"{field.what.get(f'{which}date', '')}{field.what.get(f'{which}time', '')}", "%Y%m%d%H%M%S")
            for which in ("start", "end")
        )
        if start is None or end is None or end - start <= timedelta(0):
            raise unlike(path, "startdate..enddate", f"{start} .. {end}", "the period of the accumulation")
        return 3600 / (end - start).total_seconds()


_GRID_FACTS = ("projdef", "xsize", "ysize", "xscale", "yscale", "UL_lon", "UL_lat", "LL_lon", "LL_lat")


def _fields(file: Any) -> list[Field]:
    """Return every /datasetN/dataM/data, and /datasetN/data of files with one level less."""
    found = []
    for name in sorted((key for key in file if re.fullmatch(r"dataset\d+", key)), key=lambda key: int(key[7:])):
        group = file[name]
        inner = sorted((key for key in group if re.fullmatch(r"data\d+", key)), key=lambda key: int(key[4:]))
        for key in inner or [""]:
            place = group[key] if key else group
            if "data" in place:
                what = {**_plain(file.get("what")), **_plain(group.get("what")), **_plain(place.get("what"))}
                found.append(Field(f"{name}/{key}/data" if key else f"{name}/data", what))
    return found


def _where(file: Any, path: str) -> dict[str, Any]:
    """Return the attributes of /where, and of the dataset's own, which come first."""
    return {**_plain(file.get("where")), **_plain(file[path.split("/")[0]].get("where"))}


def _plain(group: Any) -> dict[str, Any]:
    return {} if group is None else {str(name): hdf.scalar(group.attrs, name) for name in group.attrs}
