"""Radar archives: a folder tree with one file per composite, on a time axis.

Frames are found by their names, put in time order, divided among splits, cut into runs where a frame is missing, and
each run into events. Formats are readers (radar_readers.py); each has a default crop, which the manifest records. Every
file's header and size is compared with the first one's, and its time with its name's.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from shards.clock import times_of_frames
from shards.errors import SourceError, UsageError
from shards.georeference import Grid
from shards.manifest import Codes, FrameSpec, Scale, rounded_share
from shards.sources import timeline
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry, dtype_of
from shards.sources.geometry import Geometry, add_geometry_arguments, parse_crop, parse_size
from shards.sources.inputs import Listing, by, plural
from shards.sources.radar_geotiff import GeoTiff
from shards.sources.radar_grib import Mrms
from shards.sources.radar_hdf import Bom, Knmi
from shards.sources.radar_odim import Odim
from shards.sources.radar_pictures import FmiPgm, GreyImages, MeteoSwissGif
from shards.sources.radar_radolan import Radolan
from shards.sources.radar_readers import DBZ, FINE_DBZ, Composite, FrameReader
from shards.sources.radar_scan import naming_of, scan

# In the order in which they are asked whether a file's name is theirs: the last take any name that holds a time.
READERS: dict[str, FrameReader] = {
    reader.name: reader
    for reader in (MeteoSwissGif(), Knmi(), Bom(), FmiPgm(), Mrms(), Radolan(), GreyImages(), Odim(), GeoTiff())
}
NO_ECHO = ("missing", "zero")


@dataclass(frozen=True)
class Radar:
    """A scanned archive. The size and header of its earliest frame that can be read, `first`, are the archive's."""

    folder: Path
    reader: FrameReader
    geometry: Geometry
    step_seconds: float
    frames: tuple[timeline.Stamped, ...]
    options: timeline.TimeOptions
    first: str
    notes: tuple[str, ...] = ()
    tile: int | None = None  # frames are divided into squares of this side, each an archive of its own
    facts: Mapping[str, str] = field(default_factory=dict)  # of the first header
    place: Grid | None = None  # of whole frames, after crop and size
    no_echo: str = "missing"

    def describe(self) -> Description:
        """Return one channel of reflectivity. Tiles lie in different places, so a store of them has no grid."""
        height, width = (self.tile, self.tile) if self.tile else self.geometry.shape
        return Description(
            name=f"radar-{self.reader.name}",
            frames=FrameSpec(1, height, width, self.reader.scale.code_type.name),
            step_seconds=self.step_seconds,
            scale=self.reader.scale,
            modes=self.options.modes(self.frames),
            source=self.reader.source,
            grid=None if self.tile else self.place,
        )

    def plan(self) -> Plan:
        """Divide into splits, cut at gaps, then into events."""
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

    def read(self, event: PlannedEvent) -> RawEvent:
        """Decode, crop and resize the event's files, [L, 1, height, width]; then cut its tile. `details` say
        which share of the pixels lay above the codes and was clipped.
        """
        times = times_of_frames(event.length, event.start_time, event.times, self.step_seconds)
        assert times is not None  # names of radar frames have times
        if self.tile is None:
            frames, clipped = self._whole(event.recipe, times)
        else:
            files, top, left = event.recipe
            # The tiles of an event follow each other: it is decoded once for all of them.
            whole, clipped = _decoded_once(self, files, times)
            frames = np.ascontiguousarray(whole[..., top : top + self.tile, left : left + self.tile])
        return RawEvent(frames, {"clipped": rounded_share(clipped)} if clipped else {})

    def _whole(self, files: Sequence[str], times: Sequence[datetime]) -> tuple[Codes, float]:
        """All frames [L, 1, height, width], and the share of the files' pixels that was clipped."""
        frames: Codes = np.empty((len(files), 1, *self.geometry.shape), dtype=self.reader.scale.code_type)
        clipped = 0
        for i, (name, time) in enumerate(zip(files, times, strict=True)):
            composite = _first_or_read(self.reader, self.folder / name)
            self._check(name, time, composite)
            codes = composite.codes
            if self.no_echo == "zero" and self.reader.scale.missing_code is not None:
                codes = np.where(codes == self.reader.scale.missing_code, 0, codes).astype(codes.dtype)
            frames[i, 0] = self.geometry.apply(codes)
            clipped += composite.clipped
        height, width = self.geometry.source
        return frames, clipped / (len(files) * height * width)

    def _check(self, name: str, time: datetime, composite: Composite) -> None:
        first = self.first
        if composite.codes.shape != self.geometry.source:
            raise SourceError(
                f"{self.folder}: frames of two sizes: {first} is {by(self.geometry.source)} pixels, "
                f"{name} is {by(composite.codes.shape)}; convert them as two archives"
            )
        for fact in sorted({*self.facts, *composite.facts}):
            one, two = self.facts.get(fact, "nothing"), composite.facts.get(fact, "nothing")
            if one != two:
                raise SourceError(
                    f"{self.folder}: headers that contradict each other: {fact} is {one!r} in {first} and {two!r} in "
                    f"{name}; convert them as two archives, or move one away"
                )
        _check_time(self.folder, name, time, composite, self.step_seconds)


@functools.lru_cache(maxsize=1)
def _decoded(radar: _ByIdentity, files: tuple[str, ...], times: tuple[datetime, ...]) -> tuple[Codes, float]:
    return radar.it._whole(files, times)


@dataclass(frozen=True, eq=False)
class _ByIdentity:
    it: Radar

    def __hash__(self) -> int:
        return id(self.it)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.it is self.it


def _decoded_once(radar: Radar, files: Sequence[str], times: Sequence[datetime]) -> tuple[Codes, float]:
    return _decoded(_ByIdentity(radar), tuple(files), tuple(times))


_first: dict[tuple[str, Path, int], Composite] = {}  # the file that `build` looked at


def _first_or_read(reader: FrameReader, path: Path) -> Composite:
    """Return a file as read; the one that was read to learn the archive's size isn't read again."""
    known = _first.pop((repr(reader), path, path.stat().st_mtime_ns if path.exists() else 0), None)
    return reader.read(path) if known is None else known


def build(
    args: argparse.Namespace, readers: Mapping[str, FrameReader], reader_name: str | None, beside: str | None = None
) -> Radar:
    """Return a `Radar` from parsed options; the crop and the time step that it settles on are put into `args`.

    Files whose names end with `beside` belong to frames, and aren't reported as skipped.
    """
    options = timeline.time_options(args)
    folder = Path(args.input)
    found = scan(
        folder,
        readers,
        reader_name,
        naming=naming_of(args),
        radar=getattr(args, "radar", None),
        product=getattr(args, "product", None),
        beside=beside,
    )
    reader, frames = found.reader, found.frames
    step = args.step or timeline.commonest_step(frames, reader.step_seconds)
    skipping = getattr(args, "on_error", "stop") == "skip"
    candidates = frames[: args.skip_limit + 1 if skipping else 1]
    first, composite = _first_readable(folder, reader, candidates, step)
    path = folder / first
    if dtype_of(args) == "uint16" and reader.scale == DBZ:
        reader = _finer(reader, path)
        composite = _read_first(folder, reader, next(frame for frame in candidates if frame.file == first), step)
    _first.clear()
    _first[repr(reader), path, path.stat().st_mtime_ns] = composite
    size = (composite.codes.shape[0], composite.codes.shape[1])
    args.reader = reader.name
    args.crop = args.crop or reader.crop
    notes = [f"{reader.name}: crop {args.crop} of {by(size)} pixels, a frame every {step:g} s"]
    if step != reader.step_seconds and not args.step:
        notes.append(f"the usual step of this format is {reader.step_seconds:g} s; say --step if {step:g} s is wrong")
    said = [f"{name} {value}" for name, value in composite.facts.items() if value and name != "grid"]
    notes += [f"header: {', '.join(said)}"] * bool(said)
    notes += found.notes
    args.step = step
    geometry = Geometry(size, parse_crop(args.crop, size), parse_size(args.size), reader.scale.missing_code)
    tile = getattr(args, "tiles", None)
    if tile is not None and not 1 <= tile <= min(geometry.shape):
        raise UsageError(f"--tiles {tile}: frames are {by(geometry.shape)} pixels after --crop and --size; give a side")
    place, why = _place(reader, path, geometry)
    notes.append(why if place is None else f"grid: {place.proj4}")
    no_echo = getattr(args, "no_echo", None) or "missing"
    facts = composite.facts
    return Radar(folder, reader, geometry, step, frames, options, first, tuple(notes), tile, facts, place, no_echo)


def _finer(reader: FrameReader, path: Path) -> FrameReader:
    """Return a reader whose codes are uint16: the files' own numbers where they have 16 bits, else finer ones."""
    own = reader.own_scale(path) if isinstance(reader, Odim | GeoTiff) else None
    return dataclasses.replace(reader, scale=own or FINE_DBZ)  # type: ignore[type-var]


def _first_readable(
    folder: Path, reader: FrameReader, frames: Sequence[timeline.Stamped], step_seconds: float
) -> tuple[str, Composite]:
    """Return the first of some frames that isn't damaged. Raises the SourceError of the last one if all are."""
    for frame in frames[:-1]:
        with suppress(SourceError):
            return frame.file, _read_first(folder, reader, frame, step_seconds)
    return frames[-1].file, _read_first(folder, reader, frames[-1], step_seconds)


def _read_first(folder: Path, reader: FrameReader, frame: timeline.Stamped, step_seconds: float) -> Composite:
    composite = reader.read(folder / frame.file)
    _check_time(folder, frame.file, frame.time, composite, step_seconds)
    return composite


def _check_time(folder: Path, name: str, time: datetime, composite: Composite, step_seconds: float) -> None:
    if composite.time is not None and abs((composite.time - time).total_seconds()) > step_seconds / 2:
        raise SourceError(
            f"{folder}: {name}: the header's time is {timeline.iso(composite.time)}, the name says "
            f"{timeline.iso(time)}; was it renamed? Say --time-format, or move it away"
        )


def _place(reader: FrameReader, path: Path, geometry: Geometry) -> tuple[Grid | None, str]:
    """Return the grid of frames, or None and why there is none."""
    try:
        whole = reader.grid(path)
    except SourceError as error:
        return None, f"the grid isn't kept: {error}"
    if whole is None:
        return None, "the files don't say where they lie: the store has no grid"
    if (whole.height, whole.width) != geometry.source:
        return None, (
            f"the grid isn't kept: the format's has {whole.height}x{whole.width} pixels, these frames have "
            f"{by(geometry.source)}"
        )
    return geometry.place(whole), ""


def add_radar_arguments(parser: argparse.ArgumentParser, crop: str | None, note: str) -> None:
    """Add what all radar archives take. Options without a default leave the manifests of stores without them alone."""
    add_geometry_arguments(parser, crop, None, note)
    parser.add_argument(
        "--step", type=float, metavar="SECONDS", help="from frame to frame (default: the archive's commonest)"
    )
    parser.add_argument(
        "--tiles",
        type=int,
        default=argparse.SUPPRESS,
        metavar="SIDE",
        help="divide every frame into squares of SIDE pixels, each a sequence of its own: training at a small size; "
        "a forecast with --tile joins the tiles of large frames",
    )
    parser.add_argument(
        "--no-echo",
        choices=NO_ECHO,
        default=argparse.SUPPRESS,
        help="what the archive's missing code means: missing, or zero: observed without an echo (default: missing)",
    )
    timeline.add_time_arguments(parser)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reader", choices=sorted(READERS), help="format of the files (default: by their names)")
    parser.add_argument(
        "--dbz",
        metavar="OFFSET,GAIN",
        help="for images and geotiff: dBZ = OFFSET + GAIN * number (default of images: 15,0.5, as the ModeRNN authors' "
        "evaluation; of geotiff: what the file says)",
    )
    for name, metavar, text in (
        ("--name-pattern", "REGEX", "with --reader: names of frames; the group `time` (or the first) is the time"),
        (
            "--time-format",
            "FORMAT",
            "with --reader: the time in names, as strptime has it, such as %%Y%%m%%d%%H%%M (UTC)",
        ),
        ("--radar", "ID", "of a folder with files of several radars, the one to convert"),
        ("--product", "NAME", "of a folder with files of several products, the one to convert"),
        ("--quantity", "NAME", "for odim: DBZH, TH, RATE, ACRR, or datasetN, of a file with several"),
        ("--unit", "UNIT", "for geotiff that doesn't state it: dBZ, or a rain rate such as mm/h"),
    ):
        parser.add_argument(name, metavar=metavar, default=argparse.SUPPRESS, help=text)
    for name, text in (
        ("--band", "for geotiff with several bands: which, from 1"),
        ("--missing", "for images: the grey value of pixels without observation"),
    ):
        parser.add_argument(
            name, type=int, metavar="CODE" if name == "--missing" else "N", default=argparse.SUPPRESS, help=text
        )
    crops = ", ".join(f"{name} {reader.crop}" for name, reader in READERS.items())
    add_radar_arguments(parser, None, f"by reader: {crops}")


# Options that only some readers take.
_OF_READERS = {
    "dbz": ("images", "geotiff"),
    "quantity": ("odim",),
    "unit": ("geotiff",),
    "band": ("geotiff",),
    "missing": ("images",),
}


def _build(args: argparse.Namespace) -> Source:
    given = {name: value for name in _OF_READERS if (value := getattr(args, name, None)) is not None}
    linear = _linear(given["dbz"]) if "dbz" in given else None
    readers = dict(READERS)
    readers["images"] = GreyImages(_grey_scale(linear, given.get("missing"), dtype_of(args)))
    readers["odim"] = Odim(given.get("quantity"))
    readers["geotiff"] = GeoTiff(given.get("band"), linear, given.get("unit"))
    source = build(args, readers, args.reader)
    if source.reader.name == "images" and dtype_of(args) == "uint16" and linear is None:
        raise UsageError("--dtype uint16: say what the numbers of the images mean, with --dbz OFFSET,GAIN")
    for name in given:
        if source.reader.name not in _OF_READERS[name]:
            raise UsageError(
                f"--{name}: for {' and '.join(_OF_READERS[name])}; files of {source.reader.name} say themselves what "
                "their numbers mean; leave it out"
            )
    return source


def _linear(text: str) -> tuple[float, float]:
    try:
        offset, gain = (float(part) for part in text.split(","))
    except ValueError:
        offset, gain = 0.0, 0.0
    if not (math.isfinite(offset) and 0 < gain < math.inf):
        raise UsageError(f"--dbz {text}: give OFFSET,GAIN, two numbers with a gain above 0, such as 0,0.25")
    return offset, gain


def _grey_scale(linear: tuple[float, float] | None, missing: int | None, dtype: str) -> Scale:
    largest = int(np.iinfo(dtype).max)
    scale = dataclasses.replace(GreyImages().scale, max_code=largest)
    if linear is not None:
        scale = dataclasses.replace(scale, offset=linear[0], gain=linear[1])
    if missing is None:
        return scale
    if not 0 <= missing <= largest:
        raise UsageError(f"--missing {missing}: grey values are 0..{largest}")
    return dataclasses.replace(scale, missing_code=missing, max_code=largest - (missing == largest))


def _guess(listing: Listing) -> str | None:
    counts: dict[str, int] = {}
    for file in listing.files:
        last = file.rsplit("/", 1)[-1]
        name = next((name for name, reader in READERS.items() if reader.parse(last) is not None), None)
        if name is not None:
            counts[name] = counts.get(name, 0) + 1
    known = [f"{plural(count, 'file')} named like {READERS[name].looks_like}" for name, count in counts.items()]
    return ", ".join(known) or None


ENTRY = SourceEntry(
    summary="radar composites (MeteoSwiss GIF, KNMI HDF5, BoM netCDF, FMI PGM, MRMS GRIB2, RADOLAN, ODIM HDF5, "
    "GeoTIFF, images NAME_TIME.png)",
    example="python -m shards convert radar ~/mch stores/mch --split train=..2015-12-31 --split test=2016-01-01..",
    add_arguments=_add_arguments,
    build=_build,
    input_help="folder of the archive; sub-folders are searched too",
    guess=_guess,
)
