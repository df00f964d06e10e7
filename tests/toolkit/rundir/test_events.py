"""The record of a run, as this release and the last one wrote it."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from launch import status
from launch.sweeps.efficiency import use_of
from toolkit.config import RunConfig
from toolkit.rundir import RunDir, events
from toolkit.rundir.events import NAME, append_event, note_start, parse_time, read_events, read_restarts, read_starts
from toolkit.rundir.status import read_status

START = {"job": "4711_0_0", "host": "node1", "ranks": 4, "gpus": 4, "batch": 8, "began": 1000.0, "ready": 1030.0}
START |= {"step": 0, "submitted": 940.0, "last_step": None, "last_time": None}


@pytest.fixture
def old(tmp_path: Path) -> RunDir:
    """A run directory as the last release left it: two starts, one restart by Slurm, then killed."""
    run = RunDir.create(tmp_path / "demo" / "modernn-00000000", RunConfig())
    second = {**START, "job": "4711_0_1", "began": 1300.0, "ready": 1320.0, "step": 80, "submitted": None}
    second |= {"last_step": 100, "last_time": 1240.0}
    (run.path / "starts.jsonl").write_text(f"{json.dumps(START)}\n{json.dumps(second)}\n" + '{"job": "47')
    (run.path / "restarts.tsv").write_text("1290\t4711_0\t2\tnode[1-2]\tnode2\tlost node2\nhalf")
    state = {"step": 120, "steps": 200, "restarts": 1, "phase": "training", "seq_per_s": 4.0, "updated": 1400.0}
    (run.path / "state.json").write_text(json.dumps({**state, "host": "node1", "pid": 7}))
    (run.path / "job.lock").write_text(json.dumps({"job": "4711_0_1", "host": "node1", "pid": 7, "started": 1300.0}))
    lines = [{"step": step, "kind": "train", "seq_per_s": 4.0} for step in (1, 50, 100)]
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_a_run_of_the_last_release_is_read(old: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    view = read_status(old)
    assert (view.state, view.step, view.restarts, view.job) == ("interrupted", 120, 1, "4711_0_1")
    assert view.reason is not None and "restart 1: lost node2" in view.reason
    use = use_of(view)
    assert use is not None and (use.starts, use.queued) == (2, 60.0)
    assert status.main([str(old.path.parent), "--no-queue", "--efficiency"]) == 0
    assert "2 starts" in capsys.readouterr().out


def test_a_run_of_the_last_release_goes_on_in_the_new_record(old: RunDir) -> None:
    note_start(old.path, 100, 8, 4, 4)
    append_event(old.path, "restart", start=3, nodes="node1", lost="", cause="time limit")
    first, second, third = read_starts(old.path)
    assert (first.began, second.began, third.step, third.last_step) == (1000.0, 1300.0, 100, 120)
    assert third.last_time == pytest.approx(1400.0)
    assert [restart.cause for restart in read_restarts(old.path)] == ["lost node2", "time limit"]
    assert read_status(old).restarts == 2


def test_every_event_has_its_time_place_and_cause(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", RunConfig())
    note_start(run.path, 0, 8, 1, 0)
    run.mark_failed("rank 0: out of luck", 4)
    run.mark_done()
    lines = [json.loads(line) for line in (run.path / NAME).read_text().splitlines()]
    assert [(line["event"], line.get("exit_code"), line.get("cause")) for line in lines] == [
        ("start", None, None),
        ("fail", 4, "rank 0: out of luck"),
        ("done", 0, None),
    ]
    assert {line["host"] for line in lines} == {os.uname().nodename}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)


def test_times_of_all_writers_are_read() -> None:
    assert parse_time("1970-01-01T00:00:01Z") == 1.0  # job.sh where no Python is
    assert parse_time("1970-01-01T00:00:01.500Z") == 1.5
    assert parse_time("1970-01-01T01:00:01+01:00") == 1.0


def test_an_event_that_the_disk_refuses_is_written_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = os.write

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(events.os, "write", full)
    append_event(tmp_path, "stop", step=3)
    assert "events.jsonl: can't be written (No space left on device)" in caplog.text
    monkeypatch.setattr(events.os, "write", write)
    append_event(tmp_path, "done")
    assert [event["event"] for event in read_events(tmp_path, "stop", "done")] == ["stop", "done"]


def test_an_empty_marker_gets_its_reason_from_the_record(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", RunConfig())
    run.mark_failed("rank 0: out of luck", 4)
    (run.path / "FAILED").write_text("")  # as on a full disk
    assert run.failure() == "rank 0: out of luck"
    (run.path / NAME).unlink()
    assert run.failure() == "no reason was recorded"
