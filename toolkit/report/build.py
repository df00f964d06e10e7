"""Write report/index.html, table.csv and table.md for a folder of runs; skip this if nothing has changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from pathlib import Path

import matplotlib

from shards import colours
from toolkit import table
from toolkit.atomic import clear_leftovers, write_atomic
from toolkit.errors import ConfigError
from toolkit.report.data.aggregate import make_boards
from toolkit.report.data.collect import Sweep, collect
from toolkit.report.data.tables import to_csv, to_markdown
from toolkit.report.html.page import report_page
from toolkit.report.paper import page as paper_page
from toolkit.report.paper.tables import fill_tables
from toolkit.wording import count

logger = logging.getLogger(__name__)

OUTPUTS = ("index.html", "table.csv", "table.md")
SOURCES = (".py", ".html", ".css")  # the page depends on these files


def build_report(folder: Path, out: Path | None, force: bool = False) -> Path:
    """Write the report of a sweep directory, a folder of runs or one run.

    Args:
        out: output folder; None: `report` in `folder`.
        force: write the report even if nothing has changed.

    Returns:
        The HTML file.

    Raises:
        ConfigError: the folder contains no runs.
        ToolkitError: a result cannot be read.
    """
    target = out or folder / "report"
    clear_leftovers(target)
    page = target / OUTPUTS[0]
    sweep = collect(folder)
    digest = inputs_digest(sweep)
    counted = sum(run.problem is None for run in sweep.runs)
    runs, groups = count(len(sweep.runs), "run"), count(len(sweep.groups), "group")
    logger.info("%s: %s in %s, %d finished and evaluated", sweep.name, runs, groups, counted)
    for run in sweep.runs:
        if run.problem is not None:
            logger.info("not in the tables: %s: %s", run.name, run.problem)
    if sweep.others:
        others = count(sweep.others, "run directory", "run directories")
        logger.info("not in the tables: %s not part of the sweep (sweep.yaml)", others)
    if not force and all((target / name).exists() for name in OUTPUTS) and _known_digest(target) == digest:
        logger.info("%s: the report is up to date", page)
        return page
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    boards = make_boards(sweep)
    write_atomic(page, report_page(sweep, boards, made))
    write_atomic(target / "table.csv", to_csv(boards))
    write_atomic(target / "table.md", to_markdown(sweep.name, boards))
    write_atomic(target / "inputs.json", json.dumps({"digest": digest, "made": made}, indent=1) + "\n")
    return page


def build_paper(folder: Path, out: Path | None, which: str) -> Path:
    """Write the paper's tables with the numbers of a sweep that uses the names of configs/sweeps/paper.

    Args:
        out: output folder; None: `report/paper` in `folder`.
        which: checkpoint, `best` or `last`.

    Returns:
        The HTML file.

    Raises:
        ConfigError: the folder contains no runs, or none that belongs in a table.
        ToolkitError: a result cannot be read, or results are not comparable.
    """
    target = out or folder / "report" / "paper"
    clear_leftovers(target)
    sweep = collect(folder)
    tables = fill_tables(sweep, which)
    if all(filled.empty for filled in tables):
        raise ConfigError(
            f"{folder}: none of {count(len(sweep.runs), 'run')} is a finished and evaluated run of the paper's tables; "
            "use the names of configs/sweeps/paper, for example mmnist-modernn-seed1"
        )
    for filled in tables:
        made = sum(cell.mean is not None for cell in filled.ours)
        logger.info("Table %s: %d of %s", filled.table.number, made, count(len(filled.ours), "number"))
    write_atomic(target / "index.html", paper_page.to_html(sweep, tables, which))
    write_atomic(target / "tables.md", paper_page.to_markdown(sweep.name, tables, which))
    write_atomic(target / "tables.csv", paper_page.to_csv(tables))
    write_atomic(target / "tables.tex", paper_page.to_latex(tables))
    return target / "index.html"


def inputs_digest(sweep: Sweep) -> str:
    """Return the SHA-256 of all data in the report, and of the code that formats it."""
    digest = hashlib.sha256(matplotlib.__version__.encode())
    own = sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in SOURCES)
    for source in (*own, Path(table.__file__), Path(colours.__file__)):
        digest.update(source.read_bytes())
    digest.update(json.dumps(dataclasses.asdict(sweep), sort_keys=True, default=str).encode())
    for run in sweep.runs:
        for result in run.results:
            if result.samples is not None:
                digest.update(result.samples.read_bytes())
        for analysis in sorted((run.folder / "analysis").glob("collapse-*")):
            digest.update(analysis.read_bytes())
    return digest.hexdigest()


def _known_digest(target: Path) -> str | None:
    try:
        return str(json.loads((target / "inputs.json").read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
