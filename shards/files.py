"""The files of a store, wherever they lie: `Files` is what readers need of them, `LocalFiles` a folder.

Local files are read by `preadv` straight into the array that the caller gets: one copy, as from a memory map, and as
fast (benchmarks/shards.py). Unlike mapped pages, what is read isn't counted as this process's memory, which would grow
to the size of the store and which Slurm kills for; and a file that is cut off under a running reader, or a disk that
fails, is an error with a name instead of SIGBUS.
"""

from __future__ import annotations

import io
import os
import resource
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from shards.errors import StoreError, verify_hint
from shards.manifest import Codes


class Files(ABC):
    """The files of one store, by their names below it (forward slashes). May be handed to other processes."""

    attempts = 1  # how often contents that turn out wrong are worth fetching
    fixed = True  # a file's `version` never changes

    def __init__(self, where: str) -> None:
        self.where = where

    @abstractmethod
    def size(self, file: str) -> int | None:
        """Bytes of a file; None if it is absent, -1 if telling would cost a request."""

    @abstractmethod
    def read_all(self, file: str, size: int | None = None) -> bytes:
        """A whole file, which should have `size` bytes. Raises StoreError."""

    @abstractmethod
    def read_into(self, file: str, offset: int, out: Codes, key: str | None = None) -> None:
        """Fill `out` (contiguous) with the bytes from `offset` on, which belong to event `key`. Raises StoreError."""

    @abstractmethod
    def open(self, file: str, size: int) -> io.RawIOBase:
        """A file of `size` bytes, to read from its beginning to its end. Raises StoreError, at reading too."""

    def version(self, file: str) -> int:
        """Changes when a server begins to give another file under this name; folders are trusted not to."""
        return 0

    def read_at(self, file: str, offset: int, size: int, key: str | None = None) -> Codes:
        """`size` bytes from `offset` on."""
        out = np.empty(size, dtype=np.uint8)
        self.read_into(file, offset, out, key)
        return out


class _Descriptor:
    """An open file. It closes when nobody uses it any more, so a thread can't lose it in the middle of a read."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

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

    def read_all(self, file: str, size: int | None = None) -> bytes:
        try:
            data = (self.folder / file).read_bytes()
        except OSError as error:
            raise StoreError(self._unreadable(file, error), shard=file) from None
        if size is not None and len(data) != size:
            raise StoreError(
                f"{self.folder / file}: {len(data)} bytes, the manifest says {size}; {verify_hint(self.folder)}",
                shard=file,
            )
        return data

    def read_into(self, file: str, offset: int, out: Codes, key: str | None = None) -> None:
        try:
            descriptor = self._open.get(file) or self._descriptor(file)
            got = os.preadv(descriptor.number, [out.data], offset)
            left, at = out.reshape(-1).data[got:], offset + got
            while left.nbytes:
                got = os.preadv(descriptor.number, [left], at)
                if not got:
                    raise StoreError(
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
            return (self.folder / file).open("rb", buffering=0)
        except OSError as error:
            raise StoreError(self._unreadable(file, error), shard=file) from None

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
