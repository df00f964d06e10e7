"""The log of every command: one format, on stderr, set up once by the command that runs. Modules log by `logging`.

    2026-11-26T18:05:12Z INFO rank 0: step 50/200  loss 0.02113 ...
    2026-11-26T18:07:40Z WARNING rank 1: train/000003.tar: skipped a damaged sample: ...

    logger = logging.getLogger(__name__)
    logger.info("step %d of %d", step, steps)

Times are UTC in ISO 8601, as in a run's records. The rank is shown where there are several. Progress of all (INFO)
is logged by rank 0 alone: other ranks log what only they know, from WARNING on. What a command was asked for (tables,
paths, JSON) is no log: it goes to stdout.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from typing import TextIO

from shards.errors import printable

# Whose records are shown: these packages, and a script of theirs that runs as a file. Libraries keep their own ways.
OURS = ("shards", "toolkit", "launch", "__main__")
FORMAT = "%(asctime)s %(levelname)s %(where)s%(message)s"
TIME = "%Y-%m-%dT%H:%M:%SZ"


class _Handler(logging.StreamHandler[TextIO]):
    """Write to what `sys.stderr` is at the moment of a record; nowhere where a process has none (`2>&-`)."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            self.stream = sys.stderr
            super().emit(record)


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def __init__(self, where: str) -> None:
        super().__init__(FORMAT, TIME, defaults={"where": where})

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Escape control characters, which may come from a file's name; further lines of a message are indented."""
        record.message = "\n    ".join(printable(line) for line in record.message.split("\n"))
        return super().formatMessage(record)


def configure(rank: int | None = None, ranks: int | None = None) -> None:
    """Show the records of this toolkit's packages; calling it again replaces what was set before.

    Args:
        rank: of this process; None: `RANK` of the environment, which torchrun sets, else 0.
        ranks: how many there are; None: `WORLD_SIZE` of the environment, else 1.
    """
    _open_standard_streams()
    rank = _number("RANK", 0) if rank is None else rank
    ranks = _number("WORLD_SIZE", 1) if ranks is None else ranks
    handler = _Handler()
    handler.setFormatter(_Formatter(f"rank {rank}: " if ranks > 1 else ""))
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
        logger.propagate = False


def _open_standard_streams() -> None:
    """Point descriptors 0 to 2 to /dev/null where the shell closed them (`2>&-`): the next file to be opened would take
    their place, and what libraries print would end up in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else default
