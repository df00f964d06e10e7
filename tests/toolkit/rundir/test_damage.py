"""A run directory whose files are damaged: status names it, a start mends it; neither raises, neither waits."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import status
from tests.toolkit.rundir.damage import DAMAGES, FILES
from toolkit.config import RunConfig
from toolkit.rundir import RunDir
from toolkit.rundir.events import note_start, read_starts
from toolkit.rundir.heartbeat import FOLDER, Beat, clear_beats, write_beat
from toolkit.rundir.lock import claim, hold
from toolkit.rundir.mend import mend
from toolkit.rundir.status import read_status
from toolkit.train.record import Recorder


@pytest.fixture(autouse=True)
def within_seconds() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError("it waits")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    yield
    signal.alarm(0)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A training that was killed after step 4."""
    run = RunDir.create(tmp_path / "demo" / "modernn-00000000", RunConfig())
    (run.path / FOLDER).mkdir()
    run.checkpoints.mkdir()
    (run.checkpoints / "latest").write_text("step-00000004\n")
    (run.checkpoints / "best").write_text("step-00000002\n")
    with hold(run.path, job="by hand"):
        note_start(run.path, 0, 8, 1, 0)
        write_beat(run.path, Beat(0, "far", 7, 4, 0, "forward", 1.0, 1.0, ended="killed"))
    state = {"step": 4, "steps": 9, "phase": "training", "loss": 0.5, "val": {"mse": 2.0}, "restarts": 0}
    state |= {"host": "far", "pid": 7, "updated": time.time() - 1000}
    (run.path / "state.json").write_text(json.dumps(state))
    run.metrics_file.write_text(
        "".join(json.dumps({"step": step, "kind": "train", "loss": 0.5, "seq_per_s": 2.0}) + "\n" for step in (1, 4, 5))
    )
    return run


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_status_names_it_and_a_start_mends_it(
    run: RunDir, file: str, damage: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](run.path / file)
    view = read_status(run)
    assert view.state in ("interrupted", "failed", "trained", "new")
    for options in ([], ["--json"], ["--efficiency"]):
        assert status.main([str(run.path.parent), "--no-queue", *options]) == 0
    odd = damage in ("a folder", "a pipe")
    if file == "state.json" and damage not in ("absent", "wrong types", "a link to nothing"):
        assert view.reason is not None and "state.json" in view.reason

    # What a start does, by the same calls and in the same order as launch/train.py.
    held = claim(run.path, job="again")
    assert held is not None
    mend(run)
    run.clear_failed()
    clear_beats(run.path)
    before = len(read_starts(run.path))
    note_start(run.path, 4, 8, 1, 0)
    recorder = Recorder(run, 4, 9, 8)
    recorder.meter.add(1.0, 0.0)
    run.note_env(trained_on={"device": "CPU"})
    recorder.train(5, {"loss": 0.25, "grad_norm": 1.0}, "00")
    recorder.close()
    write_beat(run.path, Beat(0, "here", 7, 5, 0, "forward", 1.0, 1.0))
    held.release()

    assert len(read_starts(run.path)) == before + 1
    assert run.read_state()["step"] == 5
    assert run.logged_steps()[-1]["step"] == 5
    assert run.read_env()["trained_on"] == {"device": "CPU"}
    assert read_status(run).job == "again"
    if odd and "heartbeat" not in file:
        assert f"{file.rpartition('/')[2]}.damaged" in os.listdir((run.path / file).parent), "it is kept"
        assert ".damaged" in caplog.text
    capsys.readouterr()


def test_folders_that_are_files(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    names = ("logs", "tb", "eval", "analysis")
    for name in names:
        (run.path / name).write_text("")
    read_status(run)
    mend(run)
    Recorder(run, 4, 9, 8).close()
    assert all(f"{name}.damaged" in os.listdir(run.path) for name in names)


def test_a_sound_run_is_left_as_it_is(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    mend(run)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert not caplog.text


def test_a_record_that_a_live_job_lost_is_no_news_to_status(run: RunDir) -> None:
    with hold(run.path, job="here") as held:
        run.write_state(step=5, seq_per_s=2.0)
        (run.path / "state.json").write_text("5")
        view = read_status(run)
        assert (view.state, view.held) == ("starting", True)
        run.write_state(step=6, steps=9, phase="training", seq_per_s=2.0)
        assert read_status(run).state == "running"
        held.note(ended=time.time())


def test_state_on_a_full_disk_ends_no_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(run, 4, 9, 8)
    recorder.meter.add(1.0, 0.0)
    fsync, write = os.fsync, os.write

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(os, "write", full)
    recorder.train(5, {"loss": 0.25, "grad_norm": 1.0}, "00")
    recorder.sync()
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "write", write)
    assert "state.json: can't be written (No space left on device)" in caplog.text
    assert "metrics.jsonl: can't be written (No space left on device); 1 line kept" in caplog.text
    assert run.read_state()["step"] == 4
    recorder.train(6, {"loss": 0.2, "grad_norm": 1.0}, "00")
    recorder.close()
    assert run.read_state()["step"] == 6
    steps = [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()]
    assert steps == [1, 4, 5, 6]
    assert not list(run.path.glob(".*.tmp"))
