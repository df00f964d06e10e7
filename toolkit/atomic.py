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
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shards.fsync import flush

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<host>.+)-(?P<pid>\d+)(?:-[0-9a-f]{8})?\.(?P<kind>tmp|old)")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` atomically: a reader sees the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, text: str) -> None:
    """Replace a small text file whole."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing_tree(path: Path) -> Iterator[Path]:
    """Give a temporary path to write a folder or a file to; it takes the place of `path` when the block ends.

    All of it is flushed to the disk first. A folder that was at `path` is removed last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _beside(path, "tmp"), _beside(path, "old")
    try:
        yield temporary
        for item in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
            flush(item)
        if path.is_dir() and not path.is_symlink():  # a folder can't be renamed onto another
            path.rename(old)
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        remove(temporary)
        remove(old)


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
        path.unlink(missing_ok=True)


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
