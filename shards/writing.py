"""Errors of files that can't be written. Needs the standard library alone: what a login node runs imports it."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

UNTOUCHED = "What was there before is untouched"


class FileWriteError(OSError):
    """A file or folder can't be written."""

    exit_code = 1

    def __init__(self, error: OSError, path: Path, size: int = 0, kept: str = UNTOUCHED) -> None:
        """
        Args:
            error: of the system.
            size: bytes that had been written.
            kept: what is there now, in words.
        """
        super().__init__(error.errno, error.strerror or str(error), str(path))
        self.size, self.kept = size, kept

    def __reduce__(self) -> tuple[type[FileWriteError], tuple[OSError, Path, int, str]]:
        return type(self), (OSError(self.errno, self.strerror), Path(self.filename), self.size, self.kept)

    def __str__(self) -> str:
        after = f" after {self.size:,} bytes" if self.size else ""
        full = self.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, 0)
        advice = "free space or repair the disk, then run the same command again" if full else "choose another place"
        if self.errno in (errno.EACCES, errno.EPERM):
            path = Path(self.filename)  # a file is replaced by another of its folder
            whose = describe_owner(path if path.is_dir() else path.parent)
            kept = "" if self.kept == UNTOUCHED else f" {self.kept}:"
            return f"{self.filename}: not written: {self.strerror}; {whose}:{kept} {advice}"
        return (
            f"{self.filename}: not written: {self.strerror}{after}; {free_space(Path(self.filename))}. {self.kept}: "
            f"{advice}"
        )


def describe_owner(path: Path) -> str:
    """Return whose a path is, in words; of one that isn't there the folder that it would be in."""
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError, KeyError):  # the latter: a number without a name
            return f"{folder} belongs to {folder.owner()}, group {folder.group()}"
    return str(path)


def free_space(path: Path) -> str:
    """Return the free bytes of the file system that a path is on or would be on, in words."""
    for place in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(place).free:,} bytes are free in {place}"
    return "free bytes unknown"


@contextlib.contextmanager
def writes(path: Path) -> Iterator[None]:
    """Name the file in the errors of a block that writes: the one that the system names, else `path`.

    Raises:
        FileWriteError: instead of any other OSError.
    """
    try:
        yield
    except FileWriteError:
        raise
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else None
        raise FileWriteError(error, Path(name) if name else path) from error
