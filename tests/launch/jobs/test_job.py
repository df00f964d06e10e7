"""One job on one run directory: phases, codes, reasons, the lock; with stand-ins for training and evaluation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.jobs import job
from launch.jobs.job import run_job
from launch.jobs.ranks import meaning
from tests.support.fakes import Fakes
from tests.support.process import PATIENCE_S, wait_for
from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir, lock
from toolkit.rundir.lock import RunBusyError
from toolkit.rundir.status import missing_scores, read_status


def make_run(fakes: Fakes, fake: str | None = None, steps: int = 3) -> RunDir:
    asked = {"comms_logger": {"prof_ops": [f"fake: {fake}"]}} if fake else {}
    tree = {"data": {"store": "store"}, "train": {"steps": steps, "deepspeed": asked}}
    return RunDir.create(fakes.folder / "run", make_config(tree, "test"))


def starts(run: RunDir) -> int:
    file = run.path / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_trains_then_scores_then_does_nothing(fakes: Fakes) -> None:
    run = make_run(fakes)
    assert run_job(run, scripts=fakes.scripts, log_files=True) == 0
    assert run.done
    assert sorted(run.scores()) == ["test-best", "test-last"]
    assert read_status(run).state == "done"
    record = lock.read_lock(run.path)
    assert record["exit"] == 0
    assert record["job"] == f"hand-{os.getpid()}"
    log = run.logs / f"hand-{os.getpid()}_0.log"
    assert log.read_text().splitlines() == ["step 1", "step 2", "step 3"]
    assert run_job(run, scripts=fakes.scripts) == 0
    assert starts(run) == 1


def test_only_scores_what_is_trained(fakes: Fakes) -> None:
    run = make_run(fakes)
    run.mark_done()
    assert read_status(run).state == "trained"
    assert run_job(run, scripts=fakes.scripts) == 0
    assert starts(run) == 0
    assert not missing_scores(run, "test")


def test_a_job_of_one_phase_leaves_the_other_alone(fakes: Fakes, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(fakes)
    assert run_job(run, scripts=fakes.scripts, only="evaluate") == 0
    assert "its training has not finished: it is not evaluated" in caplog.text
    assert (starts(run), run.scores()) == (0, {})
    assert run_job(run, scripts=fakes.scripts, only="train") == 0
    assert (starts(run), run.scores()) == (1, {})
    assert read_status(run).state == "trained"
    assert run_job(run, scripts=fakes.scripts, only="evaluate") == 0
    assert read_status(run).state == "done"
    assert starts(run) == 1


def test_a_model_without_training_is_evaluated_by_the_job_that_evaluates(fakes: Fakes) -> None:
    tree = {"model": {"name": "persistence"}, "data": {"store": "store"}, "train": {"steps": 3}}
    run = RunDir.create(fakes.folder / "run", make_config(tree, "test"))
    assert run_job(run, scripts=fakes.scripts, only="evaluate") == 0
    assert run.done and run.scores()


def test_scores_older_than_the_end_of_training_are_made_again(fakes: Fakes) -> None:
    run = make_run(fakes)
    assert run_job(run, scripts=fakes.scripts) == 0
    os.utime(run.eval / "test-last.json", (1, 1))
    assert missing_scores(run, "test") == ["test-last"]
    assert run_job(run, scripts=fakes.scripts) == 0
    assert missing_scores(run, "test") == []


def test_scores_that_the_evaluation_leaves_because_they_hold_count(fakes: Fakes) -> None:
    run = make_run(fakes)
    assert run_job(run, scripts=fakes.scripts) == 0
    (fakes.scripts / "evaluate.py").write_text("")
    os.utime(run.eval / "test-best.json", (1, 1))
    assert run_job(run, scripts=fakes.scripts) == 0
    assert read_status(run).state == "done"


def test_a_failure_keeps_the_reason_that_training_gave(fakes: Fakes) -> None:
    run = make_run(fakes, "fail")
    assert run_job(run, scripts=fakes.scripts) == 4
    assert run.failure() == "the loss is NaN at step 1"
    assert read_status(run).state == "failed"


def test_a_killed_training_gets_a_reason_and_the_log(fakes: Fakes) -> None:
    run = make_run(fakes, "die")
    assert run_job(run, scripts=fakes.scripts, log_files=True) == 137
    assert run.failure() == f"train: killed by SIGKILL (out of memory?); see {run.logs}/hand-{os.getpid()}_0.log"


def test_a_failed_evaluation_is_a_failed_run_that_need_not_train_again(fakes: Fakes) -> None:
    run = make_run(fakes, "no-score")
    assert run_job(run, scripts=fakes.scripts) == 5
    assert run.done
    assert read_status(run).state == "failed"
    assert run.failure() == "evaluate: exit code 5 (damaged data)"
    (fakes.scripts / "evaluate.py").write_text("")
    assert run_job(run, scripts=fakes.scripts) == 1
    assert run.failure() == "evaluate: returned 0 without writing test-best.json, test-last.json"
    assert starts(run) == 1


def test_training_that_ends_well_but_not_done(fakes: Fakes) -> None:
    run = make_run(fakes)
    (fakes.scripts / "train.py").write_text("")
    assert run_job(run, scripts=fakes.scripts) == 1
    assert "without marking the run DONE" in str(run.failure())


def test_two_ranks_train_and_one_scores(fakes: Fakes) -> None:
    run = make_run(fakes)
    assert run_job(run, ranks=2, scripts=fakes.scripts, log_files=True) == 0
    assert sorted(line.split()[1] for line in (run.path / "starts").read_text().splitlines()) == ["0", "1"]
    names = sorted(path.name.partition("_")[2] for path in run.logs.iterdir())
    assert names == ["0.log", "1.log", "evaluate.log"]


def test_a_stop_is_no_failure_and_the_next_job_goes_on(fakes: Fakes) -> None:
    run = make_run(fakes, steps=1000)

    def stop() -> None:
        wait_for(run.path / "state.json")
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=stop)
    sender.start()
    assert run_job(run, scripts=fakes.scripts) == 3
    sender.join()
    assert run.failure() is None
    assert read_status(run).state == "interrupted"
    stopped_at = int((run.path / "checkpoint").read_text())
    (run.path / "checkpoint").write_text("998")
    assert 0 < stopped_at < 1000
    assert run_job(run, scripts=fakes.scripts) == 0
    assert read_status(run).state == "done"


def test_a_stop_before_the_handlers_is_no_failure(fakes: Fakes) -> None:
    run = make_run(fakes)
    (fakes.scripts / "train.py").write_text("import os, signal\nos.kill(os.getppid(), 15)\nsignal.pause()")
    assert run_job(run, scripts=fakes.scripts) == 3
    assert run.failure() is None


def test_the_script_by_hand_stops_on_ctrl_c_and_leaves_no_child(fakes: Fakes) -> None:
    run = make_run(fakes, steps=1000)
    with subprocess.Popen([sys.executable, str(fakes.scripts / "fake_job.py"), str(run.path)]) as process:
        wait_for(run.path / "state.json")
        assert read_status(run).state == "running"
        with pytest.raises(RunBusyError, match=rf"process {process.pid} on .* is working on this run"):
            run_job(run, scripts=fakes.scripts)
        process.send_signal(signal.SIGINT)
    assert process.returncode == 3  # the stand-in has no handler for it, so it died of the signal: stopped, not failed
    assert run.failure() is None
    assert lock.holder(run.path) is None


def test_a_killed_job_keeps_the_run_until_its_training_has_ended(fakes: Fakes) -> None:
    run = make_run(fakes, steps=1000)
    (fakes.scripts / "train.py").write_text(
        (fakes.scripts / "train.py").read_text().replace("if stop:", "if stop and not time.sleep(1):")
    )
    with subprocess.Popen([sys.executable, str(fakes.scripts / "fake_job.py"), str(run.path)]) as process:
        wait_for(run.path / "state.json")
        process.kill()
    assert read_status(run).live  # the checkpoint is being written
    deadline = time.monotonic() + PATIENCE_S
    while lock.holder(run.path) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert read_status(run).state == "interrupted"
    assert (run.path / "checkpoint").exists()


@pytest.mark.parametrize("holder", ["4711_3_0", "4711_4_0", "local-7"])
def test_an_earlier_start_of_the_same_job_is_waited_for(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], holder: str
) -> None:
    """Slurm thinks that start dead and has begun the job again."""
    run = make_run(fakes)
    environment = {"JOB_ID": "4714", "ARRAY_JOB_ID": "4711", "ARRAY_TASK_ID": "3", "RESTART_COUNT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with lock.hold(run.path, job=holder):
        if holder != "4711_3_0":
            with pytest.raises(RunBusyError, match=holder):
                run_job(run, scripts=fakes.scripts)
            return
        asked = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGUSR2))
        asked.start()
        assert run_job(run, scripts=fakes.scripts) == 3  # its time is up before it had the run
        asked.join()
    assert "an earlier start of this job; waiting until it has ended" in capsys.readouterr().err
    held = lock.hold(run.path, job=holder)
    held.__enter__()
    threading.Timer(1.5, held.__exit__, (None, None, None)).start()
    assert run_job(run, scripts=fakes.scripts) == 0
    assert lock.read_lock(run.path)["job"] == "4711_3_1"
    assert starts(run) == 1


def test_other_ranks_wait_until_the_first_has_the_run(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(fakes)
    with lock.hold(run.path, job="4711_0"):
        pass
    step = {"JOB_ID": "4711", "RESTART_COUNT": "1", "STEP_ID": "0", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}
    nodes = {"NODEID": "1", "STEP_NODELIST": "localhost,here", "STEP_TASKS_PER_NODE": "1(x2)"}
    for name, value in {**step, **nodes}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    codes: list[int] = []

    def begin() -> None:
        time.sleep(0.5)
        codes.append(starts(run))
        with lock.hold(run.path, job="4711_1"):
            time.sleep(0.5)

    first = threading.Thread(target=begin)
    first.start()
    assert run_job(run, scripts=fakes.scripts) == 0
    first.join()
    assert codes == [0]
    assert (run.path / "starts").read_text().split()[1] == "1"


def test_not_a_run_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not a run directory \(no config.yaml\)"):
        run_job(RunDir(tmp_path))


def test_the_script_prints_one_line_and_its_code(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, job.__file__, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "exit code 1 (failed)"),
        (4, "exit code 4 (the loss or gradient is not finite)"),
        (143, "killed by SIGTERM"),
        (99, "(unkn"),
    ],
)
def test_codes_in_words(code: int, words: str) -> None:
    assert words in meaning(code)
