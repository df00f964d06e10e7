"""The paper's tables with our numbers, as HTML, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape

from toolkit.report.markup import notice, score_table
from toolkit.report.paper import FilledTable, PaperCell, direction_of
from toolkit.report.paper_numbers import Column, PaperRow, Variant
from toolkit.report.style import CSS
from toolkit.report.tables import ARROWS

DECIMALS = {"ssim": 3, "lpips": 3, "csi@30": 3, "psnr": 2, "mse": 1, "parameters": 2, "seconds": 1, "memory": 2}

CHANGES = {"better": "▲", "worse": "▼"}
SIGNIFICANT = 0.05
CSV_COLUMNS = (
    "table", "row", "column", "trained_on", "metric", "mean", "std", "n", "paper", "p_to_modernn", "missing",
)  # fmt: skip
HOW = (
    "Ours: mean ± sample standard deviation over seeds (number of seeds); in brackets the paper's number. The two are "
    "of one kind only where data, model size and number of steps are the paper's. `alone`: trained on that mode only, "
    "`all`: on all modes; ▲ and ▼: the latter is better or worse. *: differs from ModeRNN's number in this column, "
    f"paired t-test over seeds, p < {SIGNIFICANT:g} (from three seeds on, not corrected for many comparisons). "
    "Last row: what repeating the last frame of the context scores."
)


def number(cell: PaperCell, column: Column) -> str:
    """`44.7 ± 0.3 (3)`, or a dash; the baseline has no seeds and so one number."""
    digits = DECIMALS[column.metric]
    if cell.mean is None:
        return "–"
    if not cell.values:
        return f"{cell.mean:.{digits}f}"
    if len(cell.values) == 1:
        return f"{cell.mean:.{digits}f} (1)"
    return f"{cell.mean:.{digits}f} ± {cell.std:.{digits}f} ({len(cell.values)})"


def published(cell: PaperCell, column: Column) -> str:
    """The paper's number, or a dash."""
    return "–" if cell.paper is None else f"{cell.paper:.{DECIMALS[column.metric]}f}"


def marks(filled: FilledTable, row: PaperRow, column: Column, variant: Variant) -> str:
    """▲ or ▼ after the number of the model trained on all modes, * for significance."""
    cell = filled.cells[row, column, variant]
    change = filled.change(row, column) if variant == "entire" else None
    star = "*" if cell.p is not None and cell.p < SIGNIFICANT else ""
    return (CHANGES[change] if change else "") + star


def heading(column: Column, variant: Variant) -> str:
    trained = {"sub": ", alone", "entire": ", all"}[variant] if column.sub else ""
    return f"{column.title}{ARROWS[direction_of(column)]}{trained}"


def _places(filled: FilledTable) -> list[tuple[Column, Variant]]:
    return [(column, variant) for column in filled.table.columns for variant in column.variants]


def _title(filled: FilledTable) -> str:
    rules = f" (protocol {', '.join(filled.protocols)})" if filled.protocols else ""
    return f"Table {filled.table.number}. {filled.table.title}{rules}"


def missing(filled: FilledTable) -> list[str]:
    """Every seed that isn't in the means, and why, each once."""
    texts: dict[str, None] = {}
    for cell in filled.cells.values():
        texts |= dict.fromkeys(text for reason in cell.missing.values() for text in reason.splitlines())
    return list(texts)


def ensembles(filled: FilledTable) -> str:
    """What our numbers of several forecasts are, which may differ from what the row's name says of the paper's."""
    return "Several forecasts of a sequence, ours: " + "; ".join(
        f"{name}: {label}" for name, label in filled.ensembles.items()
    )


def to_html(name: str, tables: Sequence[FilledTable], which: str, figures: str) -> str:
    """A page that needs nothing else; `figures` is HTML to stand after the tables."""
    how = re.sub("`(.*?)`", r"<code>\1</code>", escape(HOW))
    parts = [f"<h1>{escape(name)}: the paper's tables</h1>", f"<p>{how} Checkpoint: {which}.</p>"]
    for filled in tables:
        parts.append(f'<h2 id="table{filled.table.number}">{escape(_title(filled))}</h2>')
        head = "".join(f"<th>{escape(heading(*place)).replace(', ', '<br>')}</th>" for place in _places(filled))
        rows = []
        for row in filled.table.rows:
            cells = "".join(f"<td>{_html_cell(filled, row, *place)}</td>" for place in _places(filled))
            rows.append(f"<tr><th>{escape(row.label)}</th>{cells}</tr>")
        parts.append(score_table(f"<tr><th>Model</th>{head}</tr>", rows))
        if filled.ensembles:
            parts.append(f"<p class='small'>{escape(ensembles(filled))}</p>")
        faults = missing(filled)
        if faults:
            parts.append(notice("Not in these means", [escape(text) for text in faults]))
    head = f'<meta charset="utf-8"><title>{escape(name)}: the paper\'s tables</title><style>{CSS}</style>'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body><main>\n'
        + "\n".join([*parts, figures])
        + "\n</main></body></html>\n"
    )


def _html_cell(filled: FilledTable, row: PaperRow, column: Column, variant: Variant) -> str:
    cell = filled.cells[row, column, variant]
    mean, _, rest = number(cell, column).partition(" ")
    ours = mean + marks(filled, row, column, variant) + (f'<br><span class="soft">{rest}</span>' if rest else "")
    if cell.paper is None:
        return ours
    return f'{ours}<br><span class="soft">[{published(cell, column)}]</span>'


def to_markdown(name: str, tables: Sequence[FilledTable], which: str) -> str:
    """The tables as Markdown, of checkpoint `which`."""
    parts = [f"# {name}: the paper's tables\n", f"{HOW} Checkpoint: {which}.\n"]
    for filled in tables:
        places = _places(filled)
        parts.append(f"## {_title(filled)}\n")
        lines = ["| model | " + " | ".join(heading(*place) for place in places) + " |", "|---|" + "--:|" * len(places)]
        for row in filled.table.rows:
            texts = [_text(filled, row, *place) for place in places]
            lines.append(f"| {row.label} | " + " | ".join(texts) + " |")
        parts.append("\n".join(lines) + "\n")
        parts += [f"- {ensembles(filled)}\n"] if filled.ensembles else []
        parts += [f"- not in these means: {text}\n" for text in missing(filled)]
    return "\n".join(parts)


def _text(filled: FilledTable, row: PaperRow, column: Column, variant: Variant) -> str:
    cell = filled.cells[row, column, variant]
    return f"{number(cell, column)}{marks(filled, row, column, variant)} [{published(cell, column)}]"


def to_latex(tables: Sequence[FilledTable]) -> str:
    """One `tabular` for each table, booktabs style; ours with the paper's number in brackets."""
    escapes: Callable[[str], str] = lambda text: (  # noqa: E731
        text.replace("%", r"\%").replace("±", r"$\pm$").replace("↓", r"$\downarrow$").replace("↑", r"$\uparrow$")
        .replace("▲", r"$^{\uparrow}$").replace("▼", r"$^{\downarrow}$").replace("*", r"$^{*}$").replace("–", "--")
    )  # fmt: skip
    parts = []
    for filled in tables:
        places = _places(filled)
        lines = [rf"% {_title(filled)}", rf"\begin{{tabular}}{{l{'r' * len(places)}}}", r"\toprule"]
        lines.append(" & ".join(["Model", *(escapes(heading(*place)) for place in places)]) + r" \\ \midrule")
        for row in filled.table.rows:
            texts = [escapes(_text(filled, row, *place)) for place in places]
            lines.append(" & ".join([row.label, *texts]) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""]))
    return "\n".join(parts)


def to_csv(tables: Sequence[FilledTable]) -> str:
    """One number a line, unrounded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(_lines(tables))
    return out.getvalue()


def _lines(tables: Sequence[FilledTable]) -> Iterator[list[object]]:
    for filled in tables:
        for (row, column, variant), cell in filled.cells.items():
            facts = [filled.table.number, row.label, column.title, variant if column.sub else "", column.metric]
            values = ["" if value is None else repr(value) for value in (cell.mean, cell.std)]
            p = "" if cell.p is None else f"{cell.p:.4g}"
            paper = "" if cell.paper is None else cell.paper
            yield [*facts, *values, len(cell.values), paper, p, "; ".join(cell.missing.values()).replace("\n", "; ")]
