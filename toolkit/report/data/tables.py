"""Scores of a board as tables: rounding, and the CSV and Markdown files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from toolkit.report.data.aggregate import OVERALL, Board, GroupScores, Metric, Score
from toolkit.report.data.collect import Facts
from toolkit.report.data.verdict import answer, few_sequences
from toolkit.table import Cell, Kind, Row, Table
from toolkit.wording import count, exact_number

CHECKPOINT_TITLES = {"best": "Best-validation checkpoint", "last": "Last checkpoint", "ema": "Moving average (EMA)"}
FIXED_DECIMALS = {"psnr": 2, "snr": 2, "spread_skill": 2} | dict.fromkeys(
    ("ssim", "lpips", "csi", "mean_csi", "pod", "far", "bias", "hss", "fss"), 3
)
CSV_COLUMNS = (
    "protocol", "store", "split", "checkpoint", "group", "mode", "metric", "mean", "std", "n", "planned", "best",
    "undefined_seeds", "missing_seeds", "parameters", "ensemble", "context", "horizon", "thresholds", "event_rule",
    "exclude_inflow", "stride", "limit", "sequences", "store_digest", "store_path", "seed_values",
)  # fmt: skip
ARROWS = {"lower": " ↓", "higher": " ↑", "one": " → 1", "none": ""}
NOT_DEFINED = "n/a"


def checkpoint_title(board: Board, which: str) -> str:
    """Return the name of a checkpoint; of the best one with the score of the validation that selected it."""
    by = f" (by {', '.join(board.best_by)})" if which == "best" and board.best_by else ""
    return CHECKPOINT_TITLES[which] + by


def score_table(board: Board, checkpoints: Sequence[str] | None = None, headline: bool = True) -> Table:
    """Return scores over all sequences: a row for each group, a block for each of several checkpoints.

    Args:
        headline: the main scores; False: the others.
    """
    metrics = [metric for metric in board.metrics if metric.headline == headline]
    rows, checkpoints = [], checkpoints or board.checkpoints
    for which in checkpoints:
        if len(checkpoints) > 1:
            rows.append(Row((checkpoint_title(board, which),), "block"))
        for row in board.rows_at(which):
            cells = (score_cell(board, row, metric) for metric in metrics)
            rows.append(Row((row.label, seeds_text(row), size_text(row), *cells), _kind(row)))
    return Table(("Model", "Seeds", "Parameters", *map(heading, metrics)), rows)


def seed_table(board: Board) -> Table:
    """Return the scores over all sequences of each seed, that the means of `score_table` are of."""
    rows = []
    for which in board.checkpoints:
        if len(board.checkpoints) > 1:
            rows.append(Row((checkpoint_title(board, which),), "block"))
        for row in board.rows_at(which):
            for seed in row.seeds:
                cells = (_seed_value(board, row, metric, seed) for metric in board.metrics)
                rows.append(Row((row.label, seed, *cells)))
    return Table(("Model", "Seed", *map(heading, board.metrics)), rows)


def _seed_value(board: Board, row: GroupScores, metric: Metric, seed: int) -> str:
    score = row.cells[metric.key, OVERALL]
    if seed in score.values:
        return f"{score.values[seed]:.{column_decimals(board, metric)}f}"
    return NOT_DEFINED if seed in score.undefined else "–"


def mode_table(board: Board, metric: Metric, checkpoints: Sequence[str] | None = None) -> Table:
    """Return one score by mode, with checkpoints side by side."""
    modes, checkpoints = (OVERALL, *board.modes), checkpoints or board.checkpoints
    rows = []
    found = {(row.label, row.which): row for which in checkpoints for row in board.rows_at(which)}
    for label, kind in {label: _kind(row) for (label, _), row in found.items()}.items():
        pair = (found.get((label, which)) for which in checkpoints)
        cells = (score_cell(board, row, metric, mode) if row else "–" for row in pair for mode in modes)
        rows.append(Row((label, *cells), kind))
    rows.sort(key=lambda row: row.kind == "baseline")
    titles = [mode or "all" for mode in modes] * len(checkpoints)
    groups = [("", 1), *((checkpoint_title(board, which), len(modes)) for which in checkpoints)]
    return Table(("Model", *titles), rows, groups)


def _kind(row: GroupScores) -> Kind:
    return "baseline" if row.baseline else ""


def score_cell(board: Board, row: GroupScores, metric: Metric, mode: str = OVERALL) -> Cell:
    """Return `44.67` with the detail `± 0.31`, `± –` for one seed; the baseline has no seeds and so no deviation.

    Where only some seeds of the row have the score, the detail has their number: `± 0.31 (2 of 3)`.
    """
    score, digits = row.cells[metric.key, mode], column_decimals(board, metric)
    if score.mean is None:
        return Cell(NOT_DEFINED if score.undefined else "–")
    deviation = "–" if score.std is None else f"{score.std:.{digits}f}"
    fewer = f" ({len(score.values)} of {len(row.seeds)})" * (len(score.values) < len(row.seeds))
    return Cell(f"{score.mean:.{digits}f}", "" if row.baseline else f"± {deviation}{fewer}", best=score.best)


def decimals(metric: Metric, scores: Sequence[Score]) -> int:
    """Return the number of decimals of a column: fixed for ratios, four significant digits for the largest error."""
    name = metric.key.partition("@")[0].partition("/")[0]
    if name in FIXED_DECIMALS:
        return FIXED_DECIMALS[name]
    return error_decimals(score.mean for score in scores)


def error_decimals(means: Iterable[float | None]) -> int:
    """Return the number of decimals that gives the largest of the errors four significant digits."""
    largest = max((abs(mean) for mean in means if mean), default=1.0)
    return min(6, max(0, 3 - math.floor(math.log10(largest))))


def column_decimals(board: Board, metric: Metric) -> int:
    """Return the number of decimals for all values of a metric on a board."""
    return decimals(metric, [row.cells[metric.key, mode] for row in board.rows for mode in (OVERALL, *board.modes)])


def missing_notes(board: Board) -> list[str]:
    """Return the seeds that are missing in means, each once, with the reason and, unless all, the checkpoints."""
    absent: dict[str, list[str]] = {}
    for row in board.rows:
        for seed, reason in row.missing.items():
            absent.setdefault(f"{row.label}: seed {seed} is missing, {reason}", []).append(row.which)
    return [
        text if len(where) == len(board.checkpoints) else f"{text} ({', '.join(where)})"
        for text, where in absent.items()
    ]


def board_titles(boards: Sequence[Board]) -> list[str]:
    """Return what tells each board from the others: protocol, store and split, and what else differs; "" for one board.

    `paper, moving-mnist test, thresholds 30 35, 10 → 20 frames`
    """
    if len(boards) == 1:
        return [""]
    named = [_scoring(board.facts) for board in boards]
    return [
        ", ".join(
            text
            for key, text in own.items()
            if text and (key in ("protocol", "data") or any(other.get(key) != text for other in named))
        )
        for own in named
    ]


def _scoring(facts: Facts) -> dict[str, str]:
    """Return what a board's scores depend on, as texts by kind."""
    chosen = facts["thresholds"]
    rule = f"event rule {facts.get('event_rule') or 1}" if chosen else ""
    protocol = {
        key: value for key, value in facts["protocol"].items() if key not in ("name", "title", "source", "text")
    }
    return {
        "protocol": facts["protocol"]["name"],
        "data": f"{facts['store']['name']} {facts['split']}",
        "store": f"store {facts['store']['digest'][:12]}",
        "thresholds": "thresholds " + (" ".join(map(exact_number, chosen)) or "none"),
        "rule": rule,
        "frames": f"{facts['context']} → {facts['horizon']} frames",
        "stride": f"stride {facts.get('stride') or 'default'}",
        "targets": f"targets {', '.join(facts['targets'])}" if facts.get("targets") else "",
        "inflow": "without inflow pixels" if facts.get("exclude_inflow") else "",
        "limit": f"the first {facts['limit']:,}" if facts.get("limit") else "",
        "n": count(facts["n"], "sequence"),
        **{f"protocol.{key}": f"{key} {value}" for key, value in protocol.items()},
    }


def seeds_text(row: GroupScores) -> str:
    """Return the number of seeds: `2` or `1 of 2`."""
    if row.baseline:
        return "–"
    return str(len(row.seeds)) if not row.missing else f"{len(row.seeds)} of {len(row.planned)}"


def size_text(row: GroupScores) -> str:
    """Return the number of parameters; models without parameters are not trained."""
    if row.baseline or row.parameters is None:
        return "–"
    return f"{row.parameters:,}" if row.parameters else "0 (no training)"


def heading(metric: Metric) -> str:
    """Return the label, with an arrow for the better direction."""
    return metric.label + ARROWS[metric.direction]


def to_csv(boards: Sequence[Board]) -> str:
    """Return all means, one per line, unrounded."""
    lines = [
        _csv_line(board, row, key, mode, score)
        for board in boards
        for row in board.rows
        for (key, mode), score in row.cells.items()
    ]
    return Table(CSV_COLUMNS, lines).to_csv()


def _csv_line(board: Board, row: GroupScores, key: str, mode: str, score: Score) -> Row:
    facts, undefined = board.facts, " ".join(map(str, score.undefined))
    seeds = (None, None) if row.baseline else (len(score.values), len(row.planned))
    return Row(
        (
            *(facts["protocol"]["name"], facts["store"]["name"], facts["split"], row.which, row.group, mode or "all"),
            *(key, score.mean, score.std, *seeds, int(score.best), None if row.baseline else undefined),
            *(" ".join(map(str, row.missing)), row.parameters, row.ensemble and row.ensemble["label"]),
            *(facts["context"], facts["horizon"], " ".join(map(exact_number, facts["thresholds"]))),
            *(facts.get(name) for name in ("event_rule", "exclude_inflow", "stride", "limit", "n")),
            *(facts["store"]["digest"], facts["store"]["path"]),
            None if row.baseline else " ".join(f"{seed}:{value}" for seed, value in score.values.items()),
        )
    )


def to_markdown(title: str, boards: Sequence[Board]) -> str:
    """Return tables of rounded means; the best of a column is bold."""
    first = answer(boards[0], boards[0].first_scored) if boards else "No run has been evaluated yet."
    parts = [f"# {title}\n"] + [f"{first}\n"] * bool(first)
    for board, scoring in zip(boards, board_titles(boards), strict=True):
        facts, under = board.facts, f" ({scoring})" if scoring else ""
        parts.append(
            f"Protocol `{facts['protocol']['name']}`, {facts['store']['name']}, split `{facts['split']}`, "
            f"{count(facts['n'], 'sequence')}, {facts['context']} → {facts['horizon']} frames. "
            "Mean ± sample standard deviation over seeds; bold: best of its column, by more than the deviation.\n"
        )
        parts += [f"{warning}\n"] if (warning := few_sequences(board)) else []
        for which in board.checkpoints:
            name = checkpoint_title(board, which)
            parts += [f"## {name}{under}\n", score_table(board, (which,)).to_markdown()]
            for metric in board.metrics if board.modes else ():
                parts += [f"### {heading(metric)} by mode, {name[0].lower()}{name[1:]}{under}\n"]
                parts += [mode_table(board, metric, (which,)).to_markdown()]
        parts += [f"- {note}\n" for note in missing_notes(board)]
    return "\n".join(parts)
