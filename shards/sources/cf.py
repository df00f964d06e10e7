"""Any CF dataset on a time axis that xarray opens: a zarr store, a netCDF file, or a folder of netCDF files.

What mlcast-style archives are: a variable with time, y and x, and units, scale and missing values in its attributes; a
file may also be one frame with a scalar time. xarray decodes them, so a value here is physical, and NaN is missing, as
is what lies outside valid_range. Codes are made by the variable's unit: dBZ in quarters; rain rates, and amounts of a
known period, as dBZ by Z = 200 R^1.6; anything else needs --range LOW,HIGH, which 0..254 (uint16: 0..65534) then divide
evenly. Rows run from north to south: where y or the latitudes ascend they are turned (cf_layout.py).
"""

from __future__ import annotations

import argparse
import itertools
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError, UsageError
from shards.georeference import Grid
from shards.manifest import FrameSpec, Scale, SourceInfo, rounded_share
from shards.sources import timeline
from shards.sources.base import Damage, Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry, dtype_of
from shards.sources.cf_layout import (
    Layout,
    coding,
    facts_of,
    is_zarr,
    layout_of,
    opened,
    own_packing,
    period_of,
    place_of,
    reading,
    spans_of,
    text_of,
    valid_limits,
)
from shards.sources.geometry import Geometry, add_geometry_arguments, parse_crop, parse_size
from shards.sources.inputs import Listing, by, plural, walk
from shards.sources.radar_readers import DBZ, FINE_DBZ, check_pixels, rain_to_dbz
from shards.sources.sequences import kept

if TYPE_CHECKING:
    from xarray import Dataset

UNREADABLE = "its coordinates and attributes can't be read"
NETCDF = (".nc", ".nc4", ".cdf", ".netcdf")


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
    place: Grid | None
    no_echo: str
    skipped: tuple[Damage, ...] = ()  # damaged files that were left out

    def describe(self) -> Description:
        """Return what the variable and its attributes say."""
        height, width = self.geometry.shape
        return Description(
            name=self.layout.variable,
            frames=FrameSpec(self.layout.shape[0], height, width, self.scale.code_type.name),
            step_seconds=self.step_seconds,
            scale=self.scale,
            modes=self.options.modes(self.frames),
            source=self.info,
            grid=self.place,
        )

    def plan(self) -> Plan:
        """Divide into splits, cut at gaps, then into events."""
        plan = self.options.plan(self.frames, self.step_seconds)
        return Plan(plan.splits, (*self.notes, *plan.notes))

    def read(self, event: PlannedEvent) -> RawEvent:
        """Read, code, crop and resize one event, [L, C, height, width]; `details` say which share of the values
        lay outside the codes and was clipped.
        """
        places = [name.rpartition("#") for name in event.recipe]
        values = np.concatenate(
            [
                self._values(name, [int(place) for _, _, place in group])
                for name, group in itertools.groupby(places, key=lambda place: place[0])
            ]
        )
        codes = self.geometry.apply(self.scale.to_code(values))
        low, high = self.scale.offset, self.scale.offset + self.scale.gain * self.scale.max_code
        half = abs(self.scale.gain) / 2
        outside = values > high + half
        if self.scale not in (DBZ, FINE_DBZ):  # below 0 dBZ there is no echo that counts
            outside |= values < low - half
        clipped = float(outside.mean())
        return RawEvent(codes, {"clipped": rounded_share(clipped)} if clipped else {})

    def _values(self, name: str, places: list[int]) -> npt.NDArray[np.float64]:
        """Frames at `places` of one file, float64 [L, C, H, W], NaN where missing, north up; rain as dBZ."""
        layout = self.layout
        what = f"frames {places[0]}..{places[-1]} of {layout.variable} can't be read"
        with reading(self.path / name, what):
            array = opened(self.path / name if name else self.path, self.group)[layout.variable]
            ordered = places == list(range(places[0], places[0] + len(places)))
            where = slice(places[0], places[-1] + 1) if ordered else places
            part = layout.upright(array).isel({layout.time: where})
            check_pixels(self.path / name, part.shape[1:])
            values = np.array(part.values, dtype=np.float64)
            low, high = valid_limits(array)
        values = values[:, None] if layout.channel is None else values
        if values.shape[1:] != layout.shape:
            raise SourceError(
                f"{self.path / name}: {layout.variable} has frames of {by(values.shape[1:])}, the archive's first has "
                f"{by(layout.shape)}; convert them as two archives"
            )
        gone = np.isnan(values)
        values[(values < low) | (values > high)] = np.nan
        if self.rate_factor is not None:
            values = rain_to_dbz(values * self.rate_factor)
        if self.no_echo == "zero":
            values[gone] = self.scale.offset
        values = values[..., ::-1, :] if layout.rows_turned else values
        return values[..., ::-1] if layout.columns_turned else values


def forget_opened() -> None:
    """Let go of the datasets that are open: their files may be written, and are opened again."""
    opened.cache_clear()


def _stamps(path: Path, name: str, data: Dataset, layout: Layout) -> list[timeline.Stamped]:
    stamps = np.atleast_1d(data[layout.time].values)
    if np.isnat(stamps).any():
        raise SourceError(f"{path / name}: {int(np.isnat(stamps).sum())} of its times are missing; repair the file")
    seconds: list[datetime] = stamps.astype("datetime64[s]").astype(datetime).tolist()
    return [timeline.Stamped(time, f"{name}#{i}") for i, time in enumerate(seconds)]


def _source_info(path: Path, attributes: dict[str, object]) -> SourceInfo:
    def first(*names: str) -> str:
        return next((text for name in names if (text := text_of(attributes.get(name, "")))), "")

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
        "--range",
        metavar="LOW,HIGH",
        help="values of the codes 0..254, of uint16 0..65534 (default: by the unit, for dBZ and rain rates)",
    )
    parser.add_argument(
        "--step", type=float, metavar="SECONDS", help="from frame to frame (default: the archive's commonest)"
    )
    parser.add_argument(
        "--no-echo",
        choices=("missing", "zero"),
        default=argparse.SUPPRESS,
        help="what NaN and _FillValue mean: missing, or zero: observed without an echo (default: missing)",
    )
    add_geometry_arguments(parser, "none", None)
    timeline.add_time_arguments(parser)


def _build(args: argparse.Namespace) -> Source:
    options = timeline.time_options(args)
    path = Path(args.input)
    names = [""]
    if not path.is_file() and not is_zarr(path):
        names = [name for name in walk(path) if name.lower().endswith(NETCDF)]
        if not names:
            raise SourceError(f"{path}: neither a zarr store nor a folder with files {', '.join(NETCDF)}")
    first = _first_readable(path, names, args)
    data = opened(path / first, args.group)
    with reading(path / first, UNREADABLE):
        layout = layout_of(path / first, data, args.variable)
        check_pixels(path / first, layout.shape)
        args.variable = layout.variable
        info = _source_info(path, dict(data.attrs))
        place, why = place_of(data, layout)
        expected = facts_of(data, layout)

    def frames_in(name: str) -> list[timeline.Stamped]:
        with reading(path / name, UNREADABLE):
            return _frames(path, name, args.group, layout, first, expected)

    stamps, skipped = kept(names, frames_in, args)
    frames = timeline.in_order(itertools.chain.from_iterable(stamps.values()))
    args.step = args.step or timeline.commonest_step(frames, 0.0)
    if not args.step:
        raise UsageError(f"{path}: {plural(len(frames), 'frame')}, which have no time step; say --step SECONDS")
    with reading(path / first, UNREADABLE):
        data = opened(path / first, args.group)
        period, packing = period_of(data, layout, args.step), own_packing(data[layout.variable])
    scale, factor, note = coding(layout, args.range, period, dtype_of(args), packing)
    size = layout.shape[1:]
    geometry = Geometry(size, parse_crop(args.crop, size), parse_size(args.size), scale.missing_code)
    notes = [note, f"frames of {by(size)} pixels, one every {args.step:g} s", *_orientation(layout)]
    notes.append(f"grid: {place.proj4}" if place is not None else f"the store has no grid: {why}")
    return CfArchive(
        path=path,
        group=args.group,
        layout=layout,
        rate_factor=factor,
        scale=scale,
        geometry=geometry,
        step_seconds=args.step,
        frames=tuple(frames),
        options=options,
        info=info,
        notes=tuple(notes),
        place=None if place is None else geometry.place(place),
        no_echo=getattr(args, "no_echo", "missing"),
        skipped=skipped,
    )


def _first_readable(path: Path, names: list[str], args: argparse.Namespace) -> str:
    """Return the first file; with `--on-error skip` the first that holds the variable, or frames at all."""
    if getattr(args, "on_error", "stop") != "skip":
        return names[0]
    for name in names:
        with suppress(SourceError):
            spans = spans_of(opened(path / name, args.group))
            if spans and args.variable in (None, *spans):
                return name
    return names[0]


def _frames(
    path: Path, name: str, group: str | None, layout: Layout, first: str, expected: tuple[object, ...]
) -> list[timeline.Stamped]:
    """Return the frames of a file, which is compared with the `first` one's facts. Raises SourceError."""
    data = opened(path / name, group)
    if layout.variable not in data or layout.time not in data.variables:
        raise SourceError(f"{path / name}: no {layout.variable} on {layout.time}; move the file away")
    for what, one, two in zip(
        ("units", "rows' coordinate", "columns' coordinate", "grid mapping"),
        expected,
        facts_of(data, layout),
        strict=True,
    ):
        if one != two:
            shown = f" ({one} and {two})" if what == "units" else ""
            raise SourceError(
                f"{path}: {first} and {name} differ in the {what}{shown}; convert them as two archives, or move one "
                "away"
            )
    return _stamps(path, name, data, layout)


def _orientation(layout: Layout) -> list[str]:
    """Return what to report of how frames are turned."""
    notes = []
    if layout.rows_turned:
        notes.append(
            f"rows are turned: by {layout.orientation} they ascend to the north, the store has the north first"
        )
    elif not layout.orientation:
        notes.append(
            f"which way is north is unknown: {layout.rows} has no coordinate and there are no latitudes; rows stay as "
            "they are"
        )
    if layout.columns_turned:
        notes.append(f"columns are turned: {layout.columns} descends, the store has the west first")
    return notes


def _guess(listing: Listing) -> str | None:
    if is_zarr(listing.root) and len(listing.files) > 1:
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
