"""Moving MNIST as others have made it: files of finished sequences.

- mnist_test_seq.npy, the canonical 10,000 test sequences: uint8 [20, 10000, 64, 64], time first. Any .npy of
  [T, N, H, W] or [N, T, H, W] (the longer axis of the two counts sequences), with or without a last axis of 1 or 3
  channels.
- PredRNN's .npz: `clips` [2, N, 2] with (start, length) of the inputs and of the targets in `input_raw_data`
  [frames, 1, 64, 64], of 0..1 or of 0..255.

A folder may hold several: a file whose name says train, valid or test is of that split, and a sub-folder may be a mode.
Each file's clips count within that file. Nothing is loaded whole: a .npy is mapped, and an .npz is decompressed as a
stream, forwards.
"""

from __future__ import annotations

import argparse
import functools
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from shards.errors import SourceError
from shards.manifest import FrameSpec, Scale, SourceInfo
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry
from shards.sources.inputs import Listing, by, plural, walk
from shards.sources.splits import DEFAULT_TEST, DEFAULT_VAL, Shares, add_share_arguments, lot, named_split, shares_of

SUFFIXES = (".npy", ".npz")
RAW, CLIPS = "input_raw_data", "clips"


@dataclass(frozen=True)
class SequenceFile:
    """One file. `factor` makes its numbers codes: 255 for 0..1. Of an .npz `spans` are the frames of every sequence:
    ((start, length), ...).
    """

    name: str
    sequences: int
    length: int
    frame: tuple[int, int, int]  # channels, height, width
    factor: float
    time_first: bool = True
    spans: tuple[tuple[tuple[int, int], ...], ...] = ()


@dataclass(frozen=True)
class MovingMnistFile:
    """Files of sequences of one shape."""

    folder: Path
    files: tuple[SequenceFile, ...]
    shares: Shares | None
    seed: int
    mode_by: str

    def describe(self) -> Description:
        """Intensity 0..1; no clock."""
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
        """A file's own split, or shares of its sequences, drawn."""
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
        """One sequence, uint8 [L, C, H, W]; `details` name its file and its place there."""
        number, index = event.recipe
        file = self.files[number]
        path = self.folder / file.name
        values = _npz_sequence(path, file, index) if file.spans else _npy_sequence(path, file, index)
        if file.factor == 1 and values.dtype == np.uint8:
            frames = values
        else:
            codes = np.rint(values.astype(np.float64) * file.factor)
            if not (codes.min() >= 0 and codes.max() <= 255):
                raise SourceError(
                    f"{path}: sequence {index} has values of {values.min():g}..{values.max():g}, the first ones are of "
                    f"0..{255 / file.factor:g}; make the file again"
                )
            frames = codes.astype(np.uint8)
        return RawEvent(frames, {"file": file.name, "index": index})


def _npy_sequence(path: Path, file: SequenceFile, index: int) -> npt.NDArray[Any]:
    array = _mapped(path)
    return _channels_second(np.array(array[:, index] if file.time_first else array[index]))


def _npz_sequence(path: Path, file: SequenceFile, index: int) -> npt.NDArray[Any]:
    stream, start, dtype, size = _stream(path)
    parts = []
    try:
        for first, count in file.spans[index]:
            stream.seek(start + first * size)  # backwards begins anew, so events in order are one pass
            data = stream.read(count * size)
            parts.append(np.frombuffer(data, dtype=dtype).reshape(count, *file.frame))
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise SourceError(f"{path}: {RAW} is cut off or damaged ({error}); fetch the file again") from None
    return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def _mapped(path: Path) -> npt.NDArray[np.generic]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise SourceError(f"{path}: unreadable npy file ({error}); fetch it again") from None


@functools.lru_cache(maxsize=1)
def _stream(path: Path) -> tuple[IO[bytes], int, np.dtype[np.generic], int]:
    """The open member RAW, where its numbers begin, their type, and the bytes of a frame."""
    member = zipfile.ZipFile(path).open(f"{RAW}.npy")  # noqa: SIM115 - it stays open, one per process
    shape, dtype = _npy_header(path, member)
    return member, member.tell(), dtype, int(np.prod(shape[1:])) * dtype.itemsize


def _npy_header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    try:
        version = npy_format.read_magic(file)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise SourceError(f"{path}: {RAW} is no npy ({error}); fetch the file again") from None
    if fortran or dtype.hasobject:
        raise SourceError(f"{path}: {RAW} holds {dtype} in {'Fortran' if fortran else 'C'} order; save it as C numbers")
    return shape, dtype


def _channels_second(values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """[T, H, W] or [T, H, W, C] -> [T, C, H, W]."""
    return values[:, None] if values.ndim == 3 else values.transpose(0, 3, 1, 2)


def _factor(path: Path, dtype: np.dtype[np.generic], sample: npt.NDArray[np.generic]) -> float:
    """255 for floats of 0..1, as the first frames tell; 1 for numbers up to 255."""
    if dtype != np.uint8 and dtype.kind not in "fiu":
        raise SourceError(f"{path}: numbers of type {dtype}, expected uint8 or floats; convert them first")
    return 255.0 if dtype.kind == "f" and float(sample.max(initial=0)) <= 1.0 else 1.0


def _inspect_npy(folder: Path, name: str) -> SequenceFile:
    path = folder / name
    array = _mapped(path)
    if array.ndim not in (4, 5) or (array.ndim == 5 and array.shape[4] not in (1, 3)):
        raise SourceError(f"{path}: shape {by(array.shape)}, expected [T, N, H, W] such as 20x10000x64x64")
    time_first = array.shape[0] <= array.shape[1]
    length, sequences = (array.shape[0], array.shape[1]) if time_first else (array.shape[1], array.shape[0])
    channels = array.shape[4] if array.ndim == 5 else 1
    sample = np.array(array[:, 0] if time_first else array[0])
    frame = (channels, array.shape[2], array.shape[3])
    return SequenceFile(name, sequences, length, frame, _factor(path, array.dtype, sample), time_first)


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
                clips = npy_format.read_array(file, allow_pickle=False)
            with archive.open(f"{RAW}.npy") as file:
                shape, dtype = _npy_header(path, file)
                few = min(shape[0], 40) if len(shape) == 4 else 0
                sample = np.frombuffer(file.read(few * int(np.prod(shape[1:])) * dtype.itemsize), dtype=dtype)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path}: unreadable npz file ({error}); fetch it again") from None
    if clips.ndim != 3 or clips.shape[0] != 2 or clips.shape[2] != 2 or len(shape) != 4:
        raise SourceError(f"{path}: {CLIPS} {by(clips.shape)} and {RAW} {by(shape)}, expected 2xNx2 and FRAMESx1xHxW")
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
    return SequenceFile(name, len(spans), lengths.pop(), frame, _factor(path, dtype, sample), spans=spans)


def _inspect(folder: Path, names: list[str]) -> Iterator[SequenceFile]:
    """What every file holds. Raises SourceError where two differ."""
    first: SequenceFile | None = None
    for name in names:
        file = (_inspect_npy if name.endswith(".npy") else _inspect_npz)(folder, name)
        first = first or file
        if file.frame != first.frame:
            raise SourceError(
                f"{folder}: frames of two shapes: {first.name} has {by(first.frame)}, {name} {by(file.frame)} "
                "(channels, height, width); convert them as two archives"
            )
        yield file


def _add_arguments(parser: argparse.ArgumentParser) -> None:
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
    return MovingMnistFile(folder, tuple(_inspect(folder, names)), shares_of(args), args.split_seed, args.mode_by)


def _guess(listing: Listing) -> str | None:
    files = [file for file in listing.files if file.endswith(SUFFIXES)]
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
