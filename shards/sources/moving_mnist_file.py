"""Moving MNIST as others have made it: files of finished sequences.

- mnist_test_seq.npy, the canonical 10,000 test sequences: uint8 [20, 10000, 64, 64], time first. Any .npy of
  [T, N, H, W] or [N, T, H, W], with or without channels; --layout says which, where the shape leaves a doubt.
- PredRNN's .npz: `clips` [2, N, 2] with (start, length) of the inputs and of the targets in `input_raw_data`
  [frames, 1, 64, 64], of 0..1 or of 0..255.

A folder may hold several: a file whose name says train, valid or test is of that split, and a sub-folder may be a mode.
Each file's clips count within that file. Nothing is loaded whole: a .npy is mapped, and an .npz is decompressed as a
stream, forwards.
"""

from __future__ import annotations

import argparse
import functools
import math
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from shards.errors import SourceError
from shards.manifest import FrameSpec, Scale, SourceInfo
from shards.npz import NUMPY_ERRORS
from shards.sources.array_files import mapped, pieces, read_header
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry
from shards.sources.inputs import Listing, by, plural, walk
from shards.sources.layouts import frames_of, guess_layout, parse_layout, sides_of
from shards.sources.splits import DEFAULT_TEST, DEFAULT_VAL, Shares, add_share_arguments, lot, named_split, shares_of
from shards.sources.value_range import ValueRange, choose_range, measure_values

SUFFIXES = (".npy", ".npz")
RAW, CLIPS = "input_raw_data", "clips"


@dataclass(frozen=True)
class SequenceFile:
    """One file. `values` says what its numbers are: 0..1, or 0..255. Of an .npz `spans` are the frames of every
    sequence: ((start, length), ...).
    """

    name: str
    sequences: int
    length: int
    frame: tuple[int, int, int]  # channels, height, width
    values: ValueRange
    layout: str = ""
    spans: tuple[tuple[tuple[int, int], ...], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MovingMnistFile:
    """Files of sequences of one shape."""

    folder: Path
    files: tuple[SequenceFile, ...]
    shares: Shares | None
    seed: int
    mode_by: str

    def describe(self) -> Description:
        """Return intensity 0..1, no clock."""
        channels, height, width = self.files[0].frame
        return Description(
            name="moving-mnist-file",
            frames=FrameSpec(channels, height, width),
            step_seconds=None,
            scale=Scale(quantity="intensity", unit="1", offset=0.0, gain=1 / 255),
            modes=tuple(sorted({mode for file in self.files if (mode := self._mode(file)) is not None})),
            source=_INFO,
        )

    def plan(self) -> Plan:
        """Return a file's own split, or shares of its sequences, drawn."""
        splits: dict[str, list[PlannedEvent]] = defaultdict(list)
        notes = []
        for number, file in enumerate(self.files):
            split = named_split(file.name) or named_split(file.name.rsplit("/", 1)[-1])
            split = None if self.shares is not None else split
            drawn = {} if split is not None else self._draw(file)
            for index in range(file.sequences):
                splits[split or drawn[index]].append(
                    PlannedEvent(
                        key=f"{number:03d}-{index:07d}",
                        length=file.length,
                        mode=self._mode(file),
                        recipe=(number, index),
                    )
                )
            how = f"all {split}" if split else "divided by drawing"
            notes.append(f"{file.name}: {plural(file.sequences, 'sequence')} of {file.length} frames, {how}")
            notes += file.notes
        return Plan({name: splits[name] for name in ("train", "val", "test") if name in splits}, tuple(notes))

    def _draw(self, file: SequenceFile) -> dict[int, str]:
        counts = (self.shares or Shares(DEFAULT_VAL, DEFAULT_TEST)).counts(file.sequences)
        order = sorted(range(file.sequences), key=lambda index: lot(self.seed, f"{file.name}:{index}"))
        names = [name for name in ("test", "val", "train") for _ in range(counts[name])]
        return dict(zip(order, names, strict=True))

    def _mode(self, file: SequenceFile) -> str | None:
        parts = file.name.split("/")
        return parts[-2] if self.mode_by == "folder" and len(parts) > 1 else None

    def read(self, event: PlannedEvent) -> RawEvent:
        """Read one sequence, uint8 [L, C, H, W]; `details` name its file and its place there."""
        number, index = event.recipe
        file = self.files[number]
        path = self.folder / file.name
        if file.spans:
            values = _npz_sequence(path, file, index)
        else:
            values = frames_of(mapped(path), file.layout, index, 0, file.length)
        return RawEvent(file.values.codes(values), {"file": file.name, "index": index})


def _npz_sequence(path: Path, file: SequenceFile, index: int) -> npt.NDArray[Any]:
    stream, start, dtype, size = _stream(path)
    parts = []
    try:
        for first, count in file.spans[index]:
            stream.seek(start + first * size)  # backwards begins anew, so events in order are one pass
            data = stream.read(count * size)
            parts.append(np.frombuffer(data, dtype=dtype).reshape(count, *file.frame))
    except NUMPY_ERRORS as error:
        raise SourceError(f"{path}: {RAW} is cut off or damaged ({error}); fetch the file again") from None
    return np.concatenate(parts)


@functools.lru_cache(maxsize=1)
def _stream(path: Path) -> tuple[IO[bytes], int, np.dtype[np.generic], int]:
    """Return the open member RAW, where its numbers begin, their type, and the bytes of a frame."""
    archive = zipfile.ZipFile(path)
    member = archive.open(f"{RAW}.npy")
    shape, dtype = _npy_header(path, member, archive.getinfo(f"{RAW}.npy").file_size)
    return member, member.tell(), dtype, int(np.prod(shape[1:])) * dtype.itemsize


def _npy_header(path: Path, file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    try:
        shape, fortran, dtype = read_header(file, size)
    except NUMPY_ERRORS as error:
        raise SourceError(f"{path}: {RAW} is no npy ({error}); fetch the file again") from None
    if fortran:
        raise SourceError(f"{path}: {RAW} holds {dtype} in Fortran order; save it as C numbers")
    return shape, dtype


def _inspect_npy(folder: Path, name: str, layout: str | None) -> SequenceFile:
    path = folder / name
    array = mapped(path)
    if array.ndim not in (4, 5):
        raise SourceError(f"{path}: shape {by(array.shape)}, expected [T, N, H, W] such as 20x10000x64x64")
    canonical = "tnhw" if array.ndim == 4 and path.name.startswith("mnist_test_seq") else None
    found = layout or canonical or guess_layout(path, array.shape)
    if len(found) != array.ndim:
        raise SourceError(f"{path}: an array of {by(array.shape)} has no layout {found!r}; say another --layout")
    notes = [] if layout or canonical else [f"{name}: layout {found} by its shape: say --layout if that is wrong"]
    values, told = _values(name, array.dtype, () if array.dtype == np.uint8 else pieces(array))
    sides = sides_of(array.shape, found)
    frame = (sides["c"], sides["h"], sides["w"])
    return SequenceFile(name, sides["n"], sides["t"], frame, values, found, notes=(*notes, *told))


def _values(
    name: str, dtype: np.dtype[np.generic], parts: Iterable[npt.NDArray[np.generic]]
) -> tuple[ValueRange, list[str]]:
    """Return what the numbers are, by all of them: 0..1, or whole numbers of 0..255. Raises SourceError."""
    if dtype.kind not in "fiub":
        raise SourceError(f"{name}: numbers of type {dtype}, expected uint8 or floats; convert them first")
    found = measure_values(parts, None)
    if found.nan:
        raise SourceError(
            f"{name}: {found.nan} of {found.count} numbers are NaN; make the file again, or: convert arrays"
        )
    return choose_range(f"{name} (convert arrays has --range)", dtype, found, None)


def _inspect_npz(folder: Path, name: str) -> SequenceFile:
    path = folder / name
    try:
        with zipfile.ZipFile(path) as archive:
            absent = [key for key in (CLIPS, RAW) if f"{key}.npy" not in archive.namelist()]
            if absent:
                raise SourceError(
                    f"{path}: no {' and no '.join(absent)}; it holds {', '.join(archive.namelist()) or 'nothing'}, "
                    f"PredRNN's files hold {CLIPS} and {RAW}"
                )
            with archive.open(f"{CLIPS}.npy") as file:
                read_header(file, archive.getinfo(f"{CLIPS}.npy").file_size)
            with archive.open(f"{CLIPS}.npy") as file:
                clips = npy_format.read_array(file, allow_pickle=False)
            with archive.open(f"{RAW}.npy") as file:
                shape, dtype = _npy_header(path, file, archive.getinfo(f"{RAW}.npy").file_size)
                parts = () if dtype == np.uint8 else _frames_one_by_one(file, shape, dtype)
                values, notes = _values(name, dtype, parts)
    except NUMPY_ERRORS as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: unreadable npz file ({error}); fetch it again") from None
    if clips.ndim != 3 or clips.shape[0] != 2 or clips.shape[2] != 2 or len(shape) != 4 or clips.dtype.kind not in "iu":
        raise SourceError(
            f"{path}: {CLIPS} {clips.dtype} {by(clips.shape)} and {RAW} {by(shape)}, expected integers 2xNx2 and "
            "FRAMESx1xHxW"
        )
    spans = tuple(
        tuple((int(start), int(count)) for start, count in clips[:, index]) for index in range(clips.shape[1])
    )
    lengths = {sum(count for _, count in parts) for parts in spans}
    furthest = max((start + count for parts in spans for start, count in parts), default=0)
    if len(lengths) != 1 or furthest > shape[0] or clips.min(initial=0) < 0:
        raise SourceError(
            f"{path}: {CLIPS} has lengths {sorted(lengths)} and goes up to frame {furthest}, {RAW} has {shape[0]} "
            "frames; make the file again"
        )
    frame = (shape[1], shape[2], shape[3])
    return SequenceFile(name, len(spans), lengths.pop(), frame, values, spans=spans, notes=tuple(notes))


def _frames_one_by_one(
    file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> Iterator[npt.NDArray[np.generic]]:
    size = math.prod(shape[1:]) * dtype.itemsize
    for _ in range(shape[0] if shape else 0):
        data = file.read(size)
        if len(data) < size:
            raise EOFError("cut off")
        yield np.frombuffer(data, dtype=dtype)


def _inspect(folder: Path, names: list[str], layout: str | None) -> Iterator[SequenceFile]:
    """Return what every file holds. Raises SourceError where two differ."""
    first: SequenceFile | None = None
    for name in names:
        file = _inspect_npy(folder, name, layout) if name.endswith(".npy") else _inspect_npz(folder, name)
        first = first or file
        if file.frame != first.frame:
            raise SourceError(
                f"{folder}: frames of two shapes: {first.name} has {by(first.frame)}, {name} {by(file.frame)} "
                "(channels, height, width); convert them as two archives"
            )
        yield file


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layout",
        type=parse_layout,
        default=argparse.SUPPRESS,  # so that the manifests of stores without it stay as they were
        metavar="tnhw|nthw",
        help="axes of a .npy in order: t frames, n sequences, h rows, w columns, c channels (default: by shape)",
    )
    add_share_arguments(parser, "a file's sequences, drawn; a name with train, valid or test decides otherwise")
    parser.add_argument("--split-seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--mode-by",
        choices=("folder", "none"),
        default="none",
        help="label events by their file's folder, for analysis (default: %(default)s)",
    )


def _build(args: argparse.Namespace) -> Source:
    path = Path(args.input)
    folder, names = (path.parent, [path.name]) if path.is_file() else (path, walk(path))
    names = [name for name in names if name.endswith(SUFFIXES)]
    if not names:
        raise SourceError(f"{path}: no .npy and no .npz file; to make sequences from digits: convert moving-mnist")
    return MovingMnistFile(
        folder,
        tuple(_inspect(folder, names, getattr(args, "layout", None))),
        shares_of(args),
        args.split_seed,
        args.mode_by,
    )


def _has_clips(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{CLIPS}.npy" in archive.namelist()
    except NUMPY_ERRORS:
        return False


def _guess(listing: Listing) -> str | None:
    files = [file for file in listing.files if file.endswith(SUFFIXES)]
    files = [file for file in files if "mnist" in file.lower() or _has_clips(listing.root / file)]
    return f"{plural(len(files), 'numpy file')}, the first is {files[0]}" if files else None


_INFO = SourceInfo(
    name="Moving MNIST, finished sequences",
    licence="CC BY-SA 3.0 (digits); the file states none",
    citation="Srivastava, Mansimov, Salakhutdinov, Unsupervised learning of video representations, ICML 2015",
    url="https://www.cs.toronto.edu/~nitish/unsupervised_video",
)
ENTRY = SourceEntry(
    summary="Moving MNIST's finished sequences: mnist_test_seq.npy, PredRNN's .npz",
    example="python -m shards convert moving-mnist-file ~/mnist_test_seq.npy stores/mmnist-test",
    add_arguments=_add_arguments,
    build=_build,
    input_help="the file, or a folder of such files",
    guess=_guess,
)
