"""Curves as SVG: loss over steps, scores over lead time. A group has the same style in every figure.

The colours are the colour-blind safe palette of Okabe and Ito (https://jfly.uni-koeln.de/color/); line styles and
markers differ too, for print in grayscale.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from toolkit.report.data.aggregate import PERSISTENCE, Board, GroupScores, Score
from toolkit.report.data.collect import Curve, Facts, Run, Sweep
from toolkit.report.data.tables import checkpoint_title
from toolkit.report.html.pictures import data_uri

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[object, ...] = (
    "-",
    (0, (6, 1.6)),
    (0, (6, 1.6, 1.2, 1.6)),
    (0, (2.5, 1.2)),
    (0, (9, 2)),
    (0, (4, 1, 1, 1, 1, 1)),
)
MARKERS = ("o", "s", "^", "D", "v", "P")
BASELINE_COLOUR = "#6b6b6b"
PANEL = (4.6, 2.75)  # inches
LOSS_POINTS = 120  # longer curves are averaged over equal intervals of points
STYLE: dict[Any, object] = {
    "svg.fonttype": "path",  # does not depend on installed fonts
    "svg.hashsalt": "modernn-toolkit",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class Chart:
    """A figure; the SVG is embedded as an image, so that its ids and styles do not affect the page."""

    uri: str
    text: str
    caption: str


@dataclass(frozen=True)
class Look:
    """Line style of one group."""

    colour: str
    dashes: object
    marker: str


def looks(groups: Sequence[str]) -> dict[str, Look]:
    """Return the style of each group; beyond six groups colours repeat with another line style."""
    return {
        group: Look(
            COLOURS[place % len(COLOURS)],
            DASHES[(place + place // len(COLOURS)) % len(DASHES)],
            MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
        )
        for place, group in enumerate(groups)
    }


def row_looks(rows: Sequence[GroupScores], groups: Sequence[str]) -> dict[str, Look]:
    """Return the style of each row by its label: its group's, with other lines for a group's further scorings."""
    style, found, met = looks(groups), dict[str, Look](), dict[str, int]()
    for row in rows:
        if row.baseline:
            found[row.label] = Look(BASELINE_COLOUR, ":", "")
            continue
        own, later = style[row.group], met.get(row.group, 0)
        dashes, marker = DASHES.index(own.dashes) + 3 * later, MARKERS.index(own.marker) + later
        found[row.label] = Look(own.colour, DASHES[dashes % len(DASHES)], MARKERS[marker % len(MARKERS)])
        met[row.group] = later + 1
    return found


def loss_figure(sweep: Sweep) -> Chart | None:
    """Draw training loss and validation MSE: median over seeds, min-max band. None without data."""
    panels = [
        ("Training loss", {group: [run.train for run in _runs(sweep, group)] for group in sweep.groups}),
        ("Validation MSE", {group: [run.val for run in _runs(sweep, group)] for group in sweep.groups}),
    ]
    panels = [(title, curves) for title, curves in panels if any(any(found) for found in curves.values())]
    if not panels:
        return None
    style = looks(sweep.groups)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(panels))
        for place, (axis, (title, curves)) in enumerate(zip(axes, panels, strict=True)):
            for group, found in curves.items():
                draw_curves(axis, group, [curve for curve in found if curve], style[group])
            axis.set_title(title)
            axis.set_xlabel("optimizer step")
            axis.set_yscale("log")
            _plain_log_ticks(axis)
            if place == 0:
                legend(figure, axis)
        caption = (
            "Median over seeds, min–max band; log scale. Validation MSE as defined by the protocol. "
            f"Curves of more than {LOSS_POINTS} points are averaged over {LOSS_POINTS} equal intervals. "
            "Unfinished runs are shown up to the last logged step."
        )
        return chart(figure, "Training loss and validation MSE over optimizer steps, one line per model", caption)


def lead_figure(board: Board, groups: Sequence[str], which: str) -> Chart | None:
    """Draw headline scores over lead time: mean over seeds, band of one standard deviation, and the baseline."""
    metrics = [metric for metric in board.metrics if metric.headline]
    rows = [row for row in board.rows_at(which) if row.baseline or row.seeds]
    if not any(row.seeds for row in rows) or not metrics:
        return None
    style = row_looks(rows, groups)
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(metrics))
        for place, (axis, metric) in enumerate(zip(axes, metrics, strict=True)):
            for row in rows:
                draw_band(axis, board.facts, row.leads[metric.key], style[row.label], row.label)
            axis.set_title(metric.label)
            label_lead_times(axis, board.facts)
            if place == 0:
                legend(figure, axis)
        caption = (
            f"{checkpoint_title(board, which)}: mean over seeds, band: ± one sample standard deviation. "
            f"Dotted: {PERSISTENCE}."
        )
        return chart(figure, "Scores over lead time, one line per model", caption)


def _runs(sweep: Sweep, group: str) -> list[Run]:
    return [run for run in sweep.runs if run.group == group]


def draw_curves(axis: Axes, group: str, curves: Sequence[Curve], look: Look) -> None:
    """Draw values over optimizer steps: the median over runs, and a band from the lowest to the highest."""
    if not curves:
        return
    curves = [_thinned(curve) for curve in curves]
    steps = np.array(sorted({step for curve in curves for step, _ in curve}))
    values = np.full((len(curves), len(steps)), np.nan)
    for row, curve in enumerate(curves):
        own_steps, own_values = np.array(curve).T
        inside = (steps >= own_steps[0]) & (steps <= own_steps[-1])  # no extrapolation of runs that ended early
        values[row, inside] = np.interp(steps[inside], own_steps, own_values)
    median = np.nanmedian(values, axis=0)
    axis.plot(steps, median, color=look.colour, linestyle=look.dashes, linewidth=1.7, label=group)
    if len(curves) > 1:
        axis.fill_between(
            steps, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=look.colour, alpha=0.18, linewidth=0
        )


def _thinned(curve: Curve) -> Curve:
    if len(curve) <= LOSS_POINTS:
        return curve
    intervals = np.array_split(np.array(curve), LOSS_POINTS)
    return tuple((interval[-1, 0], interval[:, 1].mean()) for interval in intervals)


def draw_band(
    axis: Axes, facts: Facts, scores: Sequence[Score], look: Look, label: str | None, dashes: object = None
) -> None:
    """Draw a score over lead time: the mean over seeds, and a band of one standard deviation."""
    leads = lead_times(facts)
    means, spread = (
        np.array([getattr(score, name) for score in scores], dtype=np.float64) for name in ("mean", "std")
    )  # None is NaN
    style: dict[str, Any] = {"linewidth": 1.7, "marker": look.marker, "markersize": 3.6, "label": label}
    axis.plot(leads, means, color=look.colour, linestyle=dashes or look.dashes, **style)
    if not np.isnan(spread).all():
        axis.fill_between(leads, means - spread, means + spread, color=look.colour, alpha=0.18, linewidth=0)


def lead_times(facts: Facts) -> NDArray[np.float64]:
    """Return the lead times of a board in `time_unit`."""
    return np.arange(1, int(facts["horizon"]) + 1, dtype=np.float64) * np.float64(time_unit(facts)[0])


def label_lead_times(axis: Axes, facts: Facts) -> None:
    """Label the horizontal axis of `lead_times`, with ticks at whole numbers, also of a single lead time."""
    axis.set_xlabel(f"lead time ({time_unit(facts)[1]})")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def time_unit(facts: Facts) -> tuple[float, str]:
    """Return the time step and its unit: minutes, seconds, or frames for shorter steps or without time stamps."""
    seconds = float(facts.get("step_seconds") or 0.0)
    if seconds >= 60:
        return seconds / 60, "minutes"
    return (seconds, "seconds") if seconds >= 1 else (1.0, "frames")


def grid(count: int, row: int = 2, panel: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """Create `count` panels of size `panel` (inches), at most `row` per row."""
    columns = min(row, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def legend(figure: Figure, axis: Axes) -> None:
    """Add one legend above all panels, from the lines of one axis."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        columns = max(1, min(len(labels), 130 // (longest + 8)))
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, handlelength=3.2)


def _plain_log_ticks(axis: Axes) -> None:
    """Use plain numbers (0.02, 30) as ticks, and enough of them on an axis of less than a decade."""
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def chart(figure: Figure, text: str, caption: str) -> Chart:
    """Return a figure as a reproducible SVG; `text` is its alternative text."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return Chart(data_uri("image/svg+xml", out.getvalue()), text, caption)
