"""Archives on a time axis: frames with time stamps -> splits -> unbroken runs -> events.

All times are UTC, as datetimes without a zone. A frame lies in one split at most, so an event does too; and an event
has one mode, so a run is cut where the mode changes, as it is where an event would get too long.
"""

from __future__ import annotations

import argparse
import itertools
import math
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


WINDOW = 20  # frames: the usual context of 10 and horizon of 10


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
    """Parse `train=2015-01-01..2015-12-31`: ISO months, dates or times (UTC); either side may be left empty.

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
    """Return the frames sorted by time. Raises SourceError when two frames claim the same time."""
    ordered = sorted(frames, key=lambda frame: (frame.time, frame.file))
    for one, two in itertools.pairwise(ordered):
        if one.time == two.time:
            raise SourceError(
                f"two frames for {iso(one.time)}: {one.file} and {two.file}; move one away, then convert again"
            )
    return ordered


def share_out(
    frames: Sequence[Stamped], shares: Shares, gap: int, step_seconds: float
) -> tuple[dict[str, list[Stamped]], str]:
    """Return splits by shares of the frames, in time order train, val, test, and what to report of them.

    Frames of two splits are more than `gap` steps apart, so that no window of one overlaps or adjoins one of another:
    whole storms (runs that are further apart than that) where there are enough, else `gap` frames are left out between
    splits. An archive that would lose more than half of its frames that way is divided without a gap.
    """
    counts = {name: count for name, count in shares.counts(len(frames)).items() if count}
    storms = _storms(frames, gap * step_seconds) if gap else []
    if len(storms) >= len(counts) > 1 and (ends := _storm_ends(storms, counts)) is not None:
        parts = {name: list(frames[a:b]) for name, a, b in zip(counts, [0, *ends], ends, strict=False)}
        return parts, f"splits of whole storms: {plural(len(storms), 'storm')} more than {gap} frames apart"
    cuts = len(counts) - 1
    kept = len(frames) - cuts * gap
    if cuts and gap and (kept < len(frames) / 2 or not all(shares.counts(kept)[name] for name in counts)):
        ends = list(itertools.accumulate(counts.values()))
        parts = {name: list(frames[a:b]) for name, a, b in zip(counts, [0, *ends], ends, strict=False)}
        return parts, (
            f"warning: the splits adjoin: {len(frames)} frames are too few for gaps of {gap} between them "
            "(--split-gap), so that scores of val and test are too good; name periods with --split"
        )
    usable = shares.counts(kept)
    parts, begin, dropped = {}, 0, 0
    for name in counts:
        first = begin
        while begin and first - begin < gap and _seconds(frames[begin - 1], frames[first]) <= gap * step_seconds:
            first += 1
        dropped += first - begin
        begin = len(frames) if name == list(counts)[-1] else first + usable[name]
        parts[name] = list(frames[first:begin])
    return parts, f"left out between splits: {plural(dropped, 'frame')} (--split-gap {gap})" if dropped else ""


def _storms(frames: Sequence[Stamped], seconds: float) -> list[int]:
    """Return the number of frames of each part that is more than `seconds` away from its neighbours."""
    breaks = [i for i, (one, two) in enumerate(itertools.pairwise(frames), 1) if _seconds(one, two) > seconds]
    return [b - a for a, b in itertools.pairwise([0, *breaks, len(frames)])]


def _seconds(one: Stamped, two: Stamped) -> float:
    return (two.time - one.time).total_seconds()


def _storm_ends(storms: Sequence[int], counts: dict[str, int]) -> list[int] | None:
    """Return where each split ends if storms stay whole, nearest to its share; None if the first one gets much less
    than its share, or another less than half of it.
    """
    totals = list(itertools.accumulate(storms))
    targets = list(itertools.accumulate(counts.values()))
    ends: list[int] = []
    place = -1
    for number, target in enumerate(targets[:-1], 1):
        later = len(targets) - number  # splits that need a storm each after this one
        place = min(range(place + 1, len(totals) - later), key=lambda i: abs(totals[i] - target))
        ends.append(totals[place])
    ends.append(totals[-1])
    others = zip(itertools.pairwise(ends), [*counts.values()][1:], strict=True)
    too_few = ends[0] < targets[0] - 0.15 * totals[-1] or any(end - begin < share / 2 for (begin, end), share in others)
    return None if too_few else ends


def assign_splits(frames: Sequence[Stamped], periods: Sequence[Period]) -> tuple[dict[str, list[Stamped]], int]:
    """Return the frames of each split's periods, and how many lie in none.

    Raises UsageError when a frame lies in two splits, or a split gets none.
    """
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
    """Return consecutive events of at most `length` frames and of one mode; their recipe is the tuple of files. The run
    is named by its first key.
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
                    by_frame=True,
                )
            )
            offset += len(part)
    return events


def mode_label(time: datetime, mode_by: str) -> str | None:
    """Return "2015-05-15" by day, "month-05" by month and "mar-may" by season (of any year), None by "none"."""
    if mode_by == "day":
        return f"{time:%Y-%m-%d}"
    if mode_by == "month":
        return f"month-{time:%m}"
    return SEASONS[time.month % 12 // 3] if mode_by == "season" else None


def commonest_step(frames: Sequence[Stamped], otherwise: float) -> float:
    """Return the seconds between most neighbours (the shorter of two as common); `otherwise` where there is but one
    frame.
    """
    steps = Counter((two.time - one.time).total_seconds() for one, two in itertools.pairwise(frames))
    return max(steps, key=lambda step: (steps[step], -step)) if steps else otherwise


@dataclass(frozen=True)
class TimeOptions:
    """What `add_time_arguments` asked for."""

    periods: tuple[Period, ...]
    shares: Shares | None
    event_frames: int
    mode_by: str
    gap: int = WINDOW

    def plan(self, frames: Sequence[Stamped], step_seconds: float) -> Plan:
        """Split, then cut at gaps, then into events; `frames` are in order."""
        left_out, told = 0, ""
        if self.periods:
            parts, left_out = assign_splits(frames, self.periods)
        else:
            parts, told = share_out(frames, self.shares or Shares(DEFAULT_VAL, DEFAULT_TEST), self.gap, step_seconds)
        gaps = len(find_runs(frames, step_seconds)) - 1
        first, last = iso(frames[0].time), iso(frames[-1].time)
        notes = [f"{plural(len(frames), 'frame')} from {first} to {last}, {plural(gaps, 'gap')} in time"]
        if left_out:
            notes.append(f"in no --split, so left out: {plural(left_out, 'frame')}")
        notes += [told] * bool(told)
        splits = {}
        for name, part in parts.items():
            runs = find_runs(part, step_seconds)
            splits[name] = [
                event for run in runs for event in cut_events(run, self.event_frames, step_seconds, self.mode_by)
            ]
            longest = max(len(run) for run in runs)
            counts = f"frames {len(part)}, unbroken runs {len(runs)}, events {len(splits[name])}, longest run {longest}"
            notes.append(f"{name}: {counts}")
            if longest < WINDOW:
                notes.append(
                    f"warning: {name}: no window of {WINDOW} frames (context 10 + horizon 10) fits into its longest "
                    f"unbroken run of {longest}: models need a shorter context and horizon, or another --split"
                )
        return Plan(splits, tuple(notes))

    def modes(self, frames: Iterable[Stamped]) -> tuple[str, ...]:
        """Return the labels that occur."""
        labels = {mode_label(frame.time, self.mode_by) for frame in frames}
        return tuple(sorted(label for label in labels if label is not None))


def add_split_argument(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --split; `default` says what happens without."""
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=START..END",
        help="UTC period of a split, repeated: train=2015-01-01..2015-12-31; a bare date as END includes that day, an "
        f"END with a time of day doesn't belong; a split may have several periods (default: {default})",
    )


def add_time_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that all archives on a time axis have."""
    add_split_argument(parser, "shares of the frames, the first of them train, then val, then test")
    add_share_arguments(parser, "the frames")
    parser.add_argument(
        "--split-gap",
        type=int,
        default=argparse.SUPPRESS,
        metavar="FRAMES",
        help="without --split: left out between splits of one storm; context + horizon of the models to train "
        f"(default: {WINDOW})",
    )
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


def check_step(seconds: float | None) -> None:
    """Raise UsageError for a --step that is no time."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise UsageError(f"--step {seconds:g}: seconds from frame to frame, above 0")


def time_options(args: argparse.Namespace) -> TimeOptions:
    """Return what `add_time_arguments` asked for. Raises UsageError for options that make no sense, alone or
    together.
    """
    if args.event_frames < 1:
        raise UsageError(f"--event-frames {args.event_frames}: an event has at least one frame")
    check_step(args.step)
    shares = shares_of(args)
    if args.split and shares is not None:
        raise UsageError("--split and --val-fraction or --test-fraction: two ways to divide the archive; choose one")
    gap = getattr(args, "split_gap", None)
    if gap is not None and (args.split or gap < 0):
        raise UsageError(f"--split-gap {gap}: 0 frames or more, and only without --split, whose periods say it")
    periods = tuple(parse_period(text) for text in args.split)
    return TimeOptions(periods, shares, args.event_frames, args.mode_by, WINDOW if gap is None else gap)


def _irregular(part: Sequence[Stamped], step_seconds: float) -> tuple[str, ...] | None:
    """Every frame's time, if that isn't what start and step say."""
    if all(part[0].time + timedelta(seconds=step_seconds * i) == frame.time for i, frame in enumerate(part)):
        return None
    return tuple(iso(frame.time) for frame in part)


def _key(time: datetime) -> str:
    return f"{time:%Y%m%dT%H%M%SZ}"


def iso(time: datetime) -> str:
    """Return the time as ISO-8601 with a Z."""
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
