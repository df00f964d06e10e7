"""The command line of launch/sweep.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from launch.cli.parser import make_parser, positive
from launch.slurm.profile import as_pack
from launch.sweeps.plan import RETRY
from toolkit.config.tree import parse_yaml
from toolkit.errors import ConfigError
from toolkit.shipped import CONFIGS

PAPER = CONFIGS / "sweeps" / "paper.yaml"
EXAMPLES = """\
  python launch/sweep.py configs/sweeps/demo.yaml --dry-run             # what would be run
  python launch/sweep.py configs/sweeps/demo.yaml                       # here, one per GPU or core at a time
  python launch/sweep.py configs/sweeps/demo.yaml --cluster debug       # one after the other, with their output
  python launch/sweep.py configs/sweeps/demo.yaml --set train.steps=10  # another value in every run
  python launch/sweep.py configs/sweeps/demo.yaml --only model=convlstm # some of its runs; also seed=1, 'NAME*'
  python launch/sweep.py configs/sweeps/demo.yaml seeds=1,2,3 model.slots=1,4  # other axes than the file's
  python launch/sweep.py configs/sweeps/demo.yaml --retry failed        # once more for those that failed
  python launch/sweep.py configs/sweeps/demo.yaml --retry oom,timeout   # only for those that failed in these ways
  python launch/sweep.py configs/sweeps/demo.yaml --cancel              # end its jobs, here or in Slurm's queue
  python launch/sweep.py configs/sweeps/demo.yaml --cluster slurm --profile gpu --nodes 2 --gpus-per-node 4
  python launch/sweep.py configs/sweeps/paper.yaml --cluster slurm --profile gpu --pack auto   # one GPU a run
  python launch/sweep.py configs/sweeps/paper.yaml --cluster slurm --keep-submitted 20         # a limit on jobs"""
ON_SLURM = (
    *(
        "profile",
        "nodes",
        "gpus_per_node",
        "evaluate_apart",
        "wait",
        "keep_submitted",
        "after",
        "show",
        "test",
        "no_queue",
        "report",
    ),
    *("partition", "account", "qos", "time", "mem"),
)

WITH_CANCEL = ("sweep", "axes", "set", "runs", "cluster", "profile", "cancel", "dry_run", "yes")  # what names a sweep


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options; a combination that makes no sense ends the command."""
    parser = make_parser("sweep.py", "Run or submit every configuration of a sweep that isn't done yet.", EXAMPLES)
    parser.add_argument(
        "sweep", nargs="?", type=Path, default=PAPER, help="a sweep file (default: the paper's sweep, after a question)"
    )
    parser.add_argument("--yes", action="store_true", help="without a sweep file: submit the paper's runs unasked")
    parser.add_argument(
        "axes",
        nargs="*",
        metavar="KEY=VALUE,...",
        help="values instead of the file's: seeds=1,2,3 model.slots=1,4 (every combination)",
    )
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
        "--jobs",
        type=positive,
        metavar="N",
        help="runs at a time (default: local GPUs or cores / ranks; slurm: no limit). With --evaluate-apart: N "
        "trainings and N evaluations; with --keep-submitted: N of those that are submitted together",
    )
    parser.add_argument(
        "--pack",
        type=_pack,
        metavar="N",
        help="runs side by side in a job, sharing out its GPUs; auto: as many as it has GPUs for (local: as --jobs)",
    )
    parser.add_argument(
        "--ranks", type=positive, metavar="N", help="processes per run (default: 1; slurm: one for each GPU)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), metavar="DIR", help="where sweeps live (default: runs)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config value")
    _add_selection(parser)
    parser.add_argument("--cancel", action="store_true", help="end all jobs of this sweep (with --dry-run: name them)")
    _add_slurm(parser)
    options = parser.parse_intermixed_args(arguments)
    if "=" in str(options.sweep):
        options.axes.insert(0, str(options.sweep))
        options.sweep = PAPER
    _check(parser, options)
    return options


def _add_selection(parser: argparse.ArgumentParser) -> None:
    part = parser.add_argument_group("a part of the sweep")
    pattern = "a run's name, with * and ?, or a setting such as model=convlstm or seed=1,2; may be given several times"
    part.add_argument("--only", action="append", default=[], metavar="PATTERN", help=f"submit these alone: {pattern}")
    part.add_argument(
        "--except", action="append", default=[], dest="without", metavar="PATTERN", help="leave these out"
    )
    part.add_argument(
        "--limit", type=positive, metavar="N", help="submit N runs at most; the next call submits the next"
    )
    kinds = "; ".join(f"{kind}: {text}" for kind, text in RETRY.items())
    part.add_argument(
        "--retry", type=_kinds, default=(), metavar="KIND,...", help=f"submit failed runs again ({kinds})"
    )
    part.add_argument(
        "--replace",
        action="store_true",
        help="delete the checkpoints and scores of these runs, and run them from the start",
    )


def _add_slurm(parser: argparse.ArgumentParser) -> None:
    cluster = parser.add_argument_group("with --cluster slurm")
    cluster.add_argument("--profile", metavar="NAME", help="slurm/profiles/NAME.yaml, or a file (default: default)")
    cluster.add_argument("--nodes", type=positive, metavar="N", help="nodes per run (default: the profile's)")
    cluster.add_argument("--gpus-per-node", type=_count, metavar="G", help="GPUs per node (default: the profile's)")
    for name in ("partition", "account", "qos", "time", "mem"):
        cluster.add_argument(f"--{name}", metavar=name.upper(), help=f"instead of the profile's `{name}`")
    cluster.add_argument(
        "--keep-submitted",
        type=positive,
        metavar="N",
        help="keep N runs in the queue until all have been submitted; returns then",
    )
    cluster.add_argument(
        "--after", action="append", default=[], metavar="JOB|DIR", help="begin when that job, or that sweep's, ended"
    )
    cluster.add_argument(
        "--evaluate-apart",
        action="store_true",
        help="evaluate each run in a small job of its own, with at most one GPU, that begins when the training has "
        "succeeded; --jobs limits trainings and evaluations separately",
    )
    cluster.add_argument(
        "--no-report", dest="report", action="store_false", help="no job that makes the report when all others ended"
    )
    cluster.add_argument("--wait", action="store_true", help="wait until the jobs have ended, and show their progress")
    cluster.add_argument("--no-queue", action="store_true", help="with --dry-run: don't ask Slurm what is in the queue")
    cluster.add_argument("--show", action="store_true", help="with --dry-run: print the texts for sbatch")
    cluster.add_argument("--test", action="store_true", help="with --dry-run: let sbatch check them (--test-only)")


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.cluster == "debug" and (options.jobs or options.pack):
        parser.error("--cluster debug runs one job at a time; leave --jobs and --pack out")
    if options.cluster == "local" and options.pack and options.jobs and options.pack != str(options.jobs):
        parser.error(f"--jobs {options.jobs} and --pack {options.pack} are both the number of runs at a time; give one")
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    names = {"without": "--except", "report": "--no-report"}
    shown = {name: names.get(name, f"--{name.replace('_', '-')}") for name in given}
    for name in ON_SLURM:
        if options.cluster != "slurm" and name in given:
            parser.error(f"{shown[name]} goes with --cluster slurm")
    for name in ("no_queue", "show", "test", "tflops"):
        if name in given and not options.dry_run:
            parser.error(f"{shown[name]} goes with --dry-run")
    if options.cancel and (more := sorted(shown[name] for name in given.difference(WITH_CANCEL))):
        parser.error(f"--cancel ends all jobs of a sweep; leave {', '.join(more)} out")
    if options.replace and options.retry:
        parser.error("--replace runs everything from the start; leave --retry out")


def without_options(words: Sequence[str], *names: str) -> list[str]:
    """Return the words of a command line without some of its options, and without the values of those that take one."""
    left, skipped = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if skipped:
            skipped = False
        elif name in names:
            skipped = not equals and name != "--replace"
        else:
            left.append(word)
    return left


def as_axis(text: str) -> tuple[str, list[object]]:
    """Return the key and the values of an axis that the command line gives."""
    key, equals, values = text.partition("=")
    try:
        parsed = [parse_yaml(value) for value in values.split(",")]
    except yaml.YAMLError as error:
        raise ConfigError(f"{text}: a value is not YAML: {error}") from None
    if not equals or not key or "" in values.split(","):
        raise ConfigError(f"{text}: write an axis as KEY=VALUE,VALUE, for example seeds=1,2,3 or model.slots=1,4")
    if key == "seeds" and not all(type(value) is int and value >= 0 for value in parsed):
        raise ConfigError(f"{text}: seeds are whole numbers, for example seeds=1,2,3")
    return key, parsed


def _pack(text: str) -> str:
    try:
        return as_pack(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in RETRY:
            raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(RETRY)}")
    return kinds


def _count(text: str) -> int:
    return 0 if text == "0" else positive(text)
