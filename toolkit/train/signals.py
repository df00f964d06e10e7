"""Signals only set a flag. The loop looks at it between steps, all ranks agree, and then a checkpoint is written.

SIGUSR1 and SIGUSR2 are what Slurm sends before a time limit, SIGTERM what it and other launchers send to end a job,
SIGINT is Ctrl-C; a second one of those ends the process at once.
"""

from __future__ import annotations

import signal
from types import FrameType

CAUGHT = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopRequest:
    """Becomes true when this process is asked to stop."""

    def __init__(self) -> None:
        self.name: str | None = None

    def install(self) -> None:
        """Take over the handlers; call it early, before slow imports, or a first signal kills."""
        for number in CAUGHT:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.name = signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.name is not None
