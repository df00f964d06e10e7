"""The section of one board: tables, notes, curves over lead time, ensembles and frames."""

from __future__ import annotations

from typing import Any

from toolkit.report.data.aggregate import Board
from toolkit.report.data.collect import Sweep
from toolkit.report.data.tables import heading, missing_notes, mode_table, score_table, seed_table
from toolkit.report.data.verdict import few_sequences
from toolkit.report.html.diagrams import diagrams
from toolkit.report.html.ensembles import ensembles
from toolkit.report.html.figures import lead_figure
from toolkit.report.html.frames import frames
from toolkit.table import Table
from toolkit.wording import count

STATUS_TEXT = {
    "exact_frames": ("frame", "predicted exactly (PSNR capped)", "frames"),
    "nonfinite_frames": ("frame", "with a NaN or infinite prediction: all scores that include it are n/a", "frames"),
    "missing_pixels": ("missing pixel", "excluded", "missing pixels"),
    "inflow_pixels": ("inflow pixel", "excluded", "inflow pixels"),
    "nonfinite_members": (
        "frame of a member",
        "with a NaN or infinite value: the scores of the ensemble are n/a",
        "frames of members",
    ),
}


INFLOW_RULE = (
    "Pixels that flow in from outside the observed area are not scored: those that the optical flow of the context "
    "leads back to outside, the same ones for every model."
)


def board_section(sweep: Sweep, board: Board, number: int, title: str) -> dict[str, Any]:
    """Return the values of `board.html`.

    Args:
        number: index of the board on the page; facts of the first one are in the page header.
        title: what tells it from other boards (`board_titles`); empty if there are none.
    """
    return {
        "suffix": f"-{number + 1}" if number else "",
        "name": title and f": {title}",
        "facts": board_facts(board),
        "scores": score_table(board),
        "others": score_table(board, headline=False) if not all(metric.headline for metric in board.metrics) else None,
        "seeds": seed_table(board),
        "few": few_sequences(board),
        "notes": _notes(board),
        "modes": _mode_tables(board, headline=True),
        "other_modes": _mode_tables(board, headline=False),
        "leads": lead_figure(board, sweep.groups, board.first_scored),
        "ensembles": ensembles(board, sweep.groups),
        "diagrams": diagrams(board, sweep.groups),
        "frames": frames(board),
    }


def _mode_tables(board: Board, headline: bool) -> list[tuple[str, Table]]:
    """Return a table of each score by mode; none where a single mode repeats the scores over all sequences."""
    if len(board.modes) < 2 and set(board.mode_counts.values()) <= {board.facts["n"]}:
        return []
    return [(heading(metric), mode_table(board, metric)) for metric in board.metrics if metric.headline == headline]


def board_facts(board: Board) -> dict[str, Any]:
    """Return what was evaluated, and every choice of the protocol."""
    facts = board.facts
    height, width = facts["frames"][1:]
    modes = ", ".join(f"{mode}: {number:,}" for mode, number in board.mode_counts.items())
    sequences = count(facts["n"], "sequence")
    sequences += f" (only the first {facts['limit']:,})" if facts.get("limit") else ""
    sequences += f" ({modes})" if modes else ""
    excluded = [INFLOW_RULE] if facts.get("exclude_inflow") else []
    rules = {f"{row.group}: {row.ensemble['text']}": None for row in board.rows if row.ensemble}
    return {
        "store": facts["store"],
        "split": facts["split"],
        "data": f"{sequences}, {height}×{width} pixels, {facts['context']} → {facts['horizon']} frames",
        "protocol": facts["protocol"],
        "rules": [*facts["protocol"].get("text", []), *excluded, *rules],
    }


def _notes(board: Board) -> list[str]:
    """Return the notes: counts reported by the evaluations, undefined scores and missing seeds."""
    notes = []
    for (group, which, seed), result in board.results.items():
        counts = dict(result.data["announced"])
        valueless = counts.pop("frames_without_value")
        found = []
        for name, number in counts.items():
            one, what, many = STATUS_TEXT[name]
            found += [f"{count(number, one, many)} {what}"] if number else []
        found += [
            f"{count(number, 'frame')} without a value for {name}" for name, number in valueless.items() if number
        ]
        if found:
            notes.append(f"{group} seed {seed}, {which}: {'; '.join(found)}")
    if any(score.undefined for row in board.rows for score in row.cells.values()):
        notes.append("n/a: undefined, because no event reached the threshold or a prediction is not finite.")
    return notes + missing_notes(board)
