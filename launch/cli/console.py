"""The console script `toolkit`: one name for all commands. `toolkit train ...` is `python launch/train.py ...`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from launch.cli.parser import COMMANDS, make_parser, run_script

EXAMPLES = """\
  toolkit train --help
  toolkit shards convert moving-mnist stores/demo
  toolkit train --config configs/demo.yaml --set data.store=stores/demo
  toolkit sweep configs/sweeps/demo.yaml --dry-run
  torchrun --nproc_per_node 2 -m launch.train --config configs/demo.yaml

A config's path is looked for in the working directory, then, if it begins with configs/, among those that come with
the toolkit."""
DESCRIPTION = "Train, compare and diagnose recurrent predictors of image sequences."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    parser = make_parser(None, f"{DESCRIPTION}\n\ncommands:\n{table}", EXAMPLES)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND ...", help="its own --help says more")
    name = parser.parse_args(words[:1]).command
    module = importlib.import_module("shards.cli" if name == "shards" else f"launch.{name}")
    return int(module.main(words[1:]))


def console() -> None:
    """Run the command `toolkit`."""
    run_script(main)


if __name__ == "__main__":
    console()
