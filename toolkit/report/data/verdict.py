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

    Models are compared on the seeds that they share, whichever has the better mean over all of its own; what isn't
    trained has one score beside every seed. Rows that were selected using the observation don't take part.
    """
    metric = next((metric for metric in board.metrics if metric.direction in ("lower", "higher")), None)
    if metric is None:
        return ""
    order = 1.0 if metric.direction == "lower" else -1.0
    found = [(mean, row) for row in board.rows_at(which) if row.competes and (mean := _mean(row, metric)) is not None]
    found.sort(key=lambda each: order * each[0])
    if len(found) < 2:
        return ""
    (_, first), (_, second) = found[:2]
    names, pairs = f"{first.label} and {second.label}", _pairs(first, second, metric)
    if not pairs:
        return f"Too few seeds to compare {names}: they have no seed in common; at least two are needed."
    gap = math.fsum(one - other for one, other in pairs) / len(pairs)
    note = ""
    if order * gap > 0:
        first, second, gap, pairs = second, first, -gap, [(other, one) for one, other in pairs]
        note = " The means of the table are over different seeds."
    reference = abs(math.fsum(other for _, other in pairs) / len(pairs))
    what = f"{metric.label} {gap:+.4g}" + (f" ({100 * gap / reference:+.1f} %)" if reference else "")
    better = f"{first.label} is better than {second.label}: {what}"
    if first.untrained and second.untrained:
        return f"{better}; neither is trained." if gap else f"No difference between {names}; neither is trained."
    seeds, interval = count(len(pairs), "seed"), paired_interval([one - other for one, other in pairs])
    if interval is None:
        return f"Too few seeds to compare {names}: {what}, over {seeds} that both have; at least two are needed.{note}"
    low, high = interval
    text = f"{100 * CONFIDENCE:g} % interval {low:+.4g} to {high:+.4g} over {seeds}, paired.{note}"
    if max(order * low, order * high) >= 0:
        return f"No significant difference between {names}: {what}, {text}"
    return f"{better}, {text}"


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


def _pairs(first: GroupScores, second: GroupScores, metric: Metric) -> list[tuple[float, float]]:
    """Return both scores of each seed that both rows have; of a row that isn't trained its score beside every seed."""
    one, other = (dict(row.cells[metric.key, OVERALL].values) for row in (first, second))
    mean, reference = _mean(first, metric), _mean(second, metric)
    if first.untrained and second.untrained and mean is not None and reference is not None:
        return [(mean, reference)]
    if first.untrained and mean is not None:
        one = dict.fromkeys(other, mean)
    if second.untrained and reference is not None:
        other = dict.fromkeys(one, reference)
    return [(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())]
