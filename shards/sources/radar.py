"""Radar archives: a folder tree with one file per composite, on a time axis.

Frames are found by their names, put in time order, divided among splits, cut into runs where a frame is missing, and
each run into events. Formats are readers (radar_readers.py, radar_hdf.py, radar_grib.py); each has a default crop,
which the manifest records.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import SourceError, UsageError
from shards.manifest import Codes, FrameSpec, Scale
from shards.sources import timeline
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry
from shards.sources.geometry import Geometry, add_geometry_arguments, parse_crop, parse_size
from shards.sources.grid import Grid
from shards.sources.inputs import Listing, by, walk
from shards.sources.radar_grib import Mrms
from shards.sources.radar_hdf import Bom, Knmi
from shards.sources.radar_readers import FmiPgm, FrameReader, GreyImages, MeteoSwissGif

READERS: dict[str, FrameReader] = {
    reader.name: reader for reader in (MeteoSwissGif(), Knmi(), Bom(), FmiPgm(), Mrms(), GreyImages())
}


@dataclass(frozen=True)
class Radar:
    """A scanned archive. The size of its earliest frame is the archive's."""

    folder: Path
    reader: FrameReader
    geometry: Geometry
    step_seconds: float
    frames: tuple[timeline.Stamped, ...]
    options: timeline.TimeOptions
    notes: tuple[str, ...] = ()
    tile: int | None = None  # frames are divided into squares of this side, each an archive of its own

    def describe(self) -> Description:
        """One channel of reflectivity."""
        height, width = (self.tile, self.tile) if self.tile else self.geometry.shape
        return Description(
            name=f"radar-{self.reader.name}",
            frames=FrameSpec(channels=1, height=height, width=width),
            step_seconds=self.step_seconds,
            scale=self.reader.scale,
            modes=self.options.modes(self.frames),
            source=self.reader.source,
        )

    def plan(self) -> Plan:
        """Split, then cut at gaps, then into events."""
        plan = self.options.plan(self.frames, self.step_seconds)
        if self.tile is not None:
            plan = Plan({split: self._tiled(events, self.tile) for split, events in plan.splits.items()}, plan.notes)
        return dataclasses.replace(plan, notes=(*self.notes, *plan.notes))

    def _tiled(self, events: Sequence[PlannedEvent], side: int) -> list[PlannedEvent]:
        """Every event once for each square; what is left over at the lower and right edge is left out."""
        height, width = self.geometry.shape
        places = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
        tiled = [
            dataclasses.replace(
                event,
                key=f"{event.key}-{top:04d}-{left:04d}",
                run=f"{event.run}-{top:04d}-{left:04d}",
                recipe=(event.recipe, top, left),
            )
            for event in events
            for top, left in places
        ]
        return sorted(tiled, key=lambda event: event.key)

    def grid(self) -> Grid | None:
        """Of whole frames, after crop and size, as the earliest one has it."""
        whole = self.reader.grid(self.folder / self.frames[0].file)
        fits = whole is not None and (len(whole.y), len(whole.x)) == self.geometry.source
        return whole.cut(self.geometry) if whole is not None and fits else None

    def read(self, event: PlannedEvent) -> RawEvent:
        """Decode, crop and resize the event's files, uint8 [L, 1, height, width]; then cut its tile."""
        if self.tile is None:
            return RawEvent(self._whole(event.recipe))
        files, top, left = event.recipe
        frames = self._whole(files)[..., top : top + self.tile, left : left + self.tile]
        return RawEvent(np.ascontiguousarray(frames))

    def _whole(self, files: Sequence[str]) -> Codes:
        frames = np.empty((len(files), 1, *self.geometry.shape), dtype=np.uint8)
        for i, name in enumerate(files):
            codes = self.reader.read(self.folder / name)
            if codes.shape != self.geometry.source:
                raise SourceError(
                    f"{self.folder}: frames of two sizes: {self.frames[0].file} is {by(self.geometry.source)} pixels, "
                    f"{name} is {by(codes.shape)}; convert them as two archives"
                )
            frames[i, 0] = self.geometry.apply(codes)
        return frames


def scan(
    folder: Path, readers: Mapping[str, FrameReader], reader_name: str | None = None
) -> tuple[FrameReader, list[timeline.Stamped], list[str]]:
    """Find the frames below `folder`: the reader, frames in time order, and the files that are none.

    Raises SourceError if there are no frames, and UsageError if there are some of several formats and no name is given.
    """
    found = walk(folder)
    names = [reader_name] if reader_name else list(readers)
    known = {name: _stamped(found, readers[name]) for name in names}
    known = {name: frames for name, frames in known.items() if frames}
    if len(known) > 1:
        counts = ", ".join(f"{name} {len(frames)}" for name, frames in known.items())
        raise UsageError(f"{folder}: frames of several formats ({counts}); convert one after another with --reader")
    if not known:
        expected = ", ".join(f"{name}: {readers[name].looks_like}" for name in names)
        holds = f"{len(found)} files, the first is {found[0]}" if found else "no files"
        raise SourceError(f"{folder}: no radar frames; it has {holds}; known names ({expected})")
    ((name, stamped),) = known.items()
    frames = timeline.in_order(stamped)
    taken = {frame.file for frame in frames}
    return readers[name], frames, [file for file in found if file not in taken]


def _stamped(files: Sequence[str], reader: FrameReader) -> list[timeline.Stamped]:
    times = ((reader.time_of(file.rsplit("/", 1)[-1]), file) for file in files)
    return [timeline.Stamped(time, file) for time, file in times if time is not None]


def build(
    args: argparse.Namespace, readers: Mapping[str, FrameReader], reader_name: str | None, beside: str | None = None
) -> Radar:
    """A `Radar` from parsed options; the crop and the time step that it settles on are put into `args`.

    Files whose names end with `beside` belong to frames, and aren't told as passed over.
    """
    options = timeline.time_options(args)
    folder = Path(args.input)
    reader, frames, others = scan(folder, readers, reader_name)
    size = reader.read(folder / frames[0].file).shape
    args.reader = reader.name
    args.crop = args.crop or reader.crop
    step = args.step or timeline.commonest_step(frames, reader.step_seconds)
    notes = [f"{reader.name}: crop {args.crop} of {by(size)} pixels, a frame every {step:g} s"]
    if step != reader.step_seconds and not args.step:
        notes.append(f"the usual step of this format is {reader.step_seconds:g} s; say --step if {step:g} s is wrong")
    others = [name for name in others if beside is None or not name.endswith(beside)]
    if others:
        notes.append(f"{len(others)} other files are passed over, the first is {others[0]}")
    args.step = step
    geometry = Geometry((size[0], size[1]), parse_crop(args.crop, (size[0], size[1])), parse_size(args.size))
    geometry = dataclasses.replace(geometry, missing_code=reader.scale.missing_code)
    tile = getattr(args, "tiles", None)
    if tile is not None and not 1 <= tile <= min(geometry.shape):
        raise UsageError(f"--tiles {tile}: frames are {by(geometry.shape)} pixels after --crop and --size; give a side")
    return Radar(folder, reader, geometry, step, tuple(frames), options, tuple(notes), tile)


def add_radar_arguments(parser: argparse.ArgumentParser, crop: str | None, note: str) -> None:
    """What all radar archives take."""
    add_geometry_arguments(parser, crop, None, note)
    parser.add_argument(
        "--step", type=float, metavar="SECONDS", help="from frame to frame (default: the archive's commonest)"
    )
    parser.add_argument(
        "--tiles",
        type=int,
        default=argparse.SUPPRESS,  # so that the manifests of stores without tiles stay as they were
        metavar="SIDE",
        help="divide every frame into squares of SIDE pixels, each a sequence of its own: training at a small size; "
        "a forecast with --tile joins the tiles of large frames",
    )
    timeline.add_time_arguments(parser)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reader", choices=sorted(READERS), help="format of the files (default: by their names)")
    parser.add_argument(
        "--dbz",
        metavar="OFFSET,GAIN",
        help="for --reader images: dBZ = OFFSET + GAIN * grey (default: 15,0.5, as the ModeRNN authors' evaluation)",
    )
    crops = ", ".join(f"{name} {reader.crop}" for name, reader in READERS.items())
    add_radar_arguments(parser, None, f"by reader: {crops}")


def _build(args: argparse.Namespace) -> Source:
    readers = dict(READERS)
    if args.dbz is not None:
        readers["images"] = GreyImages(_dbz_scale(args.dbz))
    source = build(args, readers, args.reader)
    if args.dbz is not None and source.reader.name != "images":
        raise UsageError(f"--dbz: files of {source.reader.name} say themselves what their numbers mean; leave it out")
    return source


def _dbz_scale(text: str) -> Scale:
    try:
        offset, gain = (float(part) for part in text.split(","))
    except ValueError:
        offset, gain = 0.0, 0.0
    if not gain > 0:
        raise UsageError(f"--dbz {text}: give OFFSET,GAIN with a gain above 0, such as 0,0.25")
    return Scale(quantity="radar reflectivity", unit="dBZ", offset=offset, gain=gain)


def _guess(listing: Listing) -> str | None:
    counts = {name: len(_stamped(listing.files, reader)) for name, reader in READERS.items()}
    known = [f"{count} files named like {READERS[name].looks_like}" for name, count in counts.items() if count]
    return ", ".join(known) or None


ENTRY = SourceEntry(
    summary="radar composites (MeteoSwiss GIF, KNMI HDF5, BoM netCDF, FMI PGM, MRMS GRIB2, images NAME_TIME.png)",
    example="python -m shards convert radar ~/mch stores/mch --split train=..2015-12-31 --split test=2016-01-01..",
    add_arguments=_add_arguments,
    build=_build,
    input_help="folder of the archive; sub-folders are searched too",
    guess=_guess,
)
