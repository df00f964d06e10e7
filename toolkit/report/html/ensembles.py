"""Ensembles: rank histograms by mode and lead time, spread and skill over lead time.

Definitions: toolkit/evaluate/probabilistic.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from toolkit.report.data.aggregate import Board, GroupScores
from toolkit.report.data.collect import Facts
from toolkit.report.data.tables import checkpoint_title, heading, score_cell
from toolkit.report.html.figures import (
    COLOURS,
    DASHES,
    STYLE,
    Chart,
    chart,
    draw_band,
    grid,
    label_lead_times,
    legend,
    row_looks,
)  # fmt: skip
from toolkit.table import Row, Table

SHOWN = ("crps", "crps_fair", "spread", "rmse_of_mean", "spread_skill")
MOST_BARS = 21  # histograms of more ranks are drawn with several ranks per bar


def ensembles(board: Board, groups: Sequence[str]) -> dict[str, Any] | None:
    """Return the values of `ensembles.html`; None without ensembles."""
    rows = _rows(board)
    if not rows:
        return None
    metrics = [metric for metric in board.metrics if metric.key in SHOWN]
    lines = [Row((row.label, *(score_cell(board, row, metric) for metric in metrics))) for row in rows]
    return {
        "checkpoint": checkpoint_title(board, rows[0].which),
        "table": Table(("Model", *map(heading, metrics)), lines),
        "charts": [_spread(board, rows, groups), *(_ranks(board, row) for row in rows)],
    }


def _rows(board: Board) -> list[GroupScores]:
    """Return the rows of ensembles, for the first checkpoint that has any."""
    for which in board.checkpoints:
        rows = [row for row in board.rows_at(which) if row.ensemble and row.seeds and _histograms(board, row)]
        if rows:
            return rows
    return []


def _histograms(board: Board, row: GroupScores) -> list[Facts]:
    """Return `ranks` of the result of each seed."""
    found = (board.results[row.label, row.which, seed].data.get("ranks") for seed in row.seeds)
    return [ranks for ranks in found if ranks]


def _spread(board: Board, rows: Sequence[GroupScores], groups: Sequence[str]) -> Chart:
    style, facts = row_looks(rows, groups), board.facts
    with matplotlib.rc_context(STYLE):
        figure, (both, ratio) = grid(2)
        for row in rows:
            look = style[row.label]
            for key, dashes, what in (
                ("rmse_of_mean", "-", "RMSE of the ensemble mean"),
                ("spread", DASHES[1], "spread"),
            ):
                draw_band(both, facts, row.leads[key], look, f"{row.label}: {what}", dashes)
            draw_band(ratio, facts, row.leads["spread_skill"], look, None, "-")
        both.set_title("Spread and RMSE of the ensemble mean")
        both.set_ylim(bottom=0)
        ratio.set_title("Spread / skill")
        ratio.axhline(1, color="#555555", linewidth=0.9, linestyle=":")
        low, high = ratio.get_ylim()
        ratio.set_ylim(min(0, low), max(1.1, high))
        for axis in (both, ratio):
            label_lead_times(axis, board.facts)
        legend(figure, both)
        caption = (
            "Mean over seeds, band: ± one sample standard deviation. For a reliable ensemble the lines coincide and "
            "the ratio is 1."
        )
        return chart(figure, "Spread and skill of ensembles over lead time", caption)


def _ranks(board: Board, row: GroupScores) -> Chart:
    found = _histograms(board, row)
    panels: list[tuple[str, list[object], list[object]]] = [
        ("All modes" if board.modes else "All", [one["overall"] for one in found], [one["leads"] for one in found])
    ]
    panels += [
        (mode, [one["modes"].get(mode) for one in found], [one["mode_leads"].get(mode) for one in found])
        for mode in board.modes
    ]
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(panels), row=4, panel=(2.9, 2.5))
        for axis, (title, overall, leads) in zip(axes, panels, strict=True):
            _histogram(axis, title, overall, leads)
        legend(figure, axes[0])
        members = row.ensemble["samples"] if row.ensemble else 0
        caption = (
            f"{row.label}: rank of the observation among {members} members, summed over seeds, relative to a reliable "
            "ensemble (1)."
        )
        return chart(figure, f"Rank histograms of {row.label}", caption)


def _histogram(axis: Axes, title: str, overall: Sequence[Any], leads: Sequence[Any]) -> None:
    """Draw bars for all lead times, lines for the first and the last."""
    axis.set_title(title)
    axis.axhline(1, color="#333333", linewidth=0.9, linestyle=":")
    bars = _frequencies(overall)
    if bars is None:
        axis.text(0.5, 0.5, "n/a", transform=axis.transAxes, ha="center")
        return
    edges = np.linspace(-0.5, len(overall[0]) - 0.5, len(bars) + 1)
    axis.stairs(bars, edges, fill=True, color=COLOURS[5], alpha=0.55, label="all lead times")
    for place, label, colour, dashes in (
        (0, "first lead time", COLOURS[0], "-"),
        (-1, "last lead time", COLOURS[1], DASHES[3]),
    ):
        line = _frequencies([one[place] if one else None for one in leads])
        if line is not None:
            axis.stairs(line, edges, color=colour, linestyle=dashes, linewidth=1.5, label=label)
    axis.set_xlabel("members below the observation")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _frequencies(counts: Sequence[list[int] | None]) -> NDArray[np.float64] | None:
    """Return frequencies relative to a flat histogram; None if a histogram is missing or undefined."""
    known = [found for found in counts if found is not None]
    if not known or len(known) < len(counts) or not np.sum(known):
        return None
    total = np.sum(known, 0).astype(np.float64)
    bars = min(MOST_BARS, len(total))
    bounds = np.arange(bars) * len(total) // bars
    size = np.diff(np.append(bounds, len(total)))
    return np.asarray(np.add.reduceat(total, bounds) / size * len(total) / total.sum())
