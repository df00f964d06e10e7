"""Progress of a conversion on stderr: one line that is rewritten on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Counts events and bytes. `total` is the number of events to come; those that an earlier call wrote count, but
    not for the rate and the time left.
    """

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self.total = total
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.pause = 0.2 if self.live else 10.0  # seconds between lines
        self.events = 0
        self.bytes = 0
        self.kept = 0
        self.begin = self.shown = time.monotonic()

    def add(self, events: int, size: int) -> None:
        """Count `events` more as written, with `size` bytes of frames."""
        self.events += events
        self.bytes += size
        if time.monotonic() - self.shown >= self.pause:
            self.shown = time.monotonic()
            self._show("\r" if self.live else "", "" if self.live else "\n")

    def keep(self, events: int, size: int) -> None:
        """Count `events` that were written before and are kept."""
        self.kept += events

    def close(self) -> None:
        """Show the last line."""
        self._show("\r" if self.live else "", "\n")

    def _show(self, before: str, after: str) -> None:
        seconds = max(time.monotonic() - self.begin, 1e-3)
        rate = self.events / seconds
        done = self.events + self.kept
        left = f", {clock((self.total - done) / rate)} left" if self.events and done < self.total else ""
        kept = f" ({self.kept} kept)" if self.kept else ""
        line = (
            f"{done}/{self.total} events{kept}, {rate:.1f} events/s, {self.bytes / seconds / 1e6:.1f} MB/s, "
            f"{clock(seconds)} elapsed{left}"
        )
        print(f"{before}{line:<78}" if self.live else line, end=after, file=self.stream, flush=True)


def clock(seconds: float) -> str:
    """Return 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
