"""What archives of named, independent sequences have in common (images, video): splits by name, modes by folder, long
sequences cut into consecutive events, and at gaps.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shards.errors import SourceError, UsageError
from shards.manifest import FrameSpec, Scale, SourceInfo
from shards.sources.base import Damage, Description, Plan, PlannedEvent
from shards.sources.geometry import Geometry, add_geometry_arguments
from shards.sources.inputs import plural
from shards.sources.splits import SPLIT_WORDS, Grouping, add_grouping_arguments, divide, grouping_of, named_split
from shards.sources.timeline import check_step, iso

_T = TypeVar("_T")


@dataclass(frozen=True)
class Sequence:
    """One sequence: its name is a relative path; `payload` has an entry per frame, which an event's recipe is cut
    from. A new run begins at every index in `breaks`; `times` (UTC) are of every frame, or empty.
    """

    name: str
    length: int
    payload: tuple[Any, ...]
    breaks: tuple[int, ...] = ()
    times: tuple[datetime, ...] = ()


@dataclass(frozen=True)
class SequenceOptions:
    """What `add_sequence_arguments` asked for."""

    grouping: Grouping
    event_frames: int
    mode_by: str
    info: SourceInfo


@dataclass(frozen=True)
class Sequences:
    """A source but for `read`: named sequences of one size, intensity 0..1; `missing`: some pixels have no value."""

    name: str
    folder: Path
    sequences: tuple[Sequence, ...]
    channels: int
    geometry: Geometry
    step_seconds: float | None
    options: SequenceOptions
    by_frame = False  # of its events
    notes: tuple[str, ...]
    missing: bool = False
    dtype: str = "uint8"
    skipped: tuple[Damage, ...] = ()  # damaged files that were left out

    def describe(self) -> Description:
        """Return grey or RGB intensity."""
        height, width = self.geometry.shape
        modes = {self._mode(sequence.name) for sequence in self.sequences}
        return Description(
            name=self.name,
            frames=FrameSpec(self.channels, height, width, self.dtype),
            step_seconds=self.step_seconds,
            scale=self.scale(),
            modes=tuple(sorted(mode for mode in modes if mode is not None)),
            source=self.options.info,
        )

    def scale(self) -> Scale:
        """Return what codes mean: intensities 0..1."""
        largest = int(np.iinfo(self.dtype).max)
        codes = (largest - 1, largest) if self.missing else (largest, None)
        return Scale("intensity", "1", 0.0, 1 / largest, *codes)

    def plan(self) -> Plan:
        """List sequences in the order of their names."""
        parts, notes = divide({sequence.name: sequence.length for sequence in self.sequences}, self.options.grouping)
        splits: dict[str, list[PlannedEvent]] = defaultdict(list)
        for index, sequence in enumerate(self.sequences):
            name = f"{index:06d}-{_slug(sequence.name)}"
            for part in parts[sequence.name]:
                edges = [part.begin, *(place for place in sequence.breaks if part.begin < place < part.end), part.end]
                for begin, end in itertools.pairwise(edges):
                    run = name if begin == 0 else f"{name}-{begin:06d}"
                    splits[part.split] += self._events(sequence, name, run, begin, end)
        ordered = {split: splits[split] for split in SPLIT_WORDS if split in splits}
        return Plan(ordered, (*self.notes, *notes))

    def _events(self, sequence: Sequence, name: str, run: str, begin: int, end: int) -> Iterator[PlannedEvent]:
        """Cut the run of frames [begin, end) into events."""
        for offset in range(begin, end, self.options.event_frames):
            length = min(self.options.event_frames, end - offset)
            times = sequence.times[offset : offset + length]
            yield PlannedEvent(
                key=f"{name}-{offset:06d}",
                length=length,
                mode=self._mode(sequence.name),
                run=run,
                run_offset=offset - begin,
                start_time=iso(times[0]) if times else None,
                times=self._irregular(times),
                recipe=self.recipe(sequence, offset, length),
                by_frame=self.by_frame,
            )

    def _irregular(self, times: tuple[datetime, ...]) -> tuple[str, ...] | None:
        """Return every frame's time, if that isn't what start and step say."""
        step = timedelta(seconds=self.step_seconds or 0.0)
        regular = all(time == times[0] + step * place for place, time in enumerate(times))
        return None if regular else tuple(iso(time) for time in times)

    def recipe(self, sequence: Sequence, offset: int, length: int) -> object:
        """Return what `read` needs for frames [offset, offset + length)."""
        return sequence.payload[offset : offset + length]

    def _mode(self, name: str) -> str | None:
        """Return the first folder of the name, below that of the split."""
        if self.options.mode_by == "none":
            return None
        folders = name.split("/")
        if len(folders) > 1 and named_split(name) is not None:
            folders = folders[1:]
        return folders[0]


def _slug(name: str) -> str:
    """Letters, digits and dashes; the end of a long name, which tells more."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[-48:].strip("-") or "sequence"


def add_sequence_arguments(parser: argparse.ArgumentParser, channels: bool = True) -> None:
    """Add what images, video and arrays take; arrays have no `channels` to choose."""
    add_geometry_arguments(parser, "none", None)
    if channels:
        parser.add_argument(
            "--channels", choices=("auto", "grey", "rgb"), default="auto", help="(default: as the files have them)"
        )
    parser.add_argument("--step", type=float, metavar="SECONDS", help="from frame to frame (default: not stated)")
    add_grouping_arguments(parser)
    parser.add_argument(
        "--event-frames",
        type=int,
        default=100,
        metavar="N",
        help="longest event; a longer sequence becomes several (default: %(default)s)",
    )
    parser.add_argument(
        "--mode-by",
        choices=("folder", "none"),
        default="none",
        help="label events by their first folder, for analysis (default: %(default)s)",
    )
    for name, default in (("licence", "not stated"), ("citation", "not stated"), ("url", "")):
        parser.add_argument(f"--{name}", default=default, help=f"for the manifest (default: {default or 'none'})")


def sequence_options(args: argparse.Namespace) -> SequenceOptions:
    """Return what `add_sequence_arguments` asked for. Raises UsageError for options that make no sense."""
    if args.event_frames < 1:
        raise UsageError(f"--event-frames {args.event_frames}: an event has at least one frame")
    check_step(args.step)
    info = SourceInfo(name="given by the user", licence=args.licence, citation=args.citation, url=args.url)
    return SequenceOptions(grouping_of(args), args.event_frames, args.mode_by, info)


def kept(
    files: Iterable[str], look: Callable[[str], _T], args: argparse.Namespace
) -> tuple[dict[str, _T], tuple[Damage, ...]]:
    """Look at every file; with `--on-error skip` those that are damaged are left out. Raises SourceError, where all are
    too.
    """
    found: dict[str, _T] = {}
    damages: list[Damage] = []
    for file in files:
        try:
            found[file] = look(file)
        except SourceError as error:
            if getattr(args, "on_error", "stop") != "skip":
                raise
            damages.append(Damage(file, 0, 1, str(error)))
    if damages and not found:
        raise SourceError(f"all of {plural(len(damages), 'file')} are damaged, the first: {damages[0].error}")
    return found, tuple(damages)
