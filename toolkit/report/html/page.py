"""The report as one self-contained HTML file: style sheet, figures and frames are embedded, there are no scripts.

The templates contain all text and escape every value.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toolkit.report.data.aggregate import Board
from toolkit.report.data.collect import Run, Sweep
from toolkit.report.data.costs import cost_notes, cost_table
from toolkit.report.data.tables import board_titles
from toolkit.report.data.verdict import answer
from toolkit.report.html.board import board_section
from toolkit.report.html.collapse import collapse
from toolkit.report.html.figures import loss_figure
from toolkit.shipped import command
from toolkit.table import Cell, Row, Table
from toolkit.wording import computed_on, count, duration

TEMPLATES = Path(__file__).parent / "templates"
PACKAGES = ("modernn-toolkit", "torch", "deepspeed", "numpy", "python")
RUN_COLUMNS = ("Run", "State", "Steps", "Best step", "Elapsed", "Sequences/s", "Directory and settings")


def environment() -> Environment:
    """Return the jinja2 environment: every value is escaped, an unknown name is an error."""
    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals["command"] = command
    return made


def fill(template: str, **values: object) -> str:
    """Render a template."""
    return environment().get_template(template).render(values)


def report_page(sweep: Sweep, boards: Sequence[Board], made: str) -> str:
    """Return the complete page.

    Args:
        boards: from `make_boards`; may be empty.
        made: time of creation, for the header.
    """
    counted = sum(run.problem is None for run in sweep.runs)
    models, seeds = count(len(sweep.groups), "model"), count(len({run.seed for run in sweep.runs}), "seed")
    return fill(
        "report.html",
        name=sweep.name,
        answer=answer(boards[0], boards[0].first_scored) if boards else "",
        costs=cost_table(sweep),
        cost_notes=cost_notes(sweep),
        lede=f"{models}, {seeds}: {counted:,} of {count(len(sweep.runs), 'run')} finished and evaluated.",
        provenance=_provenance(sweep),
        made=made,
        problems=[(run.name, run.problem) for run in sweep.runs if run.problem is not None],
        others=count(sweep.others, "run directory", "run directories") if sweep.others else "",
        boards=[
            board_section(sweep, *each) for each in zip(boards, itertools.count(), board_titles(boards), strict=False)
        ],
        collapse=collapse(sweep),
        losses=loss_figure(sweep),
        runs=Table(RUN_COLUMNS, [_run(run) for run in sweep.runs], prose=True),
    )


def _provenance(sweep: Sweep) -> dict[str, list[str]]:
    """Return by heading the distinct texts, each with its number of runs if there are several."""
    found: dict[str, list[str]] = {"Code": [], "Versions": [], "Trained on": []}
    for run in sweep.runs:
        if not run.env:
            continue
        git = run.env.get("git") or {}
        commit = f"git {str(git['commit'])[:12]}" if git.get("commit") else "not from a git checkout"
        found["Code"].append(commit + (" with uncommitted changes" if git.get("dirty") else ""))
        packages = {**run.env.get("packages", {}), "python": run.env.get("python", "?")}
        found["Versions"].append(", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages))
        if "trained_on" in run.env:
            found["Trained on"].append(computed_on(run.env["trained_on"]))
    return {name: _distinct(texts) for name, texts in found.items() if texts}


def _distinct(texts: Sequence[str]) -> list[str]:
    several = {text: texts.count(text) for text in dict.fromkeys(texts)}
    if len(several) == 1:
        return [texts[0]]
    return [f"{text} ({count(number, 'run')})" for text, number in several.items()]


def _run(run: Run) -> Row:
    settings = ", ".join(f"{key} {value}" for key, value in run.settings.items())
    return Row(
        (
            run.name,
            run.standing,
            _steps(run),
            "–" if run.best_step is None else f"{run.best_step:,}",
            "–" if run.elapsed_s is None else duration(run.elapsed_s),
            "–" if run.rate is None else f"{run.rate:.1f}",
            Cell(run.folder.name, settings),
        )
    )


def _steps(run: Run) -> str:
    if run.step is None:
        return "–"
    if run.steps == 0:
        return "no training"
    return f"{run.step:,}" if run.steps in (None, run.step) else f"{run.step:,} of {run.steps:,}"
