"""One Table, every form: text for terminals, CSV, Markdown, LaTeX, HTML."""

from __future__ import annotations

import csv
import io
import re
from html import unescape

import pytest

from toolkit.report.html.page import TEMPLATES, environment
from toolkit.table import Cell, Row, Table

BEST = Cell("44.7", "± 0.3", "▲*", "[44.2]", best=True)
TABLE = Table(
    ("Model", "MSE ↓\nall", "of %"),
    [
        Row(("Best checkpoint",), "block"),
        Row(("a_1 & <b>", BEST, "5|6")),
        Row(("floor", Cell("99.0"), "–"), "baseline"),
    ],
    groups=(("", 1), ("checkpoint", 2)),
)


def html(table: Table) -> str:
    """The table as the report shows it."""
    module = environment().get_template("macros.html").module
    return str(module.table(table))  # type: ignore[attr-defined]


def test_a_cell_is_one_text() -> None:
    assert str(BEST) == "44.7 ± 0.3▲* [44.2]"
    assert str(Cell("–", aside="[44.2]")) == "– [44.2]"


def test_csv_has_what_cells_say() -> None:
    assert list(csv.reader(io.StringIO(TABLE.to_csv()))) == [
        ["Model", "MSE ↓, all", "of %"],
        ["Best checkpoint", "", ""],
        ["a_1 & <b>", "44.7 ± 0.3▲* [44.2]", "5|6"],
        ["floor", "99.0", "–"],
    ]


def test_markdown_has_the_best_in_bold_and_no_stray_bars() -> None:
    lines = TABLE.to_markdown().splitlines()
    assert lines[:2] == ["| Model | MSE ↓, all | of % |", "|---|--:|--:|"]
    assert lines[3] == r"| a_1 & <b> | **44.7 ± 0.3▲* [44.2]** | 5\|6 |"


def test_latex_escapes_what_it_must() -> None:
    text = TABLE.to_latex()
    assert r"a\_1 \& <b> & 44.7 $\pm$ 0.3$^{\uparrow}$$^{*}$ [44.2] & 5|6 \\" in text
    assert r"Model & MSE $\downarrow$, all & of \% \\" in text
    assert text.startswith("\\begin{tabular}{lrr}\n\\toprule\n") and text.endswith("\\bottomrule\n\\end{tabular}\n")
    assert all(line.count(" & ") == 2 for line in text.splitlines() if line.endswith("\\\\"))


def test_a_terminal_has_numbers_right_and_no_empty_column() -> None:
    rows = [Row(("a", "", "1", "x")), Row(("bbbb", "", "20", "yy"))]
    table = Table(("name", "void", "n", "word"), rows)
    assert table.to_text() == ["name   n  word", "a      1  x", "bbbb  20  yy"]
    assert table.to_text(5) == ["name", "a", "bbbb"]
    assert Table(("name", "n"), []).to_text() == ["name  n"]


def test_html_escapes_groups_and_marks_the_best() -> None:
    page = html(TABLE)
    assert "a_1 &amp; &lt;b&gt;" in page and "<b>44.7</b>" in page
    cells = [unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", page, re.DOTALL)]
    assert cells[:5] == ["", "checkpoint", "Model", "MSE ↓\nall", "of %"]
    assert [cell.split() for cell in cells[-4:]] == [["5|6"], ["floor"], ["99.0"], ["–"]]
    assert 'colspan="3">Best checkpoint' in page and '<tr class="baseline">' in page
    stacked = html(Table(TABLE.header, TABLE.rows, stacked=True))
    assert '<b>44.7</b>▲*<br><span class="soft">± 0.3</span><br><span class="soft">[44.2]</span>' in stacked


@pytest.mark.parametrize("template", sorted(path.name for path in TEMPLATES.glob("*.html")))
def test_no_template_turns_escaping_off(template: str) -> None:
    text = (TEMPLATES / template).read_text()
    assert not re.search(r"\|\s*safe\b|autoescape", text)
    for script in re.findall(r"<script(.*?)</script>", text, re.DOTALL):  # its own text alone: no value is put into it
        assert script.startswith(">") and not re.search(r"{[{%]|innerHTML|document\.write|eval", script)
