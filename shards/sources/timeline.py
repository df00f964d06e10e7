"""Archives on a time axis: frames with time stamps -> splits -> unbroken runs -> events.

All times are UTC, as datetimes without a zone. A frame lies in one split at most, so an event does too; and an event
has one mode, so a run is cut where the mode changes, as it is where an event would get too long.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from shards.errors import SourceError, UsageError
from shards.manifest import SPLIT_PATTERN
from shards.sources.base import Plan, PlannedEvent
from shards.sources.inputs import plural
from shards.sources.splits import DEFAULT_TEST, DEFAULT_VAL, Shares, add_share_arguments, shares_of

MODES = ("season", "month", "day", "none")
SEASONS = ("dec-feb", "mar-may", "jun-aug", "sep-nov")  # the paper's two radar modes are mar-may and jun-aug


@dataclass(frozen=True, slots=True)
class Stamped:
    """A frame in time: `file` is where it comes from, for messages and for reading it."""

    time: datetime
    file: str


@dataclass(frozen=True)
class Period:
    """START <= time < END belongs to `split`; None is open."""

    split: str
    start: datetime | None
    end: datetime | None

    def holds(self, time: datetime) -> bool:
        return (self.start is None or time >= self.start) and (self.end is None or time < self.end)


def parse_period(text: str) -> Period:
    """`train=2015-01-01..2015-12-31`: ISO months, dates or times (UTC); either side may be left empty.

    A bare month or date as END includes it; an END with a time of day is the first moment that no longer belongs.
    Raises UsageError.
    """
    match = re.fullmatch(r"([^=]+)=(.*)\.\.(.*)", text)
    if not match or not SPLIT_PATTERN.fullmatch(match[1]):
        raise UsageError(f"--split {text!r}: expected NAME=START..END, such as --split train=2015-01-01..2015-12-31")
    start, end = _moment(text, match[2]), _moment(text, match[3])
    if end is not None and re.fullmatch(r"\d{4}-\d\d", match[3]):
        end = (end + timedelta(days=31)).replace(day=1)
    elif end is not None and re.fullmatch(r"[\d-]+", match[3]):
        end += timedelta(days=1)
    if start is not None and end is not None and start >= end:
        raise UsageError(f"--split {text!r}: ends before it starts")
    return Period(match[1], start, end)


def _moment(text: str, part: str) -> datetime | None:
    if not part:
        return None
    month = re.fullmatch(r"\d{4}-\d\d", part)
    try:
        moment = datetime.fromisoformat(part + "-01" if month else part.removesuffix("Z"))
    except ValueError:
        raise UsageError(f"--split {text!r}: {part!r} is no ISO date or time; write 2015-05-15T12:00") from None
    if moment.tzinfo is not None:
        raise UsageError(f"--split {text!r}: times are UTC; write {part!r} without its offset")
    return moment


def in_order(frames: Iterable[Stamped]) -> list[Stamped]:
    """Sorted by time. Raises SourceError when two frames claim the same time."""
    ordered = sorted(frames, key=lambda frame: (frame.time, frame.file))
    for one, two in itertools.pairwise(ordered):
        if one.time == two.time:
            raise SourceError(
                f"two frames for {iso(one.time)}: {one.file} and {two.file}; move one away, then convert again"
            )
    return ordered


def assign_splits(
    frames: Sequence[Stamped], periods: Sequence[Period], shares: Shares | None = None
) -> tuple[dict[str, list[Stamped]], int]:
    """Frames of each split, and how many lie in none. Without periods: by shares of the frames, the first train.

    Raises UsageError when a frame lies in two splits, or a split gets none.
    """
    if not periods:
        counts = (shares or Shares(DEFAULT_VAL, DEFAULT_TEST)).counts(len(frames))
        ends = [0, *itertools.accumulate(counts.values())]
        parts = {name: list(frames[a:b]) for name, a, b in zip(counts, ends, ends[1:], strict=False)}
        return {name: part for name, part in parts.items() if part}, 0
    splits: dict[str, list[Stamped]] = {period.split: [] for period in periods}
    left_out = 0
    for frame in frames:
        names = {period.split for period in periods if period.holds(frame.time)}
        if len(names) > 1:
            raise UsageError(f"{iso(frame.time)} lies in {' and '.join(sorted(names))}; keep the --split ranges apart")
        for name in names:
            splits[name].append(frame)
        left_out += not names
    for name, part in splits.items():
        if not part:
            span = f"{iso(frames[0].time)} to {iso(frames[-1].time)}"
            raise UsageError(f"--split {name}: no frame lies in it; the archive runs from {span}")
    return splits, left_out


def find_runs(frames: Sequence[Stamped], step_seconds: float) -> list[list[Stamped]]:
    """Cut where the next frame is missing, that is where the step is half as long again as it should be (or half as
    long).
    """
    runs: list[list[Stamped]] = []
    for frame in frames:
        step = (frame.time - runs[-1][-1].time).total_seconds() / step_seconds if runs else 0.0
        if 0.5 < step < 1.5:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs


def cut_events(run: Sequence[Stamped], length: int, step_seconds: float, mode_by: str) -> list[PlannedEvent]:
    """Consecutive events of at most `length` frames and of one mode; their recipe is the tuple of files. The run is
    named by its first key.
    """
    events: list[PlannedEvent] = []
    offset = 0
    for mode, group in itertools.groupby(run, key=lambda frame: mode_label(frame.time, mode_by)):
        frames = list(group)
        for begin in range(0, len(frames), length):
            part = frames[begin : begin + length]
            events.append(
                PlannedEvent(
                    key=_key(part[0].time),
                    length=len(part),
                    mode=mode,
                    run=_key(run[0].time),
                    run_offset=offset,
                    start_time=iso(part[0].time),
                    times=_irregular(part, step_seconds),
                    recipe=tuple(frame.file for frame in part),
                )
            )
            offset += len(part)
    return events


def mode_label(time: datetime, mode_by: str) -> str | None:
    """ "2015-05-15" by day, "month-05" by month and "mar-may" by season (of any year), None by "none"."""
    if mode_by == "day":
        return f"{time:%Y-%m-%d}"
    if mode_by == "month":
        return f"month-{time:%m}"
    return SEASONS[time.month % 12 // 3] if mode_by == "season" else None


def commonest_step(frames: Sequence[Stamped], otherwise: float) -> float:
    """Seconds between most neighbours (the shorter of two as common); `otherwise` where there is but one frame."""
    steps = Counter((two.time - one.time).total_seconds() for one, two in itertools.pairwise(frames))
    return max(steps, key=lambda step: (steps[step], -step)) if steps else otherwise


@dataclass(frozen=True)
class TimeOptions:
    """What `add_time_arguments` asked for."""

    periods: tuple[Period, ...]
    shares: Shares | None
    event_frames: int
    mode_by: str

    def plan(self, frames: Sequence[Stamped], step_seconds: float) -> Plan:
        """Split, then cut at gaps, then into events; `frames` are in order."""
        parts, left_out = assign_splits(frames, self.periods, self.shares)
        gaps = len(find_runs(frames, step_seconds)) - 1
        first, last = iso(frames[0].time), iso(frames[-1].time)
        notes = [f"{plural(len(frames), 'frame')} from {first} to {last}, {plural(gaps, 'gap')} in time"]
        if left_out:
            notes.append(f"in no --split, so left out: {plural(left_out, 'frame')}")
        splits = {}
        for name, part in parts.items():
            runs = find_runs(part, step_seconds)
            splits[name] = [
                event for run in runs for event in cut_events(run, self.event_frames, step_seconds, self.mode_by)
            ]
            notes.append(f"{name}: frames {len(part)}, unbroken runs {len(runs)}, events {len(splits[name])}")
        return Plan(splits, tuple(notes))

    def modes(self, frames: Iterable[Stamped]) -> tuple[str, ...]:
        """The labels that occur."""
        labels = {mode_label(frame.time, self.mode_by) for frame in frames}
        return tuple(sorted(label for label in labels if label is not None))


def add_split_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """--split; `default` says what happens without."""
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=START..END",
        help="UTC period of a split, repeated: train=2015-01-01..2015-12-31; a bare date as END includes that day, an "
        f"END with a time of day doesn't belong; a split may have several periods (default: {default})",
    )


def add_time_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that all archives on a time axis have."""
    add_split_argument(parser, "shares of the frames, the first of them train, then val, then test")
    add_share_arguments(parser, "the frames")
    parser.add_argument(
        "--event-frames",
        type=int,
        default=40,
        metavar="N",
        help="longest event; a longer run becomes several (default: %(default)s)",
    )
    parser.add_argument(
        "--mode-by",
        choices=MODES,
        default="none",
        help="label events for analysis: by season (the paper's modes are mar-may and jun-aug), month or day "
        "(default: %(default)s)",
    )


def time_options(args: argparse.Namespace) -> TimeOptions:
    """Raises UsageError for options that make no sense, alone or together."""
    if args.event_frames < 1:
        raise UsageError(f"--event-frames {args.event_frames}: an event has at least one frame")
    shares = shares_of(args)
    if args.split and shares is not None:
        raise UsageError("--split and --val-fraction or --test-fraction: two ways to divide the archive; choose one")
    return TimeOptions(tuple(parse_period(text) for text in args.split), shares, args.event_frames, args.mode_by)


def _irregular(part: Sequence[Stamped], step_seconds: float) -> tuple[str, ...] | None:
    """Every frame's time, if that isn't what start and step say."""
    if all(part[0].time + timedelta(seconds=step_seconds * i) == frame.time for i, frame in enumerate(part)):
        return None
    return tuple(iso(frame.time) for frame in part)


def _key(time: datetime) -> str:
    return f"{time:%Y%m%dT%H%M%SZ}"


def times_of(event: PlannedEvent, step_seconds: float) -> list[datetime]:
    """The time of every frame of an event that has a clock."""
    if event.times is not None:
        return [datetime.fromisoformat(text.removesuffix("Z")) for text in event.times]
    assert event.start_time is not None
    start = datetime.fromisoformat(event.start_time.removesuffix("Z"))
    return [start + timedelta(seconds=step_seconds * i) for i in range(event.length)]


def iso(time: datetime) -> str:
    """ISO-8601 with a Z."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
