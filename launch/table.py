"""Tables for terminals: one renderer for the plan, for progress and for status."""

from __future__ import annotations

import re
from collections.abc import Sequence

from launch.view import RunView
from toolkit.wording import duration, first_line, speed

RUN_HEADER = ("run", "state", "step", "seq/s", "ETA", "loss", "val", "wait", "host", "restarts", "note")
_NUMBER = re.compile(r"[-+]?[\d,.:/%e+-]+")


def render(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines of a table; columns of numbers stand right, empty columns are left out, lines are cut at `width`."""
    used = [column for column in range(len(header)) if any(row[column] for row in rows)] if rows else range(len(header))
    lines = [[header[column] for column in used]] + [[row[column] for column in used] for row in rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    right = [
        all(_NUMBER.fullmatch(line[place]) for line in lines[1:] if line[place] not in ("", "-"))
        for place in range(len(lines[0]))
    ]
    texts = []
    for line in lines:
        cells = [
            text.rjust(size) if flush else text.ljust(size)
            for text, size, flush in zip(line, widths, right, strict=True)
        ]
        texts.append("  ".join(cells)[:width].rstrip())
    return texts


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
    """The metric that people compare runs by: the MSE, or else the first there is."""
    if not isinstance(values, dict) or not values:
        return ""
    key = "mse" if "mse" in values else next(iter(values))
    value = values[key]
    return f"{key} {value:.4g}" if isinstance(value, int | float) else ""
