"""launch/logs.py on the logs that jobs leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import logs
from tests.support.process import PATIENCE_S
from toolkit.config import RunConfig
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Two starts of a job of two ranks; the first was requeued."""
    run = RunDir.create(tmp_path / "demo" / "modernn-seed1-00000000", RunConfig())
    run.logs.mkdir()
    for name, age, text in (
        ("4711_3_0_batch", 50, "start 1\nrequeued\n"),
        ("4711_3_0_0", 51, "step 1\nstep 2\n"),
        ("4711_3_0_1", 52, "rank one\n"),
        ("4711_3_1_batch", 9, "start 2\n"),
        ("4711_3_1_0", 8, "step 3\nstep 4\n"),
        ("4711_3_1_1", 8, "rank one again\n"),
        ("4711_3_1_evaluate", 5, "mse 3\n"),
    ):
        write(run, name, text, age)
    return run


def write(run: RunDir, name: str, text: str, age: float = 0.0) -> None:
    file = run.logs / f"{name}.log"
    with open(file, "a") as log:
        log.write(text)
    moment = file.stat().st_mtime - age
    os.utime(file, (moment, moment))


def wait_for(file: Path, text: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while text not in file.read_text():
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(0.02)


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert logs.main([str(argument) for argument in arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if not line.startswith("==> ")]


def test_the_last_starts_logs(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, run.path) == ["start 2", "step 3", "step 4", "mse 3"]
    assert shown(capsys, run.path, "--lines", 1) == ["start 2", "step 4", "mse 3"]
    assert shown(capsys, run.path.parent / "modernn", "--start", 1) == ["start 1", "requeued", "step 1", "step 2"]
    assert shown(capsys, run.path, "--rank", 1) == ["rank one again"]


def test_which_there_are(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, run.path, "--list")
    assert [line.split()[:3] for line in lines[1:]] == [
        *[["1", "4711_3_0", part] for part in ("batch", "0", "1")],
        *[["2", "4711_3_1", part] for part in ("batch", "0", "1", "evaluate")],
    ]


def test_what_happened_before_a_log_began(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.logs.iterdir():
        path.unlink()
    folder = run.path.parent / "slurm" / "0a1b2c3d"
    folder.mkdir(parents=True)
    (folder / "runs.txt").write_text(f"/elsewhere\n{run.path}\n")
    (folder / "job").write_text("4711\n")
    (folder / "4711_1.log").write_text("error: node node1 can't see it\n")
    assert shown(capsys, run.path) == ["error: node node1 can't see it"]


def test_wrong_names(run: RunDir) -> None:
    sweep = run.path.parent
    with pytest.raises(ConfigError, match=r"not a run directory .*; runs in there: modernn-seed1-00000000"):
        logs.main([str(sweep)])
    with pytest.raises(ConfigError, match=r"no such run or folder; python launch/status.py FOLDER"):
        logs.main([str(sweep / "convlstm")])
    with pytest.raises(ConfigError, match="no log of rank 7; the ranks with logs: 0, 1; see --list"):
        logs.main([str(run.path), "--rank", "7"])
    with pytest.raises(ConfigError, match=r"--start 3: .* has logs of 2 starts"):
        logs.main([str(run.path), "--start", "3"])
    other = RunDir.create(sweep / "modernn-seed2-00000000", RunConfig(seed=2))
    with pytest.raises(
        ConfigError, match=r"2 runs have names that begin so: .*modernn-seed1-00000000, .*modernn-seed2-00000000"
    ):
        logs.main([str(sweep / "modernn")])
    with pytest.raises(ConfigError, match="write more of the name"):
        logs.main([str(sweep / "modernn-seed")])
    with pytest.raises(ConfigError, match=r"no logs yet \(state: new\): its job has not begun"):
        logs.main([str(other.path)])


def test_a_name_is_that_of_the_sweeps_record(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """Run again with other settings, a sweep's folder holds two that begin alike; status shows one by its name."""
    RunDir.create(run.path.with_name("modernn-seed1-11111111"), RunConfig(seed=3))
    item = f"{{dir: {run.path.name}, name: modernn-seed1, group: modernn, seed: 1, settings: {{}}}}"
    (run.path.parent / "sweep.yaml").write_text(f"name: demo\nfile: demo.yaml\nruns: [{item}]\n")
    assert shown(capsys, run.path.parent / "modernn-seed1") == ["start 2", "step 3", "step 4", "mse 3"]


def test_following_goes_on_with_the_next_start_and_ends_with_the_run(run: RunDir, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "logs.py"), str(run.path), "-f", "--lines", "1"]
    output = tmp_path / "output"
    with open(output, "w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        wait_for(output, "mse 3")
        write(run, "4711_3_1_0", "step 5 without an end")
        wait_for(output, "step 5")
        write(run, "4711_3_2_batch", "start 3\n")
        write(run, "4711_3_2_0", "step 6\n")
        write(run, "4711_3_2_1", "of the other rank\n")
        wait_for(output, "step 6")
        run.mark_failed("rank 0: no")
        assert process.wait(timeout=PATIENCE_S) == 0
    lines = output.read_text().splitlines()
    assert [line for line in lines if not line.startswith("==> ")] == [
        *["start 2", "step 4", "mse 3", "step 5 without an end", "start 3", "step 6", "failed: rank 0: no"]
    ]


def test_a_run_that_another_packed_job_took_has_the_logs_of_that_job(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in run.logs.iterdir():
        path.unlink()
    folder = run.path.parent / "slurm" / "0a1b2c3d"
    (folder / "logs").mkdir(parents=True)
    (folder / "runs.txt").write_text(f"{run.path}\n/elsewhere\n/elsewhere2\n")
    (folder / "pack.json").write_text('{"places": 1, "ranks": 1, "gpus": 0}')
    (folder / "job").write_text("4711\n")
    for job in ("4711_0", "4711_2"):
        (folder / f"{job}.log").write_text(f"before of {job}\n")
        (folder / "logs" / f"{job}_0_batch.log").write_text(f"batch of {job}\n")
    assert shown(capsys, run.path) == ["batch of 4711_0"]  # it waits for that one
    (run.path / "job.lock").write_text('{"job": "4711_2_0"}')
    assert shown(capsys, run.path) == ["batch of 4711_2"]
    write(run, "4711_2_0_0", "step 1\n", age=60)
    (run.path / "job.lock").unlink()
    assert shown(capsys, run.path) == ["batch of 4711_2", "step 1"]
    assert "4711_0" not in "".join(shown(capsys, run.path, "--list"))


def test_what_happened_before_an_evaluation_apart_began(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    for key, job in (("0a1b2c3d", 4711), ("evaluation1a2b3c4d", 4712)):
        folder = run.path.parent / "slurm" / key
        folder.mkdir(parents=True)
        (folder / "runs.txt").write_text("/elsewhere\n" * 3 + f"{run.path}\n")
        (folder / "job").write_text(f"{job}\n")
        (folder / f"{job}_3.log").write_text(f"before of {job}\n")
    assert shown(capsys, run.path) == ["before of 4712"]
    (run.path / "job.lock").write_text('{"job": "4712_3_0"}')
    assert shown(capsys, run.path) == ["before of 4712"]
    write(run, "4712_3_0_evaluate", "mse 2\n")
    assert shown(capsys, run.path) == ["mse 2"]
    lines = [line.split()[1:3] for line in shown(capsys, run.path, "--list")]
    assert ["4711_3_0", "before"] in lines and ["4711_3_0", "0"] in lines
    assert lines[-2:] == [["4712_3_0", "before"], ["4712_3_0", "evaluate"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--list", "--rank", "0"], "--list lists all files: leave --start, --rank and --lines out"),
        (["--list", "--start", "1"], "--list lists all files"),
        (["--lines", "-3"], "--lines -3: must be at least 0"),
    ],
)
def test_options_that_have_no_effect_are_refused(
    run: RunDir, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        logs.main([str(run.path), *options])
    assert message in capsys.readouterr().err
