"""Plan a sweep, submit what isn't done, wait for it, and report the results. Does not import torch.

On a cluster it returns when the jobs are in the queue, except with --wait or --keep-submitted.
"""

from __future__ import annotations

import argparse
import errno
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.cli.parser import run_script
from launch.jobs import snapshot
from launch.jobs.attempts import begin_anew, why_stopped
from launch.jobs.local import DebugSubmitter, LocalSubmitter
from launch.jobs.machine import Machine
from launch.jobs.submitter import Job, JobCommand, Submitter, job_command, run_concurrently
from launch.slurm.client import SlurmError
from launch.slurm.profile import read_profile
from launch.slurm.request import Requests
from launch.slurm.submitter import SlurmSubmitter
from launch.sweeps.cancel import cancel
from launch.sweeps.options import PAPER, as_axis, parse, without_options
from launch.sweeps.outcome import report_outcome, wait
from launch.sweeps.plan import (
    KEEP,
    Item,
    check_configs,
    check_ranks,
    check_stores,
    collect_status,
    dry_run,
    format_plan,
)
from launch.sweeps.progress import Board
from launch.sweeps.selection import narrowed, selected
from launch.sweeps.spec import SweepPlan, plan_sweep
from toolkit.atomic import describe_owner
from toolkit.errors import EXIT_OK, EXIT_REQUEUE, ConfigError, ToolkitError
from toolkit.rundir import RunDir, lock
from toolkit.rundir.sweep import preparing, write_record
from toolkit.shipped import command as typed
from toolkit.wording import count, first_line

logger = logging.getLogger(__name__)

FEED_S = 30.0  # between two looks at the queue that --keep-submitted fills


def main(argv: Sequence[str] | None = None, command: JobCommand = job_command) -> int:
    """Run the script; `command` gives what a job runs. Returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parse(arguments)
    snapshot.check_origin(Path(sys.argv[0]))
    try:
        return _run(options, arguments, command)
    except OSError as error:
        raise _explained(error, options.runs) from None


def _run(options: argparse.Namespace, arguments: Sequence[str], command: JobCommand) -> int:
    plan = plan_sweep(options.sweep, options.set, dict(as_axis(text) for text in options.axes))
    root: Path = options.runs / plan.name
    if RunDir(root).config_file.exists():
        raise ConfigError(f"{root}: is the directory of a run: give the sweep another `name:`, or --runs DIR")
    if options.cancel:
        print("\n".join(cancel(root, options.dry_run)))
        return EXIT_OK
    sweep = _Sweep(plan, root, _submitter(options, root, command), options)
    items = sweep.items(every_round=True)
    sweep.check_room()
    check_ranks(items, sweep.submitter)
    if options.dry_run:
        print("\n".join(sweep.dry_run()))
        return EXIT_OK
    if options.sweep is PAPER and any(item.submitted for item in items):
        _ask(sum(item.submitted for item in items), options.yes)
    check_stores(items)
    check_configs(items)
    sweep.submitter.check()
    items, jobs = sweep.submit_all()
    if not any(item.active for item in items):
        return report_outcome(items, [item.before for item in items], root, arguments)
    if sweep.submitter.detached and not options.wait:
        again = typed("sweep", *without_options(arguments, "--replace", "--retry", "--limit"), "--wait")
        print(f"Watch: {typed('status', root)}    wait: {again}")
        return EXIT_OK
    board = Board(sys.stdout, redraw=False if options.cluster == "debug" else None)
    with sweep.submitter.following(root):
        views, stopped = wait(items, jobs, sweep.submitter, board)
    code = report_outcome(items, views, root, arguments)
    return EXIT_REQUEUE if stopped and code != EXIT_OK else code


class _Sweep:
    """A plan, where its runs live, and what runs them."""

    def __init__(self, plan: SweepPlan, root: Path, submitter: Submitter, options: argparse.Namespace) -> None:
        self.plan = plan
        self.root = root
        self.submitter = submitter
        self.options = options
        self.chosen = selected(plan, options.only, options.without)
        self.submitted: set[str] = set()  # hashes of the runs that this command has submitted
        self.round = 0

    def check_room(self) -> None:
        """Check that --keep-submitted has room for one job.

        Raises:
            ConfigError: it has not.
        """
        pack, room = self.submitter.runs_per_job, self.options.keep_submitted
        if room and room < pack:
            raise ConfigError(
                f"--keep-submitted {room} is fewer runs than one job of --pack {pack} has: give "
                f"--keep-submitted {pack} or more"
            )

    def items(self, ask: bool = False, every_round: bool = False) -> list[Item]:
        """Return how the runs stand and which are submitted.

        Args:
            ask: the queue is asked what is there already.
            every_round: also submitted is what --keep-submitted holds back for now.
        """
        options = self.options
        queued = self.submitter.queued() if ask else None
        items = collect_status(self.plan, self.root, options.retry, queued, options.replace, self.submitted)
        resources = {item.path: item.planned.resources for item in items}
        self.submitter.assign(resources, {item.path for item in items if not item.trains})
        left = sum(item.submitted and item.planned.hash8 in self.chosen for item in items)
        limit = left if options.limit is None else min(left, options.limit - len(self.submitted))
        if options.keep_submitted and not every_round:
            room = max(0, options.keep_submitted - sum(item.job is not None for item in items))
            # Jobs of several runs are submitted full; only the last one may have places that stay free.
            if limit > room:
                waiting = [item.path for item in items if item.submitted and item.planned.hash8 in self.chosen]
                return narrowed(items, self.chosen, room, KEEP, self.submitter.fitting(waiting[:limit], room))
        return narrowed(items, self.chosen, limit)

    def submit_all(self) -> tuple[list[Item], list[Job]]:
        """Submit what isn't done; with --keep-submitted also what is held back, as jobs leave the queue.

        Returns the runs and jobs as of the last look at the queue. A cluster that refuses the first jobs raises an
        error; later on it is logged and tried again.
        """
        items, jobs = self.submit()
        while self.options.keep_submitted and any(item.held_back for item in items) and why_stopped(self.root) is None:
            time.sleep(FEED_S)
            if why_stopped(self.root) is None:
                try:
                    items, jobs = self.submit()
                except SlurmError as error:
                    logger.warning("%s; trying again in %g s", first_line(error), FEED_S)
        return items, jobs

    def dry_run(self) -> list[str]:
        """Return the lines of --dry-run."""
        options, ask = self.options, self.submitter.detached and not self.options.no_queue
        note = []
        try:
            items = self.items(ask)
        except ToolkitError as error:
            items = self.items()
            note = [f"note: the queue could not be asked, so that runs in it count as not submitted: {error}"]
        lines = [*dry_run(self.plan, items, self.submitter, options.tflops), *note]
        runs = [item.run.path.resolve() for item in items if item.submitted]
        return lines + (
            self.submitter.preview(runs, options.show, options.test) if options.show or options.test else []
        )

    def submit(self) -> tuple[list[Item], list[Job]]:
        """Make the run directories and the record, and submit what isn't done; also returns jobs that were there.

        From the look at the queue to the submission nobody else submits: two at the same instant make one job per run.
        """
        submitter, first = self.submitter, self.round == 0
        self.round += 1
        with preparing(self.root):
            items = self.items(ask=True)
            jobs = submitter.adopt({item.run.path.resolve(): item.job.name for item in items if item.job})
            if first:
                print("\n".join(format_plan(self.plan, items)), flush=True)
                for line in submitter.strangers({item.run.path.resolve() for item in items}):
                    print(line)
            for item in items:
                if item.replaced:
                    _delete(item.run)
            submitted = [item for item in items if item.submitted]
            new = [item for item in items if item.submitted or item.before.state == "new"]
            run_concurrently(Item.prepare, [item for item in items if item in new or (item.active and item.scorings)])
            if first and (submitted or any(item.held_back for item in items)):
                begin_anew(self.root)
            write_record(self.root, self.plan.name, self.plan.file, [item.recorded for item in items])
            jobs += submitter.submit([item.run.path for item in submitted])
            self.submitted |= {item.planned.hash8 for item in submitted}
            if jobs and self.options.report:
                submitter.submit_report(fresh=bool(submitted))
        return items, jobs


def _delete(run: RunDir) -> None:
    """Delete a run directory that nobody works on."""
    with lock.hold(run.path, job="sweep.py --replace"):
        shutil.rmtree(run.path)
    print(f"deleted {run.path}")


def _ask(runs: int, yes: bool) -> None:
    """Ask whether the paper's sweep is meant, which nobody starts by leaving a file out.

    Raises:
        ConfigError: it is not, or there is no terminal to ask on.
    """
    if yes:
        return
    what = f"no sweep file is given, which means the paper's sweep: {count(runs, 'run')}"
    if not sys.stdin.isatty():
        raise ConfigError(f"{what}: add --yes to submit them, --dry-run to see them, or name a file")
    if input(f"{what}. Submit them? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing is submitted")


def _submitter(options: argparse.Namespace, root: Path, command: JobCommand) -> Submitter:
    if options.cluster == "slurm":
        keys = ("partition", "account", "qos", "time", "mem", "nodes", "gpus_per_node", "pack")
        requests = Requests(read_profile(options.profile), {key: getattr(options, key) for key in keys}, options.ranks)
        return SlurmSubmitter(root, requests, options.jobs, command, options.after, options.evaluate_apart)
    ranks = options.ranks or 1
    if options.cluster == "debug":
        return DebugSubmitter(ranks, command)
    together = None if options.pack == "auto" else options.pack and int(options.pack)
    return LocalSubmitter(ranks, options.jobs or together or Machine.here().jobs(ranks), command)


class _FileError(ToolkitError):
    """A file system that refuses."""


def _explained(error: OSError, runs: Path) -> _FileError:
    where = error.filename or runs
    hints = {
        errno.ENOSPC: "the disk is full: free some space, then give the same command again",
        errno.EDQUOT: "your quota is used up: free some space, then give the same command again",
        errno.EROFS: "it can only be read: --runs DIR puts the runs elsewhere",
    }
    whose = describe_owner(Path(str(where)))
    denied = f"{whose}: ask for the right to write there, or put your own runs elsewhere (--runs DIR)"
    hint = hints.get(error.errno or 0, denied if isinstance(error, PermissionError) else "see --runs DIR")
    return _FileError(f"{where}: {error.strerror or error}; {hint}")


if __name__ == "__main__":
    run_script(main)
