"""The frames of an archive or a store in time order: where a forecast takes its context from.

An archive is opened as `convert` opens it, by the source that its files look like and with the options that a store
was converted with, so that frames come out as they went into training. Splits have no meaning here and are undone.
What has a clock without two frames at one time is one series; of what hasn't (clips, events of several places) each
unbroken run is one, and the last is taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from shards.clock import moment_of, times_of_frames
from shards.errors import SourceError, UnnamedSourceError, UsageError
from shards.georeference import Grid
from shards.manifest import MANIFEST_NAME, Codes
from shards.plan_check import in_utc
from shards.sources import SOURCES, Description, PlannedEvent, Source, SourceEntry, cf
from shards.sources.base import add_dtype_argument, check_dtype
from shards.sources.choose import guess
from shards.sources.custom import custom_entry
from shards.sources.inputs import plural
from shards.sources.timeline import iso
from shards.store import Event, Store, open_store

# Options of a conversion that say what a frame is; the others say where it is from and how events are divided.
FRAME_OPTIONS = (
    *("crop", "size", "channels", "reader", "dbz", "variable", "group", "range", "no_echo", "missing", "dtype"),
    *("quantity", "unit", "band", "radar", "product", "name_pattern", "time_format"),
)
# Options of radar archives that only make sense with the reader that they were given for.
OF_READER = frozenset(("quantity", "unit", "band", "missing", "name_pattern", "time_format"))


@dataclass(frozen=True)
class Frame:
    """One frame: its time (UTC, without a zone; None without a clock), and where it is.

    `series` names what it may be shown together with; `file` is where it lies, where one file is one frame.
    """

    time: datetime | None
    series: str
    event: PlannedEvent | tuple[str, Event]
    place: int  # in the event
    file: Path | None = None

    def __str__(self) -> str:
        if self.time is not None:
            return iso(self.time)
        if self.file is None:
            return f"{self.key}@{self.place:04d}"
        return f"{self.file.absolute().parent.name}/{self.file.name}"  # its key is a number that nobody gave it

    @property
    def key(self) -> str:
        """Its event's."""
        return self.event.key if isinstance(self.event, PlannedEvent) else self.event[1].key


@dataclass(frozen=True)
class Archive:
    """An open archive or store; `frames` of one series follow each other in time."""

    where: str
    description: Description
    frames: tuple[Frame, ...]
    read_event: Callable[[Any], Codes]

    def grid(self) -> Grid | None:
        """Return where the frames lie, if the archive says so."""
        return self.description.grid

    def close(self) -> None:
        """Let go of files that were opened: a writer may be locked out of a netCDF file by who reads it."""
        cf.forget_opened()

    def read(self, frames: Sequence[Frame]) -> Codes:
        """Return frames as codes [L, C, H, W]. Raises SourceError or StoreError for a frame that can't be read."""
        parts = []
        for _, group in itertools.groupby(frames, key=lambda frame: frame.key):
            same = list(group)
            parts.append(self.read_event(same[0].event)[[frame.place for frame in same]])
        return np.concatenate(parts)

    def series(self, at: str | None = None) -> tuple[Frame, ...]:
        """Return the frames up to the moment `at`, of its series; None: of the last one.

        Args:
            at: a time, the key of an event, or what a frame without a time is called, FOLDER/FILE.

        Raises:
            SourceError: there are no frames.
            UsageError: no frame is of that moment; the nearest ones are named.
        """
        if not self.frames:
            raise SourceError(f"{self.where}: no frames")
        return self._until(self.frames[-1] if at is None else self._at(at))

    def _until(self, last: Frame) -> tuple[Frame, ...]:
        same = [frame for frame in self.frames if frame.series == last.series]
        return tuple(same[: same.index(last) + 1])

    def following(self, frame: Frame, count: int, step_seconds: float | None) -> tuple[Frame, ...]:
        """Return up to `count` frames that come after `frame` without a gap."""
        same = [other for other in self.frames if other.series == frame.series]
        begin = same.index(frame)
        part = same[begin : begin + count + 1]
        gaps = _gaps(part, step_seconds)
        return tuple(part[1 : gaps[0] if gaps else len(part)])

    def up_to(self, last: Frame, count: int, step_seconds: float | None) -> tuple[Frame, ...]:
        """Return the `count` frames that end with `last`, one every `step_seconds` (None: no clock, one after another).

        Raises:
            UsageError: there are fewer, or frames are missing between them.
        """
        series = self._until(last)
        part = series[-count:]
        if len(part) < count:
            raise UsageError(
                f"{self.where}: {plural(len(part), 'frame')} up to {part[-1]}, the model is shown {count}: wait for "
                "more, or name another moment with --at"
            )
        gaps = _gaps(part, step_seconds)
        if gaps and step_seconds is not None:
            raise UsageError(self._gap(series, part[gaps[-1] - 1], part[gaps[-1]], count, step_seconds))
        return part

    def _gap(self, series: Sequence[Frame], before: Frame, after: Frame, count: int, step_seconds: float) -> str:
        assert before.time is not None and after.time is not None
        seconds = (after.time - before.time).total_seconds()
        ends = (end for end in range(len(series), count - 1, -1) if not _gaps(series[end - count : end], step_seconds))
        end = next(ends, None)
        advice = (
            "no moment has that many" if end is None else f"the last moment with that many is --at {series[end - 1]}"
        )
        return (
            f"{self.where}: {seconds:g} s from the frame of {before} to that of {after}, should be {step_seconds:g} s: "
            f"the model is shown {count} frames without a gap; {advice}"
        )

    def _at(self, at: str) -> Frame:
        named = [frame for frame in self.frames if at in (frame.key, str(frame))]
        if named and not (len(named) == 1 and named[0].time is not None):
            return named[-1]
        try:
            moment = moment_of(at)
        except ValueError:
            raise UsageError(f"--at {at}: neither a time such as 2016-07-11T22:00 (UTC) nor an event's key") from None
        found = [frame for frame in self.frames if frame.time == moment]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(f"--at {at}: {len(found)} frames of that time; name an event: {found[0].key}, ...")
        timed = [frame for frame in self.frames if frame.time is not None]
        if not timed:
            keys = list(dict.fromkeys(frame.key for frame in self.frames))
            raise UsageError(f"--at {at}: {self.where} has no clock; name an event: {', '.join(keys[-5:])}")
        near = sorted(timed, key=lambda frame: abs((frame.time - moment).total_seconds()))[:2]  # type: ignore[operator]
        raise UsageError(
            f"--at {at}: no frame of that time; nearest: {' and '.join(sorted(str(frame) for frame in near))}"
        )


def _gaps(frames: Sequence[Frame], step_seconds: float | None) -> list[int]:
    """Places of the frames before which one is missing, as in timeline.find_runs: the step is half as long again as it
    should be, or half as long.
    """
    if step_seconds is None:
        return []
    steps = [
        (two.time - one.time).total_seconds() / step_seconds if one.time and two.time else 1.0
        for one, two in itertools.pairwise(frames)
    ]
    return [place for place, step in enumerate(steps, 1) if not 0.5 < step < 1.5]


def _is_store(path: str | Path) -> bool:
    return "://" in str(path) or (Path(path) / MANIFEST_NAME).exists()


def check_source(path: str | Path, recorded: Mapping[str, Any], source: str | None) -> None:
    """Refuse to open an archive by a file that a record names: a manifest or an export is data, which may be from
    anybody, and a source is a program. Only the name of a source of the toolkit is taken from a record.

    Args:
        path, recorded, source: as for `open_archive`.

    Raises:
        UnnamedSourceError: the record names anything else, no source was given, and `path` is no store.
    """
    named = recorded.get("source", "")
    if source is None and named not in ("", *SOURCES) and not _is_store(path):
        raise UnnamedSourceError(
            f"{path}: the model's store was made, says its record, by the source {str(named)[:200]!r}, none of the "
            f"toolkit's ({', '.join(SOURCES)}). No program is run because a file names it: if you have "
            "that source and trust it, add --source FILE.py, or name one of the toolkit's"
        )


def open_archive(
    path: str | Path, recorded: Mapping[str, Any], options: Sequence[str] = (), source: str | None = None
) -> Archive:
    """Open what lies at `path`: a store, or an archive that some source reads.

    Args:
        recorded: how the store was converted that the model learnt from (`manifest.conversion`): its FRAME_OPTIONS
            hold here too, if this archive is for the same source.
        options: of the source, as `convert` takes them; they go before what is recorded.
        source: its name, or a Python file of the user's; None: what the files look like.

    Raises:
        ShardError: no such archive, or one that can't be read.
        UnnamedSourceError: see `check_source`.
    """
    if _is_store(path):
        if options or source:
            raise UsageError(f"{path} is a store: its frames are as they are; leave {' '.join(options) or source} out")
        return _of_store(open_store(path))
    check_source(path, recorded, source)
    cf.forget_opened()
    if source is None:
        source = guess(Path(path), SOURCES)[0]
    entry = custom_entry(Path(source)) if source.endswith(".py") else SOURCES.get(source)
    if entry is None:
        raise UsageError(f"--source {source}: unknown; take one of {', '.join(SOURCES)}, or a file of your own")
    same = Path(source).name == Path(str(recorded.get("source", ""))).name
    return _of_source(_build(entry, source, Path(path), recorded if same else {}, options), Path(path))


def _build(entry: SourceEntry, name: str, path: Path, recorded: Mapping[str, Any], options: Sequence[str]) -> Source:
    parser = argparse.ArgumentParser(prog=f"... -- (options of {name})", allow_abbrev=False)
    parser.add_argument("input")
    entry.add_arguments(parser)
    add_dtype_argument(parser)
    words = [str(path), *options]
    known = {action.dest for action in parser._actions}
    taken = {key: value for key, value in recorded.items() if key in known and key in FRAME_OPTIONS}
    reader = taken.get("reader")
    if not OF_READER & taken.keys():
        taken.pop("reader", None)  # another service's composites may come
    args = parser.parse_args(words, argparse.Namespace(**taken))
    if "event_frames" in known and name != "video":  # one frame an event: none is decoded that isn't asked for
        args.event_frames = 1
    source = entry.build(args)
    if reader is not None and args.reader != reader:  # another service's composites: its own crop, not that one's
        args = parser.parse_args(words)
        args.event_frames = 1
        source = entry.build(args)
    check_dtype(args, source.describe())
    return source


def _of_source(source: Source, path: Path) -> Archive:
    description = source.describe()
    step = description.step_seconds
    events = [event for part in in_utc(source.plan(), step).splits.values() for event in part]
    events.sort(key=lambda event: (event.run or event.key, event.run_offset))
    frames = [
        Frame(time, event.run or event.key, event, place, _file_of(path, event, place))
        for event in events
        for place, time in enumerate(
            times_of_frames(event.length, event.start_time, event.times, step) or [None] * event.length
        )
    ]
    return Archive(str(path), description, _in_series(frames), lambda event: source.read(event).frames)


def _file_of(path: Path, event: PlannedEvent, place: int) -> Path | None:
    """Return the file of a frame, where the source's recipe is a name for each (cf's with #POSITION)."""
    if not event.listed:
        return None
    file = path / event.listed[place].partition("#")[0]
    return file if file.is_file() else None


def _of_store(store: Store) -> Archive:
    manifest = store.manifest
    description = Description(
        manifest.name,
        manifest.frames,
        manifest.step_seconds,
        manifest.scale,
        manifest.modes,
        manifest.source,
        manifest.grid,
    )
    frames = []
    for split in store.splits:
        for event in store.events(split):
            stamps = store.times(split, event.index)
            frames += [
                Frame(time, event.run, (split, event), place)
                for place, time in enumerate(stamps or [None] * event.length)
            ]

    def read(event: tuple[str, Event]) -> Codes:
        return store.read(event[0], event[1].index, 0, event[1].length)

    return Archive(str(store.path), description, _in_series(frames), read)


def _in_series(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """In time order as one series, if they have a clock and no two share a time; else series after series."""
    stamps = [frame.time for frame in frames if frame.time is not None]
    if len(set(stamps)) == len(frames):
        one = [dataclasses.replace(frame, series="") for frame in frames]
        return tuple(sorted(one, key=lambda frame: frame.time or datetime.min))
    return tuple(frames)
