"""Plan a sweep, submit what isn't done, wait for it, and say what came of it. Does not import torch.

On a cluster it returns when the jobs are in the queue, unless told to --wait.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.cli.parser import as_typed, make_parser, positive, run_script
from launch.jobs.local import DebugSubmitter, LocalSubmitter, Machine
from launch.jobs.submitter import Job, JobCommand, Submitter, job_command, run_concurrently
from launch.slurm.profile import read_profile
from launch.slurm.script import Shape
from launch.slurm.submitter import SlurmSubmitter
from launch.sweeps.cancel import cancel
from launch.sweeps.outcome import report_outcome, wait
from launch.sweeps.plan import RETRY, Item, check_stores, collect_status, dry_run, format_plan
from launch.sweeps.progress import Board
from launch.sweeps.spec import SweepPlan, plan_sweep
from toolkit.errors import EXIT_OK, EXIT_REQUEUE, ConfigError
from toolkit.rundir import RunDir
from toolkit.rundir.sweep import preparing, write_record
from toolkit.shipped import CONFIGS
from toolkit.wording import count

PAPER = CONFIGS / "sweeps" / "paper.yaml"
EXAMPLES = """\
  python launch/sweep.py configs/sweeps/demo.yaml --dry-run             # what would be run
  python launch/sweep.py configs/sweeps/demo.yaml                       # here, one per GPU or core at a time
  python launch/sweep.py configs/sweeps/demo.yaml --cluster debug       # one after the other, with their output
  python launch/sweep.py configs/sweeps/demo.yaml --set train.steps=10  # another value in every run
  python launch/sweep.py configs/sweeps/demo.yaml --retry failed        # once more for those that failed
  python launch/sweep.py configs/sweeps/demo.yaml --retry oom,timeout   # only for those that failed in these ways
  python launch/sweep.py configs/sweeps/demo.yaml --cancel              # end its jobs, here or in Slurm's queue
  python launch/sweep.py configs/sweeps/demo.yaml --cluster slurm --profile gpu --nodes 2 --gpus-per-node 4"""


def main(argv: Sequence[str] | None = None, command: JobCommand = job_command) -> int:
    """Run the script; `command` gives what a job runs. Returns the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _parse(arguments)
    again = as_typed(shlex.join(["python", "launch/sweep.py", *arguments]))
    plan = plan_sweep(options.sweep or PAPER, options.set)
    root: Path = options.runs / plan.name
    if options.cancel:
        print("\n".join(cancel(root)))
        return EXIT_OK
    items = collect_status(plan, root, options.retry)
    submitter = _submitter(options, root, command)
    if options.dry_run:
        print("\n".join(dry_run(plan, items, submitter, options.tflops)))
        return EXIT_OK
    if options.sweep is None and any(item.submitted for item in items):
        _ask(sum(item.submitted for item in items), options.yes)
    check_stores(items)
    submitter.check()
    items, jobs = _submit(plan, root, submitter, options)
    if not any(item.active for item in items):
        return report_outcome(items, [item.before for item in items], root, again)
    if submitter.detached and not options.wait:
        print(as_typed(f"Watch: python launch/status.py {root}    wait: {again} --wait"))
        return EXIT_OK
    board = Board(sys.stdout, redraw=False if options.cluster == "debug" else None)
    with submitter.following(root):
        views, stopped = wait(items, jobs, submitter, board)
    code = report_outcome(items, views, root, again)
    return EXIT_REQUEUE if stopped and code != EXIT_OK else code


def _submit(
    plan: SweepPlan, root: Path, submitter: Submitter, options: argparse.Namespace
) -> tuple[list[Item], list[Job]]:
    """Make the run directories and the sweep's record, and submit what isn't done; also returns jobs that were there.

    From the look at the queue to the submission nobody else submits: two at the same instant make one job per run.
    """
    with preparing(root):
        items = collect_status(plan, root, options.retry, submitter.queued())
        jobs = submitter.adopt({item.run.path.resolve(): item.job.name for item in items if item.job})
        print("\n".join(format_plan(plan, items)), flush=True)
        submitted = [item for item in items if item.submitted]
        run_concurrently(lambda item: RunDir.create(item.run.path, item.planned.config), submitted)
        write_record(root, plan.name, plan.file, [item.recorded for item in items])
        jobs += submitter.submit([item.run.path for item in submitted])
        if jobs and options.report:
            submitter.submit_report(fresh=bool(submitted))
    return items, jobs


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
        profile = read_profile(options.profile)
        shape = Shape.of(profile, options.nodes, options.gpus_per_node, options.ranks)
        return SlurmSubmitter(root, profile, shape, options.jobs, command)
    ranks = options.ranks or 1
    if options.cluster == "debug":
        return DebugSubmitter(ranks, command)
    return LocalSubmitter(ranks, options.jobs or Machine.here().jobs(ranks), command)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("sweep.py", "Run every configuration of a sweep that isn't done yet, and wait.", EXAMPLES)
    parser.add_argument(
        "sweep", nargs="?", type=Path, help="a sweep file (default: the paper's sweep, after a question)"
    )
    parser.add_argument("--yes", action="store_true", help="without a sweep file: submit the paper's runs unasked")
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
