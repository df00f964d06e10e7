"""What the names of a sequence's images say about time: moments, or numbers, and where frames are missing.

Names with a date and a time (`202306011200.png`, `cam_2023-06-01T12-00-05.jpg`; UTC) give every frame its moment. Other
names are numbered (`frame_0001.png`): a number that is missing is a frame that is missing. Either way a run ends there.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

_MOMENT = re.compile(
    r"(?<!\d)((?:19|20)\d\d)[-_.]?(\d\d)[-_.]?(\d\d)[T_ .-]?(\d\d)[-_:.h]?(\d\d)(?:[-_:.m]?(\d\d))?(?!\d)"
)
_NUMBER = re.compile(r"(.*?)(\d+)(\D*)")


@dataclass(frozen=True)
class Order:
    """A sequence's files in order. A run begins at each index in `breaks`; `missing` frames lie there, as far as names
    tell. `times` (UTC) are known for all files or none.
    """

    files: tuple[str, ...]
    breaks: tuple[int, ...] = ()
    times: tuple[datetime, ...] = ()
    missing: int = 0

    def without(self, absent: set[str]) -> Order:
        """Leave out files; a run ends where one was."""
        if absent.isdisjoint(self.files):
            return self
        kept = [place for place, file in enumerate(self.files) if file not in absent]
        breaks = [
            now
            for now, (one, two) in enumerate(itertools.pairwise(kept), 1)
            if two > one + 1 or any(one < place <= two for place in self.breaks)
        ]
        times = tuple(self.times[place] for place in kept) if self.times else ()
        return Order(tuple(self.files[place] for place in kept), tuple(breaks), times, self.missing)


def natural(name: str) -> list[tuple[int, int | str]]:
    """Return a sorting key by which frame2 comes before frame10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]


def moment(name: str) -> datetime | None:
    """Return the date and time in the last part of a file's name; None if there is none, or several."""
    found = _MOMENT.findall(name.rsplit("/", 1)[-1])
    if len(found) != 1:
        return None
    try:
        year, month, day, hour, minute, second = (int(part or 0) for part in found[0])
        return datetime(year, month, day, hour, minute, second)
    except ValueError:
        return None


def by_moment(files: Sequence[str], times: Sequence[datetime], step_seconds: float) -> Order:
    """Put files in order of time; a run ends where a step is half or one and a half times `step_seconds`."""
    ordered = sorted(zip(times, files, strict=True))
    moments = tuple(time for time, _ in ordered)
    steps = [(two - one).total_seconds() / step_seconds for one, two in itertools.pairwise(moments)]
    breaks = tuple(place for place, step in enumerate(steps, 1) if not 0.5 < step < 1.5)
    missing = sum(max(round(steps[place - 1]) - 1, 0) for place in breaks)
    return Order(tuple(file for _, file in ordered), breaks, moments, missing)


def by_number(files: Sequence[str]) -> Order:
    """Put files in natural order; a run ends where a number is missing, or another row of numbers begins.

    Numbers count frames if at least half of the steps between them are equal; else they only give the order.
    """
    ordered = tuple(sorted(files, key=natural))
    parts = [_NUMBER.fullmatch(file.rsplit("/", 1)[-1].rpartition(".")[0]) for file in ordered]
    if None in parts or len(ordered) < 3:
        return Order(ordered)
    rows = [(part[1], part[3]) for part in parts if part is not None]
    numbers = [int(part[2]) for part in parts if part is not None]
    same = [one == two for one, two in itertools.pairwise(rows)]
    steps = [two - one for one, two in itertools.pairwise(numbers)]
    counts = Counter(step for step, together in zip(steps, same, strict=True) if together)
    if not counts:
        return Order(ordered)
    usual, count = max(counts.items(), key=lambda item: (item[1], -item[0]))
    if usual < 1 or 2 * count < sum(counts.values()):
        return Order(ordered)
    breaks = tuple(
        place
        for place, (step, together) in enumerate(zip(steps, same, strict=True), 1)
        if step != usual or not together
    )
    missing = sum(max(-(-steps[place - 1] // usual) - 1, 0) for place in breaks if same[place - 1])
    return Order(ordered, breaks, (), missing)


def usual_step(sequences: Sequence[Sequence[datetime]]) -> float | None:
    """Return the commonest number of seconds between neighbours of all sequences (the shorter of two as common)."""
    steps = Counter(
        (two - one).total_seconds() for times in sequences for one, two in itertools.pairwise(sorted(times))
    )
    return max(steps, key=lambda step: (steps[step], -step)) if steps else None
