"""Evaluate a run's checkpoints on a split. See --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.cli.parser import (
    add_device,
    add_model_file,
    add_renamed,
    add_run,
    make_parser,
    positive,
    run_given,
    run_script,
)
from launch.cli.runs import find_run
from toolkit.errors import EXIT_OK
from toolkit.rundir.sweep import in_sweep
from toolkit.shipped import command

EXAMPLES = """\
  python launch/evaluate.py runs/demo/modernn-slots4-seed1-1a2b3c4d
  python launch/evaluate.py RUN --which best --split val --limit 100
  python launch/evaluate.py RUN --ensemble-size 100 --select best    SVG's rule: each sequence by the best of 100
  torchrun --nproc_per_node 2 launch/evaluate.py RUN       two ranks, the same scores to the last bit"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser(
        "evaluate.py", "Evaluate a run's best and last checkpoint; one that is evaluated already is skipped.", EXAMPLES
    )
    add_run(parser)
    parser.add_argument(
        "--which", default="best,last", metavar="best|last|best,last", help="checkpoints (default: best,last)"
    )
    parser.add_argument("--split", metavar="NAME", help="split of the store (default: eval.split of the run's config)")
    parser.add_argument("--batch", type=positive, metavar="N", help="sequences per forward pass (default: eval.batch)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N sequences of the split")
    parser.add_argument(
        "--ensemble-size", type=positive, metavar="N", help="forecasts per sequence (default: eval.ensemble_size)"
    )
    add_renamed(parser, "--samples", "--ensemble-size", "ensemble_size", type=positive)
    parser.add_argument(
        "--select", choices=("mean", "best"), help="score the ensemble mean or the best member (default: eval.select)"
    )
    parser.add_argument("--force", action="store_true", help="evaluate again what is evaluated already")
    add_device(parser, "train.device of the run's config")
    add_model_file(parser)
    arguments = parser.parse_args(argv)

    # torch is imported late: --help and a mistyped path answer at once.
    run = find_run(run_given(arguments))
    run.load_model_file(arguments.model_file)
    train = run.config().train
    from toolkit.analysis.job import analyse_after_evaluation
    from toolkit.distributed.world import init_world
    from toolkit.evaluate.job import Request, check_which, evaluate_run

    which = tuple(name for name in arguments.which.split(",") if name)
    check_which(which)
    request = Request(
        which,
        arguments.split,
        arguments.batch,
        arguments.limit,
        arguments.ensemble_size,
        arguments.select,
        arguments.force,
    )

    world = init_world(train.model_copy(update={"device": arguments.device or train.device}))
    try:
        written = evaluate_run(run, request, world)
    finally:
        world.close()
    if world.is_main:
        written += analyse_after_evaluation(run, world.device)
        print("\n".join(str(path) for path in written))
        if not in_sweep(run.path):
            print(f"next: {command('report', run.path)}", file=sys.stderr)
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)
