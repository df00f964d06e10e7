"""What a run directory says about its run, in each state, and how it is shown."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch import status
from launch.cli.parser import run_script
from launch.cli.table import render
from launch.sweeps.progress import Board, line, metric, run_row
from tests.support.process import PATIENCE_S, as_from_a_terminal
from toolkit.config import RunConfig
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir, lock
from toolkit.rundir.status import RunView, read_status
from toolkit.wording import duration

ROOT = Path(__file__).resolve().parents[2]
STATE = {
    "phase": "training",
    "step": 120,
    "steps": 300,
    "seq_per_s": 38.21,
    "eta_s": 75.0,
    "data_wait": 0.02,
    "loss": 0.0123,
    "val": {"ssim": 0.9, "mse": 61.5},
    "restarts": 2,
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "demo" / "modernn-00000000", RunConfig())


def write(run: RunDir, **values: Any) -> None:
    run.write_state(**{**STATE, **values})


def edit(run: RunDir, **values: Any) -> None:
    state = {**run.read_state(), **values}
    (run.path / "state.json").write_text(json.dumps(state))


def test_new(run: RunDir) -> None:
    assert read_status(run).state == "new"


def test_running(run: RunDir) -> None:
    write(run)
    view = read_status(run)
    assert (view.state, view.step, view.rate, view.eta_s, view.restarts) == ("running", 120, 38.21, 75.0, 2)
    assert view.host == socket.gethostname()


def test_starting_validating_and_evaluating_need_a_job(run: RunDir) -> None:
    with lock.hold(run.path, job="local-7"):
        assert read_status(run).state == "starting"
        write(run, phase="validating")
        assert read_status(run).state == "validating"
        edit(run, pid=2**22 + 1)  # of the job before this one
        assert read_status(run).state == "starting"
        run.mark_done()
        assert read_status(run).state == "evaluating"
        assert read_status(run).rate is None
    assert read_status(run).state == "trained"


def test_interrupted_at_once_on_this_machine_and_after_silence_elsewhere(run: RunDir) -> None:
    write(run)
    edit(run, pid=2**22 + 1)  # no such process
    assert read_status(run).state == "interrupted"
    edit(run, host="far")
    assert read_status(run).state == "running"
    assert read_status(run, now=time.time() + 121).state == "interrupted"
    assert read_status(run, now=time.time() + 121).rate is None
    assert "run the sweep again" in str(read_status(run, now=time.time() + 121).reason)


def test_failed_with_its_reason(run: RunDir) -> None:
    write(run)
    run.mark_failed("rank 1: ValueError: no\nsecond line")
    assert read_status(run).state == "failed"
    assert read_status(run).reason == "rank 1: ValueError: no\nsecond line"
    with lock.hold(run.path):
        assert read_status(run).live  # being retried


@pytest.mark.parametrize(
    ("code", "label"), [(4, "not finite"), (5, "bad data"), (6, "hung"), (1, "failed"), (2, "failed")]
)
def test_kinds_of_failure_are_told_apart(run: RunDir, code: int, label: str) -> None:
    write(run)
    run.mark_failed("rank 1: something", code)
    assert (read_status(run).state, read_status(run).label) == ("failed", label)
    assert run_row(read_status(run))[1] == label


def test_a_killed_training_a_stopped_one_and_one_without_a_word(run: RunDir) -> None:
    write(run)
    run.mark_failed("train: killed by SIGKILL (out of memory?)")
    assert read_status(run).label == "killed"
    run.clear_failed()
    write(run, phase="stopped")
    edit(run, pid=2**22 + 1)
    assert (read_status(run).state, read_status(run).label) == ("interrupted", "stopped")
    assert read_status(run).reason == "stopped with a checkpoint at step 120; run it again to resume"
    edit(run, phase="training")
    assert read_status(run).label == "interrupted"
    assert "killed" in str(read_status(run).reason)


def test_waiting_for_the_first_step_and_a_slow_rank(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    write(run, step=0, seq_per_s=0.0)
    assert read_status(run).label == "first step"
    write(run, slow="rank 3 on node7 takes 2.4 times as long")
    assert read_status(run).label == "running"
    assert status.main([str(run.path)]) == 0
    assert "slow: rank 3 on node7 takes 2.4 times as long" in capsys.readouterr().out


def test_done_needs_scores_of_the_right_split(run: RunDir) -> None:
    run.mark_done()
    run.eval.mkdir()
    for which in ("best", "last"):
        (run.eval / f"val-{which}.json").write_text("{}")
    assert read_status(run).state == "done"
    assert read_status(run, split="test").state == "trained"


def test_a_broken_state_file_is_survived(run: RunDir) -> None:
    (run.path / "state.json").write_text('{"step": 1')
    assert read_status(run).state == "interrupted"
    (run.path / lock.LOCK_NAME).write_text("{")
    assert lock.read_lock(run.path) == {}
    assert lock.holder(run.path) is None


def test_table_of_all_columns(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    write(run)
    assert status.main([str(run.path)]) == 0
    header, row, _, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "step", "seq/s", "ETA", "loss", "val", "wait", "host", "restarts"]
    assert row.split()[:9] == [run.path.name, "running", "120/300", "38.2", "1:15", "0.01230", "mse", "61.5", "2%"]
    assert total == "1 run: 1 running"


def test_json(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    write(run)
    assert status.main([str(run.path.parent), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["state"] == "running"
    assert row["val"] == {"ssim": 0.9, "mse": 61.5}


def test_watch_shows_it_again_until_ctrl_c(run: RunDir) -> None:
    command = [sys.executable, str(ROOT / "launch" / "status.py"), str(run.path), "--watch", "1"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_from_a_terminal,
    ) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(8)]
        process.send_signal(2)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert seen[0] == seen[4] == "run               state\n"
    assert (process.returncode, errors) == (130, "")


def test_folders_that_are_no_runs(tmp_path: Path, run: RunDir) -> None:
    with pytest.raises(ConfigError, match="no such run or folder"):
        status.main([str(tmp_path / "nowhere")])
    (tmp_path / "demo" / "sweep.yaml").write_text("runs: []")
    with pytest.raises(ConfigError, match="holds no runs; sweeps there: demo"):
        status.main([str(tmp_path)])
    (tmp_path / "demo" / "sweep.yaml").write_text("runs: [4]")
    with pytest.raises(ConfigError, match="not a sweep's record"):
        status.main([str(tmp_path / "demo")])


def test_a_thousand_runs_within_seconds(tmp_path: Path) -> None:
    text = RunConfig().to_yaml()
    record = ["name: big", "runs:"]
    for number in range(1000):
        folder = tmp_path / f"run{number:04}"
        folder.mkdir()
        (folder / "config.yaml").write_text(text)
        (folder / "state.json").write_text(json.dumps({**STATE, "host": "far", "pid": 1, "updated": time.time()}))
        record.append(f"- {{dir: run{number:04}, name: run{number}, group: g, seed: 1, settings: {{}}}}")
    (tmp_path / "sweep.yaml").write_text("\n".join(record))
    start = time.process_time()
    views = status.views_of([tmp_path])
    assert len(status.report(views, 120)) == 1003
    assert time.process_time() - start < 3.0  # it takes half a second
    assert {view.state for view in views} == {"running"}


def test_render_leaves_out_empty_columns_and_cuts() -> None:
    rows = [["a", "", "1"], ["bbbb", "", "20"]]
    assert render(("name", "void", "n"), rows) == ["name   n", "a      1", "bbbb  20"]
    assert render(("name", "void", "n"), rows, width=5) == ["name", "a", "bbbb"]
    assert render(("name",), []) == ["name"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(7, "0:07"), (750.4, "12:30"), (11_100, "3:05:00"), (183_900, "2d 03:05"), (-1, "0:00")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_metric() -> None:
    assert metric({"ssim": 0.91234}) == "ssim 0.9123"
    assert metric({}) == ""


def view(state: str, **values: Any) -> RunView:
    return RunView(name="a", path="/a", state=state, **values)


def test_board_off_a_terminal_prints_changes_and_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(sys.stdout, lines_every_s=3600, redraw=False)
    board._shown_at = time.monotonic()
    for state in ("queued", "starting", "running", "validating", "running", "done"):
        board.show([view(state, step=3, steps=10)])
    lines = capsys.readouterr().out.splitlines()
    assert [text.split()[2] for text in lines] == ["starting", "running", "done"]
    board = Board(sys.stdout, lines_every_s=0, redraw=False)
    for _ in range(3):
        board.show([view("running", loss=0.5, rate=2.0, eta_s=60.0, data_wait=0.5, val={"mse": 3.0})])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].endswith("a: running  2.0 seq/s  ETA 1:00  loss 0.50000  val mse 3  data wait 50%")


def test_board_on_a_terminal_redraws_in_place(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setenv("COLUMNS", "60")
    board = Board(sys.stdout, redraw=True)
    many = [view("running", reason="x" * 100)] + [view("queued")] * 30
    board.show(many)
    board.show(many)  # too soon
    first = capsys.readouterr().out
    assert first.splitlines()[0] == "1 running, 30 queued"
    assert len(first.splitlines()) == 3  # only live runs, when not all fit
    assert max(len(text) for text in first.splitlines()) <= 59
    board.show([view("done")], last=True)
    assert capsys.readouterr().out.startswith("\x1b[3F\x1b[J1 done\n")


def test_line_of_a_failure() -> None:
    assert line(view("failed", reason="no\nmore")) == "a: failed  no"


def test_scripts_show_errors_and_interrupts_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> int:
        raise ConfigError("this key; do that")

    def stopped() -> int:
        raise KeyboardInterrupt

    for main, code in ((wrong, 2), (stopped, 130), (lambda: 3, 3)):
        with pytest.raises(SystemExit) as caught:
            run_script(main)
        assert caught.value.code == code
    assert capsys.readouterr().err == "error: this key; do that\n"


def test_a_reader_that_goes_away_is_no_error(run: RunDir) -> None:
    command = f"{sys.executable} {ROOT}/launch/status.py {run.path} {run.path} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stderr == ""


def test_a_start_that_has_written_nothing_yet_shows_no_speed_of_the_one_before(run: RunDir) -> None:
    write(run)
    assert read_status(run).rate == 38.21
    time.sleep(0.01)
    with lock.hold(run.path, job="local-8"):
        view = read_status(run)
        assert view.held
        assert (view.rate, view.eta_s, view.data_wait) == (None, None, None)
        write(run)
        assert read_status(run).rate == 38.21
