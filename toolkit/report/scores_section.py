"""Everything about one board: its tables, notes, curves over lead time and frames."""

from __future__ import annotations

from html import escape

from toolkit.report import ensemble_section, figures, frames_section
from toolkit.report.aggregate import Board, Metric, Row
from toolkit.report.collect import Sweep
from toolkit.report.markup import chart, facts_list, score_table
from toolkit.report.paper_numbers import OVERALL
from toolkit.report.tables import CHECKPOINT_TITLES, column_decimals, heading, seeds_text, size_text, text_of
from toolkit.rundir import CHECKPOINTS

STATUS_TEXT = {
    "exact_frames": "frames predicted exactly (PSNR capped)",
    "nonfinite_frames": "frames with a NaN or infinite prediction: the scores that they touch are n/a",
    "missing_pixels": "missing pixels left out",
    "nonfinite_members": "frames of members with a NaN or infinite value: the scores of the ensemble are n/a",
}


def render(sweep: Sweep, board: Board, number: int, several: bool) -> str:
    """The section's HTML.

    Args:
        number: place of the board on the page; the first one's facts stand in the page's header.
        several: there are other boards, so headings say which this is.
    """
    facts = board.facts
    suffix = f"-{number + 1}" if number else ""
    name = f": {facts['protocol']['name']}, {facts['store']['name']} {facts['split']}" if several else ""
    parts = [f'<h2 id="scores{suffix}">Scores{escape(name)}</h2>']
    if number:
        parts.append(facts_list(board_facts(board)))
    parts.append(
        "<p>Mean ± sample standard deviation over seeds; each score is over all sequences and lead times. The best "
        "mean of a column, among the rows of one checkpoint, is bold and has a star; rows whose forecasts were chosen "
        "by the truth take no part in that.</p>"
    )
    parts += [_main_table(board), _announced(board)]
    if board.modes:
        parts.append(f'<h2 id="modes{suffix}">Scores by mode</h2>')
        parts += [_mode_table(board, metric) for metric in board.metrics]
    parts.append(_leads(sweep, board, suffix))
    ensembles = ensemble_section.render(board, sweep.groups)
    if ensembles:
        parts.append(f'<h2 id="ensembles{suffix}">Ensembles</h2>{ensembles}')
    parts.append(f'<h2 id="frames{suffix}">Frames</h2>{frames_section.render(sweep, board)}')
    return "\n".join(parts)


def board_facts(board: Board) -> dict[str, str]:
    """What was scored, and every choice of the protocol, as HTML by heading."""
    facts = board.facts
    store, protocol = facts["store"], facts["protocol"]
    height, width = facts["frames"][1:]
    modes = ", ".join(f"{mode}: {count:,}" for mode, count in board.mode_counts.items())
    data = [
        f"{escape(store['name'])}, split <code>{escape(facts['split'])}</code>",
        f"{facts['n']:,} sequences"
        + (f" (only the first {facts['limit']:,})" if facts.get("limit") else "")
        + (f" ({escape(modes)})" if modes else ""),
        f"{height}×{width} pixels",
        f"{facts['context']} → {facts['horizon']} frames",
    ]
    where = f"store <code>{escape(store['path'])}</code>, digest <code>{escape(store['digest'][:12])}</code>"
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in protocol["text"])
    rules = {f"{row.group}: {row.ensemble['text']}": None for row in board.rows if row.ensemble}
    sentences += "".join(f"<li>{escape(rule)}</li>" for rule in rules)
    source = f'<span class="soft">({escape(protocol["source"])})</span>'
    return {
        "Data": f'{", ".join(data)}<br><span class="soft">{where}</span>',
        "Protocol": f"<b>{escape(protocol['name'])}</b>: {escape(protocol['title'])} {source}<ul>{sentences}</ul>",
    }


def _main_table(board: Board) -> str:
    metrics = [metric for metric in board.metrics if metric.headline]
    titles = "".join(f'<th colspan="2">{escape(heading(metric))}</th>' for metric in metrics)
    rows = []
    for which in CHECKPOINTS:
        rows.append(f'<tr class="block"><th colspan="{3 + 2 * len(metrics)}">{CHECKPOINT_TITLES[which]}</th></tr>')
        for row in board.rows_at(which):
            cells = "".join(_cell(board, row, metric, OVERALL) for metric in metrics)
            rows.append(_tr(row, f"<td>{seeds_text(row)}</td><td>{size_text(row)}</td>{cells}", row.label))
    return score_table(f"<tr><th>Model</th><th>Seeds</th><th>Parameters</th>{titles}</tr>", rows)


def _mode_table(board: Board, metric: Metric) -> str:
    modes = (OVERALL, *board.modes)
    groups = [
        f'<th colspan="{2 * len(modes)}" class="gap"><span>{CHECKPOINT_TITLES[which]}</span></th>'
        for which in CHECKPOINTS
    ]
    names = [f'<th colspan="2"{_gap(place == 0)}>{escape(mode or "all")}</th>' for place, mode in enumerate(modes)]
    head = f'<tr class="over"><th></th>{"".join(groups)}</tr><tr><th>Model</th>{"".join(names * len(CHECKPOINTS))}</tr>'
    rows = []
    for pair in zip(*(board.rows_at(which) for which in CHECKPOINTS), strict=True):
        cells = [_cell(board, row, metric, mode, first=place == 0) for row in pair for place, mode in enumerate(modes)]
        rows.append(_tr(pair[0], "".join(cells), " | ".join(dict.fromkeys(row.label for row in pair))))
    return f"<h3>{escape(heading(metric))}</h3>{score_table(head, rows)}"


def _tr(row: Row, cells: str, label: str) -> str:
    kind = ' class="baseline"' if row.baseline else ""
    return f"<tr{kind}><th>{escape(label)}</th>{cells}</tr>"


def _cell(board: Board, row: Row, metric: Metric, mode: str, first: bool = False) -> str:
    cell = row.cells[metric.key, mode]
    mean, plus, deviation = text_of(cell, column_decimals(board, metric), row.baseline).partition(" ± ")
    star = ' <span title="best of the column">★</span>' if cell.best else ""
    shown = f"<b>{mean}</b>" if cell.best else mean
    # Two cells, so that means stand under means.
    return f'<td{_gap(first)}>{shown}</td><td class="sd">{plus[1:]}{deviation}{star}</td>'


def _gap(first: bool) -> str:
    return ' class="gap"' if first else ""


def _announced(board: Board) -> str:
    """What the evaluations counted and a reader should know, and where a table has less than it seems."""
    notes = []
    for (group, which, seed), result in board.results.items():
        counts = dict(result.data["announced"])
        valueless = counts.pop("frames_without_value")
        found = [f"{number:,} {STATUS_TEXT[name]}" for name, number in counts.items() if number]
        found += [f"{number:,} frames without a value for {name}" for name, number in valueless.items() if number]
        if found:
            notes.append(f"{group} seed {seed}, {which}: {'; '.join(found)}")
    if any(cell.undefined for row in board.rows for cell in row.cells.values()):
        notes.append("n/a: undefined, for want of an event at the threshold or because a prediction is not finite.")
    absent: dict[str, list[str]] = {}
    for row in board.rows:
        for seed, reason in row.missing.items():
            absent.setdefault(f"{row.group}: seed {seed} is missing, {reason}", []).append(row.which)
    notes += [text if len(where) == len(CHECKPOINTS) else f"{text} ({where[0]})" for text, where in absent.items()]
    return f'<p class="small">{"<br>".join(map(escape, notes))}</p>' if notes else ""


def _leads(sweep: Sweep, board: Board, suffix: str) -> str:
    which = next((name for name in CHECKPOINTS if any(row.seeds for row in board.rows_at(name))), CHECKPOINTS[0])
    svg = figures.lead_figure(board, sweep.groups, which)
    if svg is None:
        return ""
    caption = (
        f"{CHECKPOINT_TITLES[which]}: mean over seeds, band ± one sample standard deviation. "
        "Dotted: repeat the last frame."
    )
    drawn = chart(svg, "Scores over lead time, one line per model", caption)
    return f'<h2 id="leads{suffix}">Scores over lead time</h2>{drawn}'
