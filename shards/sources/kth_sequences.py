"""KTH's 00sequences.txt: which frames of a clip show its action.

Lines such as `person01_boxing_d1  frames  1-95, 96-185, 186-245, 246-360`, 1-based and inclusive, below a preamble in
prose. `*missing*` in place of the ranges means that the clip was never published. The original has its quirks: ranges
out of order (person07_jogging_d4, person07_running_d4), ranges that share frames (person03_walking_d4 and six others),
clips with fewer than four.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from shards.errors import SourceError
from shards.sources.inputs import plural

ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
CLIP = re.compile(r"person(\d\d)_(" + "|".join(ACTIONS) + r")_d([1-4])")
TABLE_NAME = "00sequences.txt"


@dataclass(frozen=True, order=True)
class Clip:
    """One video of the archive."""

    person: int
    action: str
    scenario: int

    @staticmethod
    def of(name: str) -> Clip | None:
        """Return the clip that a file or folder name begins with."""
        match = CLIP.match(name)
        return Clip(int(match[1]), match[2], int(match[3])) if match else None

    def __str__(self) -> str:
        return f"person{self.person:02d}_{self.action}_d{self.scenario}"


@dataclass(frozen=True)
class Table:
    """Ranges (first, last), 1-based and inclusive, in time order, of every clip; the clips that were never published;
    and what was odd.
    """

    ranges: dict[Clip, tuple[tuple[int, int], ...]]
    missing: tuple[Clip, ...]
    notes: tuple[str, ...]


def read_table(path: Path) -> Table:
    """Read the table. Raises SourceError that names the line."""
    ranges: dict[Clip, tuple[tuple[int, int], ...]] = {}
    missing: list[Clip] = []
    disordered: list[Clip] = []
    overlapping: list[Clip] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.split(maxsplit=2)
        if not words or not CLIP.fullmatch(words[0]):
            continue
        clip = Clip.of(words[0])
        assert clip is not None
        if clip in ranges or clip in missing:
            raise SourceError(f"{path}: line {number}: {clip} a second time; fetch the table again")
        if words[1:] == ["*missing*"] or words[1:] == ["frames", "*missing*"]:
            missing.append(clip)
            continue
        if len(words) != 3 or words[1] != "frames":
            raise SourceError(f"{path}: line {number}: {line.strip()!r}, expected {clip} frames 1-95, 96-185, ...")
        parts = [re.fullmatch(r"(\d+)-(\d+)", part.strip()) for part in words[2].split(",") if part.strip()]
        found = [(int(part[1]), int(part[2])) for part in parts if part]
        if len(found) < len(parts) or not found or any(not 1 <= first <= last for first, last in found):
            raise SourceError(f"{path}: line {number}: {words[2].strip()!r} are no ranges such as 1-95, 96-185")
        ranges[clip] = tuple(sorted(found))
        if list(ranges[clip]) != found:
            disordered.append(clip)
        if any(one[1] >= two[0] for one, two in itertools.pairwise(ranges[clip])):
            overlapping.append(clip)
    if not ranges:
        raise SourceError(f"{path}: no line such as `person01_boxing_d1 frames 1-95, ...`; is it KTH's {TABLE_NAME}?")
    told = (
        (missing, "never published, says the table"),
        (disordered, "ranges out of order in the table; here they are in order of time"),
        (overlapping, "ranges that share frames; kept as the table has them"),
    )
    notes = tuple(f"{plural(len(clips), 'clip')} ({clips[0]} ...): {what}" for clips, what in told if clips)
    return Table(ranges, tuple(missing), notes)
