"""Progress of several runs: rows of a table, and a table that redraws itself on a terminal, lines elsewhere."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from typing import TextIO

from launch.cli.table import render
from toolkit.rundir.status import RunView
from toolkit.wording import duration, first_line, speed

RUN_HEADER = ("run", "state", "step", "seq/s", "ETA", "loss", "val", "wait", "host", "restarts", "note")
LINES_EVERY_S = 15.0
REDRAW_EVERY_S = 1.0


class Board:
    """Shows views of runs as often as suits the place that it writes to."""

    def __init__(self, out: TextIO, lines_every_s: float = LINES_EVERY_S, redraw: bool | None = None) -> None:
        self.out = out
        self.redraw = out.isatty() if redraw is None else redraw
        self.lines_every_s = lines_every_s
        self._shown_at = 0.0
        self._height = 0
        self._states: dict[str, str] = {}

    def show(self, views: Sequence[RunView], last: bool = False) -> None:
        """Draw if it is time to; `last` draws in any case."""
        if self.redraw:
            if last or time.monotonic() - self._shown_at >= REDRAW_EVERY_S:
                self._draw(views)
            return
        due = time.monotonic() - self._shown_at >= self.lines_every_s
        for view in views:
            word = "running" if view.state == "validating" else view.state  # to and fro is no news
            changed = self._states.get(view.path, "queued") != word
            self._states[view.path] = word
            if changed or (due and view.live):
                print(f"[{time.strftime('%H:%M:%S')}] {line(view)}", file=self.out, flush=True)
        if due:
            self._shown_at = time.monotonic()

    def log(self, text: str) -> None:
        """Print a line below the display."""
        self._height = 0  # what stands above stays there
        print(text, file=self.out, flush=True)

    def _draw(self, views: Sequence[RunView]) -> None:
        size = shutil.get_terminal_size()
        counts = Counter(view.state for view in views)
        lines = [", ".join(f"{count} {state}" for state, count in counts.items())]
        room = max(1, size.lines - 4)
        shown = [view for view in views if view.live] if len(views) > room else list(views)
        lines += render(RUN_HEADER, [run_row(view) for view in shown[:room]], size.columns - 1)
        back = f"\x1b[{self._height}F\x1b[J" if self._height else ""
        print(back + "\n".join(lines), file=self.out, flush=True)
        self._height = len(lines)
        self._shown_at = time.monotonic()


def line(view: RunView) -> str:
    """One run in one line."""
    parts = [f"{view.name}: {view.state}"]
    if view.step is not None:
        parts.append(f"step {view.step}/{view.steps or '?'}")
    if view.rate is not None:
        parts.append(f"{speed(view.rate)} seq/s")
    if view.eta_s is not None:
        parts.append(f"ETA {duration(view.eta_s)}")
    if view.loss is not None:
        parts.append(f"loss {view.loss:.5f}")
    if view.val:
        parts.append(f"val {metric(view.val)}")
    if view.data_wait is not None:
        parts.append(f"data wait {view.data_wait:.0%}")
    if view.reason:
        parts.append(first_line(view.reason))
    return "  ".join(parts)


def run_row(view: RunView) -> list[str]:
    """One run as cells under RUN_HEADER."""
    return [
        view.name,
        view.label,
        _steps(view),
        "" if view.rate is None else speed(view.rate),
        "" if view.eta_s is None else duration(view.eta_s),
        "" if view.loss is None else f"{view.loss:.5f}",
        metric(view.val),
        "" if view.data_wait is None else f"{view.data_wait:.0%}",
        view.host or "",
        str(view.restarts or ""),
        first_line(view.reason) if view.reason else "",
    ]


def _steps(view: RunView) -> str:
    if view.step is None:
        return ""
    return "no training" if view.steps == 0 else f"{view.step}/{view.steps or '?'}"


def metric(values: object) -> str:
    """Return the metric to compare runs by: the MSE, or else the first one."""
    if not isinstance(values, dict) or not values:
        return ""
    key = "mse" if "mse" in values else next(iter(values))
    value = values[key]
    return f"{key} {value:.4g}" if isinstance(value, int | float) else ""
