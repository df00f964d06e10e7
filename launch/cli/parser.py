"""What every script shares: a parser with examples and --version, and errors without a traceback.

def main(argv: Sequence[str] | None = None) -> int: ...

if __name__ == "__main__":
    run_script(main)
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from shards import log
from toolkit import __version__, shipped
from toolkit.atomic import FileWriteError, free_space
from toolkit.errors import EXIT_FAILURE, EXIT_USAGE, ConfigError
from toolkit.signals import as_command

logger = logging.getLogger(__name__)

# What a file system answers to a program without a fault: told in a line.
SYSTEM_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
)

# `toolkit NAME` is `python launch/NAME.py`, but for shards.
COMMANDS = {
    "train": "train one run",
    "sweep": "train and evaluate many runs (seeds x variants), here or on a Slurm cluster",
    "status": "show the state of runs",
    "logs": "show and follow the logs of a run",
    "evaluate": "evaluate a run's checkpoints",
    "analyse": "diagnose mode collapse",
    "report": "write tables, curves and frames of runs to one HTML page",
    "export": "export a run's model as safetensors with a model card",
    "predict": "forecast the frames that follow the latest ones of an archive",
    "plan": "estimate memory and hours before a run",
    "config": "print every key of a config with its type, default and meaning",
    "completion": "print a completion of this command for bash",
    "shards": "make, check and describe sequence stores (python -m shards)",
}
SCRIPT = re.compile(rf"(?:(torchrun .*?)(-- )?)?(?:python )?launch/({'|'.join(COMMANDS)})\.py")


def _as_typed(text: str) -> str:
    """Replace `python launch/train.py` in a text by the command that is available: `toolkit train` if installed."""
    if not shipped.is_installed():
        return text
    return SCRIPT.sub(lambda m: f"{m[1]}-m {m[2] or ''}launch.{m[3]}" if m[1] else f"toolkit {m[3]}", text)


def make_parser(script: str | None, description: str, examples: str) -> argparse.ArgumentParser:
    """Return a parser whose help ends with examples to copy.

    Args:
        script: a file in launch/, or a module to be run with `python -m`; None: the command is `toolkit`.
    """
    command = f"python launch/{script}" if str(script).endswith(".py") else f"python -m {script}"
    parser = argparse.ArgumentParser(
        prog=_as_typed(command) if script else "toolkit",
        description=_as_typed(description),
        epilog=_as_typed(f"examples:\n{examples}"),
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


RUN_HELP = "a run: its directory, or its name as status shows it, which may be shortened while only one run fits"


def add_run(parser: argparse.ArgumentParser, what: str = RUN_HELP) -> None:
    """Add a run, which is given as an argument or by `--run`; `run_given` returns it."""
    parser.add_argument("run_argument", nargs="?", metavar="RUN", help=what)
    parser.add_argument("--run", dest="run_option", metavar="RUN", help="same as the argument RUN")


def run_given(arguments: argparse.Namespace) -> str | None:
    """Return the run that was given, as it was typed; None: none.

    Raises:
        ConfigError: it is given twice.
    """
    given = [text for text in (arguments.run_argument, arguments.run_option) if text is not None]
    if len(given) > 1:
        raise ConfigError(f"a run is given twice, as {given[0]} and as --run {given[1]}: leave one out")
    return given[0] if given else None


def add_model_file(parser: argparse.ArgumentParser) -> None:
    """Add `--model-file`, for runs and exports whose model is from a file of somebody's own."""
    parser.add_argument(
        "--model-file",
        metavar="FILE.py",
        type=Path,
        help="the file that the run's model is from (a copy is RUN/model.py); it runs only if named here",
    )


class _Renamed(argparse.Action):
    """An option under its old name: accepted for one release, with a warning, and hidden from --help."""

    def __init__(self, *arguments: Any, new: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.new = new

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        logger.warning("%s is now %s; the next release will refuse the old name", option, self.new)
        setattr(namespace, self.dest, values)


def add_renamed(parser: argparse.ArgumentParser, old: str, new: str, dest: str, **options: Any) -> None:
    """Accept the option `new`, which sets `dest`, under its old name too."""
    hidden = argparse.SUPPRESS
    parser.add_argument(old, dest=dest, action=_Renamed, new=new, help=hidden, default=hidden, **options)


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script's main and exit with its code; a user's mistake becomes one message on stderr, not a traceback."""
    log.configure()
    with as_command():
        sys.exit(_code_of(main))


def _code_of(main: Callable[[], int]) -> int:
    try:
        code = main()
        sys.stdout.flush()
    except ValueError as error:
        # The errors of toolkit and of shards carry an exit code; one without is a bug, and its traceback is wanted.
        if not hasattr(error, "exit_code"):
            raise
        print(f"error: {error}", file=sys.stderr)
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
    except OSError as error:
        if not isinstance(error, FileWriteError) and error.errno not in SYSTEM_ERRORS:
            raise  # a bug
        where = "" if isinstance(error, FileWriteError) or not error.filename else free_space(Path(error.filename))
        print(f"error: {error}{where and '; '}{where}", file=sys.stderr)
        code = EXIT_FAILURE
    return code
