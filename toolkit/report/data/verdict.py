"""Which model of a board is better, by how much, and whether the seeds can tell: the first line of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

from toolkit.report.data.aggregate import OVERALL, Board, GroupScores, Metric, mean_and_std
from toolkit.wording import count

CONFIDENCE = 0.95
FEW_SEQUENCES = 50  # below it a table has a warning


def paired_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of paired differences, by Student's t; None below two of them."""
    mean, deviation = mean_and_std(list(differences))
    if mean is None or deviation is None:
        return None
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * deviation / math.sqrt(len(differences))
    return mean - half, mean + half


def answer(board: Board, which: str) -> str:
    """Return how the best row of a checkpoint compares with the next, by the board's first metric; "" for fewer rows.

    Models are compared on the seeds that they share; the baseline has one score beside every seed. Rows that were
    selected using the observation don't take part.
    """
    metric = next((metric for metric in board.metrics if metric.direction in ("lower", "higher")), None)
    if metric is None:
        return ""
    order = 1.0 if metric.direction == "lower" else -1.0
    found = [(mean, row) for row in board.rows_at(which) if row.competes and (mean := _mean(row, metric)) is not None]
    found.sort(key=lambda each: order * each[0])
    if len(found) < 2:
        return ""
    (_, first), (reference, second) = found[:2]
    differences = _differences(first, second, metric)
    gap = found[0][0] - reference if not differences else math.fsum(differences) / len(differences)
    relative = f" ({100 * gap / reference:+.1f} %)" if reference else ""
    what, seeds = f"{metric.label} {gap:+.4g}{relative}", count(len(differences), "seed")
    pair = f"{first.label} and {second.label}"
    interval = paired_interval(differences)
    if interval is None:
        return f"Too few seeds to compare {pair}: {what}, over {seeds} that both have; at least two are needed."
    low, high = interval
    text = f"{100 * CONFIDENCE:g} % interval {low:+.4g} to {high:+.4g} over {seeds}, paired."
    if max(order * low, order * high) >= 0:
        return f"No significant difference between {pair}: {what}, {text}"
    return f"{first.label} is better than {second.label}: {what}, {text}"


def few_sequences(board: Board) -> str:
    """Return a warning if few sequences were scored; empty otherwise."""
    scored = int(board.facts["n"])
    if scored >= FEW_SEQUENCES:
        return ""
    return (
        f"Only {count(scored, 'sequence')} scored: another choice of sequences may give another order, which the "
        "deviation over seeds does not include."
    )


def _mean(row: GroupScores, metric: Metric) -> float | None:
    return row.cells[metric.key, OVERALL].mean


def _differences(first: GroupScores, second: GroupScores, metric: Metric) -> list[float]:
    """Return the differences by seed of those that both rows have; the baseline has its score beside every seed."""
    one, other = (dict(row.cells[metric.key, OVERALL].values) for row in (first, second))
    if first.baseline:
        one = dict.fromkeys(other, *one.values())
    if second.baseline:
        other = dict.fromkeys(one, *other.values())
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
