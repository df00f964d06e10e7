"""Arrays in files: .npy (mapped into memory), .npz (unpacked one array at a time), HDF5 (read part by part).

Headers come from outside: no pickles, no more memory than the file's size or LARGEST, and of HDF5 nothing that lies
in another file.
"""

from __future__ import annotations

import functools
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from shards.errors import SourceError
from shards.npz import LARGEST, NUMPY_ERRORS
from shards.sources import hdf
from shards.sources.inputs import by

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5", ".mat")
SUFFIXES = (".npy", ".npz", *HDF5_SUFFIXES)
PIECE = 1 << 26  # bytes that are looked at at a time


@dataclass(frozen=True)
class ArrayInfo:
    """An array of a file: `key` is its name there, "" in a .npy."""

    file: str
    key: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}" if self.key else self.file


def list_arrays(folder: Path, file: str) -> list[ArrayInfo]:
    """Return the arrays in a file, also those that aren't of numbers. Raises SourceError."""
    path = folder / file
    if not path.is_file():
        raise SourceError(f"{path}: absent, or no regular file")
    if file.lower().endswith(HDF5_SUFFIXES):
        with hdf.opened(path, "reading HDF5") as opened:
            return [ArrayInfo(file, name, shape, dtype) for name, shape, dtype in hdf.datasets(opened)]
    if file.lower().endswith(".npz"):
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                heads = [(name, _member_header(archive, name, objects=True)) for name in names]
        except NUMPY_ERRORS as error:
            raise _unreadable(path, error) from None
        found = [ArrayInfo(file, name.removesuffix(".npy"), shape, str(dtype)) for name, (shape, dtype) in heads]
    else:
        array = mapped(path)
        found = [ArrayInfo(file, "", array.shape, str(array.dtype))]
    return found


def holds_numbers(dtype: str) -> bool:
    """Return whether a type is of numbers: not texts, nor Python objects, nor several fields."""
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:  # a type of several fields
        return False


def read_header(file: IO[bytes], size: int, objects: bool = False) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an npy file of `size` bytes: shape, whether in Fortran's order, type. Raises NUMPY_ERRORS,
    also where the file can't hold what the header says, and for Python objects, unless `objects` are to be left out.
    """
    version = npy_format.read_magic(file)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if objects and dtype.hasobject:
        return shape, fortran, dtype
    wanted = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=1) < 0 or file.tell() + wanted > size:
        raise ValueError(f"should hold {dtype} of {by(shape)} in {wanted} bytes, has {size}, or holds Python objects")
    return shape, fortran, dtype


def _member_header(archive: zipfile.ZipFile, name: str, objects: bool = False) -> tuple[tuple[int, ...], np.dtype[Any]]:
    info = archive.getinfo(name)
    with archive.open(info) as member:
        shape, _, dtype = read_header(member, info.file_size, objects)
    return shape, dtype


@functools.lru_cache(maxsize=4)
def mapped(path: Path) -> npt.NDArray[np.generic]:
    """Map a .npy into memory. Raises SourceError."""
    try:
        with path.open("rb") as file:
            read_header(file, path.stat().st_size)
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except NUMPY_ERRORS as error:
        raise _unreadable(path, error) from None


@functools.lru_cache(maxsize=1)
def _unpacked(path: Path, key: str) -> npt.NDArray[np.generic]:
    try:
        with zipfile.ZipFile(path) as archive:
            shape, dtype = _member_header(archive, f"{key}.npy")
            size = math.prod(shape) * dtype.itemsize
            if size > LARGEST:
                raise SourceError(
                    f"{path}: {key} has {size} bytes, at most {LARGEST} are unpacked at once; save it as .npy"
                )
            with archive.open(f"{key}.npy") as member:
                return np.asarray(npy_format.read_array(member, allow_pickle=False))
    except NUMPY_ERRORS as error:
        if isinstance(error, SourceError):
            raise
        raise _unreadable(path, error) from None


@contextmanager
def opened(folder: Path, info: ArrayInfo) -> Iterator[Any]:
    """Open an array: it has `shape`, `dtype`, and gives parts of itself. Raises SourceError, for damaged parts too."""
    path = folder / info.file
    try:
        if info.file.lower().endswith(HDF5_SUFFIXES):
            with hdf.opened(path, "reading HDF5") as file:
                yield _same(path, info, hdf.dataset(file, info.key))
        elif info.key:
            yield _same(path, info, _unpacked(path, info.key))
        else:
            yield _same(path, info, mapped(path))
    except NUMPY_ERRORS as error:
        if isinstance(error, SourceError):
            raise
        raise _unreadable(path, error) from None


def pieces(array: Any) -> Iterator[npt.NDArray[Any]]:
    """Yield an array part by part along its first axis, no part of more than PIECE bytes if rows are smaller."""
    row = max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
    step = max(1, PIECE // row)
    for begin in range(0, array.shape[0], step):
        yield np.asarray(array[begin : begin + step])


def _same(path: Path, info: ArrayInfo, array: Any) -> Any:
    if tuple(array.shape) != info.shape or str(array.dtype) != info.dtype:
        raise SourceError(
            f"{path}: {info.key or 'the array'} is {array.dtype} {by(array.shape)}, it was {info.dtype} "
            f"{by(info.shape)}: the archive has changed, convert again"
        )
    return array


def _unreadable(path: Path, error: BaseException) -> SourceError:
    kind = "npz" if path.suffix == ".npz" else "npy" if path.suffix == ".npy" else "HDF5"
    return SourceError(f"{path}: unreadable {kind} file ({error or type(error).__name__}); fetch it again")
