"""The files of a store, wherever they lie: `Files` is what readers need of them, `LocalFiles` a folder.

Local files are read by `preadv` straight into the array that the caller gets: one copy, as from a memory map, and as
fast (benchmarks/shards.py). Unlike mapped pages, what is read isn't counted as this process's memory, which would grow
to the size of the store and which Slurm kills for; and a file that is cut off under a running reader, or a disk that
fails, is an error with a name instead of SIGBUS.
"""

from __future__ import annotations

import errno
import io
import os
import resource
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import ContentError, StoreError, verify_hint

Codes = npt.NDArray[np.unsignedinteger[Any]]  # of a frame's pixels: uint8 or uint16
Bytes = npt.NDArray[np.uint8]
LARGEST = 1 << 28  # bytes of a file of which nothing says how large it should be: a manifest
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe in the place of a file isn't waited for


class Files(ABC):
    """The files of one store, by their names below it (forward slashes). May be handed to other processes."""

    attempts = 1  # how often contents that turn out wrong are worth fetching
    fixed = True  # what was read once is the same when it is read again

    def __init__(self, where: str) -> None:
        self.where = where

    @abstractmethod
    def size(self, file: str) -> int | None:
        """Return the bytes of a file; None if it is absent, -1 if telling would cost a request."""

    @abstractmethod
    def read_all(self, file: str, size: int | None = None, most: int = LARGEST) -> bytes:
        """Read a whole file, which should have `size` bytes, or at most `most` if that isn't known. Raises
        StoreError.
        """

    @abstractmethod
    def read_into(self, file: str, offset: int, out: Bytes, key: str | None = None) -> None:
        """Fill `out` (contiguous) with the bytes from `offset` on, which belong to event `key`. Raises StoreError."""

    @abstractmethod
    def open(self, file: str, size: int) -> io.RawIOBase:
        """Open a file of `size` bytes, to read from its beginning to its end. Raises StoreError, at reading too."""

    def forget(self, file: str) -> None:  # noqa: B027 - most keep nothing
        """Drop a copy that turned out wrong, if one is kept: the next read fetches the file again."""

    def read_at(self, file: str, offset: int, size: int, key: str | None = None) -> Bytes:
        """Read `size` bytes from `offset` on. Raises StoreError, also where so much can't be held."""
        try:
            out = np.empty(size, dtype=np.uint8)
        except (MemoryError, ValueError):
            raise StoreError(
                f"{self.where}/{file}: {size} bytes{f' of {key}' if key else ''} don't fit into memory; "
                + verify_hint(self.where),
                shard=file,
                key=key,
                offset=offset,
            ) from None
        self.read_into(file, offset, out, key)
        return out


class _Descriptor:
    """An open file. It closes when nobody uses it any more, so a thread can't lose it in the middle of a read."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, READ)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class LocalFiles(Files):
    """The files of a store in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder
        self._open: dict[str, _Descriptor] = {}
        # A quarter of what this process may have open: 256 shards by default.
        self._most = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def __reduce__(self) -> tuple[type[LocalFiles], tuple[Path]]:
        return LocalFiles, (self.folder,)

    def size(self, file: str) -> int | None:
        try:
            return (self.folder / file).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_all(self, file: str, size: int | None = None, most: int = LARGEST) -> bytes:
        try:
            data = read_regular(self.folder / file, most if size is None else size + 1)
        except OSError as error:
            raise StoreError(self._unreadable(file, error), shard=file) from None
        if size is not None and len(data) != size:
            raise StoreError(
                f"{self.folder / file}: {len(data)} bytes, the manifest says {size}; {verify_hint(self.folder)}",
                shard=file,
            )
        return data

    def read_into(self, file: str, offset: int, out: Bytes, key: str | None = None) -> None:
        try:
            descriptor = self._open.get(file) or self._descriptor(file)
            got = os.preadv(descriptor.number, [out.data], offset)
            left, at = out.reshape(-1).data[got:], offset + got
            while left.nbytes:
                got = os.preadv(descriptor.number, [left], at)
                if not got:
                    raise ContentError(
                        f"{self.folder / file}: cut off: {left.nbytes} bytes at {at}"
                        f"{f' of {key}' if key else ''} are missing; {verify_hint(self.folder)}",
                        shard=file,
                        key=key,
                        offset=at,
                    )
                at, left = at + got, left[got:]
        except OSError as error:
            raise StoreError(self._unreadable(file, error, key), shard=file, key=key, offset=offset) from None

    def open(self, file: str, size: int) -> io.RawIOBase:
        try:
            return io.FileIO(os.open(self.folder / file, READ))
        except OSError as error:
            raise StoreError(self._unreadable(file, error), shard=file) from None

    def close(self, file: str) -> None:
        """Open the file again at the next read."""
        self._open.pop(file, None)

    def _descriptor(self, file: str) -> _Descriptor:
        descriptor = _Descriptor(self.folder / file)
        if len(self._open) >= self._most:
            self._open.pop(next(iter(tuple(self._open))), None)  # the one opened first; no lock, so no deadlock
        self._open[file] = descriptor
        return descriptor

    def _unreadable(self, file: str, error: OSError, key: str | None = None) -> str:
        wanted = f" (for event {key})" if key else ""
        if isinstance(error, FileNotFoundError):
            return f"{self.folder / file}: this file is absent{wanted}; {verify_hint(self.folder)}"
        return f"{self.folder / file}: can't be read: {error.strerror}{wanted}; {verify_hint(self.folder)}"


def read_regular(path: Path, most: int) -> bytes:
    """Read a file of at most `most` bytes. Raises OSError, also for a larger one and for pipes and the like."""
    with io.FileIO(os.open(path, READ)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"{status.st_size} bytes, {most} at most can be right")
        return file.readall()
