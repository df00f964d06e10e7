"""KTH actions: 25 persons, six actions, four scenarios, grey video of 160x120 at 25 frames per second.

Two layouts: the original avi files with 00sequences.txt, whose ranges are the events; and the folders of frames that
PredRNN's loader reads, ACTION/CLIP/image_NNNN.jpg, where consecutive numbers are an event. Frames become 128x128 grey.
A range is a run by itself: no window spans two, as in the published results.

Persons 1 to 16 train and 17 to 25 test, as in the ModeRNN paper (other papers divide otherwise); --val-persons takes
persons out of training for validation. The paper's two modes (Appendix B.1) are torso movement (walking, jogging,
running) and hand movement (boxing, handwaving, handclapping).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import SourceError, UsageError
from shards.manifest import Codes, FrameSpec, Scale, SourceInfo
from shards.sources import videos
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry
from shards.sources.geometry import Geometry, add_geometry_arguments, parse_crop, parse_size
from shards.sources.inputs import Listing, plural, two_sizes, walk
from shards.sources.kth_sequences import TABLE_NAME, Clip, read_table
from shards.sources.pictures import image_size, read_sequence

SECONDS = 1 / 25
TEST_PERSONS = range(17, 26)
TORSO = ("walking", "jogging", "running")
_AVI = re.compile(r"person\d\d_[a-z]+_d\d(_uncomp)?\.avi")
_FRAME = re.compile(r"image_(\d+)(?:\D[^/]*)?\.(?:jpe?g|png)")


@dataclass(frozen=True)
class Take:
    """One event: the frames `first`..`last` (1-based, inclusive) of a clip, number `index` of its events."""

    clip: Clip
    index: int
    first: int
    last: int
    files: tuple[str, ...]  # the avi, or one image per frame


@dataclass(frozen=True)
class Kth:
    """The takes of an archive."""

    folder: Path
    takes: tuple[Take, ...]
    geometry: Geometry
    val_persons: tuple[int, ...]
    test_persons: tuple[int, ...]
    mode_by: str
    notes: tuple[str, ...]

    def describe(self) -> Description:
        """Return one channel of intensity 0..1, 25 frames per second."""
        height, width = self.geometry.shape
        return Description(
            name="kth",
            frames=FrameSpec(channels=1, height=height, width=width),
            step_seconds=SECONDS,
            scale=Scale(quantity="intensity", unit="1", offset=0.0, gain=1 / 255),
            modes=tuple(sorted({mode for take in self.takes if (mode := self._mode(take.clip)) is not None})),
            source=_INFO,
        )

    def plan(self) -> Plan:
        """Divide the clips by person."""
        splits: dict[str, list[PlannedEvent]] = {"train": [], "val": [], "test": []}
        for take in sorted(self.takes, key=lambda take: (take.clip, take.index)):
            splits[self._split(take.clip.person)].append(
                PlannedEvent(
                    key=f"{take.clip}-r{take.index:03d}",
                    length=take.last - take.first + 1,
                    mode=self._mode(take.clip),
                    recipe=(take.first, take.files),
                )
            )
        notes = list(self.notes)
        for name, events in splits.items():
            persons = sorted({int(event.key[6:8]) for event in events})
            if events:
                notes.append(f"{name}: {plural(len(events), 'event')} of persons {', '.join(map(str, persons))}")
        if not splits["val"]:
            notes.append("no validation split; for one: --val-persons 15,16")
        return Plan({name: events for name, events in splits.items() if events}, tuple(notes))

    def _split(self, person: int) -> str:
        if person in self.test_persons:
            return "test"
        return "val" if person in self.val_persons else "train"

    def _mode(self, clip: Clip) -> str | None:
        by_name = {"action": clip.action, "paper": "torso" if clip.action in TORSO else "hands"}
        return by_name.get(self.mode_by)

    def read(self, event: PlannedEvent) -> RawEvent:
        """Read one range of one clip, uint8 [L, 1, height, width]; `details` give the first frame's number."""
        first, files = event.recipe
        if len(files) == 1 and files[0].endswith(".avi"):
            clip = _clip_frames(self.folder / files[0])
            if first - 1 + event.length > len(clip):
                raise SourceError(
                    f"{self.folder / files[0]}: {len(clip)} frames could be decoded, {TABLE_NAME} has a range up to "
                    f"{first - 1 + event.length}; fetch the file again"
                )
            frames = clip[first - 1 : first - 1 + event.length]
            if frames.shape[2:] != self.geometry.source:
                raise two_sizes(self.folder / files[0], frames.shape[2:], self.geometry.source)
        else:
            frames = read_sequence(self.folder, files, 1, self.geometry.source)
        return RawEvent(self.geometry.apply(frames), {"first_frame": first})


@functools.lru_cache(maxsize=1)
def _clip_frames(path: Path) -> Codes:
    """Return a whole clip in grey, uint8 [L, 1, 120, 160]: its events come one after another, and 30 s are 17 MB."""
    return videos.read_frames(path, 1, 0, videos.probe(path).frames)


def avi_takes(folder: Path, files: Sequence[str]) -> tuple[list[Take], list[str]]:
    """Return the ranges of 00sequences.txt whose clips are here, and notes. Raises SourceError for a range beyond a
    clip's end.
    """
    tables = [file for file in files if file.rsplit("/", 1)[-1] == TABLE_NAME]
    if len(tables) != 1:
        raise SourceError(f"{folder}: {len(tables)} files {TABLE_NAME}, expected one; it comes with the videos")
    table = read_table(folder / tables[0])
    here: dict[Clip, str] = {}
    for file in files:
        clip = Clip.of(file.rsplit("/", 1)[-1]) if file.endswith(".avi") else None
        if clip in here:
            raise SourceError(f"{folder}: {clip} twice, {here[clip]} and {file}; move one away, then convert again")
        if clip is not None:
            here[clip] = file
    strays = [file for file in files if file not in here.values() and file != tables[0]]
    takes: list[Take] = []
    notes = list(table.notes)
    if strays:
        notes.append(f"{plural(len(strays), 'other file')} skipped, the first is {strays[0]}")
    for clip, file in sorted(here.items()):
        if clip not in table.ranges:
            notes.append(f"{file} has no ranges in {TABLE_NAME} and is left out")
            continue
        ranges = table.ranges[clip]
        frames = videos.probe(folder / file).frames
        if ranges[-1][1] > frames:
            raise SourceError(
                f"{folder / file}: {frames} frames, {TABLE_NAME} has a range {ranges[-1][0]}-{ranges[-1][1]}; "
                "fetch the file again"
            )
        takes += [Take(clip, i, first, last, (file,)) for i, (first, last) in enumerate(ranges, 1)]
    absent = [clip for clip in table.ranges if clip not in here]
    if absent:
        notes.append(f"{len(absent)} of {len(table.ranges)} clips of {TABLE_NAME} are not here, first {absent[0]}")
    return takes, notes


def frame_takes(folder: Path, files: Sequence[str]) -> tuple[list[Take], list[str]]:
    """Return runs of consecutive numbers in folders of frames. Raises SourceError for a number that occurs twice."""
    clips: dict[Clip, dict[int, str]] = defaultdict(dict)
    for file in files:
        *parents, name = file.split("/")
        match = _FRAME.fullmatch(name)
        clip = Clip.of(parents[-1]) if parents and match else None
        if match is None or clip is None:
            continue
        number = int(match[1])
        if number in clips[clip]:
            raise SourceError(f"{folder}: {clip} has frame {number} twice: {clips[clip][number]} and {file}")
        clips[clip][number] = file
    takes = []
    for clip, numbered in sorted(clips.items()):
        ordered = sorted(numbered)
        groups = itertools.groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])
        for index, (_, group) in enumerate(groups, 1):
            numbers = [number for _, number in group]
            takes.append(Take(clip, index, numbers[0], numbers[-1], tuple(numbered[number] for number in numbers)))
    return takes, [f"{plural(len(clips), 'clip')} as folders of frames; consecutive numbers are an event"]


def _persons(option: str, text: str | None, otherwise: Iterable[int]) -> tuple[int, ...]:
    """Parse "15,16" or "17-25"."""
    if text is None:
        return tuple(otherwise)
    persons: set[int] = set()
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= 25:
            raise UsageError(f"{option} {text}: persons 1 to 25 with commas between, or a range, such as 17-25")
        persons.update(range(first, last + 1))
    return tuple(sorted(persons))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--val-persons", metavar="15,16", help="taken out of training for validation (default: none, as in the paper)"
    )
    parser.add_argument("--test-persons", metavar="17-25", help="(default: 17-25, as in the paper)")
    parser.add_argument(
        "--mode-by",
        choices=("paper", "action", "none"),
        default="paper",
        help="the paper's torso and hands, or the six actions (default: %(default)s)",
    )
    add_geometry_arguments(parser, "none", "128")


def _build(args: argparse.Namespace) -> Source:
    val = _persons("--val-persons", args.val_persons, ())
    test = _persons("--test-persons", args.test_persons, TEST_PERSONS)
    both = sorted(set(val) & set(test))
    if both:
        raise UsageError(f"person {both[0]} is in --val-persons and in the test split; a person is in one split only")
    folder = Path(args.input)
    files = walk(folder)
    if any(_AVI.fullmatch(file.rsplit("/", 1)[-1]) for file in files):
        takes, notes = avi_takes(folder, files)
    else:
        takes, notes = frame_takes(folder, files)
    if not takes:
        raise SourceError(
            f"{folder}: no person01_boxing_d1_uncomp.avi or the like, and no ACTION/CLIP/image_0001.jpg; it has "
            + (f"{plural(len(files), 'file')}, the first is {files[0]}" if files else "no files")
        )
    first = folder / takes[0].files[0]
    if first.suffix == ".avi":
        info = videos.probe(first)
        size = (info.height, info.width)
    else:
        size = image_size(first)
    geometry = Geometry(size, parse_crop(args.crop, size), parse_size(args.size))
    return Kth(folder, tuple(takes), geometry, val, test, args.mode_by, tuple(notes))


def _guess(listing: Listing) -> str | None:
    count = len(listing.matching(_AVI))
    if count:
        table = any(file.rsplit("/", 1)[-1] == TABLE_NAME for file in listing.files)
        return f"{plural(count, 'avi file')}{f' and {TABLE_NAME}' if table else ' named like person01_boxing_d1.avi'}"
    clips = {
        file.split("/")[-2] for file in listing.matching(_FRAME) if file.count("/") and Clip.of(file.split("/")[-2])
    }
    return f"{plural(len(clips), 'folder')} of frames named like {sorted(clips)[0]}" if clips else None


_INFO = SourceInfo(
    name="KTH actions",
    licence="free for non-commercial use, cite the paper",
    citation="Schuldt, Laptev, Caputo, Recognizing human actions: a local SVM approach, ICPR 2004",
    url="https://www.csc.kth.se/cvap/actions",
)
ENTRY = SourceEntry(
    summary="KTH actions: avi files with 00sequences.txt, or folders of frames",
    example="python -m shards convert kth ~/kth stores/kth --val-persons 15,16",
    add_arguments=_add_arguments,
    build=_build,
    input_help="folder of the archive; sub-folders are searched too",
    guess=_guess,
)
