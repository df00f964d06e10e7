"""Plan a sweep, submit what isn't done, wait for it, and say what came of it. Does not import torch.

On a cluster it returns when the jobs are in the queue, unless told to --wait.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import shlex
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import lock
from launch.board import Board
from launch.cancel import cancel, watching
from launch.cli import as_typed, make_parser, positive, run_script
from launch.jobs import DebugSubmitter, Job, JobCommand, JobState, LocalSubmitter, Machine, Submitter, job_command
from launch.plan import SUMMARY, hours_of, summary
from launch.ranks import SignalRelay
from launch.record import place, preparing, side_by_side
from launch.slurm import SlurmSubmitter
from launch.slurm_calls import QueuedJob
from launch.slurm_profile import read_profile
from launch.slurm_text import Shape
from launch.spec import PlannedRun, SweepPlan, plan_sweep
from launch.table import render
from launch.view import RunView, look
from toolkit.errors import EXIT_FAILURE, EXIT_OK, EXIT_REQUEUE, ConfigError
from toolkit.models.registry import MODELS
from toolkit.rundir import RunDir
from toolkit.shipped import CONFIGS
from toolkit.sweep_record import RecordedRun, write_record
from toolkit.wording import count, some

PAPER = CONFIGS / "sweeps" / "paper.yaml"
POLL_S = 0.2
EXAMPLES = """\
  python launch/sweep.py configs/sweeps/demo.yaml --dry-run             # what would be run
  python launch/sweep.py configs/sweeps/demo.yaml                       # here, one per GPU or core at a time
  python launch/sweep.py configs/sweeps/demo.yaml --cluster debug       # one after the other, with their output
  python launch/sweep.py configs/sweeps/demo.yaml --set train.steps=10  # another value in every run
  python launch/sweep.py configs/sweeps/demo.yaml --retry failed        # once more for those that failed
  python launch/sweep.py configs/sweeps/demo.yaml --retry oom,timeout   # only for those that failed in these ways
  python launch/sweep.py configs/sweeps/demo.yaml --cancel              # end its jobs, here or in Slurm's queue
  python launch/sweep.py configs/sweeps/demo.yaml --cluster slurm --profile gpu --nodes 2 --gpus-per-node 4"""
FINAL = ("done", "failed")
RETRY = {
    "failed": "whatever went wrong",
    "oom": "only what ran out of memory, or was killed as if",
    "timeout": "only what hung; what reached its time limit goes on by itself",
}
WHAT = {
    "new": "train",
    "interrupted": "go on",
    "trained": "evaluate",
    "failed": "leave (--retry failed runs it again)",
    "done": "nothing",
}


@dataclass(frozen=True)
class Item:
    """A planned run, where it lives, how it stood when the sweep was called, and what is done about it."""

    planned: PlannedRun
    run: RunDir
    before: RunView
    submitted: bool
    job: QueuedJob | None = None  # what it has in a cluster's queue

    @property
    def what(self) -> str:
        if self.job is not None and not self.before.live:
            return f"wait: job {self.job.name} is in the queue ({self.job.state})"
        if self.before.live:
            return f"wait: {lock.describe(lock.holder(self.run.path) or {})}"
        if self.before.state == "new" and not MODELS[self.planned.config.model.name].trained:
            return "evaluate: no training"
        return "train again" if self.submitted and self.before.state == "failed" else WHAT[self.before.state]

    @property
    def recorded(self) -> RecordedRun:
        planned = self.planned
        return RecordedRun(self.run, planned.name, planned.group, planned.seed, planned.settings)

    def look(self) -> RunView:
        return look(self.run, self.planned.name, self.planned.config.eval.split)


def survey(
    plan: SweepPlan, root: Path, retry: Collection[str], queued: Mapping[Path, QueuedJob] | None = None
) -> list[Item]:
    """How every run of the plan stands, and whether it will be submitted; one that has a job in the queue will not."""
    wanted = {"new", "interrupted", "trained"}
    items = []
    for planned, run in zip(plan.runs, place(root, plan), strict=True):
        view = look(run, planned.name, planned.config.eval.split)
        job = (queued or {}).get(run.path.resolve()) if view.state != "done" else None
        todo = view.state in wanted or (view.state == "failed" and is_retried(view, retry))
        items.append(Item(planned, run, view, todo and job is None, job))
    return items


def is_retried(view: RunView, retry: Collection[str]) -> bool:
    """Whether a failed run is one of those that are to be tried once more (RETRY)."""
    killed = re.search(r"SIGKILL|returned 137", view.reason or "")
    return (
        "failed" in retry
        or ("oom" in retry and (view.kind == "out of memory" or killed is not None))
        or ("timeout" in retry and view.kind == "hung")
    )


def describe(plan: SweepPlan, items: Sequence[Item], hours: Sequence[float | None] | None = None) -> list[str]:
    """The plan as a table; with each run's hours, what it needs is added."""
    left_out = [f"{plan.duplicates} duplicates left out"] if plan.duplicates else []
    left_out += [f"{plan.excluded} excluded"] if plan.excluded else []
    head = ", ".join([f"{plan.name}: {len(items)} runs", *left_out])
    header = ("run", "hash", "state", *(SUMMARY if hours else ()), "what will be done")
    rows = []
    for index, item in enumerate(items):
        need = summary(item.planned.config, hours[index]) if hours else []
        rows.append([item.planned.name, item.planned.hash8, item.before.state, *need, item.what])
    return [head, *render(header, rows)]


def foresee(items: Sequence[Item], tflops: float | None, ranks: int) -> tuple[list[float | None], str]:
    """Each run's hours, where they can be known, and a line on those that are to be done."""
    # A run is as fast as one that differs in the seed alone.
    rates = {item.planned.group: item.before.rate for item in items if item.before.rate}
    hours = [hours_of(item.planned.config, rates.get(item.planned.group), tflops, ranks) for item in items]
    planned = [value for item, value in zip(items, hours, strict=True) if item.submitted]
    known = [value for value in planned if value is not None]
    effort = f"{sum(known) * ranks:,.0f} rank-hours of training on {count(ranks, 'rank')} each"
    text = f"{count(len(planned), 'run')} to do: {effort}"
    if len(known) < len(planned):
        text += (
            f", and {count(len(planned) - len(known), 'run')} unknown: nothing like them has run; make their stores "
            "and say --tflops, what a rank reaches"
        )
    return hours, text


def check_stores(items: Sequence[Item]) -> None:
    """Stores that are missing are better said once, now, than by every job.

    Raises:
        ConfigError: naming each missing store and how many runs need it.
    """
    needed: dict[str, int] = {}
    for item in items:
        store = item.planned.config.data.store
        if not store or ("://" not in store and not Path(store, "manifest.json").exists()):
            needed[store] = needed.get(store, 0) + 1
    if needed:
        lines = [f"  {store or '(not set)'}: needed by {count} runs" for store, count in needed.items()]
        raise ConfigError(
            "data.store: no sequence store (manifest.json) there\n"
            + "\n".join(lines)
            + "\nMake one with `python -m shards convert`, or name one with --set data.store=FOLDER."
        )


def wait(
    items: Sequence[Item], submitted: Sequence[Job], submitter: Submitter, board: Board
) -> tuple[list[RunView], bool]:
    """Follow the jobs to their end; returns how the runs stand then, and whether a signal cut it short."""
    watched = [item for item in items if item.submitted or item.before.live or item.job]
    jobs = {job.run: job for job in submitted}
    settled: dict[Path, RunView] = {}
    since = time.time()
    stopping = False
    with SignalRelay() as relay:
        while True:
            signals = relay.take()
            if signals and isinstance(submitter, SlurmSubmitter):
                board.say("left: the jobs go on without this command")
                raise KeyboardInterrupt
            if signals and stopping:
                board.say("left: the jobs end by themselves when their checkpoints are written")
                raise KeyboardInterrupt
            if signals:
                stopping = True
                submitter.cancel()
                board.say(
                    "stopping: the running jobs write a checkpoint and end; once more (Ctrl-C) to leave them to it"
                )
            states = submitter.poll()
            views = []
            for item in watched:
                job = jobs.get(item.run.path.resolve())
                state = JobState.ENDED if job is None else states[job]
                view = settled.get(item.run.path) or item.look()
                if state is JobState.QUEUED:
                    view = dataclasses.replace(view, state="queued", reason=None)
                elif state is JobState.RUNNING and lock.read_lock(item.run.path).get("started", 0.0) < since:
                    view = dataclasses.replace(view, state="starting", reason=None)
                elif state is JobState.ENDED and (not view.live or (stopping and job is None)):
                    expected = stopping or job is None
                    words = submitter.last_words(job) if job and not expected and view.state not in FINAL else None
                    view = settled[item.run.path] = _verdict(item, view, expected, words)
                views.append(view)
            finished = len(settled) == len(watched)
            board.show(views, last=finished)
            if finished:
                return [settled.get(item.run.path, item.before) for item in items], stopping
            time.sleep(POLL_S)


def _verdict(item: Item, view: RunView, expected: bool, words: str | None) -> RunView:
    """Name a job that ended without finishing its run, failing or being stopped: killed, or never begun."""
    stopped = lock.read_lock(item.run.path).get("exit") == EXIT_REQUEUE
    if expected or stopped or view.state in FINAL:
        return view
    reason = f"{view.state}: its job ended without a word" + (f" ({words})" if words else "")
    return dataclasses.replace(view, state="killed", reason=reason)


def conclude(items: Sequence[Item], views: Sequence[RunView], root: Path, again: str) -> int:
    """Say what came of the runs; returns the exit code."""
    done = sum(view.state == "done" for view in views)
    failed = [view for view in views if view.state in ("failed", "killed")]
    unfinished = [view for view in views if view.state not in ("done", "failed", "killed")]
    for view in failed:
        print(f"{view.state}: {view.name}: {view.reason}\n    log: {view.log or f'{view.path}/logs'}", file=sys.stderr)
    for state in dict.fromkeys(view.state for view in unfinished):
        names = [view.name for view in unfinished if view.state == state]
        print(f"{state}: {some(names)}", file=sys.stderr)
    nothing = not any(item.submitted or item.before.live for item in items)
    print(f"{done} of {len(views)} done" + (", nothing to do" if nothing and done == len(views) else ""))
    if done == len(views):
        print(as_typed(f"The report: python launch/report.py {root}"))
        return EXIT_OK
    if any(view.state != "failed" for view in (*unfinished, *failed)):
        print(f"Go on with: {again}")
    if any(view.state == "failed" for view in failed):
        retry = again if "--retry" in again else f"{again} --retry failed"
        print(f"Failed runs are not run again by themselves; to try them once more: {retry}")
    return EXIT_FAILURE if failed else EXIT_REQUEUE


def main(argv: Sequence[str] | None = None, command: JobCommand = job_command) -> int:
    """Run the script; `command` gives what a job runs. Returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _parse(arguments)
    again = as_typed(shlex.join(["python", "launch/sweep.py", *arguments]))
    plan = plan_sweep(options.sweep, options.set)
    root: Path = options.runs / plan.name
    if options.cancel:
        print("\n".join(cancel(root)))
        return EXIT_OK
    items = survey(plan, root, options.retry)
    submitter = _submitter(options, root, command)
    if options.dry_run:
        ranks, arrays = options.ranks or 1, []
        if isinstance(submitter, SlurmSubmitter):
            ranks, arrays = submitter.shape.ranks, [submitter.announce(sum(item.submitted for item in items))]
        hours, effort = foresee(items, options.tflops, ranks)
        print("\n".join([*describe(plan, items, hours), *arrays, effort, "dry run: nothing was made or submitted"]))
        return EXIT_OK
    check_stores([item for item in items if item.submitted])
    if isinstance(submitter, SlurmSubmitter):
        submitter.check()
    jobs: list[Job] = []
    # From the look at the queue to the submission nobody else submits: two at the same instant make one job per run.
    with preparing(root):
        if isinstance(submitter, SlurmSubmitter):
            queued = submitter.queued()
            items = survey(plan, root, options.retry, queued)
            jobs = submitter.adopt({item.run.path.resolve(): item.job for item in items if item.job})
        print("\n".join(describe(plan, items)), flush=True)
        submitted = [item for item in items if item.submitted]
        side_by_side(lambda item: RunDir.create(item.run.path, item.planned.config), submitted)
        write_record(root, plan.name, plan.file, [item.recorded for item in items])
        jobs += submitter.submit([item.run.path for item in submitted])
        if isinstance(submitter, SlurmSubmitter) and jobs and options.report:
            submitter.submit_report(fresh=bool(submitted))
    if not any(item.submitted or item.before.live or item.job for item in items):
        return conclude(items, [item.before for item in items], root, again)
    if isinstance(submitter, SlurmSubmitter) and not options.wait:
        print(as_typed(f"Watch: python launch/status.py {root}    wait: {again} --wait"))
        return EXIT_OK
    if isinstance(submitter, LocalSubmitter | DebugSubmitter):
        print(f"{len(submitted)} runs to do, {submitter.jobs} at a time; logs in {root}/*/logs", flush=True)
    board = Board(sys.stdout, redraw=False if options.cluster == "debug" else None)
    with contextlib.nullcontext() if isinstance(submitter, SlurmSubmitter) else watching(root):
        views, stopped = wait(items, jobs, submitter, board)
    code = conclude(items, views, root, again)
    return EXIT_REQUEUE if stopped and code != EXIT_OK else code


def _submitter(
    options: argparse.Namespace, root: Path, command: JobCommand
) -> LocalSubmitter | DebugSubmitter | SlurmSubmitter:
    if options.cluster == "slurm":
        profile = read_profile(options.profile)
        shape = Shape.of(profile, options.nodes, options.gpus_per_node, options.ranks)
        return SlurmSubmitter(root, profile, shape, options.jobs, command)
    ranks = options.ranks or 1
    if options.cluster == "debug":
        return DebugSubmitter(ranks, command)
    return LocalSubmitter(ranks, options.jobs or Machine.here().jobs(ranks), command)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("sweep.py", "Run every configuration of a sweep that isn't done yet, and wait.", EXAMPLES)
    parser.add_argument("sweep", nargs="?", type=Path, default=PAPER, help="a sweep file (default: the paper's sweep)")
    parser.add_argument(
        "--cluster",
        choices=("local", "debug", "slurm"),
        default="local",
        help="local: background jobs on this machine (default); debug: one after the other, in the foreground; "
        "slurm: jobs of a Slurm cluster, submitted from its login node",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--tflops", type=float, metavar="N", help="with --dry-run: TFLOP/s that one rank reaches, for the hours"
    )
    parser.add_argument(
        "--jobs", type=positive, metavar="N", help="runs at a time (default: local GPUs or cores / ranks)"
    )
    parser.add_argument(
        "--ranks", type=positive, metavar="N", help="processes per run (default: 1; slurm: one for each GPU)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where sweeps live (default: runs)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config value")
    kinds = "; ".join(f"{kind}: {text}" for kind, text in RETRY.items())
    parser.add_argument(
        "--retry", type=_kinds, default=(), metavar="KIND,...", help=f"submit failed runs again ({kinds})"
    )
    parser.add_argument("--cancel", action="store_true", help="end all jobs of this sweep, here or in Slurm's queue")
    cluster = parser.add_argument_group("with --cluster slurm")
    cluster.add_argument("--profile", metavar="NAME", help="slurm/profiles/NAME.yaml, or a file (default: default)")
    cluster.add_argument("--nodes", type=positive, metavar="N", help="nodes per run (default: the profile's)")
    cluster.add_argument("--gpus-per-node", type=_count, metavar="G", help="GPUs per node (default: the profile's)")
    cluster.add_argument(
        "--no-report", dest="report", action="store_false", help="no job that makes the report when all others ended"
    )
    cluster.add_argument("--wait", action="store_true", help="stay, and follow the jobs to their end")
    options = parser.parse_args(arguments)
    if options.cluster == "debug" and options.jobs:
        parser.error("--cluster debug runs one job at a time; leave --jobs out")
    for name in ("profile", "nodes", "gpus_per_node", "wait"):
        if options.cluster != "slurm" and getattr(options, name) not in (None, False):
            parser.error(f"--{name.replace('_', '-')} goes with --cluster slurm")
    return options


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in RETRY:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(RETRY)}")
    return kinds


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)


if __name__ == "__main__":
    run_script(main)
