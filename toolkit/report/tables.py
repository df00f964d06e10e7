"""The numbers as text: how a cell is rounded, and the CSV and Markdown files."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from toolkit.report.aggregate import Board, Cell, Metric, Row
from toolkit.report.paper_numbers import OVERALL

CHECKPOINT_TITLES = {"best": "Best-validation checkpoint", "last": "Last checkpoint"}
FIXED_DECIMALS = {
    "ssim": 3,
    "lpips": 3,
    "psnr": 2,
    "csi": 3,
    "mean_csi": 3,
    "pod": 3,
    "far": 3,
    "bias": 3,
    "hss": 3,
    "fss": 3,
    "spread_skill": 2,
}
CSV_COLUMNS = (
    "protocol", "store", "split", "checkpoint", "group", "mode", "metric", "mean", "std", "n", "planned", "best",
    "undefined_seeds", "missing_seeds", "parameters", "ensemble",
)  # fmt: skip
ARROWS = {"lower": " ↓", "higher": " ↑", "one": " → 1", "none": ""}
NOT_DEFINED = "n/a"


def decimals(metric: Metric, cells: Sequence[Cell]) -> int:
    """Digits after the point for a column: fixed for ratios, four significant digits of the largest for errors."""
    name = metric.key.partition("@")[0].partition("/")[0]
    if name in FIXED_DECIMALS:
        return FIXED_DECIMALS[name]
    largest = max((abs(cell.mean) for cell in cells if cell.mean), default=1.0)
    return min(6, max(0, 3 - math.floor(math.log10(largest))))


def column_decimals(board: Board, metric: Metric) -> int:
    """One number of digits for all of a board's values of a metric."""
    return decimals(metric, [row.cells[metric.key, mode] for row in board.rows for mode in (OVERALL, *board.modes)])


def text_of(cell: Cell, digits: int, baseline: bool = False) -> str:
    """`44.67 ± 0.31`; `44.67 ± –` for one seed; the baseline has no seeds and so no deviation."""
    if cell.mean is None:
        return NOT_DEFINED if cell.undefined else "–"
    if baseline:
        return f"{cell.mean:.{digits}f}"
    return f"{cell.mean:.{digits}f} ± " + ("–" if cell.std is None else f"{cell.std:.{digits}f}")


def seeds_text(row: Row) -> str:
    """`2` or `1 of 2`."""
    if row.baseline:
        return "–"
    return str(len(row.seeds)) if not row.missing else f"{len(row.seeds)} of {len(row.planned)}"


def size_text(row: Row) -> str:
    """The number of parameters; without any there was no training."""
    if row.baseline or row.parameters is None:
        return "–"
    return f"{row.parameters:,}" if row.parameters else "0 (no training)"


def heading(metric: Metric) -> str:
    """The label with the direction that is better."""
    return metric.label + ARROWS[metric.direction]


def to_csv(boards: Sequence[Board]) -> str:
    """All means, one per line, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for board in boards:
        for row in board.rows:
            for (key, mode), cell in row.cells.items():
                writer.writerow(
                    (
                        board.facts["protocol"]["name"],
                        board.facts["store"]["name"],
                        board.facts["split"],
                        row.which,
                        row.group,
                        mode or "all",
                        key,
                        "" if cell.mean is None else repr(cell.mean),
                        "" if cell.std is None else repr(cell.std),
                        len(cell.values) if not row.baseline else "",
                        len(row.planned) if not row.baseline else "",
                        int(cell.best),
                        " ".join(map(str, cell.undefined)) if not row.baseline else "",
                        " ".join(map(str, row.missing)),
                        "" if row.parameters is None else row.parameters,
                        row.ensemble["label"] if row.ensemble else "",
                    )
                )
    return out.getvalue()


def to_markdown(title: str, boards: Sequence[Board]) -> str:
    """Tables of rounded means; bold is the best of a column."""
    parts = [f"# {title}\n"]
    if not boards:
        parts.append("No run is scored yet.\n")
    for board in boards:
        facts = board.facts
        parts.append(
            f"Protocol `{facts['protocol']['name']}`, {facts['store']['name']}, split `{facts['split']}`, "
            f"{facts['n']:,} sequences, {facts['context']} → {facts['horizon']} frames. "
            "Mean ± sample standard deviation over seeds; bold: best of its column.\n"
        )
        for which, name in CHECKPOINT_TITLES.items():
            rows = board.rows_at(which)
            shown = [metric for metric in board.metrics if metric.headline]
            parts.append(f"## {name}\n")
            parts.append(_markdown_table(board, rows, [(metric, OVERALL, heading(metric)) for metric in shown]))
            for metric in board.metrics if board.modes else ():
                parts.append(f"### {heading(metric)} by mode, {name.lower()}\n")
                columns = [(metric, OVERALL, "all"), *((metric, mode, mode) for mode in board.modes)]
                parts.append(_markdown_table(board, rows, columns))
        parts += [
            f"- missing: {row.group} seed {seed}: {reason}\n"
            for row in board.rows_at("best")
            for seed, reason in row.missing.items()
        ]
    return "\n".join(parts)


def _markdown_table(board: Board, rows: Sequence[Row], columns: Sequence[tuple[Metric, str, str]]) -> str:
    lines = [
        "| model | seeds | parameters | " + " | ".join(title for _, _, title in columns) + " |",
        "|---|--:|--:|" + "--:|" * len(columns),
    ]
    for row in rows:
        cells = []
        for metric, mode, _ in columns:
            cell = row.cells[metric.key, mode]
            text = text_of(cell, column_decimals(board, metric), row.baseline)
            cells.append(f"**{text}**" if cell.best else text)
        lines.append(f"| {row.label} | {seeds_text(row)} | {size_text(row)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
