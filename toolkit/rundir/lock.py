"""One live job or training per run directory: a lock on `<run>/job.lock`, which also says who holds it.

The lock is the kernel's (`flock`), so it can't go stale: it is free the moment the last process that holds it is gone,
however it went. A job passes the open file on to the ranks it starts; should the job itself be killed, the run still
counts as live until its ranks have ended too. A training takes the lock itself, unless the job that started it has it:
it knows its own job by a token, which is in the record and in the environment, so that ranks on other nodes know it
too. The file stays behind and tells about the last job.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import EXIT_BUSY, ToolkitError
from toolkit.rundir.heartbeat import BEAT_S, beats_of

LOCK_NAME = "job.lock"
TOKEN_VARIABLE = "MODERNN_JOB_TOKEN"  # noqa: S105  names the job, is no secret
FD_VARIABLE = "MODERNN_LOCK_FD"  # an open file that holds the lock already, for the job that is started with it
PATIENCE_S = 1.0  # someone who merely looks (`holder`) has the lock for an instant
FAR_PATIENCE_S = 5 * BEAT_S


def read_lock(run: Path) -> dict[str, Any]:
    """What the present or last job wrote of itself into its lock; empty when there was none."""
    try:
        return dict(json.loads((run / LOCK_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


class RunBusyError(ToolkitError):
    """Another job has this run directory."""

    exit_code = EXIT_BUSY


@dataclass
class HeldLock:
    """The lock while it is ours. `fd` is to be passed on to child processes."""

    fd: int
    record: dict[str, Any]

    @property
    def environment(self) -> dict[str, str]:
        """What tells a child process that its job has the lock."""
        return {TOKEN_VARIABLE: str(self.record["token"])}

    def note(self, **values: object) -> None:
        """Merge values into the record that others read."""
        self.record.update(values)
        text = json.dumps(self.record).encode()
        # In place, not by rename: the lock belongs to this very file. A reader who meets half a record waits a moment.
        os.pwrite(self.fd, text, 0)
        os.ftruncate(self.fd, len(text))

    def release(self) -> None:
        """Let go; children that were given `fd` hold it on."""
        os.close(self.fd)


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
    """The run's lock for a training, until it is released; None when the job that started this process holds it.

    Raises:
        RunBusyError, ToolkitError: as `hold`.
    """
    return _acquire(run, values, os.environ.get(TOKEN_VARIABLE))


def _acquire(run: Path, values: dict[str, object], token: str | None) -> HeldLock | None:
    inherited = _inherited(run)
    fd = os.open(run / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666) if inherited is None else inherited
    try:
        if not _lock(fd, run, token):
            os.close(fd)
            return None
        _refuse_far_owner(run)
        record = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        lock = HeldLock(fd, {**record, "token": secrets.token_hex(8)})
        lock.note(**values)
    except BaseException:
        os.close(fd)
        raise
    return lock


def lock_for_child(run: Path) -> int | None:
    """Return an open file that holds the run's lock, for a child that is given it by FD_VARIABLE; None if it is held.

    Never waits. The caller closes its own copy when the child has started: the lock is then the child's alone.
    """
    fd = os.open(run / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _inherited(run: Path) -> int | None:
    """Return the open file of `lock_for_child`, once; None without one, or where it is another run's."""
    fd = int(os.environ.pop(FD_VARIABLE, "-1"))
    try:
        return fd if fd >= 0 and os.path.samestat(os.fstat(fd), os.stat(run / LOCK_NAME)) else None
    except OSError:
        return None


def _lock(fd: int, run: Path, token: str | None) -> bool:
    """True: it is ours now. False: the job of this token has it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record = read_lock(run)
            if token is not None and record.get("token") == token:
                return False
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise RunBusyError(
                f"{run}: {describe(record)}; look at it with launch/status.py, or wait until it has ended"
            ) from None
        except OSError as error:
            raise ToolkitError(
                f"{run / LOCK_NAME}: can't be locked ({error.strerror}): put the run directories on a file system "
                "with locks (Lustre: mount option `flock`)"
            ) from None
        return True


def _refuse_far_owner(run: Path) -> None:
    """Some file systems grant locks per host (Lustre's `localflock`, NFS with `local_lock`): then heartbeats tell.

    Costs time only after a job of another host that left without a word (killed, or its node lost).
    """
    record = read_lock(run)
    if record.get("host") in (None, socket.gethostname()) or "ended" in record:
        return
    seen = {rank: beat.time for rank, beat in beats_of(run).items() if not beat.ended}
    if not any(time.time() - at < 2 * FAR_PATIENCE_S for at in seen.values()):
        return
    deadline = time.monotonic() + FAR_PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 4)
        if any(beat.time != seen.get(rank) and not beat.ended for rank, beat in beats_of(run).items()):
            raise RunBusyError(
                f"{run}: {describe(record)}, as its heartbeats show, though {LOCK_NAME} could be locked here: this "
                "file system grants locks per host (Lustre: mount with `flock`, not `localflock`)"
            )


def holder(run: Path) -> dict[str, Any] | None:
    """The record of the live job of this run, or None when no job is live. Never blocks."""
    try:
        fd = os.open(run / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read_lock(run)
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


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
    """Who holds the lock, for people."""
    job, pid, host = record.get("job", "another job"), record.get("pid", "?"), record.get("host", "?")
    return f"job {job} (process {pid} on {host}) is working on this run"
