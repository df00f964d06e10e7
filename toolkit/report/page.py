"""The report as one HTML file that needs nothing else: style, curves and frames are inside it, there is no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from toolkit.report import collapse_section, figures, scores_section
from toolkit.report.aggregate import Board
from toolkit.report.collect import Run, Sweep
from toolkit.report.markup import chart, facts_list, notice, score_table
from toolkit.report.style import CSS
from toolkit.wording import computed_on, count, duration

PACKAGES = ("modernn-toolkit", "torch", "deepspeed", "numpy", "python")
RUN_COLUMNS = ("Run", "State", "Steps", "Best step", "Elapsed", "Sequences/s", "Directory and settings")


def render(sweep: Sweep, boards: Sequence[Board], made: str) -> str:
    """The whole page.

    Args:
        boards: from `make_boards`; none yet is fine.
        made: when, for the header.
    """
    several = len(boards) > 1
    sections = [_header(sweep, boards, made), _left_out(sweep)]
    if several:
        why = "Protocol, data, split or task differ, so their numbers stand in separate tables."
        sections.append(notice("These results were not all made in one way", [why]))
    sections += [scores_section.render(sweep, board, number, several) for number, board in enumerate(boards)]
    if not boards:
        how = "<code>python launch/evaluate.py --run RUN</code>"
        sections.append(f'<h2 id="scores">Scores</h2><p>No finished run is scored yet. To score one: {how}</p>')
    sections += [collapse_section.render(sweep), _losses(sweep), _runs(sweep), _footer()]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(sweep.name)}: report</title><style>{CSS}</style>"
    )
    body = "\n".join(section for section in sections if section)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body><main>\n{body}\n</main></body></html>\n'


def _header(sweep: Sweep, boards: Sequence[Board], made: str) -> str:
    counted = sum(run.problem is None for run in sweep.runs)
    seeds = {run.seed for run in sweep.runs}
    lede = (
        f"{count(len(sweep.groups), 'model')}, {count(len(seeds), 'seed')}: "
        f"{counted:,} of {count(len(sweep.runs), 'run')} finished and scored."
    )
    facts = scores_section.board_facts(boards[0]) if boards else {}
    facts |= _provenance(sweep)
    facts["Made"] = escape(made)
    links = {"scores": "Scores"}
    if boards:
        links |= {"modes": "By mode"} if boards[0].modes else {}
        links |= {"leads": "Lead times", "frames": "Frames"}
    links |= {"losses": "Training", "runs": "Runs"}
    menu = "".join(f'<a href="#{target}">{title}</a>' for target, title in links.items())
    return (
        f'<header><p class="eyebrow">Report</p><h1>{escape(sweep.name)}</h1><p class="lede">{lede}</p>'
        f"{facts_list(facts)}<nav>{menu}</nav></header>"
    )


def _provenance(sweep: Sweep) -> dict[str, str]:
    commits, versions, hardware = [], [], []
    for run in sweep.runs:
        if not run.env:
            continue
        git = run.env.get("git") or {}
        commit = f"git {str(git['commit'])[:12]}" if git.get("commit") else "not from a git checkout"
        commits.append(commit + (" with uncommitted changes" if git.get("dirty") else ""))
        packages = {**run.env.get("packages", {}), "python": run.env.get("python", "?")}
        versions.append(", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages))
        if "trained_on" in run.env:
            hardware.append(computed_on(run.env["trained_on"]))
    facts = {"Code": _distinct(commits), "Versions": _distinct(versions), "Trained on": _distinct(hardware)}
    return {name: text for name, text in facts.items() if text}


def _distinct(texts: Sequence[str]) -> str:
    counts = {text: texts.count(text) for text in dict.fromkeys(texts)}
    if len(counts) == 1:
        return escape(texts[0])
    return "<br>".join(f"{escape(text)} ({count(number, 'run')})" for text, number in counts.items())


def _left_out(sweep: Sweep) -> str:
    items = [f"<b>{escape(run.name)}</b>: {escape(run.problem)}" for run in sweep.runs if run.problem is not None]
    if sweep.others:
        items.append(f"{count(sweep.others, 'run directory', 'run directories')} here, outside the sweep's plan.")
    return notice("Not in the tables", items) if items else ""


def _losses(sweep: Sweep) -> str:
    head = '<h2 id="losses">Training</h2>'
    svg = figures.loss_figure(sweep)
    if svg is None:
        return f"{head}<p>No run has logged a step yet.</p>"
    caption = (
        "Median over seeds, band from the least to the greatest; log scale. Validation MSE by the run's protocol. "
        f"Curves of more than {figures.LOSS_POINTS} points are averaged over {figures.LOSS_POINTS} equal stretches. "
        "Unfinished runs are drawn as far as they got."
    )
    return head + chart(svg, "Training loss and validation MSE over optimizer steps, one line per model", caption)


def _runs(sweep: Sweep) -> str:
    titles = "".join(
        f"<th{' class=text' if title == RUN_COLUMNS[-1] else ''}>{escape(title)}</th>" for title in RUN_COLUMNS
    )
    note = (
        "Elapsed: from the first to the last line that the run logged; waiting in a queue between restarts counts. "
        "Sequences/s: at the last logged step, over all ranks."
    )
    table = score_table(f"<tr>{titles}</tr>", [_run(run) for run in sweep.runs])
    return f'<h2 id="runs">Runs</h2><p>{note}</p>{table}'


def _run(run: Run) -> str:
    settings = ", ".join(f"{key} {value}" for key, value in run.settings.items())
    cells = (
        run.standing,
        _steps(run),
        "–" if run.best_step is None else f"{run.best_step:,}",
        "–" if run.elapsed_s is None else duration(run.elapsed_s),
        "–" if run.rate is None else f"{run.rate:.1f}",
    )
    where = f'<td class="text small"><code>{escape(run.folder.name)}</code><br>{escape(settings)}</td>'
    return f"<tr><th>{escape(run.name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}{where}</tr>"


def _steps(run: Run) -> str:
    if run.step is None:
        return "–"
    if run.steps == 0:
        return "no training"
    return f"{run.step:,}" if run.steps in (None, run.step) else f"{run.step:,} of {run.steps:,}"


def _footer() -> str:
    text = "The same means, unrounded, are in table.csv beside this page; table.md has its tables."
    return f'<footer class="small">{text}</footer>'
