"""Runs that go in circles, and sweeps whose runs all fail as soon as they begin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.jobs import attempts
from launch.slurm.causes import failing_nodes
from tests.support.fakes import Fakes
from toolkit.config import make_config
from toolkit.rundir import RunDir, lock
from toolkit.rundir.status import read_status


def make_run(fakes: Fakes, fake: str) -> RunDir:
    tree = {
        "data": {"store": "store"},
        "train": {"steps": 3000, "deepspeed": {"comms_logger": {"prof_ops": [f"fake: {fake}"]}}},
    }
    return RunDir.create(fakes.folder / "run", make_config(tree, "test"))


def start(fakes: Fakes, run: RunDir, job: str, restart: int) -> int:
    """One start of a job that is asked to stop soon; a failure ends it sooner."""
    variables = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart)}
    began = run.path / "starts"
    before = began.stat().st_size if began.exists() else 0
    command = [sys.executable, str(fakes.scripts / "fake_job.py"), str(run.path)]
    with subprocess.Popen(command, env={**os.environ, **variables}) as process:
        while process.poll() is None and (not began.exists() or began.stat().st_size == before):
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
    return process.returncode


def note_restart(run: RunDir, start: int, cause: str) -> None:
    with open(run.path / "restarts.tsv", "a") as file:
        file.write(f"{time.time():.0f}\t7\t{start}\tnode1\t\t{cause}\n")


def test_three_starts_without_a_step_are_enough(fakes: Fakes) -> None:
    run = make_run(fakes, "slow-start")
    for restart in range(3):
        assert start(fakes, run, "7", restart) == 3
        time.sleep(1)  # restarts have whole seconds
        note_restart(run, restart + 2, "time limit")
    assert start(fakes, run, "7", 3) == 1
    failure = str(run.failure())
    assert "3 starts, no step: each began at step 0 and ended at step 0; the last ended by: time limit." in failure
    assert "`signal_s`" in failure
    assert start(fakes, run, "8", 0) == 3  # submitted anew
    assert run.failure() is None


@pytest.mark.parametrize("cause", ["preempted", "lost node2", "requeued"])
def test_what_others_ended_is_not_counted(fakes: Fakes, cause: str) -> None:
    run = make_run(fakes, "slow-start")
    for restart in range(5):
        assert start(fakes, run, "7", restart) == 3
        time.sleep(1)
        note_restart(run, restart + 2, cause)
    assert lock.read_lock(run.path)["idle_starts"] == 0


def test_a_checkpoint_begins_the_count_anew(fakes: Fakes) -> None:
    run = make_run(fakes, "none")
    for restart in range(5):
        assert start(fakes, run, "7", restart) == 3
    record = lock.read_lock(run.path)
    assert record["idle_starts"] == 0
    assert 0 < record["from_step"] < attempts.latest_step(run)


SAME = "base: base.yaml\nseeds: 5\nset: {train.deepspeed: {comms_logger: {prof_ops: ['fake: fail']}}}\n"


def test_a_sweep_whose_first_runs_fail_alike_stops_itself(fakes: Fakes) -> None:
    fakes.sweep_file(SAME)
    code, output = fakes.sweep("demo.yaml", "--jobs", "1")
    assert code == 1, output
    why = "the first 3 runs of this sweep failed within 60 s, all in the same way, so that no more are begun: "
    assert f"stopped: {why}the loss is NaN at step 1" in output
    states = [read_status(RunDir(run)).state for run in fakes.runs()]
    assert sorted(states) == ["failed"] * 3 + ["new"] * 2
    fakes.sweep_file(SAME.replace("fail", "none"))
    assert "5 of 5 done" in fakes.sweep("demo.yaml", "--retry", "failed", "--jobs", "1")[1]
    assert not (fakes.folder / "runs" / "demo" / "STOPPED").exists()


FATES = ["none", "fail", "fail", "fail", "none"]


def test_one_that_does_well_keeps_the_sweep_going(fakes: Fakes) -> None:
    entries = [
        f"  - {{name: run{n}, train.steps: {n}, train.deepspeed: {{comms_logger: {{prof_ops: ['fake: {how}']}}}}}}"
        for n, how in enumerate(FATES, 1)
    ]
    fakes.sweep_file("base: base.yaml\nlist:\n" + "\n".join(entries) + "\n")
    code, output = fakes.sweep("demo.yaml", "--jobs", "1")
    assert code == 1
    assert "2 of 5 done" in output
    assert "stopped:" not in output


def test_a_node_on_which_two_runs_failed_is_left_out() -> None:
    now = time.time()
    lines = [
        (now, "node1", "a"),
        (now, "node1", "a"),
        (now, "node2", "b"),
        (now, "node2", "c"),
        (now - 9999, "node3", "d"),
    ]
    lines += [(now - 9999, "node3", "e"), (now, "", "f"), (now, "", "g")]
    text = "".join(f"{at:.0f}\t{node}\t{run}\tno GPU\n" for at, node, run in lines)
    assert failing_nodes(text + "half a li", now - 3600) == ["node2"]


def test_only_runs_of_a_sweep_are_noted(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", make_config({}, "test"))
    run.mark_failed("no")
    attempts.note_early_failure(run, time.time())
    assert not (tmp_path / attempts.EARLY_FAILURES).exists()


def runs_that_failed(root: Path, *reasons: str) -> list[RunDir]:
    """Note a failure of each run of a sweep as soon as it began."""
    root.mkdir(exist_ok=True)
    (root / "sweep.yaml").write_text("name: demo\nfile: demo.yaml\nruns: []\n")
    runs = []
    for seed, reason in enumerate(reasons):
        runs.append(RunDir.create(root / f"run{seed}", make_config({"seed": seed}, "test")))
        runs[-1].mark_failed(reason)
        attempts.note_early_failure(runs[-1], time.time())
    return runs


def test_tabs_in_reasons_and_half_a_line_do_no_harm(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    runs_that_failed(root, "no\tGPU")
    with open(root / attempts.EARLY_FAILURES, "a") as file:
        file.write("17000")  # a full disk
    runs_that_failed(root, "no\tGPU", "no\tGPU", "no\tGPU")
    assert str(attempts.why_stopped(root)).endswith("no more are begun: no GPU")
    assert failing_nodes((root / attempts.EARLY_FAILURES).read_text(), 0)
    (root / attempts.STOPPED).write_bytes(b"\xe9")
    assert attempts.why_stopped(root) == "\ufffd"


def test_a_file_of_failures_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "demo"
    (root / attempts.EARLY_FAILURES).mkdir(parents=True)
    runs_that_failed(root, "no GPU")
    assert f"{attempts.EARLY_FAILURES}: can't be written (Is a directory)" in caplog.text


def test_a_run_with_a_checkpoint_resumes_in_a_sweep_that_has_stopped(fakes: Fakes) -> None:
    run = make_run(fakes, "none")
    assert start(fakes, run, "7", 0) == 3
    (fakes.folder / attempts.STOPPED).write_text("the first 3 runs failed")
    before = attempts.latest_step(run)
    assert start(fakes, run, "7", 1) == 3
    assert attempts.latest_step(run) > before
    (run.checkpoints / "latest").unlink()
    assert start(fakes, run, "7", 2) == 0
    assert len((run.path / "starts").read_text().splitlines()) == 2
    run.mark_done()
    assert start(fakes, run, "7", 3) == 0
    assert run.scores()


def test_starts_are_counted_by_a_damaged_lock_too(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(fakes, "none")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert attempts.count_starts(run, {"job": "7_0", "from_step": 0}) == {"from_step": 0, "idle_starts": 1}
