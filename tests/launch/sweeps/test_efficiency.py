"""What hours are said to be spent on, from records whose sums are known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launch import status
from launch.jobs.pack import Pack
from launch.sweeps.efficiency import efficiency, use_of
from toolkit.config import RunConfig
from toolkit.rundir import RunDir, lock
from toolkit.rundir.events import StartEvent, note_start, read_starts
from toolkit.rundir.status import read_status

FIRST = {
    "job": "4711_0_0",
    "host": "node1",
    "ranks": 4,
    "gpus": 4,
    "batch": 8,
    "began": 1000.0,
    "ready": 1030.0,
    "step": 0,
    "submitted": 940.0,
    "last_step": None,
    "last_time": None,
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Two starts of 4 GPUs, a minute apart; a step takes 2 s. The first came to step 100, of which 80 were kept."""
    run = RunDir.create(tmp_path / "demo" / "modernn-00000000", RunConfig())
    second = {**FIRST, "job": "4711_0_1", "began": 1300.0, "ready": 1320.0, "step": 80, "submitted": None}
    second |= {"last_step": 100, "last_time": 1240.0}
    (run.path / "starts.jsonl").write_text(f"{json.dumps(FIRST)}\n{json.dumps(second)}\n" + '{"job": "47')
    lines = [{"step": step, "kind": "train", "seq_per_s": 4.0, "data_wait": 0.1} for step in (1, 50, 80, 100)]
    lines.insert(2, {"step": 50, "kind": "val", "mse": 1.0})
    run.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"job": "4711_0_1", "host": "node1", "pid": 2**22 + 1, "started": 1300.0, "ended": 1400.0}
    (run.path / lock.LOCK_NAME).write_text(json.dumps(record))
    run.mark_done()
    return run


def test_sums(run: RunDir) -> None:
    use = use_of(read_status(run))
    assert use is not None
    assert (use.starts, use.on_gpus) == (2, True)
    assert use.wall == pytest.approx(240 + 100)
    assert use.hours == pytest.approx(4 * 340 / 3600)
    assert use.steps == pytest.approx(200)  # 100 steps of 8 sequences at 4 a second
    assert use.data_wait == pytest.approx(20)
    assert use.repeated == pytest.approx(40)  # steps 81 to 100
    assert use.start_up == pytest.approx(30 + 20)
    assert use.rest == pytest.approx(340 - 200 - 40 - 50)
    assert use.between == pytest.approx(60)
    assert use.queued == pytest.approx(60)


def test_table(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    RunDir.create(run.path.parent / "convlstm-00000001", RunConfig(seed=3))
    assert status.main([str(run.path.parent), "--efficiency"]) == 0
    header, row, _, total, waited, without = capsys.readouterr().out.splitlines()
    names = ["run", "starts", "GPU-hours", "steps", "data wait", "repeated", "start-up", "rest", "between", "queued"]
    assert re.split("  +", header) == names
    assert row.split()[1:] == ["2", "0.38", "59%", "6%", "12%", "15%", "15%", "1:00", "1:00"]
    assert total == (
        "0.38 GPU-hours, 2 starts of 1 run: 58.8% steps (5.9% waiting for data), 11.8% steps lost to restarts and "
        "repeated, 14.7% start-up, 14.7% validation, checkpoints, scoring"
    )
    assert waited == "waited: 1:00 between starts, 1:00 in the queue before the first (1 run)"
    assert without.startswith("1 more without a record")


def test_a_start_notes_how_far_the_one_before_had_come(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", RunConfig())
    (run.path / "submit.sbatch").write_text("")
    submitted = (run.path / "submit.sbatch").stat().st_mtime
    with lock.hold(run.path, job="7_2_0", submitted=submitted):
        note_start(run.path, 0, 8, ranks=2, gpus=0)
        began = lock.read_lock(run.path)["started"]
    run.write_state(step=30)
    with lock.hold(run.path, job="7_2_1"):
        note_start(run.path, 20, 8, ranks=2, gpus=0)
    one, two = read_starts(run.path)
    assert (one.job, one.step, one.last_step) == ("7_2_0", 0, None)
    assert (one.began, one.submitted) == (pytest.approx(began, abs=2e-3), pytest.approx(submitted, abs=2e-3))
    assert (two.job, two.step, two.last_step, two.submitted) == ("7_2_1", 20, 30, None)
    assert two.last_time == pytest.approx(run.read_state()["updated"], abs=2e-3)
    assert isinstance(two, StartEvent)


def test_how_much_of_a_packed_job_was_used(run: RunDir) -> None:
    """One run had one of two places for 340 s; its two starts held the job for as long."""
    folder = run.path.parent / "slurm" / "1a2b3c4d"
    folder.mkdir(parents=True)
    (folder / "job").write_text("4711\n")
    Pack(places=2, ranks=4, gpus=8).write(folder)
    lines = efficiency([read_status(run)], None)
    assert (
        lines[-1] == "packed: 2 starts of jobs with several runs: 50.0% of their places were used, 0.76 GPU-hours held"
    )
