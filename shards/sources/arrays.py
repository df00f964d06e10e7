"""Arrays of sequences, as most toolkits save them: .npy, .npz or HDF5 of [N, T, C, H, W], [T, N, H, W] or other orders
of the axes, one file a sequence ([T, H, W], [T, C, H, W] ...), or pairs of inputs and targets (X and Y, X_train and
Y_train), which are joined in time.

What the axes mean (layouts.py) and which values codes stand for (value_range.py) is reported, or must be given. Splits
are taken from the names of files, folders and arrays (train, valid, test), or drawn.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import SourceError, UsageError
from shards.manifest import Scale
from shards.sources.array_files import SUFFIXES, ArrayInfo, holds_numbers, list_arrays, opened, pieces
from shards.sources.base import PlannedEvent, RawEvent, Source, SourceEntry, dtype_of
from shards.sources.geometry import Geometry, parse_crop, parse_size
from shards.sources.inputs import Listing, by, plural, walk
from shards.sources.layouts import AXES, frames_of, guess_layout, parse_layout, sides_of
from shards.sources.sequences import Sequence, Sequences, add_sequence_arguments, kept, sequence_options
from shards.sources.splits import named_split
from shards.sources.value_range import BYTES, ValueRange, choose_range, measure_values, parse_range

_INPUTS = re.compile(r"(x|inputs?)(?=_|$)", re.IGNORECASE)
_TARGETS = {"x": "y", "X": "Y", "input": "target", "inputs": "targets", "Input": "Target", "Inputs": "Targets"}


@dataclass(frozen=True)
class Block:
    """Arrays that belong together: one, or inputs and targets, joined in time."""

    arrays: tuple[ArrayInfo, ...]
    layout: str

    @property
    def sides(self) -> dict[str, int]:
        """The length of every axis, of all arrays together."""
        sides = [sides_of(info.shape, self.layout) for info in self.arrays]
        return {**sides[0], "t": sum(side["t"] for side in sides)}

    def __str__(self) -> str:
        keys = " and ".join(info.key for info in self.arrays)
        return f"{self.arrays[0].file}: {keys}" if keys else self.arrays[0].file


@dataclass(frozen=True)
class Arrays(Sequences):
    """A sequence's payload is (block, index in it), once."""

    blocks: tuple[Block, ...] = ()
    values: ValueRange = BYTES
    quantity: str = "intensity"
    unit: str = "1"

    def scale(self) -> Scale:
        """Return what codes mean, by the options: arrays say nothing of what they measure."""
        return self.values.scale(self.quantity, self.unit)

    def recipe(self, sequence: Sequence, offset: int, length: int) -> tuple[int, int, int]:
        """Return block, index and first frame."""
        block, index = sequence.payload
        return block, index, offset

    def read(self, event: PlannedEvent) -> RawEvent:
        """Read, scale, crop and resize, [L, C, height, width]; `details` name the file and the index there."""
        number, index, offset = event.recipe
        block = self.blocks[number]
        parts, begin = [], 0
        for info in block.arrays:
            length = sides_of(info.shape, block.layout)["t"]
            first, last = max(offset - begin, 0), min(offset + event.length - begin, length)
            if first < last:
                with opened(self.folder, info) as array:
                    parts.append(frames_of(array, block.layout, index, first, last))
            begin += length
        frames = self.values.codes(np.concatenate(parts))
        return RawEvent(self.geometry.apply(frames), {"file": block.arrays[0].file, "index": index})


def _blocks(arrays: list[ArrayInfo], layout: str | None) -> tuple[list[Block], list[str]]:
    """Put inputs and targets together, and settle on layouts."""
    by_key = {(info.file, info.key): info for info in arrays}
    targets: dict[tuple[str, str], ArrayInfo] = {}
    for info in arrays:
        if match := _INPUTS.match(info.key):
            key = _TARGETS.get(match[1], "") + info.key[match.end() :]
            if (pair := by_key.get((info.file, key))) is not None:
                targets[info.file, info.key] = pair
    joined = {(info.file, info.key) for info in targets.values()}
    blocks, notes = [], []
    for info in arrays:
        if (info.file, info.key) in joined:
            continue
        pair = targets.get((info.file, info.key))
        found = layout or guess_layout(info, info.shape, sequences_first=pair is not None)
        for part in (info, *([pair] if pair else [])):
            if len(part.shape) != len(found):
                raise SourceError(f"{part}: an array of {by(part.shape)} has no layout {found!r}; say another --layout")
        block = Block((info, pair) if pair else (info,), found)
        if pair is not None:
            one, two = (sides_of(part.shape, found) for part in block.arrays)
            if {**one, "t": 0} != {**two, "t": 0}:
                raise SourceError(f"{block}: {by(info.shape)} and {by(pair.shape)} can't be joined in time; say --key")
        blocks.append(block)
        how = "as given" if layout else "by its shape: pass --layout if that is wrong"
        told = ", ".join(f"{side} {AXES[letter]}" for letter, side in zip(found, info.shape, strict=True))
        more = (
            f", joined in time with {plural(sides_of(pair.shape, found)['t'], 'frame')} of {pair.key}" if pair else ""
        )
        notes.append(f"{block}: layout {found} ({told}){more}, {how}")
    return blocks, notes


def _chosen(
    folder: Path, files: list[str], found: list[ArrayInfo], keys: list[str]
) -> tuple[list[ArrayInfo], list[str]]:
    """Return the arrays to convert: those named by --key, or all that can be sequences."""
    fits = [info for info in found if (info.key in keys if keys else len(info.shape) >= 3)]
    fits = [info for info in fits if min(info.shape, default=0) > 0 and holds_numbers(info.dtype)]
    holds = ", ".join(f"{info} {by(info.shape)} {info.dtype}" for info in found[:6]) or "none"
    if not fits:
        wanted = f"of real numbers named {', '.join(keys)}" if keys else "of real numbers with 3 to 5 axes"
        raise SourceError(f"{folder}: no array {wanted} in {plural(len(files), 'file')}; arrays: {holds}")
    if any(info.key in ("clips", "input_raw_data") for info in found):
        raise SourceError(f"{folder}: PredRNN's clips ({holds}): python -m shards convert moving-mnist-file")
    left = [info for info in found if info not in fits]
    note = f"{plural(len(left), 'other array')} skipped, the first is {left[0]} {by(left[0].shape)}" if left else ""
    return fits, [note] if note else []


def _range(
    folder: Path, blocks: list[Block], asked: tuple[float, float] | None, dtype: str
) -> tuple[ValueRange, list[str]]:
    """Look at all numbers, and settle on one range."""
    chosen: dict[ValueRange, str] = {}
    notes: list[str] = []
    for info in (info for block in blocks for info in block.arrays):
        with opened(folder, info) as array:
            needed = asked is not None or array.dtype.name not in ("uint8", dtype)
            values, told = choose_range(
                info, array.dtype, measure_values(pieces(array) if needed else (), asked), asked, dtype
            )
            if values.intensity and all(part.max() <= 1 for part in pieces(array)):  # mostly, the first part settles it
                told.append(
                    f"{info}: whole numbers of at most 1, kept as codes of 0..{values.largest}, so frames are nearly "
                    "black: pass --range=0,1 if 1 is the greatest value"
                )
        chosen.setdefault(values, str(info))
        notes += told
    if len(chosen) > 1:
        missing = any(values.missing for values in chosen)
        if len({(values.low, values.high) for values in chosen}) > 1:
            spans = "; ".join(f"{where} {values.low:g}..{values.high:g}" for values, where in chosen.items())
            raise SourceError(
                f"{folder}: values of several ranges ({spans}); say --range, or convert them as two archives"
            )
        return dataclasses.replace(next(iter(chosen)), missing=missing), notes
    return next(iter(chosen)), notes


def _name(block: Block, index: int) -> str:
    """Name a sequence so that its split is its first folder, where the file or the array is named for one."""
    info = block.arrays[0]
    split = named_split(info.file) or named_split(info.key)
    inside = f"{info.file}/{info.key}" if info.key else info.file
    in_folder = "/" in info.file and named_split(info.file) is not None
    return "/".join([*([split] if split and not in_folder else []), inside, f"{index:07d}"])


def _build(args: argparse.Namespace) -> Source:
    options = sequence_options(args)
    path = Path(args.input)
    folder, files = (path.parent, [path.name]) if path.is_file() else (path, walk(path))
    named = [file for file in files if file.lower().endswith(SUFFIXES)]
    if not named:
        raise SourceError(f"{path}: no arrays ({', '.join(SUFFIXES)})")
    listed, skipped = kept(named, lambda file: list_arrays(folder, file), args)
    arrays, notes = _chosen(
        folder, named, [info for infos in listed.values() for info in infos], args.key.split(",") if args.key else []
    )
    if others := len(files) - len(named):
        notes.append(f"{plural(others, 'file')} of other kinds skipped")
    blocks, told = _blocks(arrays, args.layout)
    frame = {letter: blocks[0].sides[letter] for letter in "chw"}
    for block in blocks:
        if (found := {letter: block.sides[letter] for letter in "chw"}) != frame:
            raise SourceError(
                f"{folder}: frames of two shapes: {blocks[0]} has {by([*frame.values()])}, {block} "
                f"{by([*found.values()])} (channels, height, width); choose with --key, or convert them as two archives"
            )
    asked = None if args.range is None else (args.range[0], args.range[1])
    values, ranges = _range(folder, blocks, asked, dtype_of(args))
    if values.intensity and args.unit != "1":
        raise UsageError(
            f"--unit {args.unit}: without --range whole numbers of 0..{values.largest} are intensities of 0..1, which "
            f"have no unit; say which values they are in {args.unit}, such as --range=0,{values.largest}"
        )
    size = (frame["h"], frame["w"])
    return Arrays(
        name="arrays",
        folder=folder,
        sequences=tuple(
            Sequence(_name(block, index), block.sides["t"], (number, index))
            for number, block in enumerate(blocks)
            for index in range(block.sides["n"])
        ),
        channels=frame["c"],
        geometry=Geometry(size, parse_crop(args.crop, size), parse_size(args.size), values.scale().missing_code),
        step_seconds=args.step,
        options=options,
        notes=(*notes, *_few(told), *_few(ranges)),
        missing=values.missing,
        dtype=values.dtype,
        skipped=skipped,
        blocks=tuple(blocks),
        values=values,
        quantity=args.quantity,
        unit=args.unit,
    )


def _few(notes: list[str]) -> list[str]:
    """Keep the first of many notes."""
    return notes if len(notes) <= 4 else [*notes[:4], f"and {len(notes) - 4} more like these"]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layout",
        type=parse_layout,
        metavar="AXES",
        help="the order of the axes: n sequences, t frames, c channels, h rows, w columns, such as nthw, tnhw, ntchw, "
        "thwc (default: by the shape, where only one is plausible)",
    )
    parser.add_argument("--key", metavar="NAME,NAME", help="arrays of a .npz or HDF5 (default: all of 3 to 5 axes)")
    parser.add_argument(
        "--range",
        type=parse_range,
        metavar="LOW,HIGH",
        help="values that the codes span; what lies outside is clipped, and counted (default: floats of 0..1, whole "
        "numbers of 0..255, of uint16 0..65535)",
    )
    parser.add_argument("--quantity", default="intensity", help="what is measured (default: %(default)s)")
    parser.add_argument("--unit", default="1", help="of the values (default: %(default)s)")
    add_sequence_arguments(parser, channels=False)


def _guess(listing: Listing) -> str | None:
    files = [file for file in listing.files if file.lower().endswith(SUFFIXES)]
    return f"{plural(len(files), 'file')} of arrays, the first is {files[0]}" if files else None


ENTRY = SourceEntry(
    summary="arrays of sequences: .npy, .npz (X and Y), HDF5",
    example="python -m shards convert arrays ~/data/moving.npy stores/moving --layout ntchw --range 0,1",
    add_arguments=_add_arguments,
    build=_build,
    input_help="the file, or a folder of such files",
    guess=_guess,
    generic=True,
)
