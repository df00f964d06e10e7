"""Export a run's model. See --help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from launch.cli.parser import add_model_file, add_run, make_parser, positive, run_given, run_script
from launch.cli.runs import find_run
from toolkit.errors import EXIT_OK, ConfigError
from toolkit.rundir import CHECKPOINTS

EXAMPLES = """\
  python launch/export.py runs/demo/modernn-seed1-1a2b3c4d --out models/modernn
  python launch/export.py RUN --out FOLDER --which 4000      # the checkpoint of a step
  python launch/export.py RUN --out FOLDER --format onnx     # and the forecast as one graph, FOLDER/model.onnx

  then, anywhere:  model = toolkit.load("models/modernn")"""


def checkpoint_name(text: str) -> str:
    """Parse best, last, ema or a step (an argparse type)."""
    if text not in CHECKPOINTS and not re.fullmatch(r"[0-9]{1,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: take best, last, ema or the number of a step")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser(
        "export.py",
        "Export a run's model into a self-contained folder: safetensors, config.json, a model card; also as one graph.",
        EXAMPLES,
    )
    add_run(parser)
    parser.add_argument("--out", metavar="PATH", type=Path, required=True, help="folder to create")
    parser.add_argument(
        "--which",
        type=checkpoint_name,
        default="best",
        metavar="best|last|ema|STEP",
        help="checkpoint (default: best); ema: the moving average of the weights (train.ema)",
    )
    parser.add_argument(
        "--format",
        choices=("safetensors", "pt2", "onnx"),
        default="safetensors",
        help="pt2, onnx: write the forecast as one graph too, beside the weights, and compare it with the model",
    )
    parser.add_argument(
        "--batch", type=positive, metavar="N", help="with a graph: sequences at once (default: any number)"
    )
    parser.add_argument(
        "--horizon", type=positive, metavar="N", help="with a graph: frames to predict (default: the run's horizon)"
    )
    add_model_file(parser)
    arguments = parser.parse_args(argv)

    given = [f"--{key}" for key in ("batch", "horizon") if getattr(arguments, key) is not None]
    if arguments.format == "safetensors" and given:
        raise ConfigError(f"{given[0]} is fixed in a graph: add --format onnx or pt2, or leave it out")
    # torch is imported late: --help and a mistyped path answer at once.
    run = find_run(run_given(arguments))
    run.load_model_file(arguments.model_file)
    run.config()
    from toolkit.checkpoint.export import export_run

    print(export_run(run, arguments.which, arguments.out))
    if arguments.format != "safetensors":
        from toolkit.checkpoint.traced import add_graph

        print(add_graph(arguments.out, arguments.format, arguments.horizon, arguments.batch or 0, arguments.model_file))
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)
