"""Tables for terminals: one renderer for the plan, for progress and for status."""

from __future__ import annotations

from collections.abc import Sequence

from launch.view import RunView
from toolkit.table import Row, Table
from toolkit.wording import duration, first_line, speed

RUN_HEADER = ("run", "state", "step", "seq/s", "ETA", "loss", "val", "wait", "host", "restarts", "note")


def render(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Lines of a table; columns of numbers stand right, empty columns are left out, lines are cut at `width`."""
    return Table(header, [Row(row) for row in rows]).to_text(width)


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
