"""Write the paper's tables with the numbers of a sweep as HTML, Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from toolkit.evaluate.protocols import known_protocols, load_protocol
from toolkit.report.data.aggregate import PERSISTENCE, make_boards
from toolkit.report.data.collect import Sweep
from toolkit.report.data.tables import ARROWS, board_titles, error_decimals
from toolkit.report.html.collapse import collapse
from toolkit.report.html.ensembles import ensembles
from toolkit.report.html.frames import frames
from toolkit.report.html.page import fill
from toolkit.report.paper.numbers import Column, PaperRow, Variant
from toolkit.report.paper.tables import FilledTable, PaperCell, direction_of
from toolkit.table import Cell, Row, Table

DECIMALS = {"ssim": 3, "lpips": 3, "csi@30": 3, "psnr": 2, "mse": 1, "parameters": 2, "seconds": 1, "memory": 2}

CHANGES = {"better": "▲", "worse": "▼"}
SIGNIFICANT = 0.05
CSV_COLUMNS = (
    "table", "row", "column", "trained_on", "metric", "mean", "std", "n", "paper", "p_to_modernn", "missing",
)  # fmt: skip
HOW = (
    "Mean ± sample standard deviation over seeds (number of seeds); in brackets the paper's number. Both are "
    "comparable only if data, model size and number of steps are the paper's. “alone”: trained on that mode only, "
    "“all”: on all modes; ▲ and ▼: the latter is better or worse. *: differs from ModeRNN in this column, paired "
    f"t-test over seeds, p < {SIGNIFICANT:g} (three or more seeds, not corrected for multiple comparisons). "
    f"Last row: {PERSISTENCE}."
)


def paper_table(filled: FilledTable) -> Table:
    """Return a table of the paper with the numbers of the sweep, and the paper's in brackets."""
    places = filled.table.places
    rows = [Row((row.label, *(_cell(filled, row, *place) for place in places))) for row in filled.table.rows]
    return Table(("Model", *(_heading(*place) for place in places)), rows, stacked=True)


def _cell(filled: FilledTable, row: PaperRow, column: Column, variant: Variant) -> Cell:
    """Return a cell such as `44.67 ± 0.31 (3)▲* [44.7]`; a dash if the sweep has no number."""
    cell = filled.cells[row, column, variant]
    ours, detail = _number(cell, _decimals(filled, column))
    return Cell(ours, detail, _marks(filled, row, column, variant), _published(cell, column))


def _decimals(filled: FilledTable, column: Column) -> int:
    """Return the number of decimals: the paper's; of errors, which grow with the frames, as in the other tables."""
    if column.metric != "mse":
        return DECIMALS[column.metric]
    places = filled.cells.items()
    return error_decimals(
        cell.mean for (_, other, _), cell in places if (other.metric, other.data) == (column.metric, column.data)
    )


def _number(cell: PaperCell, digits: int) -> tuple[str, str]:
    """Return the mean, and its standard deviation with the number of seeds; the baseline has no seeds."""
    if cell.mean is None:
        return "–", ""
    if not cell.values:
        return f"{cell.mean:.{digits}f}", ""
    deviation = "" if cell.std is None else f"± {cell.std:.{digits}f} "
    return f"{cell.mean:.{digits}f}", f"{deviation}({len(cell.values)})"


def _published(cell: PaperCell, column: Column) -> str:
    return "" if cell.paper is None else f"[{cell.paper:.{DECIMALS[column.metric]}f}]"


def _marks(filled: FilledTable, row: PaperRow, column: Column, variant: Variant) -> str:
    """Return the symbols after a number: ▲ or ▼ if trained on all modes, * for significance."""
    cell = filled.cells[row, column, variant]
    change = filled.change(row, column) if variant == "entire" else None
    star = "*" if cell.p is not None and cell.p < SIGNIFICANT else ""
    return (CHANGES[change] if change else "") + star


def _heading(column: Column, variant: Variant) -> str:
    trained = {"sub": "\nalone", "entire": "\nall"}[variant] if column.sub else ""
    return f"{column.title}{ARROWS[direction_of(column)]}{trained}".replace(", ", "\n")


def _title(filled: FilledTable) -> str:
    rules = f" (protocol {', '.join(filled.protocols)})" if filled.protocols else ""
    return f"Table {filled.table.number}. {filled.table.title}{rules}"


def _missing(filled: FilledTable) -> list[str]:
    """Return the seeds that are missing in the means, with reasons, each once."""
    texts: dict[str, None] = {}
    for cell in filled.cells.values():
        texts |= dict.fromkeys(text for reason in cell.missing.values() for text in reason.splitlines())
    return list(texts)


def _notes(filled: FilledTable) -> str:
    """Describe how ensembles and LPIPS of the sweep were scored, which may differ from the paper."""
    labels = "; ".join(f"{name}: {label}" for name, label in filled.ensembles.items())
    notes = [f"Ensembles of this sweep: {labels}."] if labels else []
    if any(column.metric == "lpips" for column in filled.table.columns):
        used = {name: load_protocol(name).lpips_range for name in filled.protocols if name in known_protocols()}
        here = ", ".join(f"{shown} (protocol {name})" for name, shown in used.items()) or "not scored yet"
        notes.append(
            f"LPIPS: the network is given frames in {here}. Its authors' range, and that of protocol paper, is "
            "-1..1; the code of predrnn-pytorch, from which ModeRNN's evaluation comes, gives it 0..1 (protocol "
            "predrnn), and the ModeRNN paper doesn't state which."
        )
    return " ".join(notes)


def to_html(sweep: Sweep, tables: Sequence[FilledTable], which: str) -> str:
    """Return a self-contained page: the tables, then the counterparts of the paper's Figures 3 to 7."""
    shown = [
        {
            "number": filled.table.number,
            "title": _title(filled),
            "table": paper_table(filled),
            "notes": _notes(filled),
            "missing": _missing(filled),
        }
        for filled in tables
    ]
    made = make_boards(sweep)
    boards = [
        {
            "title": title or board.facts["store"]["name"],
            "ensembles": ensembles(board, sweep.groups),
            "frames": frames(board),
        }
        for board, title in zip(made, board_titles(made), strict=True)
    ]
    return fill(
        "paper.html", name=sweep.name, how=HOW, which=which, tables=shown, collapse=collapse(sweep), boards=boards
    )


def to_markdown(name: str, tables: Sequence[FilledTable], which: str) -> str:
    """Return the tables of checkpoint `which` as Markdown."""
    parts = [f"# {name}: the paper's tables\n", f"{HOW} Checkpoint: {which}.\n"]
    for filled in tables:
        parts += [f"## {_title(filled)}\n", paper_table(filled).to_markdown()]
        parts += [f"- {text}\n" for text in [_notes(filled)] if text]
        parts += [f"- missing in these means: {text}\n" for text in _missing(filled)]
    return "\n".join(parts)


def to_latex(tables: Sequence[FilledTable]) -> str:
    """Return one `tabular` for each table."""
    return "\n".join(f"% {_title(filled)}\n{paper_table(filled).to_latex()}" for filled in tables)


def to_csv(tables: Sequence[FilledTable]) -> str:
    """Return one number per line, unrounded."""
    return Table(CSV_COLUMNS, list(_lines(tables))).to_csv()


def _lines(tables: Sequence[FilledTable]) -> Iterator[Row]:
    for filled in tables:
        for (row, column, variant), cell in filled.cells.items():
            facts = (filled.table.number, row.label, column.title, variant if column.sub else "", column.metric)
            p = None if cell.p is None else f"{cell.p:.4g}"
            missing = "; ".join(cell.missing.values()).replace("\n", "; ")
            yield Row((*facts, cell.mean, cell.std, len(cell.values), cell.paper, p, missing))
