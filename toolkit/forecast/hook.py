"""Run a command of the user's after each forecast; whatever happens to it is logged and ends nothing.

A signal that asks this process to end is passed on to the command, which is killed if it does not end soon: it has a
session of its own, so neither Ctrl-C nor a closed terminal reaches it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ConfigError

logger = logging.getLogger(__name__)

VARIABLE = "FORECAST"
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 5.0  # from a signal to SIGKILL
POLL_S = 0.05


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
        """Run the command for a forecast, and wait until it ends or its time is over.

        A signal that arrives meanwhile has its usual effect on this process once the command has ended.
        """
        given = [*self.words, str(path.absolute())]
        environment = {**os.environ, VARIABLE: str(path.absolute())}
        with _held_back() as signals:
            try:
                process = subprocess.Popen(
                    given, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True
                )
            except OSError as error:
                logger.warning("--on-forecast: %s: not started: %s", shlex.join(given), error)
                return
            if fault := self._wait(process, signals):
                logger.warning("--on-forecast: %s: %s", shlex.join(given), fault)

    def _wait(self, process: subprocess.Popen[bytes], signals: list[int]) -> str:
        """Wait for the end of the command; return what went wrong, or nothing."""
        until, fault = time.monotonic() + self.limit_s, f"killed after {self.limit_s:g} s (--on-forecast-limit)"
        passed_on = False
        while process.poll() is None and time.monotonic() < until:
            if signals and not passed_on:
                passed_on, until = True, min(until, time.monotonic() + GRACE_S)
                fault = f"ended by {signal.Signals(signals[0]).name}"
                _signal_group(process, signals[0])
            time.sleep(POLL_S)
        ended = process.poll() is not None
        if passed_on or not ended:
            _signal_group(process, signal.SIGKILL)  # its children too
            process.wait()
            return fault
        return f"exit code {process.returncode}" if process.returncode else ""


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def _held_back() -> Iterator[list[int]]:
    """Yield a list that gets the signals that arrive; afterwards the first one has its usual effect."""
    arrived: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: arrived.append(number))
        for number in PASSED_ON
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
