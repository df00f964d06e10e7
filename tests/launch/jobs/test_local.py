"""Shares of the machine, and the two local layers with real processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.jobs.local import DebugSubmitter, Job, JobState, LocalSubmitter, Submitter, job_command
from launch.jobs.machine import Machine
from tests.support.process import PATIENCE_S
from toolkit.rundir import lock

HOLDER = """
import os, signal, sys, time
from pathlib import Path
from launch.jobs.job import job_id
from toolkit.rundir.lock import hold
run = Path(sys.argv[1])
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
with hold(run, job=job_id()):
    (run / "began").write_text(f"{os.environ.get('OMP_NUM_THREADS')} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    deadline = time.monotonic() + float(sys.argv[2])
    while time.monotonic() < deadline and not stop:
        time.sleep(0.02)
    (run / "ended").write_text("stopped" if stop else "finished")
"""
Command = Callable[[Path, int, bool], list[str]]


def command_for(folder: Path, seconds: float) -> Command:
    script = folder / "holder.py"
    script.write_text(HOLDER)
    return lambda run, ranks, log_files: [sys.executable, str(script), str(run), str(seconds)]


def folders(base: Path, count: int) -> list[Path]:
    made = [base / f"run{number}" for number in range(count)]
    for path in made:
        path.mkdir()
    return made


def follow(submitter: Submitter, until: Callable[[dict[Job, JobState]], bool]) -> dict[Job, JobState]:
    deadline = time.monotonic() + PATIENCE_S
    while not until(states := submitter.poll()):
        assert time.monotonic() < deadline, states
        time.sleep(0.05)
    return states


def all_ended(states: dict[Job, JobState]) -> bool:
    return set(states.values()) == {JobState.ENDED}


def test_threads_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cpu = Machine(cpus=16, gpus=())
    assert cpu.jobs(ranks=2) == 8
    assert cpu.jobs(ranks=32) == 1
    assert cpu.environment(jobs=2, ranks=2, slot=1) == ["-u", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS=4"]
    assert cpu.environment(jobs=16, ranks=2, slot=0)[-1] == "OMP_NUM_THREADS=1"
    gpu = Machine(cpus=16, gpus=("0", "1", "2", "3"))
    assert gpu.jobs(ranks=2) == 2
    assert gpu.environment(jobs=2, ranks=2, slot=1)[-1] == "CUDA_VISIBLE_DEVICES=2,3"
    assert gpu.environment(jobs=3, ranks=2, slot=2)[-1] == "CUDA_VISIBLE_DEVICES=0,1"
    assert gpu.environment(jobs=1, ranks=8, slot=0)[-1] == "CUDA_VISIBLE_DEVICES=0,1,2,3"


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    here = Machine.here()
    assert here.gpus == ("GPU-a", "GPU-b")
    assert here.environment(jobs=2, ranks=1, slot=1) == ["CUDA_VISIBLE_DEVICES=GPU-b"]


def test_the_command_is_the_run_directory(tmp_path: Path) -> None:
    command = job_command(tmp_path, 2, True)
    assert command[0] == sys.executable
    assert Path(command[1]).name == "job.py"
    assert command[2:] == [str(tmp_path), "--ranks", "2", "--log-files"]


def test_local_jobs_are_throttled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    submitter = LocalSubmitter(ranks=1, jobs=2, command=command_for(tmp_path, 0.3))
    jobs = submitter.submit(folders(tmp_path, 3))
    most = 0
    while not all_ended(states := submitter.poll()):
        most = max(most, sum(state is JobState.RUNNING for state in states.values()))
        time.sleep(0.05)
    assert most == 2
    assert [(job.run / "ended").read_text() for job in jobs] == ["finished"] * 3
    assert (jobs[0].run / "began").read_text() == f"{max(1, submitter.machine.cpus // 2)} None"
    assert list((jobs[0].run / "logs" / "submitit").glob("*_0_log.out"))


def test_cancelled_local_jobs_end_at_their_own_pace(tmp_path: Path) -> None:
    submitter = LocalSubmitter(ranks=1, jobs=1, command=command_for(tmp_path, 60))
    first, second = submitter.submit(folders(tmp_path, 2))
    follow(submitter, lambda _: (first.run / "began").exists())
    submitter.interrupt()
    follow(submitter, all_ended)
    assert (first.run / "ended").read_text() == "stopped"
    assert not (second.run / "began").exists()


def test_cancel_in_the_first_moment_leaves_nothing_behind(tmp_path: Path) -> None:
    submitter = LocalSubmitter(ranks=1, jobs=1, command=command_for(tmp_path, 60))
    (job,) = submitter.submit(folders(tmp_path, 1))
    submitter.poll()
    submitter.interrupt()
    follow(submitter, all_ended)
    assert (job.run / "ended").read_text() == "stopped"


def test_the_terminals_ctrl_c_does_not_reach_a_job(tmp_path: Path) -> None:
    submitter = LocalSubmitter(ranks=1, jobs=1, command=command_for(tmp_path, 0.7))
    (job,) = submitter.submit(folders(tmp_path, 1))
    follow(submitter, lambda _: (job.run / "began").exists())
    pid = int(lock.read_lock(job.run)["pid"])
    parents = [pid]
    while parents[-1] != os.getpid():  # the job, submitit's task, submitit's controller
        stat = Path(f"/proc/{parents[-1]}/stat").read_text()
        parents.append(int(stat.rpartition(")")[2].split()[1]))
    for process in parents[:-1]:
        os.kill(process, signal.SIGINT)
        os.kill(process, signal.SIGHUP)
    follow(submitter, all_ended)
    assert (job.run / "ended").read_text() == "finished"


def test_debug_runs_one_after_the_other_in_the_foreground(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = [sys.executable, "-c", "import sys; print('hello from', sys.argv[1][-4:], flush=True)"]
    submitter = DebugSubmitter(ranks=1, command=lambda run, ranks, log_files: [*script, str(run)])
    submitter.submit(folders(tmp_path, 2))
    states = submitter.poll()
    assert list(states.values()) == [JobState.RUNNING, JobState.QUEUED]
    follow(submitter, all_ended)
    assert capfd.readouterr().out == "hello from run0\nhello from run1\n"
    assert not (tmp_path / "run0" / "logs").exists()


def test_cancelled_debug_job_gets_one_signal(tmp_path: Path) -> None:
    submitter = DebugSubmitter(ranks=1, command=command_for(tmp_path, 60))
    (job,) = submitter.submit(folders(tmp_path, 1))
    follow(submitter, lambda _: (job.run / "began").exists())
    submitter.interrupt()
    follow(submitter, all_ended)
    assert (job.run / "ended").read_text() == "stopped"


def test_a_run_that_another_job_has_is_not_started(tmp_path: Path) -> None:
    submitter = LocalSubmitter(ranks=1, jobs=1, command=command_for(tmp_path, 60))
    (run,) = folders(tmp_path, 1)
    with lock.hold(run, job="other"):
        submitter.submit([run])
        assert list(submitter.poll().values()) == [JobState.ENDED]
    assert not (run / "logs").exists()


def test_a_sweep_that_has_stopped_begins_only_what_has_a_checkpoint(tmp_path: Path) -> None:
    submitter = LocalSubmitter(ranks=1, jobs=1, command=command_for(tmp_path, 0.1))
    runs = folders(tmp_path, 3)
    (tmp_path / "STOPPED").write_text("the first 3 runs failed")
    (runs[1] / "checkpoints").mkdir()
    (runs[1] / "checkpoints" / "latest").write_text("step-00000004")
    submitter.submit(runs)
    follow(submitter, all_ended)
    assert [(run / "began").exists() for run in runs] == [False, True, False]


def test_only_the_layer_with_logs_of_submitit_names_them(tmp_path: Path) -> None:
    job = Job(tmp_path, 0)
    assert "logs/submitit" in str(LocalSubmitter(1, 1).exit_reason(job))
    assert "logs" not in str(DebugSubmitter(1).exit_reason(job))
