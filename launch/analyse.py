"""Diagnose mode collapse from the memory states of a run's model. See --help."""

from __future__ import annotations

from collections.abc import Sequence

from launch.cli.parser import add_device, add_model_file, add_run, make_parser, positive, run_given, run_script
from launch.cli.runs import find_run
from toolkit.errors import EXIT_OK

EXAMPLES = """\
  python launch/analyse.py runs/demo/modernn-seed1-1a2b3c4d
  python launch/analyse.py RUN --which best --split test --limit 300
  python launch/analyse.py RUN --which all       every checkpoint on disk: the collapse score over training

writes into RUN/analysis
  features-<split>-<which>.npz    memory states, slot features and importance weights, fed with true frames and with the
                                  model's own predictions (toolkit/analysis/features.py)
  collapse-<split>-<which>.json   A-distances and the collapse score of every mode, and .npz with t-SNE's coordinates
                                  (toolkit/analysis/diagnose.py), where the sequences are of two modes or more
The report (launch/report.py) shows them. `eval.analyse: N` in a config does the same after each evaluation."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser(
        "analyse.py", "Capture the memory states of a model and diagnose mode collapse. Runs in one process.", EXAMPLES
    )
    add_run(parser)
    parser.add_argument(
        "--which",
        default="best,last",
        metavar="NAME,...",
        help="checkpoints: best, last, ema, a step number, or all: every step on disk (default: best,last)",
    )
    parser.add_argument("--split", metavar="NAME", help="split of the store (default: eval.split of the run's config)")
    parser.add_argument("--batch", type=positive, metavar="N", help="sequences per forward pass (default: eval.batch)")
    parser.add_argument("--limit", type=positive, metavar="N", default=1000, help="number of sequences (default: 1000)")
    add_device(parser, "train.device of the run's config")
    add_model_file(parser)
    arguments = parser.parse_args(argv)

    # torch is imported late: --help and a mistyped path answer at once.
    run = find_run(run_given(arguments))
    run.load_model_file(arguments.model_file)
    train = run.config().train
    from toolkit.analysis.job import analyse_run, checkpoints_of
    from toolkit.distributed.world import init_world

    chosen = checkpoints_of(run, [name for name in arguments.which.split(",") if name])
    world = init_world(train.model_copy(update={"device": arguments.device or train.device}))
    try:
        if not world.is_main:  # under torchrun the others have nothing to do
            return EXIT_OK
        written = analyse_run(
            run,
            chosen,
            split=arguments.split,
            limit=arguments.limit,
            batch=arguments.batch,
            device=world.device,
        )
        print("\n".join(map(str, written)))
    finally:
        world.close()
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)
