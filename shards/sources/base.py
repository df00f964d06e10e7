"""What a source of sequences is: the wall between archives and stores.

A source says what it holds before anything is decoded (`describe`, `plan`), and then hands out one event at a time
(`read`). Because the plan names every event and its length, shard boundaries are known in advance: any number of
workers may write shards in any order, each reads only its own events, and the bytes come out the same. A source travels
to the workers by pickle, so it holds options and file names, and opens files when asked to read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shards.errors import UsageError
from shards.georeference import Grid
from shards.manifest import DTYPES, Codes, FrameSpec, Scale, SourceInfo
from shards.sources.inputs import Listing


@dataclass(frozen=True)
class Description:
    """What all events of a source have in common."""

    name: str
    frames: FrameSpec
    step_seconds: float | None
    scale: Scale
    modes: tuple[str, ...]
    source: SourceInfo
    grid: Grid | None = None  # where the frames lie on the earth, if the archive says so


@dataclass(frozen=True)
class PlannedEvent:
    """One event before it is read."""

    key: str  # unique in the store; keys ascend within a split
    length: int  # frames
    mode: str | None = None  # label for analysis and scoring
    run: str = ""  # the unbroken run it is part of; "" means that it is one by itself
    run_offset: int = 0  # its first frame's index in that run
    start_time: str | None = None  # of the first frame, ISO-8601 UTC
    times: tuple[str, ...] | None = None  # of every frame, only where the steps aren't all equal
    recipe: Any = None  # what the source needs to read it; plain data whose repr says all
    # Whether `recipe`, or its first part, is a tuple of one text for each frame: then `read` takes any part of that
    # tuple as an event, and --on-error skip can leave out single frames.
    by_frame: bool = field(default=False, repr=False)

    @property
    def listed(self) -> tuple[str, ...]:
        """What the recipe lists for each frame; nothing if it doesn't."""
        if not self.by_frame:
            return ()
        listed: tuple[str, ...] = self.recipe if all(isinstance(part, str) for part in self.recipe) else self.recipe[0]
        return listed


@dataclass(frozen=True)
class Plan:
    """All events, and what the user should know about how they were chosen."""

    splits: Mapping[str, list[PlannedEvent]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawEvent:
    """One event as read: frames [L, C, H, W] of the type that `describe` names, and facts about it that only reading
    could tell (plain JSON).
    """

    frames: Codes
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Damage:
    """Frames [begin, end) of an event, or a whole file that planning left out, and why."""

    what: str
    begin: int
    end: int
    error: str

    def as_json(self) -> dict[str, object]:
        """Return plain JSON for the manifest."""
        return {"what": self.what, "frames": [self.begin, self.end], "error": self.error[:300]}


class Source(Protocol):
    """See the module's docstring. Errors in the archive are SourceErrors that name the file."""

    def describe(self) -> Description:
        """Return frame shape, scale, modes and origin."""

    def plan(self) -> Plan:
        """Return every event of every split, in ascending order of keys, without decoding frames."""

    def read(self, event: PlannedEvent) -> RawEvent:
        """Return the frames of one planned event. Called in any order, in any process, more than once."""


@dataclass(frozen=True)
class SourceEntry:
    """How the command line offers a source.

    `build` may replace an option left open by what the archive made of it (the crop of its reader, say), so that the
    manifest records the choice. `guess` looks at the names in a folder and says in a few words what makes them this
    source's ("7 avi files and 00sequences.txt"), or None; a `generic` one is asked only when no other knows the folder.
    """

    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    build: Callable[[argparse.Namespace], Source]
    input_help: str | None = None  # None: the source needs no archive
    guess: Callable[[Listing], str | None] | None = None
    generic: bool = False


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """Add --dtype, which every source takes; without a default, so that manifests without it stay as they are."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=argparse.SUPPRESS,
        help="of the codes: uint16 keeps 16-bit archives and fine values, at twice the bytes (default: uint8)",
    )


def dtype_of(args: argparse.Namespace) -> str:
    """Return the type of codes that was asked for."""
    return str(getattr(args, "dtype", DTYPES[0]))


def check_dtype(args: argparse.Namespace, description: Description) -> None:
    """Raise UsageError where another type of codes was asked for than the source has."""
    asked, given = getattr(args, "dtype", description.frames.dtype), description.frames.dtype
    if asked != given:
        raise UsageError(
            f"--dtype {asked}: the frames of {description.name} are {given}, as the archive has them: leave --dtype out"
        )
