"""What every script shares: a parser with examples and --version, and errors without a traceback.

def main(argv: Sequence[str] | None = None) -> int: ...

if __name__ == "__main__":
    run_script(main)
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from toolkit import __version__


def make_parser(script: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser for `python launch/<script>` whose help ends with examples to copy."""
    parser = argparse.ArgumentParser(
        prog=f"python launch/{script}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"modernn-toolkit {__version__}")
    return parser


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script's main and exit with its code; a user's mistake becomes one message on stderr, not a traceback."""
    try:
        code = main()
        sys.stdout.flush()
    except ValueError as error:
        # The errors of toolkit and of shards carry an exit code; one without is a bug, and its traceback is wanted.
        if not hasattr(error, "exit_code"):
            raise
        print(f"error: {error}", file=sys.stderr)
        code = int(error.exit_code)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `status.py | head`: what is left to print has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)
