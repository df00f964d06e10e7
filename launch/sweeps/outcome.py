"""Follow the jobs of a sweep to their end, and report how its runs stand then."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.jobs.attempts import why_stopped
from launch.jobs.ranks import SignalRelay
from launch.jobs.submitter import Job, JobState, Submitter
from launch.sweeps.options import without_options
from launch.sweeps.plan import Item
from launch.sweeps.progress import Board
from toolkit.errors import EXIT_FAILURE, EXIT_OK, EXIT_REQUEUE
from toolkit.rundir import lock
from toolkit.rundir.status import RunView
from toolkit.shipped import command
from toolkit.wording import some

POLL_S = 0.2
FINAL = ("done", "failed")


def wait(
    items: Sequence[Item], submitted: Sequence[Job], submitter: Submitter, board: Board
) -> tuple[list[RunView], bool]:
    """Wait until the jobs have ended; return the final status of the runs, and whether a signal interrupted this.

    Raises:
        KeyboardInterrupt: a signal asked this command to exit while the jobs continue.
    """
    follower = _Follower(submitted, submitter, board)
    watched = [item for item in items if item.active]
    with SignalRelay() as relay:
        while True:
            if relay.take():
                follower.interrupt()
            views = follower.views(watched)
            finished = len(follower.settled) == len(watched)
            board.show(views, last=finished)
            if finished:
                return [follower.final(item) for item in items], follower.stopping
            time.sleep(POLL_S)


class _Follower:
    """How the runs stand, by what the submitter knows of their jobs and by their directories."""

    def __init__(self, submitted: Sequence[Job], submitter: Submitter, board: Board) -> None:
        self.jobs = {job.run: job for job in submitted}
        self.submitter = submitter
        self.board = board
        self.since = time.time()
        self.settled: dict[Path, RunView] = {}
        self._tokens: dict[Path, object] = {}  # of the job that had a run last when it was settled
        self.stopping = False

    def interrupt(self) -> None:
        """Stop the jobs at the first signal, where they depend on this command; else, and at the second, leave them."""
        if self.stopping:
            self.board.log("left: the jobs end by themselves when their checkpoints are written")
            raise KeyboardInterrupt
        if not self.submitter.interrupt():
            self.board.log("left: the jobs continue without this command")
            raise KeyboardInterrupt
        self.stopping = True
        self.board.log("stopping: the running jobs write a checkpoint and end; once more (Ctrl-C) to leave them to it")

    def views(self, items: Sequence[Item]) -> list[RunView]:
        """Return the current status of each run."""
        states = self.submitter.poll()
        return [self._view(item, states) for item in items]

    def final(self, item: Item) -> RunView:
        """Return how a run stands at the end: as its job left it, unless another job or training had it since."""
        path = item.run.path
        if path not in self.settled:
            return item.before
        view = item.read_status()
        worked_on = view.state == "done" or lock.read_lock(path).get("token") != self._tokens[path]
        return view if worked_on else self.settled[path]

    def _view(self, item: Item, states: dict[Job, JobState]) -> RunView:
        if settled := self.settled.get(item.run.path):
            return settled
        job = self.jobs.get(item.run.path.resolve())
        state = JobState.ENDED if job is None else states[job]
        view = item.read_status()
        if state is JobState.QUEUED:
            return dataclasses.replace(view, state="queued", reason=None)
        if state is JobState.RUNNING and not self._has_begun(item, view):
            return dataclasses.replace(view, state="starting", reason=None)
        if state is JobState.ENDED and (not view.live or (self.stopping and job is None)):
            self._tokens[item.run.path] = lock.read_lock(item.run.path).get("token")
            view = self.settled[item.run.path] = self._reported(item, view, job)
        return view

    def _has_begun(self, item: Item, view: RunView) -> bool:
        """Whether a running job has come to the run: one that was in the queue before may have begun long ago."""
        if item.job is not None:
            return view.live
        return float(lock.read_lock(item.run.path).get("started", 0.0)) >= self.since

    def _reported(self, item: Item, view: RunView, job: Job | None) -> RunView:
        """Report a job that ended without finishing its run, failing or being stopped: killed, or never started."""
        stopped = lock.read_lock(item.run.path).get("exit") == EXIT_REQUEUE
        if job is None or self.stopping or view.state in FINAL or stopped:
            return view
        words = self.submitter.exit_reason(job)
        reason = f"{view.state}: its job exited without a final status" + (f" ({words})" if words else "")
        return dataclasses.replace(view, state="killed", reason=reason)


def report_outcome(items: Sequence[Item], views: Sequence[RunView], root: Path, arguments: Sequence[str]) -> int:
    """Print the results of the runs and the next command; return the exit code.

    Args:
        arguments: of this command, from which the next one is made.
    """
    done = sum(view.state == "done" for view in views)
    failed = [view for view in views if view.state in ("failed", "killed")]
    unfinished = [view for view in views if view.state not in ("done", "failed", "killed")]
    for view in failed:
        print(f"{view.state}: {view.name}: {view.reason}\n    log: {view.log or f'{view.path}/logs'}", file=sys.stderr)
    for state in dict.fromkeys(view.state for view in unfinished):
        names = [view.name for view in unfinished if view.state == state]
        print(f"{state}: {some(names)}", file=sys.stderr)
    if why := why_stopped(root):
        print(f"stopped: {why}", file=sys.stderr)
    nothing = not any(item.submitted or item.before.live for item in items)
    print(f"{done} of {len(views)} done" + (", nothing to do" if nothing and done == len(views) else ""))
    if done == len(views):
        print(f"The report: {command('report', root)}")
        return EXIT_OK
    _print_commands({view.state for view in (*unfinished, *failed)}, without_options(arguments, "--replace", "--retry"))
    return EXIT_FAILURE if failed else EXIT_REQUEUE


def _print_commands(states: set[str], arguments: Sequence[str]) -> None:
    """Print the command that resumes what did not finish, and the one that retries what failed."""
    if states - {"failed"}:
        print(f"To resume: {command('sweep', *arguments)}")
    if "failed" in states:
        retry = command("sweep", *arguments, "--retry", "failed")
        print(f"Failed runs are not run again automatically. To retry them: {retry}")
