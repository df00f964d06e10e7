"""What every script shares: a parser with examples and --version, and errors without a traceback.

def main(argv: Sequence[str] | None = None) -> int: ...

if __name__ == "__main__":
    run_script(main)
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from shards import log
from toolkit import __version__, shipped
from toolkit.errors import EXIT_USAGE

# `toolkit NAME` is `python launch/NAME.py`, but for shards.
COMMANDS = {
    "train": "train one run",
    "sweep": "run many: seeds x variants, here or on a Slurm cluster",
    "status": "how runs stand",
    "logs": "what a run printed",
    "evaluate": "score a run's checkpoints",
    "analyse": "diagnose mode collapse",
    "report": "tables, curves and frames on one page",
    "export": "a run's model as safetensors and a model card",
    "predict": "forecast what comes after the latest frames of an archive",
    "plan": "memory and hours before a run",
    "shards": "make, check and describe sequence stores (python -m shards)",
}
SCRIPT = re.compile(rf"(?:(torchrun .*?)(-- )?)?(?:python )?launch/({'|'.join(COMMANDS)})\.py")


def as_typed(text: str) -> str:
    """Replace `python launch/train.py` in a text by the command that is available: `toolkit train` if installed."""
    if shipped.CHECKOUT is not None and Path(sys.argv[0]).stem != "toolkit":
        return text
    text = text.replace("python launch/jobs/job.py", "python -m launch.jobs.job")
    return SCRIPT.sub(lambda m: f"{m[1]}-m {m[2] or ''}launch.{m[3]}" if m[1] else f"toolkit {m[3]}", text)


def make_parser(script: str | None, description: str, examples: str) -> argparse.ArgumentParser:
    """Return a parser whose help ends with examples to copy.

    Args:
        script: a file in launch/, or a module to be run with `python -m`; None: the command is `toolkit`.
    """
    command = f"python launch/{script}" if str(script).endswith(".py") else f"python -m {script}"
    parser = argparse.ArgumentParser(
        prog=as_typed(command) if script else "toolkit",
        description=as_typed(description),
        epilog=as_typed(f"examples:\n{examples}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"modernn-toolkit {__version__}")
    return parser


def positive(text: str) -> int:
    """Parse an integer of at least 1 (an argparse type)."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def add_device(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--device`; without it the value is None, and `default` says in the help what holds then."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help=f"where to compute (default: {default})")


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script's main and exit with its code; a user's mistake becomes one message on stderr, not a traceback."""
    log.configure()
    try:
        code = main()
        sys.stdout.flush()
    except ValueError as error:
        # The errors of toolkit and of shards carry an exit code; one without is a bug, and its traceback is wanted.
        if not hasattr(error, "exit_code"):
            raise
        print(as_typed(f"error: {error}"), file=sys.stderr)
        code = int(error.exit_code)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in ("launch", "shards", "toolkit"):
            raise
        print(
            f"error: the package {package} is missing in {sys.executable}: activate the environment that the toolkit "
            f"was installed in (. .venv/bin/activate), or install it there: pip install {package}",
            file=sys.stderr,
        )
        code = EXIT_USAGE
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `status.py | head`: what is left to print has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
