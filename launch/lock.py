"""One live job per run directory: a lock on `<run>/job.lock`, which also says who holds it.

The lock is the kernel's (`flock`), so it can't go stale: it is free the moment the last process that holds it is gone,
however it went. A job passes the open file on to the ranks it starts; should the job itself be killed, the run still
counts as live until its ranks have ended too. The file stays behind and tells about the last job.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError

LOCK_NAME = "job.lock"
PATIENCE_S = 1.0  # someone who merely looks (`holder`) has the lock for an instant


class RunBusyError(ToolkitError):
    """Another job has this run directory."""


@dataclass
class HeldLock:
    """The lock while it is ours. `fd` is to be passed on to child processes."""

    fd: int
    record: dict[str, Any]

    def note(self, **values: Any) -> None:
        """Lay values on the record that others read."""
        self.record.update(values)
        text = json.dumps(self.record).encode()
        # In place, not by rename: the lock belongs to this very file. A reader who meets half a record waits a moment.
        os.pwrite(self.fd, text, 0)
        os.ftruncate(self.fd, len(text))


@contextlib.contextmanager
def hold(run: Path, **values: Any) -> Iterator[HeldLock]:
    """Hold the run's lock; `values` are laid on the record (pid, host and time are there anyway).

    Raises:
        RunBusyError: when another job holds it; the message names that job.
        ToolkitError: when the file system has no locks.
    """
    fd = os.open(run / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(fd, run)
        lock = HeldLock(fd, {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()})
        lock.note(**values)
        yield lock
    finally:
        os.close(fd)


def _acquire(fd: int, run: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise RunBusyError(f"{run}: {describe(read_record(run))}; look at it with launch/status.py") from None
        except OSError as error:
            raise ToolkitError(
                f"{run / LOCK_NAME}: can't be locked ({error.strerror}): put the run directories on a file system "
                "with locks (Lustre: mount option `flock`)"
            ) from None
        return


def read_record(run: Path) -> dict[str, Any]:
    """What the present or last job wrote about itself; empty when there was none."""
    try:
        return dict(json.loads((run / LOCK_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def holder(run: Path) -> dict[str, Any] | None:
    """The record of the live job of this run, or None when no job is live. Never blocks."""
    try:
        fd = os.open(run / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return read_record(run)
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def describe(record: dict[str, Any]) -> str:
    """Who holds the lock, for people."""
    job, pid, host = record.get("job", "another job"), record.get("pid", "?"), record.get("host", "?")
    return f"job {job} (process {pid} on {host}) is working on this run"
