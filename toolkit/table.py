"""A table that can be written as CSV, Markdown, LaTeX, text for a terminal, or HTML.

HTML is rendered by the macro `table` in toolkit/report/html/templates/macros.html, which escapes values.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

_NUMBER = re.compile(r"[-+]?[\d,.:/%e+-]+")
_LATEX = str.maketrans(
    {
        **{sign: "\\" + sign for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "*": "$^{*}$",
        "±": r"$\pm$",
        "−": "$-$",
        "–": "--",
        "≥": r"$\geq$",
        "→": r"$\to$",
        "↓": r"$\downarrow$",
        "↑": r"$\uparrow$",
        "▲": r"$^{\uparrow}$",
        "▼": r"$^{\downarrow}$",
    }
)

Kind = Literal["", "baseline", "block"]


@dataclass(frozen=True)
class Cell:
    """A table cell with more than plain text.

    Attributes:
        text: the value, rounded.
        detail: for example its standard deviation; smaller in HTML.
        mark: symbols that qualify the value.
        aside: a value to compare with.
        best: whether it is the best value of its column.
    """

    text: str
    detail: str = ""
    mark: str = ""
    aside: str = ""
    best: bool = False

    def __str__(self) -> str:
        return " ".join(filter(None, (self.text, self.detail))) + self.mark + (self.aside and f" {self.aside}")


@dataclass(frozen=True)
class Row:
    """A row; its first cell is the heading. A `block` row has one cell, the heading of the rows below it."""

    cells: Sequence[object]
    kind: Kind = ""

    def texts(self, columns: int) -> list[str]:
        """Return the cells as text, as many as there are columns; None is empty."""
        return ["" if cell is None else str(cell) for cell in self.cells] + [""] * (columns - len(self.cells))


@dataclass(frozen=True)
class Table:
    """Rows under a header.

    Attributes:
        header: a title for each column; line breaks are kept in HTML, and replaced by commas elsewhere.
        groups: titles over consecutive columns, with the number of columns; HTML only.
        stacked: in HTML, show the parts of a cell below each other.
        prose: in HTML, the last column may contain long text.
    """

    header: Sequence[str]
    rows: Sequence[Row]
    groups: Sequence[tuple[str, int]] = ()
    stacked: bool = False
    prose: bool = False

    @property
    def group_starts(self) -> list[int]:
        """The first column of each group, except the first group, which has the row headings."""
        return list(accumulate(size for _, size in self.groups))[:-1]

    @property
    def measured(self) -> set[int]:
        """Columns of values with details, which HTML aligns at the value."""
        return {place for row in self.rows for place, cell in enumerate(row.cells) if isinstance(cell, Cell)}

    def _lines(self) -> list[list[str]]:
        titles = [title.replace("\n", ", ") for title in self.header]
        return [titles, *(row.texts(len(self.header)) for row in self.rows)]

    def to_csv(self) -> str:
        """Return the table as CSV with a header line."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(self._lines())
        return out.getvalue()

    def to_markdown(self) -> str:
        """Return the table as Markdown; the best of a column is bold."""
        titles, *lines = ([text.replace("|", r"\|") for text in line] for line in self._lines())
        for row, line in zip(self.rows, lines, strict=True):
            for place, cell in enumerate(row.cells):
                if isinstance(cell, Cell) and cell.best:
                    line[place] = f"**{line[place]}**"
        rule = "|---|" + "--:|" * (len(titles) - 1)
        return "\n".join([f"| {' | '.join(titles)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"

    def to_latex(self) -> str:
        """Return a `tabular` in the style of the package booktabs."""
        titles, *lines = (" & ".join(text.translate(_LATEX) for text in line) + r" \\" for line in self._lines())
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.header) - 1)}}}"
        return "\n".join([begin, r"\toprule", titles, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}", ""])

    def to_text(self, width: int | None = None) -> list[str]:
        """Return lines for a terminal: numbers aligned right, empty columns omitted, lines truncated at `width`."""
        titles, *rows = self._lines()
        used = [place for place in range(len(titles)) if not rows or any(row[place] for row in rows)]
        columns = [[titles[place], *(row[place] for row in rows)] for place in used]
        aligned = []
        for column in columns:
            size = max(map(len, column))
            right = all(_NUMBER.fullmatch(text) for text in column[1:] if text not in ("", "-"))
            aligned.append([text.rjust(size) if right else text.ljust(size) for text in column])
        return ["  ".join(line)[:width].rstrip() for line in zip(*aligned, strict=True)]
