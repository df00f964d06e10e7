"""launch/sweep.py --cancel and --retry on this machine; on a cluster see tests/slurm."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launch.sweeps.plan import is_retried
from tests.support.fakes import Fakes
from tests.support.process import PATIENCE_S
from toolkit.config import RunConfig
from toolkit.errors import EXIT_HANG
from toolkit.rundir import RunDir, lock
from toolkit.rundir.status import read_status

SLOW = "base: base.yaml\nseeds: 2\nset: {train.steps: 3000}\n"


def began(fakes: Fakes) -> Path:
    """The run that a job trains, when it listens to signals."""
    deadline = time.monotonic() + PATIENCE_S
    while not (states := list(fakes.folder.glob("runs/demo/*/state.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return states[0].parent


def test_cancel_ends_the_job_and_the_sweep_that_would_start_the_next(fakes: Fakes) -> None:
    file = str(fakes.sweep_file(SLOW))
    with fakes.start(file, "--jobs", "1") as process:
        run = began(fakes)
        code, output = fakes.sweep(file, "--cancel")
        assert code == 0, output
        assert f"stopped sweep.py (process {process.pid}): it starts no more runs" in output
        assert "asked local-" in output
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3
    assert (run / "checkpoint").exists()
    assert len(list(fakes.folder.glob("runs/demo/*/starts"))) == 1
    assert read_status(RunDir(run)).state == "interrupted"
    code, output = fakes.sweep(file, "--cancel")
    assert (code, output) == (0, "runs/demo: no live job; nothing to cancel\n")


def test_cancel_finds_jobs_whose_sweep_was_killed(fakes: Fakes) -> None:
    file = str(fakes.sweep_file(SLOW))
    with fakes.start(file, "--jobs", "1") as process:
        run = began(fakes)
        process.kill()
    output = fakes.sweep(file, "--cancel")[1]
    assert "stopped sweep.py" not in output
    assert "to write a checkpoint and end" in output
    deadline = time.monotonic() + PATIENCE_S
    while lock.holder(run) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (run / "checkpoint").exists()
    assert not list((fakes.folder / "runs/demo/.watching").iterdir())


def test_nothing_to_cancel_before_there_is_anything(fakes: Fakes) -> None:
    assert fakes.sweep(str(fakes.sweep_file(SLOW)), "--cancel") == (0, "runs/demo: no such sweep; nothing to cancel\n")


def test_a_process_number_is_not_enough(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", RunConfig())
    with lock.hold(run.path):
        assert lock.is_held_by(run.path, os.getpid())
    assert not lock.is_held_by(run.path, os.getpid())  # let go
    assert not lock.is_held_by(run.path, 2**22 + 1)


@pytest.mark.parametrize(
    ("reason", "code", "kinds"),
    [
        ("rank 1: ValueError: no", 1, {"failed"}),
        ("rank 1: MemoryShortageError: rank 1, step 3: out of memory on cuda", 1, {"failed", "oom"}),
        ("train: killed by SIGKILL (out of memory?)", None, {"failed", "oom"}),
        ("job 4711: srun returned 137; see /x.log", None, {"failed", "oom"}),
        ("rank 1: hung", EXIT_HANG, {"failed", "timeout"}),
    ],
)
def test_what_is_tried_again(tmp_path: Path, reason: str, code: int | None, kinds: set[str]) -> None:
    run = RunDir.create(tmp_path / "run", RunConfig())
    run.mark_failed(reason, code)
    assert {kind for kind in ("failed", "oom", "timeout") if is_retried(read_status(run), [kind])} == kinds


def test_only_known_kinds_are_taken(fakes: Fakes) -> None:
    code, output = fakes.sweep(str(fakes.sweep_file(SLOW)), "--retry", "failed,ooom", "--dry-run")
    assert code == 2
    assert "'ooom' is none of failed, oom, timeout" in output
