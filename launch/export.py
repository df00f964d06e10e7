"""Export a run's model. See --help."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from launch.cli.parser import make_parser, run_script
from toolkit.errors import EXIT_OK
from toolkit.rundir import RunDir

EXAMPLES = """\
  python launch/export.py --run runs/demo/modernn-slots4-seed1-1a2b3c4d --out models/modernn
  python launch/export.py --run RUN --out FOLDER --which 4000      # the checkpoint of a step

  then, anywhere:  model = toolkit.load("models/modernn")"""


def checkpoint_name(text: str) -> str:
    """An argparse type: best, last or a step."""
    if text not in ("best", "last") and not re.fullmatch(r"[0-9]{1,8}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: take best, last or the number of a step")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = make_parser(
        "export.py",
        "Write a run's model as safetensors, config.json and a model card, into a folder that needs nothing else.",
        EXAMPLES,
    )
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="a run directory")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--which", type=checkpoint_name, default="best", metavar="best|last|STEP", help="checkpoint (default: best)"
    )
    arguments = parser.parse_args(argv)

    # torch is imported late: --help and a mistyped path answer at once.
    run = RunDir(arguments.run)
    run.config()
    from toolkit.checkpoint.export import export_run

    print(export_run(run, arguments.which, arguments.out))
    return EXIT_OK


if __name__ == "__main__":
    run_script(main)
