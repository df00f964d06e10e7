"""The lock of a run directory where it is hard: no locks at all, locks per host, and many who want it at once."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from tests.support.process import PATIENCE_S
from toolkit.errors import EXIT_BUSY, ToolkitError
from toolkit.rundir import heartbeat, lock
from toolkit.rundir.heartbeat import Beat, write_beat
from toolkit.rundir.lock import RunBusyError, claim, hold

TAKE = """
import sys, time
from pathlib import Path
from toolkit.rundir.lock import RunBusyError, claim
while time.time() < float(sys.argv[2]): pass
try:
    claim(Path(sys.argv[1]), job="race")
    print("mine", flush=True)
    time.sleep(3)
except RunBusyError as error:
    print(error.exit_code)
"""


def test_of_many_at_the_same_instant_one_has_it(tmp_path: Path) -> None:
    at = time.time() + 2
    racers = [
        subprocess.Popen([sys.executable, "-c", TAKE, str(tmp_path), str(at)], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = sorted(racer.communicate(timeout=PATIENCE_S)[0].strip() for racer in racers)
    assert said == [str(EXIT_BUSY)] * 5 + ["mine"]


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "lock_file", refuse)
    with pytest.raises(ToolkitError, match=r"job.lock: can't be locked \(No locks available\): put the run"):
        claim(tmp_path)


def beat(run: Path, now: float, ended: str | None = None) -> None:
    (run / heartbeat.FOLDER).mkdir(exist_ok=True)
    write_beat(run, Beat(0, "far", 7, 3, 0, "forward", now, now, ended=ended))


def test_a_lock_that_does_not_reach_another_host_is_seen_by_its_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "WATCH_S", 0.5)
    (tmp_path / lock.LOCK_NAME).write_text(json.dumps({"host": "far", "pid": 7, "job": "123"}))
    claimed = claim(tmp_path)  # no heartbeat at all: it is dead
    assert claimed is not None
    claimed.release()
    (tmp_path / lock.LOCK_NAME).write_text(json.dumps({"host": "far", "pid": 7, "job": "123"}))
    stop = Event()

    def live() -> None:
        while not stop.wait(0.1):
            beat(tmp_path, time.time())

    beat(tmp_path, time.time())
    thread = Thread(target=live)
    thread.start()
    try:
        with pytest.raises(RunBusyError, match=r"job 123 \(process 7 on far\) .* grants locks per host"):
            claim(tmp_path)
    finally:
        stop.set()
        thread.join()
    claimed = claim(tmp_path)  # silent for a while: dead
    assert claimed is not None
    claimed.release()


def test_a_job_killed_without_its_ranks_leaves_the_lock_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(tmp_path, job="a") as held:
        monkeypatch.setenv(lock.TOKEN_VARIABLE, held.environment[lock.TOKEN_VARIABLE])
        assert claim(tmp_path) is None
        child = subprocess.Popen(["sleep", "1"], pass_fds=[held.fd])
    assert lock.holder(tmp_path) is not None
    monkeypatch.delenv(lock.TOKEN_VARIABLE)
    monkeypatch.setattr(lock, "PATIENCE_S", 0.1)
    with pytest.raises(RunBusyError, match=rf"job a \(process {os.getpid()} on "):
        claim(tmp_path)
    child.wait()
    mine = claim(tmp_path)
    assert mine is not None
    mine.release()


def test_a_far_child_takes_a_lock_that_its_dead_job_has_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(tmp_path, job="a") as held:
        monkeypatch.setenv(lock.TOKEN_VARIABLE, held.environment[lock.TOKEN_VARIABLE])
    mine = claim(tmp_path)
    assert mine is not None
    assert mine.record["token"] != os.environ[lock.TOKEN_VARIABLE]
    mine.release()


@pytest.mark.parametrize("damage", ["deleted", "replaced", "a folder"])
def test_a_lock_whose_file_is_deleted_while_it_is_held_is_taken_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / lock.LOCK_NAME
    with hold(tmp_path, job="a") as held:
        path.unlink()
        if damage == "replaced":
            path.write_text("")
        elif damage == "a folder":
            path.mkdir()
        assert lock.holder(tmp_path) is None
        held.check()
        found = lock.holder(tmp_path)
        assert found is not None and found["job"] == "a"
        assert lock.is_held_by(tmp_path, os.getpid())
        with pytest.raises(RunBusyError, match="job a"):
            claim(tmp_path)
        inode = path.stat().st_ino
        held.check()  # sound: nothing is done
        assert path.stat().st_ino == inode
    assert lock.holder(tmp_path) is None
    assert len(os.listdir(tmp_path)) == (2 if damage == "a folder" else 1)


@pytest.mark.parametrize("text", ["", "{", "5", "\0\xff", '{"token": 5, "pid": "x"}'])
def test_a_record_that_is_damaged_while_the_lock_is_held_is_written_anew(tmp_path: Path, text: str) -> None:
    with hold(tmp_path, job="a") as held:
        (tmp_path / lock.LOCK_NAME).write_text(text)
        held.check()
        assert lock.read_lock(tmp_path)["job"] == "a"


def test_who_was_overtaken_after_its_lock_was_deleted_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(tmp_path, job="first") as first:
        (tmp_path / lock.LOCK_NAME).unlink()
        with hold(tmp_path, job="second"):
            with pytest.raises(RunBusyError, match=r"job second .* replaced the lock"):
                first.check()
            # A training of the first job, which holds nothing itself, sees that the record is of another.
            monkeypatch.delitem(lock._held, tmp_path)
            monkeypatch.setenv(lock.TOKEN_VARIABLE, first.record["token"])
            with pytest.raises(RunBusyError, match=r"job second .* replaced the lock"):
                lock.check_lock(tmp_path)


def test_a_deleted_lock_does_not_let_a_second_training_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats of this host, whatever its clock says: they are watched for a change, not compared with a time."""
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "WATCH_S", 1.0)
    (tmp_path / heartbeat.FOLDER).mkdir()
    stop = Event()

    def live() -> None:
        count = 0
        while not stop.wait(0.1):
            count += 1
            write_beat(tmp_path, Beat(0, socket.gethostname(), os.getpid(), count, 0, "forward", 0.0, count - 3600.0))

    thread = Thread(target=live)
    thread.start()
    try:
        time.sleep(0.3)
        with pytest.raises(RunBusyError, match=r"heartbeats of rank 0 .* its file was deleted"):
            claim(tmp_path)
    finally:
        stop.set()
        thread.join()
    claimed = claim(tmp_path)  # nothing changes any more
    assert claimed is not None
    claimed.release()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES, errno.ENOENT])
def test_a_file_system_that_can_not_answer_for_a_moment_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """The lock's file is there all the time: locking it once more would conflict with this process's own lock."""
    path, stat = tmp_path / lock.LOCK_NAME, os.stat
    faults: list[int] = []

    def faulty(file: Any, *more: Any, **named: Any) -> Any:
        if file == path and faults:
            raise OSError(faults.pop(), os.strerror(code), str(path))
        return stat(file, *more, **named)

    with hold(tmp_path, job="a") as held:
        inode = path.stat().st_ino
        monkeypatch.setattr(os, "stat", faulty)
        for _ in range(2):
            faults.append(code)
            held.check()
        held.check()
        assert not faults and path.stat().st_ino == inode
        found = lock.holder(tmp_path)
        assert found is not None and found["job"] == "a"
    assert caplog.text.count("can't be checked") == (0 if code == errno.ENOENT else 1)


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENOSPC])
def test_a_deleted_lock_that_can_not_be_made_again_is_tried_at_the_next_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    path, plain = tmp_path / lock.LOCK_NAME, os.open

    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(code, os.strerror(code), str(path))

    with hold(tmp_path, job="a") as held:
        path.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            for _ in range(3):
                held.check()
        assert caplog.text.count("can't be checked") == 1 and not path.exists()
        assert os.open is plain
        held.check()
        found = lock.holder(tmp_path)
        assert found is not None and found["job"] == "a"


def test_an_inherited_lock_is_not_mistaken_for_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = lock.lock_for_child(tmp_path)
    assert fd is not None
    path, stat = tmp_path / lock.LOCK_NAME, os.stat

    def stale(file: Any, *more: Any, **named: Any) -> Any:
        if file == path:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return stat(file, *more, **named)

    with monkeypatch.context() as patch:
        patch.setenv(lock.FD_VARIABLE, str(fd))
        patch.setattr(os, "stat", stale)
        with pytest.raises(OSError, match="Stale"):
            claim(tmp_path)
    monkeypatch.setenv(lock.FD_VARIABLE, str(fd))
    held = claim(tmp_path)
    assert held is not None
    held.release()
