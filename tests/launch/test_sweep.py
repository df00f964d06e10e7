"""launch/sweep.py as a person runs it: real processes through submitit, with stand-ins for the training."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch import status
from launch.sweep import main
from launch.sweeps import options
from tests.support.fakes import Fakes
from tests.support.process import PATIENCE_S, wait_for
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir, lock
from toolkit.rundir.status import read_status

ROOT = Path(__file__).resolve().parents[2]
TWO = "base: base.yaml\nseeds: 2\n"
SLOW = TWO + "set: {train.steps: 2000}\n"


def starts(run: Path) -> int:
    return len((run / "starts").read_text().splitlines()) if (run / "starts").exists() else 0


def test_dry_run_makes_nothing_and_needs_no_torch(fakes: Fakes) -> None:
    file = fakes.sweep_file(TWO + "list: [{model.slots: 1}, {model.slots: 4}, {model.slots: 4}]\n")
    code = (
        "import sys; sys.path[0] = 'launch'; from launch import sweep, status; "
        f"assert sweep.main([{str(file)!r}, '--dry-run', '--runs', {str(fakes.folder / 'runs')!r}]) == 0; "
        "heavy = {'torch', 'deepspeed'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo: 4 runs, 2 duplicates left out" in done.stdout
    assert re.search(r"slots1-seed1 +[0-9a-f]{8} +new .*train", done.stdout)
    assert not (fakes.folder / "runs").exists()


def test_a_sweep_runs_then_has_nothing_to_do_and_may_grow(fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(fakes.sweep_file(TWO))
    code, output = fakes.sweep(file, "--jobs", "2")
    assert code == 0, output
    assert "2 of 2 done\nThe report: python launch/report.py runs/demo" in output
    assert "seed1: done" in output
    record = yaml.safe_load((fakes.folder / "runs" / "demo" / "sweep.yaml").read_text())
    assert [item["name"] for item in record["runs"]] == ["modernn-seed1", "modernn-seed2"]
    assert {item["group"] for item in record["runs"]} == {"modernn"}
    assert sorted(item["dir"] for item in record["runs"]) == [run.name for run in fakes.runs()]
    code, output = fakes.sweep(file)
    assert code == 0
    assert "2 of 2 done, nothing to do" in output
    assert [starts(run) for run in fakes.runs()] == [1, 1]
    assert status.main([str(fakes.folder / "runs" / "demo")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [text.split()[:2] for text in lines[1:3]] == [["modernn-seed1", "done"], ["modernn-seed2", "done"]]
    # A slot count of 4 is what they had by default; now that it varies, the names say so, and the runs stay.
    fakes.sweep_file(TWO + "grid: {model.slots: [4, 1]}\n")
    _, output = fakes.sweep(file, "--dry-run")
    assert re.search(r"slots4-seed1 +\w+ +done .*nothing", output)
    assert re.search(r"slots1-seed2 +\w+ +new .*train", output)
    assert len(fakes.runs()) == 2


def test_failed_runs_are_named_and_wait_for_retry(fakes: Fakes) -> None:
    text = TWO + "grid: {train.deepspeed: [{}, {comms_logger: {prof_ops: ['fake: fail']}}]}\nexclude: [{seed: 2}]\n"
    file = str(fakes.sweep_file(text))
    code, output = fakes.sweep(file, "--jobs", "2")
    assert code == 1
    assert re.search(r"failed: .*: the loss is NaN at step 1\n +log: /.*/logs/local-\d+_0\.log", output)
    assert "1 of 2 done" in output
    assert "The report" not in output
    (failed,) = [run for run in fakes.runs() if (run / "FAILED").exists()]
    code, output = fakes.sweep(file)
    assert code == 1
    assert "leave (--retry failed runs it again)" in output
    assert starts(failed) == 1
    code, output = fakes.sweep(file, "--retry", "failed")
    assert "train again" in output
    assert starts(failed) == 2


def test_a_failed_evaluation_is_evaluated_again_and_not_trained(fakes: Fakes) -> None:
    file = str(
        fakes.sweep_file("base: base.yaml\nset: {train.deepspeed: {comms_logger: {prof_ops: ['fake: no-score']}}}\n")
    )
    assert fakes.sweep(file)[0] == 1
    (run,) = fakes.runs()
    assert (run / "DONE").exists() and starts(run) == 1
    _, output = fakes.sweep(file, "--retry", "failed", "--dry-run")
    assert "evaluate again" in output and "train again" not in output
    fakes.sweep(file, "--retry", "failed")
    assert starts(run) == 1


def test_ranks_that_do_not_divide_the_batch_are_refused_once_for_all_runs(fakes: Fakes) -> None:
    file = str(fakes.sweep_file("base: base.yaml\nseeds: 51\ngrid: {model.slots: [1, 2, 4]}\nset: {train.batch: 8}\n"))
    code, output = fakes.sweep(file, "--ranks", "3")
    assert code == 2
    assert "153 runs" in output
    assert len(re.findall(r"batch", output)) < 5, output  # one message, not one of each run
    assert not fakes.runs()


def test_debug_streams_the_output_through(fakes: Fakes) -> None:
    code, output = fakes.sweep(str(fakes.sweep_file(TWO)), "--cluster", "debug")
    assert code == 0
    assert output.count("step 3\n") == 2
    assert not list(fakes.folder.glob("runs/demo/*/logs/*"))


@pytest.mark.parametrize(("cluster", "number"), [("local", signal.SIGINT), ("debug", signal.SIGTERM)])
def test_ctrl_c_checkpoints_and_the_same_command_goes_on(fakes: Fakes, cluster: str, number: signal.Signals) -> None:
    file = str(fakes.sweep_file(SLOW))
    options = ["--jobs", "1"] if cluster == "local" else []
    with fakes.start(file, "--cluster", cluster, *options) as process:
        while not (states := list(fakes.folder.glob("runs/demo/*/state.json"))):
            assert process.poll() is None
            time.sleep(0.02)
        # As the terminal does it: to the whole group, of which the jobs' trainings are no part.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, output
    assert f"To resume: python launch/sweep.py {file} --cluster {cluster}" in output
    (began,) = [state.parent for state in states]  # the other waited its turn and never began
    assert (began / "checkpoint").exists()
    assert [starts(run) for run in fakes.runs()] in ([0, 1], [1, 0])
    assert read_status(RunDir(began)).state == "interrupted"
    for run in fakes.runs():
        (run / "checkpoint").write_text("1998")
    code, output = fakes.sweep(file)
    assert code == 0, output
    assert "resume" in output


def test_a_killed_sweep_leaves_its_jobs_and_the_next_call_finds_them(fakes: Fakes) -> None:
    file = str(fakes.sweep_file("base: base.yaml\nset: {train.steps: 200}\n"))
    with fakes.start(file) as process:
        while not list(fakes.folder.glob("runs/demo/*/state.json")):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGHUP)  # the terminal is closed
        process.wait()
    code, output = fakes.sweep(file)
    assert code == 0, output
    assert re.search(r"running +wait: job local-\d+ \(process \d+ on", output)
    assert [starts(run) for run in fakes.runs()] == [1]


def test_a_killed_job_is_said(fakes: Fakes) -> None:
    file = str(fakes.sweep_file("base: base.yaml\nset: {train.steps: 2000}\n"))
    with fakes.start(file) as process:
        while not (states := list(fakes.folder.glob("runs/demo/*/state.json"))):
            time.sleep(0.02)
        os.kill(int(lock.read_lock(states[0].parent)["pid"]), signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "interrupted: its job exited without a final status" in output
    assert (states[0].parent / "checkpoint").exists()  # its training was told by the kernel, and ended


def test_two_sweeps_at_once_run_each_run_once(fakes: Fakes) -> None:
    file = str(fakes.sweep_file(TWO + "set: {train.steps: 20}\n"))
    with fakes.start(file, "--jobs", "2") as one, fakes.start(file, "--jobs", "2") as two:
        outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], outputs
    assert all("2 of 2 done" in output for output in outputs)
    assert [starts(run) for run in fakes.runs()] == [1, 1]


def test_a_missing_store_is_said_before_anything_is_made(fakes: Fakes) -> None:
    code, output = fakes.sweep(str(fakes.sweep_file(TWO)), "--set", "data.store=nowhere")
    assert code == 2
    assert "nowhere: needed by 2 runs" in output
    assert "python -m shards convert" in output
    assert not (fakes.folder / "runs").exists()


def test_usage() -> None:
    script = [sys.executable, str(ROOT / "launch" / "sweep.py")]
    shown = subprocess.run([*script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "examples:" in shown
    assert "--cluster debug" in shown
    for arguments in (["--jobs", "0"], ["--cluster", "debug", "--jobs", "2"], ["--cluster", "moon"]):
        wrong = subprocess.run([*script, *arguments], capture_output=True, text=True, check=False)
        assert wrong.returncode == 2
        assert "Traceback" not in wrong.stderr


def test_without_an_argument_the_papers_sweep_is_meant() -> None:
    assert options.PAPER == ROOT / "configs" / "sweeps" / "paper.yaml"


def test_a_second_ctrl_c_leaves_the_jobs_to_it(fakes: Fakes) -> None:
    (fakes.scripts / "train.py").write_text(
        (fakes.scripts / "train.py").read_text().replace("if stop:", "if stop and not time.sleep(1):")
    )
    file = str(fakes.sweep_file("base: base.yaml\nset: {train.steps: 2000}\n"))
    with fakes.start(file) as process:
        while not (states := list(fakes.folder.glob("runs/demo/*/state.json"))):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        while not process.stdout.readline().startswith("stopping: "):
            pass
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "left: the jobs end by themselves" in output
    wait_for(states[0].parent / "checkpoint")


@pytest.mark.parametrize(
    ("terminal", "answer", "words", "message"),
    [
        (False, "", [], "no sweep file is given, which means the paper's sweep: 153 runs: add --yes"),
        (True, "n", [], "nothing is submitted"),
        (True, "y", [], "stores"),  # goes on: the stores are missing
        (False, "", ["--yes"], "stores"),
    ],
)
def test_the_papers_sweep_is_asked_for(
    terminal: bool, answer: str, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    with pytest.raises(ConfigError, match=message):
        main(["--runs", str(tmp_path / "runs"), *words])
    assert not (tmp_path / "runs").exists()
