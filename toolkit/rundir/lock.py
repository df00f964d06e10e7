"""One live job or training per run directory: a lock on `<run>/job.lock`, which also records who holds it.

The lock is the kernel's (`flock`), so it can't go stale: it is free the moment the last process that holds it is gone,
however it went. A job passes the open file on to the ranks it starts; should the job itself be killed, the run still
counts as live until its ranks have ended too. A training takes the lock itself, unless the job that started it has it:
it knows its own job by a token, which is in the record and in the environment, so that ranks on other nodes know it
too. The file remains, with the record of the last job.

A lock can be had though somebody works on the run: its file was deleted (a purge of scratch space), or the file system
grants locks per host. Two things guard against that. Who takes a lock whose record doesn't say that its job has ended
watches the heartbeats first, by its own clock (`_refuse_live_ranks`). And who holds it compares the file with its path
every few seconds (`check_lock`): a deleted file is created and locked again, and the process ends if somebody else has
locked that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.filelock import lock_file
from toolkit.atomic import alive, describe_owner, move_aside
from toolkit.errors import EXIT_BUSY, ToolkitError
from toolkit.rundir.heartbeat import BEAT_S, beats_of
from toolkit.rundir.records import Types, read_object
from toolkit.shipped import command
from toolkit.wording import first_line

LOCK_NAME = "job.lock"
TOKEN_VARIABLE = "MODERNN_JOB_TOKEN"  # noqa: S105  names the job, is no secret
FD_VARIABLE = "MODERNN_LOCK_FD"  # an open file that holds the lock already, for the job that is started with it
PATIENCE_S = 1.0  # someone who merely looks (`holder`) has the lock for an instant
WATCH_S = 5 * BEAT_S  # for a rank that lives to write its heartbeat again
TYPES: Types = {"pid": int, "exit": int, "started": float, "ended": float, "submitted": float} | dict.fromkeys(
    ("host", "job", "token", "log", "phase"), str
)
logger = logging.getLogger(__name__)


class RunBusyError(ToolkitError):
    """Another job has this run directory."""

    exit_code = EXIT_BUSY


def read_lock(run: Path) -> dict[str, Any]:
    """Return what the present or last job wrote about itself; empty when there was none, or its record is damaged."""
    return read_object(run / LOCK_NAME, TYPES)


@dataclass
class HeldLock:
    """The lock while it is ours. `fd` is to be passed on to child processes."""

    run: Path
    fd: int
    record: dict[str, Any]
    _fault: str = ""  # of the last check

    @property
    def environment(self) -> dict[str, str]:
        """Return the variable by which a child process knows that its job has the lock."""
        return {TOKEN_VARIABLE: str(self.record["token"])}

    def note(self, **values: object) -> None:
        """Merge values into the record that others read; a disk that refuses them ends no job."""
        self.record.update(values)
        text = json.dumps(self.record).encode()
        # In place, not by rename: the lock belongs to this very file. A reader who meets half a record waits a moment.
        try:
            os.pwrite(self.fd, text, 0)
            os.ftruncate(self.fd, len(text))
        except OSError as error:
            logger.warning("%s: can't be written (%s)", self.run / LOCK_NAME, error.strerror)

    def check(self) -> None:
        """Check that the lock is still ours: create and lock a deleted file again, and repair its record.

        A file system that can't answer now is logged, and the next check decides.

        Raises:
            RunBusyError: somebody else has the file that is there now.
        """
        fault = ""
        try:
            self._check()
        except RunBusyError:
            raise
        except (OSError, ToolkitError) as error:
            fault = first_line(error)
            if fault != self._fault:
                logger.warning("%s: can't be checked (%s); it is tried again", self.run / LOCK_NAME, fault)
        self._fault = fault

    def _check(self) -> None:
        path = self.run / LOCK_NAME
        if not _is_at(self.fd, path):
            logger.warning("%s: was deleted or replaced while this job held it; it is locked again", path)
            fd = _open(path)
            try:
                if _is_at(self.fd, path):  # it is back, and would conflict with our own lock
                    return
                if not lock_file(fd):
                    raise _busy(self.run, "and has replaced the lock of this job, whose file was deleted")
                os.dup2(fd, self.fd, inheritable=False)  # the same number, for children that are still to be started
            finally:
                os.close(fd)
            self.note()
        elif read_lock(self.run).get("token") != self.record["token"]:
            logger.warning("%s: was damaged; its record is written again", path)
            self.note()

    def release(self) -> None:
        """Let go; children that were given `fd` hold it on."""
        _held.pop(self.run, None)
        os.close(self.fd)


_held: dict[Path, HeldLock] = {}  # of this process


@contextlib.contextmanager
def hold(run: Path, **values: object) -> Iterator[HeldLock]:
    """Hold the run's lock; `values` are merged into the record (pid, host and time are there anyway).

    Raises:
        RunBusyError: when another job or training holds it; the message names host, process and job.
        ToolkitError: when the file system has no locks.
    """
    lock = _acquire(run, values, token=None)
    assert lock is not None
    try:
        yield lock
    finally:
        lock.release()


def claim(run: Path, **values: object) -> HeldLock | None:
    """Return the run's lock for a training, until it is released; None when the job that started this process holds it.

    Raises:
        RunBusyError, ToolkitError: as `hold`.
    """
    return _acquire(run, values, os.environ.get(TOKEN_VARIABLE))


def check_lock(run: Path) -> None:
    """Check, in a process that works on the run, that its lock is still this process's or its job's.

    Raises:
        RunBusyError: another job has it.
    """
    held, token = _held.get(run), os.environ.get(TOKEN_VARIABLE)
    if held is not None:
        held.check()
    elif token and read_lock(run).get("token", token) != token:
        raise _busy(run, "and has replaced the lock of the job that this training belongs to")


def _acquire(run: Path, values: dict[str, object], token: str | None) -> HeldLock | None:
    path = run / LOCK_NAME
    while True:
        fd = _inherited(run)
        fd = _open(path) if fd is None else fd
        try:
            if not _lock(fd, run, token):
                os.close(fd)
                return None
            if not _is_at(fd, path):  # deleted or replaced since it was opened: that lock would guard nothing
                os.close(fd)
                continue
            _refuse_live_ranks(run)
            record = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
            lock = HeldLock(run, fd, {**record, "token": secrets.token_hex(8)})
            lock.note(**values)
        except BaseException:
            os.close(fd)
            raise
        _held[run] = lock
        return lock


def _open(path: Path) -> int:
    """Open the lock's file, made if it isn't there; what is no regular file is moved aside."""
    while True:
        try:
            if os.path.lexists(path) and not path.is_file():
                logger.warning("%s: is no regular file; it is now %s", path, move_aside(path).name)
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except (FileNotFoundError, IsADirectoryError):
            if not path.parent.is_dir():
                raise ToolkitError(f"{path}: can't be made: there is no folder {path.parent}") from None
        except OSError as error:
            whose = f"; {describe_owner(path)}" if isinstance(error, PermissionError) else ""
            raise ToolkitError(f"{path}: can't be opened for writing ({error.strerror}){whose}") from None


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is the one at a path. Raises OSError where the file system can't tell."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def lock_for_child(run: Path) -> int | None:
    """Return an open file that holds the run's lock, for a child that is given it by FD_VARIABLE; None if it is held.

    Never waits. The caller closes its own copy when the child has started: the lock is then the child's alone.
    """
    path = run / LOCK_NAME
    fd = _open(path)
    with contextlib.suppress(OSError):
        if lock_file(fd) and _is_at(fd, path):
            return fd
    os.close(fd)
    return None


def _inherited(run: Path) -> int | None:
    """Return the open file of `lock_for_child`, once; None without one, or where it is another run's."""
    fd = int(os.environ.pop(FD_VARIABLE, "-1"))
    try:
        os.fstat(fd)
    except OSError:  # no open file of this process
        return None
    return fd if _is_at(fd, run / LOCK_NAME) else None


def _lock(fd: int, run: Path, token: str | None) -> bool:
    """Return True: it is ours now, or False: the job of this token has it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if lock_file(fd):
                return True
        except OSError as error:
            raise ToolkitError(
                f"{run / LOCK_NAME}: can't be locked ({error.strerror}): put the run directories on a file system "
                "with locks (Lustre: mount option `flock`)"
            ) from None
        if token is not None and read_lock(run).get("token") == token:
            return False
        if time.monotonic() >= deadline:
            raise _busy(run)
        time.sleep(0.05)


def _refuse_live_ranks(run: Path) -> None:
    """Raise RunBusyError where ranks work on a run though its lock could be had; no clocks of two hosts are compared.

    Costs time only after a job of another host that was killed.
    """
    record = read_lock(run)
    if "ended" in record:
        return
    seen = {rank: beat for rank, beat in beats_of(run).items() if not beat.ended}
    seen = {rank: beat for rank, beat in seen.items() if alive(beat.host, beat.pid) is not False}
    if not seen:
        return
    last = next(iter(seen.values()))
    logger.warning("%s: the last job left no exit status; waiting up to %g s for a sign of %s", run, WATCH_S, last)
    deadline = time.monotonic() + WATCH_S
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 4)
        for rank, beat in beats_of(run).items():
            if rank in seen and beat != seen[rank] and not beat.ended:
                raise _busy(
                    run,
                    f"as the heartbeats of {beat} show, though {LOCK_NAME} could be locked here: its file was deleted "
                    "or replaced, or this file system grants locks per host (Lustre: mount with `flock`, not "
                    "`localflock`)",
                )


def _busy(run: Path, why: str = "") -> RunBusyError:
    reason = f"{describe(read_lock(run))}{', ' if why else ''}{why}"
    return RunBusyError(f"{run}: {reason}; look at it ({command('status', run)}), or wait until it has ended")


def holder(run: Path) -> dict[str, Any] | None:
    """Return the record of the live job of this run, or None when no job is live. Never blocks."""
    try:
        fd = os.open(run / LOCK_NAME, os.O_RDONLY | os.O_NONBLOCK)  # of a pipe of that name, too
    except OSError:
        return None
    try:
        return None if lock_file(fd, shared=True) else read_lock(run)
    except OSError:
        return None
    finally:
        os.close(fd)


def is_held_by(run: Path, pid: int) -> bool:
    """Whether a process of this machine has the run's lock open: the number of one that ended may be another's now."""
    return has_open(pid, run / LOCK_NAME)


def has_open(pid: int, file: Path) -> bool:
    """Whether a process of this machine has a file open. Only such a one is sent a signal: files name any."""
    try:
        wanted = os.stat(file)
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    for name in names:
        with contextlib.suppress(OSError):
            found = os.stat(f"/proc/{pid}/fd/{name}")
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False


def describe(record: dict[str, Any]) -> str:
    """Return who holds the lock, for a message."""
    job, pid, host = record.get("job", "another job"), record.get("pid", "?"), record.get("host", "?")
    return f"job {job} (process {pid} on {host}) is working on this run"
