"""How a variable of a CF dataset lies: which dimension is time, rows, columns and channels, which way they run, what
its values mean, and where its pixels lie on the earth. Datasets are opened here.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shards.errors import ShardError, SourceError, UsageError, printable
from shards.georeference import LONGLAT, Grid, grid_of
from shards.manifest import Scale
from shards.sources.inputs import need, plural
from shards.sources.radar_readers import DBZ, FINE_DBZ
from shards.sources.units import amount_factor, is_ambiguous, rate_factor, says_rain
from shards.sources.value_range import parse_range

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

ENGINES = ("netcdf4", "h5netcdf", "scipy")  # xarray's names of those that read them, in its order
LONGEST_TEXT = 2000  # characters of an attribute that is kept
CF_ERRORS = (  # what they raise for files that are damaged
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, OverflowError, MemoryError),
    NotImplementedError,
)
CALENDARS = ("standard", "gregorian", "proleptic_gregorian")  # those of real days
AXES = {
    "x": ("x", "lon", "longitude", "rlon", "grid_longitude", "projection_x_coordinate", "west_east", "easting"),
    "y": ("y", "lat", "latitude", "rlat", "grid_latitude", "projection_y_coordinate", "south_north", "northing"),
}


@dataclass(frozen=True)
class Layout:
    """How the variable lies in its files; dimensions by name.

    Attributes:
        time: the dimension, or the scalar variable where a file is one frame (`one_frame`).
        rows_turned, columns_turned: they run from south to north, from east to west.
        orientation: what says which way rows run: the y coordinate, latitudes, or nothing.
        shape: channels, height, width.
        is_rain: its names say so.
    """

    variable: str
    time: str
    one_frame: bool
    channel: str | None
    rows: str
    columns: str
    rows_turned: bool
    columns_turned: bool
    orientation: str
    shape: tuple[int, int, int]
    unit: str
    is_rain: bool

    @property
    def order(self) -> tuple[str, ...]:
        """The dimensions as frames have them: time, channel, rows, columns."""
        return (self.time, *([self.channel] if self.channel else []), self.rows, self.columns)

    def upright(self, array: DataArray) -> DataArray:
        """Return the variable with its dimensions in the frames' order; a lone frame gets its time as the first."""
        return (array.expand_dims(self.time) if self.one_frame else array).transpose(*self.order)


@functools.lru_cache(maxsize=2)
def opened(path: Path, group: str | None) -> Dataset:
    """Return the dataset, lazily. Raises SourceError if xarray can't open it, or its calendar lacks real days."""
    xarray = need("xarray", "cf", "reading CF datasets")
    with reading(path, "xarray can't open it"):
        if is_zarr(path):
            _refuse_pickles()
            raw = xarray.open_zarr(path, group=group, chunks=None, decode_cf=False)
        else:
            if not path.is_file():
                raise SourceError(f"{path}: not there any more; the archive has changed, convert again")
            options = {"engine": _engine(xarray, path), "group": group, "chunks": None, "cache": False}
            raw = xarray.open_dataset(path, decode_cf=False, **options)
        for name, variable in raw.variables.items():
            calendar = str(variable.attrs.get("calendar", CALENDARS[0])).lower()
            if calendar not in CALENDARS:
                raise SourceError(
                    f"{path}: {name} has the calendar {calendar}; frames need times of real days "
                    f"({', '.join(CALENDARS)}): convert its times first (xarray's convert_calendar)"
                )
        return xarray.decode_cf(raw)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn what xarray and the libraries below it raise for damaged files into a SourceError that names the file.

    Values are read when they are needed, so any look at them can fail.
    """
    try:
        yield
    except ShardError:
        raise
    except ImportError as error:
        raise SourceError(f"{path}: {error}; install what reads it: pip install 'modernn-toolkit[cf]'") from None
    except CF_ERRORS as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"{path}: {what} ({why}); for netCDF: pip install 'modernn-toolkit[cf]'; else fetch the file again"
        ) from None


def _refuse_pickles() -> None:
    """Zarr 2 knows a codec `pickle`, which runs what an archive holds; later versions of numcodecs refuse it too."""
    registry = need("numcodecs.registry", "cf", "reading zarr")
    codec = need("numcodecs.abc", "cf", "reading zarr").Codec

    class Refused(codec):  # type: ignore[misc, valid-type]
        codec_id = "pickle"

        def encode(self, data: object) -> object:
            raise ValueError("its codec `pickle` can hold programs, and is not read")

        decode = encode

    registry.register_codec(Refused)


def _engine(xarray: ModuleType, path: Path) -> str:
    """Return who reads a netCDF file. xarray would ask every installed backend, and some take more from beside the
    file: that of GRIB unpickles an index. Raises ValueError where none of NETCDF's knows it.
    """
    known = xarray.backends.list_engines()
    for name in ENGINES:
        if name in known and known[name].guess_can_open(path):
            return name
    raise ValueError(f"none of {', '.join(ENGINES)} that are installed here takes it for netCDF")


def is_zarr(path: Path) -> bool:
    """Return whether a folder is a zarr store."""
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata"))


def spans_of(data: Dataset) -> dict[str, tuple[str, bool]]:
    """Return the variables that could be frames: the time of each, and whether the file is one frame."""
    times = {name for name in data.variables if data[name].ndim == 1 and data[name].dtype.kind == "M"}
    moment = _scalar_time(data)
    return {str(name): span for name, array in data.data_vars.items() if (span := _span(array, times, moment))}


def layout_of(path: Path, data: Dataset, variable: str | None) -> Layout:
    """Find the variable: the one asked for, or the only one that has time and two more dimensions.

    Raises UsageError that lists what the dataset holds.
    """
    spans = spans_of(data)
    holds = ", ".join(f"{name}{list(array.dims)}" for name, array in data.data_vars.items()) or "nothing"
    if variable is None and len(spans) != 1:
        raise UsageError(
            f"{path}: {plural(len(spans), 'variable')} with time, y and x; name one with --variable; it holds {holds}"
        )
    name = variable or next(iter(spans))
    if name not in spans:
        raise UsageError(
            f"--variable {name}: {path} has {', '.join(spans) or 'none'} with a decoded time axis or a time of the "
            f"file, y and x (a channel may be there too); it holds {holds}"
        )
    time, one_frame = spans[name]
    array = data[name]
    channel, rows, columns = _dimensions(data, [str(dim) for dim in array.dims if one_frame or dim != time])
    turned, orientation = _rows_turned(data, array, rows, columns)
    across = _axis(data, columns)
    sizes = {str(dim): int(size) for dim, size in array.sizes.items()}
    return Layout(
        variable=name,
        time=time,
        one_frame=one_frame,
        channel=channel,
        rows=rows,
        columns=columns,
        rows_turned=turned,
        columns_turned=bool(across is not None and len(across) > 1 and across[0] > across[-1]),
        orientation=orientation,
        shape=(sizes[channel] if channel else 1, sizes[rows], sizes[columns]),
        unit=text_of(array.attrs.get("units", "")),
        is_rain=says_rain(name, *(array.attrs.get(key, "") for key in ("standard_name", "long_name", "description"))),
    )


def text_of(attribute: object) -> str:
    """Return an attribute as text that a manifest can hold: one line without control characters, and not endless."""
    parts = np.ravel(np.asarray(attribute, dtype=object)).tolist()
    line = printable(" ".join(" ".join(str(part) for part in parts).split()))
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 4]} ..."


def _span(array: DataArray, times: set[Hashable], moment: str | None) -> tuple[str, bool] | None:
    """Return the time of a variable that could be frames, and whether a file is one frame; None for others."""
    if array.dtype.kind not in "fiu":
        return None
    own = [dim for dim in array.dims if dim in times]
    if own and array.ndim in (3, 4):
        return str(own[0]), False
    if not own and moment is not None and array.ndim in (2, 3) and min(array.shape) > 0:
        named = any(kind_of(str(dim), {}) for dim in array.dims)
        return (moment, True) if named or array.ndim == 2 else None
    return None


def _scalar_time(data: Dataset) -> str | None:
    """Return the one time of the whole file: of several, the one that is named or described as `time`."""
    names = [str(name) for name in data.variables if data[name].ndim == 0 and data[name].dtype.kind == "M"]
    names += [
        str(name)
        for name in data.variables
        if data[name].dtype.kind == "M" and data[name].shape == (1,) and name not in data.dims
    ]
    told = [name for name in names if name == "time" or data[name].attrs.get("standard_name") == "time"]
    return told[0] if len(told) == 1 else (names[0] if len(names) == 1 else None)


def kind_of(name: str, attributes: dict[Any, Any]) -> str | None:
    """Return "x" or "y" for a dimension that is known as one by its CF attributes or its name."""
    said = {str(attributes.get(key, "")).lower() for key in ("axis", "standard_name")} | {name.lower()}
    return next((axis for axis, names in AXES.items() if said & {axis, *names}), None)


def _dimensions(data: Dataset, dims: Sequence[str]) -> tuple[str | None, str, str]:
    """Return channel, rows and columns of the dimensions that aren't time."""
    kinds = {dim: kind_of(dim, dict(data[dim].attrs) if dim in data.coords else {}) for dim in dims}
    x = next((dim for dim in dims if kinds[dim] == "x"), None)
    y = next((dim for dim in dims if kinds[dim] == "y"), None)
    if x is None or y is None:
        return (dims[0] if len(dims) == 3 else None), dims[-2], dims[-1]
    others = [dim for dim in dims if dim not in (x, y)]
    return (others[0] if others else None), y, x


def _axis(data: Dataset, dim: str) -> npt.NDArray[np.float64] | None:
    if dim not in data.variables or data[dim].ndim != 1 or data[dim].dtype.kind not in "fiu":
        return None
    return np.asarray(data[dim].values, dtype=np.float64)


def _rows_turned(data: Dataset, array: DataArray, rows: str, columns: str) -> tuple[bool, str]:
    """Return whether rows run from south to north, and what says so."""
    axis = _axis(data, rows)
    if axis is not None and len(axis) > 1:
        return bool(axis[0] < axis[-1]), f"the coordinate {rows}"
    for name, other in data.variables.items():
        named = other.attrs.get("standard_name") == "latitude" or str(name).lower() in (
            "lat",
            "latitude",
            "lats",
            "xlat",
        )
        if named and set(other.dims) == {rows, columns}:
            north = np.asarray(data[name].transpose(rows, columns).values, dtype=np.float64)
            return bool(np.nanmean(north[0]) < np.nanmean(north[-1])), f"the latitudes {name}"
    return False, ""


def facts_of(data: Dataset, layout: Layout) -> tuple[object, ...]:
    """Return what all files of an archive share: unit, coordinates and grid mapping."""
    array = data[layout.variable]
    axes = [None if (axis := _axis(data, dim)) is None else axis.tobytes() for dim in (layout.rows, layout.columns)]
    mapping = {str(key): str(value) for key, value in _mapping(data, array).items()}
    return (str(array.attrs.get("units", "")), *axes, tuple(sorted(mapping.items())))


def _mapping(data: Dataset, array: DataArray) -> dict[str, Any]:
    name = str(array.attrs.get("grid_mapping", array.encoding.get("grid_mapping", ""))).split(":")[0].strip()
    return dict(data[name].attrs) if name in data.variables else {}


def place_of(data: Dataset, layout: Layout) -> tuple[Grid | None, str]:
    """Return the grid of whole frames, north first, or None and why there is none."""
    x, y = _axis(data, layout.columns), _axis(data, layout.rows)
    if x is None or y is None:
        return None, f"{layout.rows} and {layout.columns} have no coordinates of one dimension"
    mapping = _mapping(data, data[layout.variable])
    attributes = [data[dim].attrs for dim in (layout.columns, layout.rows)]
    unit, other = (text_of(found.get("units", "")) for found in attributes)
    if unit and other and unit != other and not (unit.startswith("degree") and other.startswith("degree")):
        return None, f"{layout.columns} is in {unit}, {layout.rows} in {other}"
    rotated = any(str(found.get("standard_name", "")).startswith("grid_") for found in attributes)
    if not mapping and (rotated or not unit.startswith("degree")):
        return None, f"{layout.variable} names no grid_mapping"
    try:
        turned = y[::-1] if layout.rows_turned else y
        return grid_of(x[::-1] if layout.columns_turned else x, turned, mapping or LONGLAT, unit), ""
    except SourceError as error:
        return None, str(error)


def valid_limits(array: DataArray) -> tuple[float, float]:
    """Return the valid range of decoded values, by valid_range, valid_min and valid_max; infinite where there is none.

    Attributes of an integer type are of packed data, others of the values (CF conventions, 2.5.1).
    """
    attributes = array.attrs
    low, high = attributes.get("valid_range", (None, None))
    limits = [attributes.get("valid_min", low), attributes.get("valid_max", high)]
    gain = float(np.ravel(array.encoding.get("scale_factor", 1.0))[0])
    offset = float(np.ravel(array.encoding.get("add_offset", 0.0))[0])
    found = []
    for limit, otherwise in zip(limits, (-np.inf, np.inf), strict=True):
        if limit is None:
            found.append(float(otherwise))
            continue
        number = np.ravel(np.asarray(limit))[0]
        packed = np.asarray(number).dtype.kind in "iu" and np.dtype(array.encoding.get("dtype", "f8")).kind in "iu"
        found.append(gain * float(number) + offset if packed else float(number))
    return min(found), max(found)


def own_packing(array: DataArray) -> Scale | None:
    """Return the scale of a file's own numbers of 16 bits, packed or not, within its valid range; None for others."""
    kind = np.dtype(array.encoding.get("dtype", "f8"))
    gain = float(np.ravel(array.encoding.get("scale_factor", 1.0))[0])
    offset = float(np.ravel(array.encoding.get("add_offset", 0.0))[0])
    if kind.kind not in "iu" or kind.itemsize != 2 or gain <= 0:
        return None
    low, high = valid_limits(array)
    least = int(np.iinfo(kind).min)
    least += array.encoding.get("_FillValue") == least  # so that the other 65,535 numbers have codes
    first = max(least, math.ceil((low - offset) / gain - 1e-9) if math.isfinite(low) else -math.inf)
    last = min(np.iinfo(kind).max, math.floor((high - offset) / gain + 1e-9) if math.isfinite(high) else math.inf)
    greatest = min(int(last - first), 65534)  # 65535 is missing
    if greatest < 256:
        return None
    return Scale(
        str(array.name), text_of(array.attrs.get("units", "")) or "1", offset + gain * first, gain, greatest, 65535
    )


def coding(
    layout: Layout, given: str | None, seconds: float, dtype: str, packed: Scale | None
) -> tuple[Scale, float | None, str]:
    """Return the scale, the factor to mm/h if values are rain, and what to report.

    Args:
        given: --range.
        seconds: period of an accumulation.
        packed: see `own_packing`; for uint16 it does instead of a range.

    Raises:
        UsageError: a unit that doesn't say how to code values, and no range.
    """
    unit, dbz = layout.unit, FINE_DBZ if dtype == "uint16" else DBZ
    greatest, missing = np.iinfo(dtype).max - 1, np.iinfo(dtype).max
    if given is not None:
        try:
            low, high = parse_range(given)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"--range {error}") from None
        scale = Scale(layout.variable, unit or "1", low, (high - low) / greatest, greatest, missing)
        return scale, None, f"{layout.variable}: {low:g}..{high:g} {unit} are codes 0..{greatest}"
    if unit.lower().replace(" ", "") == "dbz":
        return dbz, None, f"{layout.variable}: 0..63.5 dBZ are codes 0..{dbz.max_code}"
    rate = None if is_ambiguous(unit) and not layout.is_rain else rate_factor(unit)
    amount = None if is_ambiguous(unit) and not layout.is_rain else amount_factor(unit)
    if dtype == "uint16" and packed is not None and rate is None and amount is None:
        low, high = packed.offset, packed.offset + packed.gain * packed.max_code
        return packed, None, f"{layout.variable}: the file's own numbers are codes, {low:g}..{high:g} {unit}"
    if is_ambiguous(unit) and not layout.is_rain:
        raise UsageError(
            f"{layout.variable} is in {unit}, which rain has, and much else: none of its names (standard_name, "
            "long_name) says rain or precipitation; give the range of its values, such as --range 0,60"
        )
    becomes = f"becomes dBZ by Z = 200 R^1.6; 0..63.5 are codes 0..{dbz.max_code}"
    if rate is not None:
        return dbz, rate, f"{layout.variable} in {unit} {becomes}"
    if amount is not None:
        return dbz, amount * 3600 / seconds, f"{layout.variable} in {unit} of {seconds:g} s each {becomes}"
    raise UsageError(
        f"{layout.variable} is in {unit or 'no stated unit'}, which says not how to code it; "
        "give the range of its values, such as --range 0,60"
        + ("" if packed is None else ", or keep the file's own numbers with --dtype uint16")
    )


def period_of(data: Dataset, layout: Layout, step_seconds: float) -> float:
    """Return the seconds of an accumulation: by the bounds of time where the file has them, else the step."""
    name = data[layout.time].attrs.get("bounds", data[layout.time].encoding.get("bounds"))
    if name in data.variables and data[name].dtype.kind == "M" and data[name].shape[-1:] == (2,):
        bounds = np.asarray(data[name].values).reshape(-1, 2)
        lengths = np.unique((bounds[:, 1] - bounds[:, 0]) / np.timedelta64(1, "s"))
        if len(lengths) == 1 and lengths[0] > 0:
            return float(lengths[0])
    return step_seconds
