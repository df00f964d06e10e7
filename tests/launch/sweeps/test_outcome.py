"""Waiting for jobs, with a submitter that says what a test wants: signals to the waiting command, and jobs that end."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from launch.jobs.submitter import Job, JobState, Submitter
from launch.sweeps import outcome
from launch.sweeps.outcome import wait
from launch.sweeps.plan import Item, collect_status, place
from launch.sweeps.progress import Board
from launch.sweeps.spec import plan_sweep
from tests.support.process import ROOT
from toolkit.rundir import RunDir, lock


class Scripted(Submitter):
    """Does one thing at each look at its jobs."""

    def __init__(self, *acts: Callable[[Scripted], None], detached: bool = False) -> None:
        self.acts = list(acts)
        self.detached = detached
        self.state = JobState.RUNNING
        self.jobs: list[Job] = []
        self.cancelled = False

    def ranks_of(self, run: Path) -> int:
        return 1

    def submit(self, runs: Sequence[Path]) -> list[Job]:
        self.jobs = [Job(run.resolve(), number) for number, run in enumerate(runs)]
        return self.jobs

    def poll(self) -> dict[Job, JobState]:
        if self.acts:
            self.acts.pop(0)(self)
        return dict.fromkeys(self.jobs, self.state)

    def interrupt(self) -> bool:
        self.cancelled = not self.detached
        return self.cancelled

    def exit_reason(self, job: Job) -> str | None:
        return "as the scheduler says"


def interrupt(_: Scripted) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def end(submitter: Scripted) -> None:
    submitter.state = JobState.ENDED


@pytest.fixture
def items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Item]:
    monkeypatch.setattr(outcome, "POLL_S", 0.01)
    file = tmp_path / "two.yaml"
    file.write_text(f"base: {ROOT}/configs/demo.yaml\nseeds: 2\n")
    plan = plan_sweep(file, [])
    for planned, run in zip(plan.runs, place(tmp_path, plan), strict=True):
        RunDir.create(run.path, planned.config)
    return collect_status(plan, tmp_path, ())


def test_a_job_that_leaves_no_status_has_its_exit_reason(items: list[Item]) -> None:
    submitter, out = Scripted(end), io.StringIO()
    jobs = submitter.submit([item.run.path for item in items])
    views, stopped = wait(items, jobs, submitter, Board(out))
    assert not stopped
    assert {view.state for view in views} == {"killed"}
    assert all("(as the scheduler says)" in str(view.reason) for view in views)


@pytest.mark.parametrize("state", ["trained", "failed"])
def test_a_run_that_was_worked_on_after_its_job_is_reported_as_it_stands(items: list[Item], state: str) -> None:
    """The job of the first run is killed; while that of the second goes on, somebody trains the first one."""
    run, asked = items[0].run, []

    class OneEnds(Scripted):
        def poll(self) -> dict[Job, JobState]:
            states = super().poll()
            return states | {self.jobs[0]: JobState.ENDED}

        def exit_reason(self, job: Job) -> str | None:
            asked.append(job)
            return super().exit_reason(job)

    def by_hand(_: Scripted) -> None:
        with lock.hold(run.path, job="by hand"):
            run.mark_done() if state == "trained" else run.mark_failed("no memory")

    submitter, out = OneEnds(lambda _: None, lambda _: None, by_hand, end), io.StringIO()
    jobs = submitter.submit([item.run.path for item in items])
    views, _ = wait(items, jobs, submitter, Board(out, redraw=False))
    assert [view.state for view in views] == [state, "killed"]
    assert views[1].reason == "new: its job exited without a final status (as the scheduler says)"
    assert asked == jobs  # once each, not at each look
    assert f"{items[0].planned.name}: killed" in out.getvalue()  # as it was then


def test_the_first_signal_stops_the_jobs_and_the_second_leaves_them(items: list[Item]) -> None:
    submitter, out = Scripted(interrupt, end), io.StringIO()
    jobs = submitter.submit([item.run.path for item in items])
    views, stopped = wait(items, jobs, submitter, Board(out))
    assert stopped and submitter.cancelled
    assert {view.state for view in views} == {"new"}  # asked to end: no word is missing
    submitter = Scripted(interrupt, interrupt)
    jobs = submitter.submit([item.run.path for item in items])
    with pytest.raises(KeyboardInterrupt):
        wait(items, jobs, submitter, Board(out))
    assert submitter.cancelled
    assert "left: the jobs end by themselves" in out.getvalue()


def test_jobs_that_do_not_depend_on_the_command_are_left_at_the_first_signal(items: list[Item]) -> None:
    submitter, out = Scripted(interrupt, detached=True), io.StringIO()
    jobs = submitter.submit([item.run.path for item in items])
    with pytest.raises(KeyboardInterrupt):
        wait(items, jobs, submitter, Board(out))
    assert not submitter.cancelled
    assert "left: the jobs continue without this command" in out.getvalue()


def test_a_job_that_was_in_the_queue_before_shows_what_its_run_does(items: list[Item]) -> None:
    in_queue = types.SimpleNamespace(name="4711_0", state="RUNNING")
    adopted = [dataclasses.replace(item, submitted=False, job=in_queue) for item in items]
    submitter, out = Scripted(lambda _: None, end), io.StringIO()
    jobs = submitter.submit([item.run.path for item in items])
    board = Board(out, redraw=False)
    with lock.hold(items[0].run.path, job="4711_0_0"):
        items[0].run.write_state(phase="training", step=3, steps=9, seq_per_s=2.0)
        submitter.acts.append(interrupt)
        submitter.detached = True
        with pytest.raises(KeyboardInterrupt):
            wait(adopted, jobs, submitter, board)
    assert f"{items[0].planned.name}: running  step 3/9" in out.getvalue()
    assert f"{items[1].planned.name}: starting" in out.getvalue()


def test_commands_that_follow_delete_nothing(items: list[Item], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["two.yaml", "--replace", "--limit=1", "--jobs", "2"]
    items[0].run.mark_failed("no")
    views = [item.read_status() for item in items]
    outcome.report_outcome(items, views, items[0].run.path.parent, arguments)
    output = capsys.readouterr().out
    assert "To resume: python launch/sweep.py two.yaml --limit=1 --jobs 2\n" in output
    assert "To retry them: python launch/sweep.py two.yaml --limit=1 --jobs 2 --retry failed\n" in output
    for retry in (["--retry", "oom"], ["--retry=oom"]):
        outcome.report_outcome(items, views, items[0].run.path.parent, ["two.yaml", *retry])
        output = capsys.readouterr().out
        assert "To resume: python launch/sweep.py two.yaml\n" in output
        assert "them: python launch/sweep.py two.yaml --retry failed\n" in output
