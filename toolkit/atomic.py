"""Replace files and folders whole: a reader sees the old bytes or the new ones, and a crash leaves no half of either.

What is written goes to a temporary name beside the target, `.NAME.HOST-PID-CODE.tmp`, is flushed to the disk and then
renamed. A writer that was killed leaves that name behind: `clear_leftovers` removes those whose writer is gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shards.fsync import flush
from shards.writing import UNTOUCHED
from shards.writing import FileWriteError as FileWriteError
from shards.writing import describe_owner as describe_owner
from shards.writing import free_space as free_space

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<host>.+)-(?P<pid>\d{1,7})(?:-[0-9a-f]{8})?\.(?P<kind>tmp|old)")


def check_writable(folder: Path) -> None:
    """Check that files can be made in a folder, which is made if it isn't there.

    Raises:
        FileWriteError: they can't.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise FileWriteError(error, folder) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` atomically: a reader sees the old bytes or the new ones.

    Raises:
        FileWriteError: it can't be written.
    """
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _not_written(error, path, temporary) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _not_written(error: OSError, path: Path, temporary: Path) -> OSError:
    """Return the error that says which file was not written, and remove what there is of it."""
    size = 0
    with contextlib.suppress(OSError):
        size = temporary.stat().st_size
        temporary.unlink()
    return error if isinstance(error, FileWriteError) else FileWriteError(error, path, size)


def write_atomic(path: Path, text: str) -> None:
    """Replace a small text file whole."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing_tree(path: Path) -> Iterator[Path]:
    """Give a temporary path to write a folder or a file to; it takes the place of `path` when the block ends.

    All of it is flushed to the disk first. A folder that was at `path` is removed last.

    Raises:
        FileWriteError: it can't be written; it says where the folder is that was at `path` if that can't be put back.
    """
    temporary, old = _beside(path, "tmp"), _beside(path, "old")
    kept = UNTOUCHED
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for item in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
            flush(item)
        if path.is_dir() and not path.is_symlink():  # a folder can't be renamed onto another
            path.rename(old)
        os.replace(temporary, path)
        kept = "The new one is in place, but a power cut may undo that"
        flush(path.parent)
    except BaseException as error:
        if old.exists() and not path.exists():
            try:
                old.rename(path)
            except OSError:
                kept = f"What was there before is in {old}, and {path} does not exist"
        if isinstance(error, OSError) and not isinstance(error, FileWriteError):
            raise FileWriteError(error, path, size_of(temporary), kept) from error
        raise
    finally:
        remove(temporary)
        if path.exists():
            remove(old)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; those that are gone count as none."""
    total = 0
    for item in [*path.rglob("*"), path]:
        with contextlib.suppress(OSError):
            total += item.lstat().st_size if not item.is_dir() else 0
    return total


def clear_leftovers(folder: Path) -> list[Path]:
    """Remove what killed writers left in a folder and return it; those of other machines may still be alive."""
    removed = []
    for item in sorted(folder.glob(".*")):
        made = _LEFTOVER.fullmatch(item.name)
        if made is None or alive(made["host"], int(made["pid"])) is not False:
            continue
        if made["kind"] == "old" and not os.path.lexists(folder / made["name"]):  # killed between two renames
            item.rename(folder / made["name"])
        else:
            remove(item)
        removed.append(item)
    return removed


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there. No link is followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def move_aside(path: Path) -> Path:
    """Rename what stands at `path` to `NAME.damaged`, or with a number behind; returns the new path."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.damaged" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(aside):
            break
    path.rename(aside)
    return aside


def alive(host: str, pid: int) -> bool | None:
    """Whether a process runs; None where that can't be asked (another host, another user)."""
    if host != socket.gethostname():
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return None
    try:  # ended, but nobody has asked for its code yet: in containers that may last
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return None


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.{kind}")
