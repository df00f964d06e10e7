"""CIKM AnalytiCup 2017: radar near Shenzhen as lines of text, 15 frames of 101x101 pixels, 6 minutes and 1 km apart.

train.txt has 10,000 lines, testA.txt and testB.txt 2,000 each. A line is `id,rain,v v v ...`: 15 x 4 x 101 x 101 whole
numbers, time first, then the height (0.5, 1.5, 2.5 and 3.5 km), rows, columns; -1 is no observation. dBZ = 95 v / 255
- 10. The rain (mm, an hour or two later, at the centre) goes into an event's details. The lines have no dates.

Codes are kept, but 255 is needed for pixels without observation: v = 255, 85 dBZ, becomes 254. A tenth of a gigabyte of
text is 50 events; lines are found once, and read one by one.
"""

from __future__ import annotations

import argparse
import mmap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import SourceError, UsageError
from shards.manifest import FrameSpec, Scale, SourceInfo
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry
from shards.sources.geometry import Geometry, add_geometry_arguments, parse_crop, parse_size
from shards.sources.inputs import Listing, plural
from shards.sources.splits import Shares, lot

SHAPE = (15, 4, 101, 101)
NUMBERS = 15 * 4 * 101 * 101
HEIGHTS = ("0.5", "1.5", "2.5", "3.5")  # km
TRAIN, TESTS = "train.txt", ("testA.txt", "testB.txt")
SCALE = Scale(quantity="radar reflectivity", unit="dBZ", offset=-10.0, gain=95 / 255, max_code=254, missing_code=255)


@dataclass(frozen=True)
class Line:
    """Line `number` (from 1) of `file`: bytes [offset, offset + size)."""

    file: str
    number: int
    offset: int
    size: int

    @property
    def key(self) -> str:
        return f"{self.file.removesuffix('.txt')}-{self.number:05d}"


@dataclass(frozen=True)
class Cikm:
    """The lines of an archive; `heights` are indexes into HEIGHTS, each a channel."""

    folder: Path
    lines: tuple[Line, ...]
    heights: tuple[int, ...]
    geometry: Geometry
    val: float
    seed: int
    notes: tuple[str, ...]

    def describe(self) -> Description:
        """Return a channel of reflectivity per height."""
        height, width = self.geometry.shape
        return Description(
            name="cikm2017",
            frames=FrameSpec(channels=len(self.heights), height=height, width=width),
            step_seconds=360.0,
            scale=SCALE,
            modes=(),
            source=_INFO,
        )

    def plan(self) -> Plan:
        """List train.txt without what is drawn for validation; the two tests together."""
        train = [line for line in self.lines if line.file == TRAIN]
        order = sorted(train, key=lambda line: lot(self.seed, line.key))
        val = {line.key for line in order[: Shares(self.val, 0.0).counts(len(train))["val"]]}
        splits: dict[str, list[PlannedEvent]] = {"train": [], "val": [], "test": []}
        for line in self.lines:
            split = "test" if line.file in TESTS else "val" if line.key in val else "train"
            splits[split].append(PlannedEvent(key=line.key, length=SHAPE[0], recipe=line))
        notes = [f"{name}: {plural(len(events), 'event')}" for name, events in splits.items() if events]
        return Plan({name: events for name, events in splits.items() if events}, (*self.notes, *notes))

    def read(self, event: PlannedEvent) -> RawEvent:
        """Parse one line, uint8 [15, heights, height, width]."""
        line: Line = event.recipe
        where = f"{self.folder / line.file}: line {line.number}"
        with (self.folder / line.file).open("rb") as file:
            file.seek(line.offset)
            parts = file.read(line.size).split(b",", 2)
        if len(parts) != 3:
            raise SourceError(f"{where}: {len(parts)} fields, expected id,rain,numbers; fetch the file again")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # older numpy stops at a word; counted below
                numbers = np.fromstring(parts[2].decode("ascii", "replace"), dtype=np.int32, sep=" ")
        except ValueError:
            raise SourceError(f"{where}: not all of it are whole numbers; fetch the file again") from None
        if numbers.size != NUMBERS:
            raise SourceError(
                f"{where}: {numbers.size} numbers, expected 15 x 4 x 101 x 101 = {NUMBERS}; fetch the file again"
            )
        if numbers.min() < -1 or numbers.max() > 255:
            raise SourceError(
                f"{where}: numbers of {numbers.min()}..{numbers.max()}, expected -1..255; fetch the file again"
            )
        chosen = numbers.reshape(SHAPE)[:, list(self.heights)]
        codes = np.where(chosen < 0, 255, np.minimum(chosen, 254)).astype(np.uint8)
        details = {"id": parts[0].decode("ascii", "replace"), "rain": parts[1].decode("ascii", "replace")}
        return RawEvent(self.geometry.apply(codes), details)


def find_lines(folder: Path, name: str) -> Iterator[Line]:
    """Return where the lines of a file lie."""
    with (folder / name).open("rb") as file:
        if not file.seek(0, 2):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            offset, number = 0, 1
            while offset < len(text):
                end = text.find(b"\n", offset)
                end = len(text) if end < 0 else end
                if end > offset + 1:
                    yield Line(name, number, offset, end - offset)
                offset, number = end + 1, number + 1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--heights", default="0.5", metavar="KM,KM", help="of 0.5,1.5,2.5,3.5; each a channel (default: %(default)s)"
    )
    parser.add_argument(
        "--val-fraction", type=float, default=0.2, metavar="SHARE", help="of train.txt, drawn (default: %(default)s)"
    )
    parser.add_argument("--split-seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    add_geometry_arguments(parser, "none", None)


def _build(args: argparse.Namespace) -> Source:
    heights = args.heights.split(",")
    if not set(heights) <= set(HEIGHTS) or len(set(heights)) < len(heights):
        raise UsageError(f"--heights {args.heights}: some of {','.join(HEIGHTS)}, each once")
    if not 0 <= args.val_fraction < 1:
        raise UsageError(f"--val-fraction {args.val_fraction:g}: a share of 0..1, below 1")
    folder = Path(args.input)
    here = [name for name in (*TESTS, TRAIN) if (folder / name).is_file()]
    if not here:
        raise SourceError(f"{folder}: no {TRAIN}, {TESTS[0]} or {TESTS[1]}; unpack the archive there")
    absent = [name for name in (TRAIN, *TESTS) if name not in here]
    lines = [line for name in here for line in find_lines(folder, name)]
    geometry = Geometry(SHAPE[2:], parse_crop(args.crop, SHAPE[2:]), parse_size(args.size), SCALE.missing_code)
    notes = (f"without {' and '.join(absent)}, which are not here",) if absent else ()
    indexes = tuple(HEIGHTS.index(height) for height in heights)
    return Cikm(folder, tuple(lines), indexes, geometry, args.val_fraction, args.split_seed, notes)


def _guess(listing: Listing) -> str | None:
    found = [name for name in (TRAIN, *TESTS) if name in listing.files]
    for name in found:
        with (listing.root / name).open("rb") as file:
            if file.read(4096).count(b" ") > 200:  # a table or a list of names has no such lines
                return f"{' and '.join(found)} with lines of numbers"
    return None


_INFO = SourceInfo(
    name="CIKM AnalytiCup 2017, short-term quantitative precipitation forecasting",
    licence="research use; terms of the Tianchi platform",
    citation="CIKM AnalytiCup 2017; Shenzhen Meteorological Bureau and Alibaba",
    url="https://tianchi.aliyun.com/dataset/1085",
)
ENTRY = SourceEntry(
    summary="CIKM AnalytiCup 2017: radar as lines of text",
    example="python -m shards convert cikm ~/cikm stores/cikm --heights 0.5",
    add_arguments=_add_arguments,
    build=_build,
    input_help=f"folder with {TRAIN}, {TESTS[0]} and {TESTS[1]}",
    guess=_guess,
)
