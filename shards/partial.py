"""The unfinished store: a folder beside the output that an interrupted conversion leaves and the next one resumes from.

`.NAME.partial-CODE` holds the lock, the store to be, a record for each finished shard, and what is being written.
CODE stands for everything that decides the bytes: the arguments, the plan of events, and the program. The same call
finds the same folder; a call with other arguments, or after a change in the program, begins another one, and removes
what is left of the first when its own store stands.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from shards.errors import UsageError
from shards.filelock import lock_file
from shards.fsync import flush
from shards.sources.base import Source
from shards.writing import FileWriteError, writes

LOCK_NAME = "lock"


def partial_code(conversion: Mapping[str, object], plan_sha256: str, source: Source) -> str:
    """Return the CODE of the module's docstring."""
    digest = hashlib.sha256(json.dumps([conversion, plan_sha256], sort_keys=True).encode())
    program = set(Path(__file__).parent.rglob("*.py"))
    with suppress(TypeError, OSError):  # a source typed at the prompt has no file
        program.add(Path(inspect.getfile(type(source))))
    options = getattr(source, "__dict__", {}).values()
    program.update(value for value in options if isinstance(value, Path) and value.suffix == ".py")  # sources/custom.py
    for path in sorted(program):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@contextmanager
def partial_folder(output: Path, code: str, report: Callable[[str], None]) -> Iterator[Path]:
    """Yield the locked folder for this conversion to `output`, perhaps with finished shards. It is removed at the end,
    with those of earlier conversions to `output`; after an error it stays if it holds finished shards.

    Raises UsageError if another conversion to `output` is running, or the folder is somebody else's.
    """
    mine = output.parent / f".{output.name}.partial-{code}"
    with ExitStack() as locks:
        others = [path for path in _partials(output) if path != mine]
        for other in others:
            _lock(locks, other, output)
        try:
            with writes(mine):
                _make_own(mine)
                _lock(locks, mine, output)
                _refuse_links(mine)
        except FileWriteError:
            with suppress(OSError):  # it stays if anything is in it
                mine.rmdir()
            raise
        try:
            with writes(mine):
                for name in ("store", "work", "done"):
                    (mine / name).mkdir(exist_ok=True)
                for leftover in (mine / "work").iterdir():
                    leftover.unlink()
            yield mine
        except BaseException:
            if (mine / "done").is_dir() and any((mine / "done").iterdir()):
                report(f"finished shards are kept in {mine}; the same command resumes from them")
            else:
                shutil.rmtree(mine, ignore_errors=True)
            raise
        for folder in others:
            report(f"removing what an interrupted conversion left: {folder}")
            shutil.rmtree(folder)
        shutil.rmtree(mine, ignore_errors=True)  # a job that outlived its submitter may still add to it


def _make_own(folder: Path) -> None:
    """Make the folder, for this user alone: what lies in it is taken for finished work, and jobs run from it. Its name
    can be foreseen, so one that is there may be anybody's. Raises UsageError for such a one.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        with tempfile.TemporaryFile(dir=folder.parent) as file:  # some file systems know users by another number
            me = os.fstat(file.fileno()).st_uid
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != me:
            what = f"belongs to user {found.st_uid}" if stat.S_ISDIR(found.st_mode) else "is no folder"
            raise UsageError(
                f"{folder}: {what}, and would hold the unfinished store: remove it, or choose another output folder"
            ) from None
        folder.chmod(0o700)


def _refuse_links(folder: Path) -> None:
    """Refuse a folder that holds anything but folders and files: writing or clearing up through a link would change
    what lies elsewhere. Raises UsageError that names it.
    """
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for path in (Path(parent, name) for name in (*folders, *names)):
            kind = path.lstat().st_mode
            if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
                what = "a link" if stat.S_ISLNK(kind) else "no regular file"
                raise UsageError(
                    f"{path}: is {what}, which no conversion writes; remove {folder}, and run the same command again"
                )


def _raise(error: OSError) -> None:
    raise error


def put_in_place(store: Path, output: Path) -> None:
    """Flush everything to disk, then rename: after a power cut there is the whole store or none.

    Raises FileWriteError; it says where the store is that was at `output` if that can't be put back.
    """
    for parent, _, names in os.walk(store):
        for path in [*(Path(parent, name) for name in names), Path(parent)]:
            with writes(path):
                flush(path)
    if output.exists() and any(output.iterdir()):
        old = store.with_name("replaced")  # goes with the partial folder
        if old.exists():  # a call that was interrupted after it had put its store in place
            shutil.rmtree(old)
        output.rename(old)
        try:
            store.rename(output)
        except OSError as error:
            try:
                old.rename(output)
            except OSError:
                kept = f"The store that was there is in {old}, and {output} does not exist"
                raise FileWriteError(error, output, kept=kept) from None
            raise
    else:
        store.rename(output)
    try:
        _flush_parent(output)
    except OSError as error:
        kept = "The new store is in place and complete, but a power cut may undo that"
        raise FileWriteError(error, output, kept=kept) from None


def remove_partials(output: Path) -> None:
    """Remove what earlier conversions to `output` left, now that it stands; those that are still running are left
    alone.
    """
    for folder in _partials(output):
        with ExitStack() as locks, suppress(UsageError):
            _lock(locks, folder, output)
            shutil.rmtree(folder, ignore_errors=True)


def _partials(output: Path) -> list[Path]:
    """Return the folders of all unfinished conversions to `output`; links are nobody's."""
    found = sorted(output.parent.glob(f"{_plain(f'.{output.name}.partial-')}*"))
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _plain(text: str) -> str:
    """Return a glob pattern that matches `text` only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _lock(locks: ExitStack, partial: Path, output: Path) -> None:
    """Take the lock, which ends with its process, however that ends."""
    busy = UsageError(f"another conversion to {output} is running (it writes {partial}); wait for it, or stop it")
    try:
        descriptor = os.open(partial / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        locks.callback(os.close, descriptor)
        if not lock_file(descriptor):
            raise busy
        if os.fstat(descriptor).st_ino != (partial / LOCK_NAME).stat().st_ino:
            raise busy
    except FileNotFoundError:  # just finished and removed
        raise busy from None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise UsageError(f"{partial / LOCK_NAME}: is a link or lies in no folder; remove {partial}") from None


def _flush_parent(path: Path) -> None:
    """Flush the folder's entry for `path`."""
    flush(path.parent)
