"""Any CF dataset on a time axis that xarray opens: a zarr store, a netCDF file, or a folder of netCDF files.

What mlcast-style archives are: a variable [time, y, x] with units, scale and missing values in its attributes. xarray
decodes them, so a value here is physical, and NaN is missing. Codes are made by the variable's unit: dBZ in quarters;
rain rates as dBZ by Z = 200 R^1.6; anything else needs --range LOW,HIGH, which 0..254 then divide evenly. Rows run from
north to south: where the y coordinate ascends they are turned.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError, UsageError
from shards.manifest import FrameSpec, Scale, SourceInfo
from shards.sources import timeline
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry
from shards.sources.geometry import Geometry, add_geometry_arguments, parse_crop, parse_size
from shards.sources.grid import Grid
from shards.sources.inputs import Listing, by, need, plural, walk
from shards.sources.radar_readers import DBZ, rain_to_dbz

if TYPE_CHECKING:
    from xarray import Dataset

NETCDF = (".nc", ".nc4", ".cdf", ".netcdf")
ENGINES = ("netcdf4", "h5netcdf", "scipy")  # xarray's names of those that read them, in its order
RATES = {  # the unit without spaces and in small letters -> mm/h
    **dict.fromkeys(("mm/h", "mmh-1", "mm/hr", "mmhr-1", "mmhour-1", "mm/hour", "kgm-2h-1", "mmh**-1"), 1.0),
    **dict.fromkeys(("kgm-2s-1", "mms-1", "mm/s", "kg/m2/s"), 3600.0),
    **dict.fromkeys(("ms-1", "m/s"), 3.6e6),
}


@dataclass(frozen=True)
class Layout:
    """How the variable lies in its files; dimensions by name."""

    variable: str
    time: str
    channel: str | None
    rows_turned: bool
    shape: tuple[int, int, int]  # channels, height, width
    unit: str


@dataclass(frozen=True)
class CfArchive:
    """A dataset whose time axis is known. A frame's `file` is FILE#POSITION."""

    path: Path
    group: str | None
    layout: Layout
    rate_factor: float | None  # to mm/h; None for values that are coded as they are
    scale: Scale
    geometry: Geometry
    step_seconds: float
    frames: tuple[timeline.Stamped, ...]
    options: timeline.TimeOptions
    info: SourceInfo
    notes: tuple[str, ...]

    def describe(self) -> Description:
        """As the variable has it."""
        height, width = self.geometry.shape
        return Description(
            name=self.layout.variable,
            frames=FrameSpec(self.layout.shape[0], height, width),
            step_seconds=self.step_seconds,
            scale=self.scale,
            modes=self.options.modes(self.frames),
            source=self.info,
        )

    def plan(self) -> Plan:
        """Split, then cut at gaps, then into events."""
        plan = self.options.plan(self.frames, self.step_seconds)
        return Plan(plan.splits, (*self.notes, *plan.notes))

    def read(self, event: PlannedEvent) -> RawEvent:
        """Read, code, crop and resize one event, uint8 [L, C, height, width]; `details` say which share of the values
        lay outside the codes and was clipped.
        """
        places = [name.rpartition("#") for name in event.recipe]
        values = np.concatenate(
            [
                self._values(name, [int(place) for _, _, place in group])
                for name, group in itertools.groupby(places, key=lambda place: place[0])
            ]
        )
        if self.rate_factor is not None:
            values = rain_to_dbz(values * self.rate_factor)
        codes = self.geometry.apply(self.scale.to_code(values))
        low, high = self.scale.offset, self.scale.offset + self.scale.gain * self.scale.max_code
        half = abs(self.scale.gain) / 2
        clipped = float(((values < low - half) | (values > high + half)).mean())
        return RawEvent(codes, {"clipped": round(clipped, 6)} if clipped else {})

    def grid(self) -> Grid | None:
        """The variable's own coordinates and grid mapping, after crop and size."""
        name = self.frames[0].file.rpartition("#")[0]
        data = _opened(self.path / name if name else self.path, self.group)
        array = data[self.layout.variable]
        rows, columns = array.dims[-2:]
        if rows not in data.coords or columns not in data.coords:
            return None
        x, y = (np.asarray(data[axis].values, dtype=np.float64) for axis in (columns, rows))
        units = str(data[columns].attrs.get("units", "1"))
        mapping = array.attrs.get("grid_mapping", array.encoding.get("grid_mapping"))
        projection = dict(data[mapping].attrs) if mapping in data.variables else {}
        whole = Grid(x, y[::-1] if self.layout.rows_turned else y, units, projection)
        return whole.cut(self.geometry)

    def _values(self, name: str, places: list[int]) -> npt.NDArray[np.float64]:
        """Frames at `places` of one file, float64 [L, C, H, W], NaN where missing, north up."""
        layout = self.layout
        try:
            array = _opened(self.path / name if name else self.path, self.group)[layout.variable]
            ordered = places == list(range(places[0], places[0] + len(places)))
            where = slice(places[0], places[-1] + 1) if ordered else places
            values = np.asarray(array.isel({layout.time: where}).values, dtype=np.float64)
        except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
            if isinstance(error, SourceError):
                raise
            raise SourceError(
                f"{self.path / name}: frames {places[0]}..{places[-1]} of {layout.variable} can't be read ({error}); "
                "fetch the file again"
            ) from None
        values = values[:, None] if layout.channel is None else values
        if values.shape[1:] != layout.shape:
            raise SourceError(
                f"{self.path / name}: {layout.variable} has frames of {by(values.shape[1:])}, the archive's first has "
                f"{by(layout.shape)}; convert them as two archives"
            )
        return values[..., ::-1, :] if layout.rows_turned else values


@functools.lru_cache(maxsize=2)
def _opened(path: Path, group: str | None) -> Dataset:
    """The dataset, lazily. Raises SourceError if xarray can't open it."""
    xarray = need("xarray", "cf", "reading CF datasets")
    try:
        if _is_zarr(path):
            _refuse_pickles()
            return xarray.open_zarr(path, group=group, chunks=None)
        if not path.is_file():
            raise SourceError(f"{path}: not there any more; the archive has changed, convert again")
        return xarray.open_dataset(path, engine=_engine(xarray, path), group=group, chunks=None, cache=False)
    except ImportError as error:
        raise SourceError(f"{path}: {error}; install what reads it: pip install 'modernn-toolkit[cf]'") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{path}: xarray can't open it ({str(error).splitlines()[0]}); for netCDF: pip install "
            "'modernn-toolkit[cf]'; else fetch the file again"
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
    """Who reads a netCDF file. xarray would ask every installed backend, and some take more from beside the file: that
    of GRIB unpickles an index. Raises ValueError where none of NETCDF's knows it.
    """
    known = xarray.backends.list_engines()
    for name in ENGINES:
        if name in known and known[name].guess_can_open(path):
            return name
    raise ValueError(f"none of {', '.join(ENGINES)} that are installed here takes it for netCDF")


def forget_opened() -> None:
    """An archive that grows is to be looked at anew."""
    _opened.cache_clear()


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata"))


def _layout(path: Path, data: Dataset, variable: str | None) -> Layout:
    """Find the variable: the one asked for, or the only one that has time and two more dimensions."""
    times = {name for name in data.coords if data[name].ndim == 1 and data[name].dtype.kind == "M"}
    fitting = [
        str(name)
        for name, array in data.data_vars.items()
        if array.ndim in (3, 4) and array.dims[0] in times and array.dtype.kind in "fiu"
    ]
    holds = ", ".join(f"{name}{list(array.dims)}" for name, array in data.data_vars.items()) or "nothing"
    if variable is None and len(fitting) != 1:
        raise UsageError(
            f"{path}: {plural(len(fitting), 'variable')} with time, y and x; name one with --variable; it holds {holds}"
        )
    name = variable or fitting[0]
    if name not in fitting:
        raise UsageError(
            f"--variable {name}: {path} has {', '.join(fitting) or 'none'} with a decoded time axis first, then y and "
            f"x (a channel may stand between); it holds {holds}"
        )
    array = data[name]
    channel = str(array.dims[1]) if array.ndim == 4 else None
    rows: Hashable = array.dims[-2]
    turned = bool(rows in data.coords and array.shape[-2] > 1 and data[rows][0] < data[rows][-1])
    shape = (array.shape[1] if channel else 1, array.shape[-2], array.shape[-1])
    return Layout(name, str(array.dims[0]), channel, turned, shape, str(array.attrs.get("units", "")))


def _stamps(path: Path, name: str, data: Dataset, layout: Layout) -> list[timeline.Stamped]:
    stamps = data[layout.time].values
    if np.isnat(stamps).any():
        raise SourceError(f"{path / name}: {int(np.isnat(stamps).sum())} of its times are missing; repair the file")
    seconds: list[datetime] = stamps.astype("datetime64[s]").astype(datetime).tolist()
    return [timeline.Stamped(time, f"{name}#{i}") for i, time in enumerate(seconds)]


def _coding(layout: Layout, given: str | None) -> tuple[Scale, float | None, str]:
    """The scale, the factor to mm/h if values are rain rates, and what to tell. Raises UsageError."""
    unit = layout.unit
    if given is not None:
        try:
            low, high = (float(part) for part in given.split(","))
        except ValueError:
            low, high = 0.0, 0.0
        if not low < high:
            raise UsageError(f"--range {given}: give LOW,HIGH of the values, such as --range 0,60")
        scale = Scale(layout.variable, unit or "1", low, (high - low) / 254, max_code=254, missing_code=255)
        return scale, None, f"{layout.variable}: {low:g}..{high:g} {unit} are codes 0..254"
    short = unit.lower().replace(" ", "").replace("^", "")
    if short == "dbz":
        return DBZ, None, f"{layout.variable}: 0..63.5 dBZ are codes 0..254"
    if short in RATES:
        return DBZ, RATES[short], f"{layout.variable} in {unit} becomes dBZ by Z = 200 R^1.6; 0..63.5 are codes 0..254"
    raise UsageError(
        f"{layout.variable} is in {unit or 'no stated unit'}, which says not how to code it; "
        "give the range of its values, such as --range 0,60"
    )


def _source_info(path: Path, attributes: dict[str, object]) -> SourceInfo:
    def first(*names: str) -> str:
        return next((str(attributes[name]) for name in names if attributes.get(name)), "")

    return SourceInfo(
        name=first("title", "summary") or path.name,
        licence=first("license", "licence", "mlcast_dataset_license") or "not stated",
        citation=first("references", "citation", "institution", "source") or "not stated",
        url=first("url", "metadata_link", "further_info_url"),
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variable", metavar="NAME", help="(default: the only one with time, y and x)")
    parser.add_argument("--group", metavar="NAME", help="group of the file or store")
    parser.add_argument(
        "--range", metavar="LOW,HIGH", help="values of the codes 0..254 (default: by the unit, for dBZ and rain rates)"
    )
    parser.add_argument(
        "--step", type=float, metavar="SECONDS", help="from frame to frame (default: the archive's commonest)"
    )
    add_geometry_arguments(parser, "none", None)
    timeline.add_time_arguments(parser)


def _build(args: argparse.Namespace) -> Source:
    options = timeline.time_options(args)
    path = Path(args.input)
    names = [""]
    if not path.is_file() and not _is_zarr(path):
        names = [name for name in walk(path) if name.lower().endswith(NETCDF)]
        if not names:
            raise SourceError(f"{path}: neither a zarr store nor a folder with files {', '.join(NETCDF)}")
    data = _opened(path / names[0] if names[0] else path, args.group)
    layout = _layout(path / names[0], data, args.variable)
    args.variable = layout.variable
    scale, factor, note = _coding(layout, args.range)
    info = _source_info(path, dict(data.attrs))
    frames: list[timeline.Stamped] = []
    for name in names:
        data = _opened(path / name if name else path, args.group)
        if layout.variable not in data or layout.time not in data.coords:
            raise SourceError(f"{path / name}: no {layout.variable} on {layout.time}; move the file away")
        frames += _stamps(path, name, data, layout)
    frames = timeline.in_order(frames)
    args.step = args.step or timeline.commonest_step(frames, 0.0)
    if not args.step > 0:
        raise UsageError(f"{path}: {plural(len(frames), 'frame')}, which have no time step; say --step SECONDS")
    size = layout.shape[1:]
    geometry = Geometry(size, parse_crop(args.crop, size), parse_size(args.size), scale.missing_code)
    notes = [note, f"frames of {by(size)} pixels, one every {args.step:g} s"]
    if layout.rows_turned:
        notes.append("rows are turned: y ascends in the archive, the store has the north first")
    return CfArchive(
        path, args.group, layout, factor, scale, geometry, args.step, tuple(frames), options, info, tuple(notes)
    )


def _guess(listing: Listing) -> str | None:
    if _is_zarr(listing.root) and len(listing.files) > 1:
        return "a zarr store"
    files = [file for file in listing.files if file.lower().endswith(NETCDF)]
    return f"{plural(len(files), 'netCDF file')}, the first is {files[0]}" if files else None


ENTRY = SourceEntry(
    summary="any CF dataset on a time axis: zarr, netCDF",
    example="python -m shards convert cf ~/radar.zarr stores/radar --variable rainfall_rate --crop 384",
    add_arguments=_add_arguments,
    build=_build,
    input_help="zarr store, netCDF file, or folder of netCDF files",
    guess=_guess,
    generic=True,
)
