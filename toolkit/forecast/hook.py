"""Run a command of the user's after each forecast; whatever happens to it is logged and ends nothing."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError

logger = logging.getLogger(__name__)

VARIABLE = "FORECAST"


@dataclass(frozen=True)
class Command:
    """A command that gets the path of a forecast as its last argument, and in the variable FORECAST; no shell runs it.

    Attributes:
        limit_s: seconds after which it and its children are killed.
    """

    words: tuple[str, ...]
    limit_s: float

    @staticmethod
    def parse(text: str, limit_s: float) -> Command:
        """Return the command of a line.

        Raises:
            ConfigError: no words, an open quote, or no such program.
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise ConfigError(f"--on-forecast {text}: {error}") from None
        if not words:
            raise ConfigError("--on-forecast: the command is empty")
        if shutil.which(words[0]) is None:
            raise ConfigError(
                f"--on-forecast {text}: no program {words[0]}; no shell runs the command: for one, pass "
                "\"sh -c '...' sh\""
            )
        return Command(tuple(words), limit_s)

    def run(self, path: Path) -> None:
        """Run the command for a forecast, and wait until it ends or its time is over."""
        given = [*self.words, str(path.absolute())]
        environment = {**os.environ, VARIABLE: str(path.absolute())}
        try:
            process = subprocess.Popen(
                given, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
            )
        except OSError as error:
            logger.warning("--on-forecast: %s: not started: %s", shlex.join(given), error)
            return
        try:
            code = process.wait(self.limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            logger.warning(
                "--on-forecast: %s: killed after %g s (--on-forecast-limit)", shlex.join(given), self.limit_s
            )
            return
        if code:
            logger.warning("--on-forecast: %s: exit code %d", shlex.join(given), code)
