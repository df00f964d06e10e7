"""Signals only set a flag. The loop looks at it between steps, all ranks agree, and then a checkpoint is written.

SIGUSR1 and SIGUSR2 are what Slurm sends before a time limit, SIGTERM what it and other launchers send to end a job,
SIGINT is Ctrl-C. They may come as often as they like: launchers repeat SIGTERM, and a checkpoint that is being written
must survive that. Only a second Ctrl-C ends the process at once, because a person who presses it again means it.

A process that calls the `main` of a command, as a notebook does, gets its own handlers back when that returns.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

CAUGHT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
SAME_KEYSTROKE_S = 1.0  # under torchrun one Ctrl-C arrives twice: from the terminal, and handed on by torchrun
_command = threading.Event()


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """Mark this process as a command, which ends with what this encloses."""
    _command.set()
    try:
        yield
    finally:
        _command.clear()


def is_command() -> bool:
    """Return whether this process is a command, so that nothing of it continues after the training."""
    return _command.is_set()


class StopRequest:
    """Becomes true when this process is asked to stop.

    Args:
        notice: a line for who presses Ctrl-C: a step can take minutes, and until it ends nothing else is logged.
    """

    def __init__(self, notice: str = "") -> None:
        self._notice = notice
        self.name: str | None = None
        self._interrupted_at: float | None = None
        self._before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def install(self) -> None:
        """Take over the handlers; call it early, before slow imports, or a first signal kills."""
        for number in CAUGHT:
            self._before[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Give a process that continues its handlers back; in a command a late signal must not change its exit code."""
        for number, handler in self._before.items():
            if handler is not None and not is_command():  # None: not of Python, which can't set it again
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._interrupted_at is None:
                self._interrupted_at = time.monotonic()
                if self._notice:
                    os.write(2, f"{self._notice}\n".encode())  # print() may be what the signal interrupted
            elif time.monotonic() - self._interrupted_at > SAME_KEYSTROKE_S:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        self.name = self.name or signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.name is not None
