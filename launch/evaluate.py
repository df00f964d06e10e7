"""Score a run's checkpoints on a split. See --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.cli.parser import add_device, as_typed, make_parser, positive, run_script
from toolkit.errors import EXIT_OK
from toolkit.rundir import RunDir
from toolkit.rundir.sweep import in_sweep

EXAMPLES = """\
  python launch/evaluate.py --run runs/demo/modernn-slots4-seed1-1a2b3c4d
  python launch/evaluate.py --run RUN --which best --split val --limit 100
  python launch/evaluate.py --run RUN --samples 100 --select best    SVG's rule: each sequence by the best of 100
  torchrun --nproc_per_node 2 -- launch/evaluate.py --run RUN    two ranks, the same scores to the last bit
                                                                 (without the -- torchrun takes --run for its own)"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser(
        "evaluate.py", "Score a run's best and last checkpoint; what is scored already is left.", EXAMPLES
    )
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="a run directory")
    parser.add_argument("--which", default="best,last", help="checkpoints: best, last or best,last (default)")
    parser.add_argument("--split", help="split of the store (default: eval.split of the run's config)")
    parser.add_argument("--batch", type=positive, help="sequences per forward (default: eval.batch)")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N sequences of the split")
    parser.add_argument(
        "--samples",
        type=positive,
        metavar="N",
        help="forecasts of each sequence, of models with chance (eval.ensemble_size)",
    )
    parser.add_argument("--select", choices=("mean", "best"), help="score their mean or the best one (eval.select)")
    parser.add_argument("--force", action="store_true", help="score again what is scored already")
    add_device(parser, "train.device of the run's config")
    arguments = parser.parse_args(argv)

    # torch is imported late: --help and a mistyped path answer at once.
    run = RunDir(arguments.run)
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
        arguments.samples,
        arguments.select,
        arguments.force,
    )

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    world = init_world(train.model_copy(update={"device": arguments.device or train.device}))
    try:
        written = evaluate_run(run, request, world, say)
    finally:
        world.close()
    if world.is_main:
        written += analyse_after_evaluation(run, world.device, say)
        print("\n".join(str(path) for path in written))
        if not in_sweep(run.path):
            print(as_typed(f"next: python launch/report.py {run.path}"), file=sys.stderr)
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)
