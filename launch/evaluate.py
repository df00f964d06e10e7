"""Evaluate a run's checkpoints on a split. See --help."""

from __future__ import annotations

import argparse
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
from toolkit.evaluate.request import Request, result_name
from toolkit.rundir.sweep import in_sweep
from toolkit.shipped import command

EXAMPLES = """\
  python launch/evaluate.py runs/demo/modernn-seed1-1a2b3c4d
  python launch/evaluate.py RUN --which best --split val --limit 100
  python launch/evaluate.py RUN --protocol openstl --thresholds 0.3 0.5 --lpips      scored in another way
  python launch/evaluate.py RUN --store stores/mmnist-test --horizon 30              and on other data
  python launch/evaluate.py RUN --ensemble-size 100 --select best    SVG's rule: each sequence by the best of 100
  torchrun --nproc_per_node 2 launch/evaluate.py RUN       two ranks, the same scores to the last bit

Results are kept beside each other in RUN/eval: test-best.json as the run's config says, else test+openstl-best.json.
Nothing is trained again, and the checkpoint `best` stays the one that validation chose."""

OF_EVAL = ("protocol", "thresholds", "lpips", "exclude_inflow", "split", "batch", "ensemble_size", "select")
OF_DATA = ("store", "context", "horizon")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "evaluate.py", "Evaluate a run's checkpoints, in any number of ways; what is evaluated is skipped.", EXAMPLES
    )
    add_run(parser)
    parser.add_argument("--which", metavar="NAME,...", help="checkpoints: best, last, ema (default: all of the run)")
    parser.add_argument("--protocol", metavar="NAME", help="rules of the scores (default: eval.protocol of the run)")
    parser.add_argument(
        "--thresholds", type=float, nargs="*", metavar="K", help="of events, in the store's unit; none: no events"
    )
    parser.add_argument(
        "--lpips", action=argparse.BooleanOptionalAction, help="compute LPIPS or not (default: eval.lpips)"
    )
    parser.add_argument(
        "--exclude-inflow",
        action=argparse.BooleanOptionalAction,
        help="leave out pixels that flow in from outside the observed area, the same for every model "
        "(default: eval.exclude_inflow)",
    )
    parser.add_argument("--split", metavar="NAME", help="split of the store (default: eval.split of the run's config)")
    parser.add_argument("--store", metavar="PATH", help="score on another store, of any frame size the model takes")
    parser.add_argument("--context", type=positive, metavar="N", help="observed frames (default: data.context)")
    parser.add_argument("--horizon", type=positive, metavar="N", help="frames to predict (default: data.horizon)")
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
    return parser


def _request(arguments: argparse.Namespace) -> Request:
    """Return what is asked; a batch size alone is no other scoring."""
    values = {
        section: {key: value for key in keys if (value := getattr(arguments, key)) is not None}
        for section, keys in (("eval", OF_EVAL), ("data", OF_DATA))
    }
    which = arguments.which and tuple(name for name in arguments.which.split(",") if name)
    return Request(which, {name: found for name, found in values.items() if found}, arguments.limit, arguments.force)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    arguments = _parser().parse_args(argv)
    # torch is imported late: --help and a mistyped path answer at once.
    run = find_run(run_given(arguments))
    run.load_model_file(arguments.model_file)
    own, request = run.config(), _request(arguments)
    asked = request.config(own)
    from toolkit.analysis.job import analyse_after_evaluation
    from toolkit.distributed.world import init_world
    from toolkit.evaluate.job import check_which, evaluate_run
    from toolkit.trackers import log_scores

    check_which(run, request.which)
    world = init_world(own.train.model_copy(update={"device": arguments.device or own.train.device}))
    try:
        written = evaluate_run(run, request, world)
    finally:
        world.close()
    if world.is_main:
        if result_name(own, asked, request.limit) == own.eval.split:
            written += analyse_after_evaluation(run, world.device)
        print("\n".join(str(path) for path in written))
        log_scores(run)
        if not in_sweep(run.path):
            print(f"next: {command('report', run.path)}", file=sys.stderr)
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)
