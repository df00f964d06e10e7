"""Plan a sweep, submit what isn't done, wait for it, and report the results. Does not import torch.

On a cluster it returns when the jobs are in the queue, except with --wait or --keep-submitted.
"""

from __future__ import annotations

import argparse
import errno
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
from launch.slurm.profile import overridden, read_profile
from launch.slurm.script import Shape
from launch.slurm.submitter import SlurmSubmitter
from launch.sweeps.cancel import cancel
from launch.sweeps.options import PAPER, as_axis, parse
from launch.sweeps.outcome import report_outcome, wait
from launch.sweeps.plan import Item, check_configs, check_ranks, check_stores, collect_status, dry_run, format_plan
from launch.sweeps.progress import Board
from launch.sweeps.selection import narrowed, selected
from launch.sweeps.spec import SweepPlan, plan_sweep
from toolkit.errors import EXIT_OK, EXIT_REQUEUE, ConfigError, ToolkitError
from toolkit.rundir import RunDir, lock
from toolkit.rundir.sweep import preparing, write_record
from toolkit.shipped import command as typed
from toolkit.wording import count

FEED_S = 30.0  # between two looks at the queue that --keep-submitted fills


def main(argv: Sequence[str] | None = None, command: JobCommand = job_command) -> int:
    """Run the script; `command` gives what a job runs. Returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parse(arguments)
    again = typed("sweep", *arguments)
    snapshot.check_origin(Path(sys.argv[0]))
    try:
        return _run(options, again, command)
    except OSError as error:
        raise _explained(error, options.runs) from None


def _run(options: argparse.Namespace, again: str, command: JobCommand) -> int:
    plan = plan_sweep(options.sweep, options.set, dict(as_axis(text) for text in options.axes))
    root: Path = options.runs / plan.name
    if options.cancel:
        print("\n".join(cancel(root, options.dry_run)))
        return EXIT_OK
    sweep = _Sweep(plan, root, _submitter(options, root, command), options)
    items = sweep.items()
    check_ranks(items, sweep.submitter.ranks_per_run)
    if options.dry_run:
        print("\n".join(sweep.dry_run()))
        return EXIT_OK
    if options.sweep is PAPER and any(item.submitted for item in items):
        _ask(sum(item.submitted for item in items), options.yes)
    check_stores(items)
    check_configs(items)
    sweep.submitter.check()
    items, jobs = sweep.submit()
    while options.keep_submitted and sweep.is_more(items):
        time.sleep(FEED_S)
        items, jobs = sweep.submit()
    if not any(item.active for item in items):
        return report_outcome(items, [item.before for item in items], root, again)
    if sweep.submitter.detached and not options.wait:
        print(f"Watch: {typed('status', root)}    wait: {again} --wait")
        return EXIT_OK
    board = Board(sys.stdout, redraw=False if options.cluster == "debug" else None)
    with sweep.submitter.following(root):
        views, stopped = wait(items, jobs, sweep.submitter, board)
    code = report_outcome(items, views, root, again)
    return EXIT_REQUEUE if stopped and code != EXIT_OK else code


class _Sweep:
    """A plan, where its runs live, and what runs them."""

    def __init__(self, plan: SweepPlan, root: Path, submitter: Submitter, options: argparse.Namespace) -> None:
        self.plan = plan
        self.root = root
        self.submitter = submitter
        self.options = options
        self.chosen = selected(plan, options.only, options.without)

    def items(self, ask: bool = False) -> list[Item]:
        """Return how the runs stand and which are submitted; `ask`: the queue is asked what is there already."""
        options = self.options
        queued = self.submitter.queued() if ask else None
        items = collect_status(self.plan, self.root, options.retry, queued, options.replace)
        limit = options.limit
        if options.keep_submitted:
            room = max(0, options.keep_submitted - sum(item.job is not None for item in items))
            limit = room if limit is None else min(limit, room)
        return narrowed(items, self.chosen, limit)

    def is_more(self, items: Sequence[Item]) -> bool:
        """Return whether runs are left that were only held back by the limit on what is in the queue."""
        return why_stopped(self.root) is None and any(item.left_out.startswith("later") for item in items)

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
        submitter, options = self.submitter, self.options
        with preparing(self.root):
            items = self.items(ask=True)
            jobs = submitter.adopt({item.run.path.resolve(): item.job.name for item in items if item.job})
            print("\n".join(format_plan(self.plan, items)), flush=True)
            for line in submitter.strangers({item.run.path.resolve() for item in items}):
                print(line)
            for item in items:
                if item.replaced:
                    _delete(item.run)
            submitted = [item for item in items if item.submitted]
            new = [item for item in items if item.submitted or item.before.state == "new"]
            run_concurrently(Item.prepare, [item for item in items if item in new or (item.active and item.scorings)])
            if submitted:
                begin_anew(self.root)
            write_record(self.root, self.plan.name, self.plan.file, [item.recorded for item in items])
            jobs += submitter.submit([item.run.path for item in submitted])
            if jobs and options.report:
                submitter.submit_report(fresh=bool(submitted))
        options.retry, options.replace = (), False  # once: --keep-submitted comes here again
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
        keys = ("partition", "account", "qos", "time", "mem")
        profile = overridden(read_profile(options.profile), {key: getattr(options, key) for key in keys})
        shape = Shape.of(profile, options.nodes, options.gpus_per_node, options.ranks, options.pack)
        return SlurmSubmitter(root, profile, shape, options.jobs, command, options.after)
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
    denied = (
        f"{_owner(Path(str(where)))}: ask for the right to write there, or put your own runs elsewhere (--runs DIR)"
    )
    hint = hints.get(error.errno or 0, denied if isinstance(error, PermissionError) else "see --runs DIR")
    return _FileError(f"{where}: {error.strerror or error}; {hint}")


def _owner(path: Path) -> str:
    for folder in (path, *path.absolute().parents):
        try:
            return f"{folder} belongs to {folder.owner()}, group {folder.group()}"
        except (OSError, KeyError):
            continue
    return str(path)


if __name__ == "__main__":
    run_script(main)
