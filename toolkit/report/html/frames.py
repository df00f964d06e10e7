"""Rows of frames: context, observation and the prediction of every model, with equal lead times in one column."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from shards.manifest import Codes, Scale
from toolkit.report.data.aggregate import Board
from toolkit.report.data.collect import Facts
from toolkit.report.data.samples import Sample, load_samples
from toolkit.report.html.animation import gif_uri
from toolkit.report.html.figures import time_unit
from toolkit.report.html.pictures import (
    chosen_leads,
    columns_for,
    difference_key,
    difference_uri,
    frame_key,
    png_uri,
)  # fmt: skip
from toolkit.rundir import CHECKPOINTS

SHORT = {"minutes": " min", "seconds": " s", "frames": ""}
Shown = tuple[str, int, str, dict[str, Sample], Scale]  # label, seed, checkpoint, frames, scale


def frames(board: Board) -> dict[str, Any] | None:
    """Return the values of `frames.html`; None if no evaluation kept frames."""
    shown = _choose(board)
    if not shown:
        return None
    *_, first, scale = shown[0]
    height, width = next(iter(first.values())).truth.shape[-2:]
    columns, horizon = columns_for(height, width), int(board.facts["horizon"])
    modes: dict[str, list[dict[str, Any]]] = {}
    for key, sample in first.items():
        sequences = modes.setdefault(sample.mode, [])
        sequences.append(_sequence(key, shown, columns, board.facts, detailed=not sequences))
    return {
        "columns": columns,
        "some": "" if horizon <= columns else f"{columns} of {horizon} lead times are shown.",
        "keys": [frame_key(scale), difference_key(scale)],
        "modes": modes,
    }


def _choose(board: Board) -> list[Shown]:
    """Choose for every row the best checkpoint (or else the last), and the lowest seed with frames."""
    chosen: list[Shown] = []
    for label in dict.fromkeys(row.label for row in board.rows):
        candidates = [
            (CHECKPOINTS.index(which), seed, result)
            for (owner, which, seed), result in board.results.items()
            if owner == label and result.samples is not None
        ]
        if candidates:
            place, seed, result = min(candidates, key=lambda candidate: candidate[:2])
            assert result.samples is not None
            chosen.append((label, seed, CHECKPOINTS[place], *load_samples(result.samples)))
    return chosen


def _sequence(key: str, shown: Sequence[Shown], columns: int, facts: Facts, detailed: bool) -> dict[str, Any]:
    """Return the values of one sequence; `detailed`: with errors and an animation."""
    *_, first, own_scale = shown[0]
    context, truth, start = first[key].context, first[key].truth, first[key].time
    stamps = [
        (_time(place - len(context) + 1, facts), _clock(start, place, facts))
        for place in range(len(context) + len(truth))
    ]
    labels = [f"{lead}, {clock} UTC" if clock else lead for lead, clock in stamps]
    before, after = chosen_leads(len(context), columns), chosen_leads(len(truth), columns)
    rows = [_row("observation", "", truth, after, own_scale)]
    panels = {"observation": truth}
    for group, seed, which, samples, scale in shown:
        note = f"seed {seed}, {which}"
        if key not in samples:
            rows.append({"who": group, "note": f"{note}: no frames of this sequence were kept", "images": []})
            continue
        panels[group] = samples[key].prediction
        rows.append(_row(group, f"{note} · MSE {samples[key].mse:.4g}", panels[group], after, scale))
        if detailed:
            rows.append(_row("", "error", panels[group], after, scale, truth))
    return {
        "key": key,
        "began": f", starts {start.replace('T', ' ').removesuffix('Z')} UTC" if start else "",
        "blocks": [
            ([stamps[place] for place in before], [_row("context", "", context, before, own_scale)]),
            ([stamps[len(context) + place] for place in after], rows),
        ],
        "animation": gif_uri(context, panels, labels, own_scale) if detailed else None,
    }


def _row(
    who: str, note: str, codes: Codes, places: Sequence[int], scale: Scale, truth: Codes | None = None
) -> dict[str, Any]:
    """Return a row of frames as (number, image); with `truth` their errors."""
    images = [
        (
            place + 1,
            png_uri(codes[place], scale) if truth is None else difference_uri(codes[place], truth[place], scale),
        )
        for place in places
    ]
    return {"who": who, "note": note, "images": images}


def _time(frames: int, facts: Facts) -> str:
    """Format a lead time: `+3`, `−2`, `0`; with a time unit `+15 min`."""
    length, unit = time_unit(facts)
    value = frames * length
    sign = "+" if value > 0 else "−" if value < 0 else ""
    return f"{sign}{abs(value):g}" + SHORT[unit]


def _clock(start: str, frame: int, facts: Facts) -> str:
    """Format the time of day of a frame, UTC; empty without time stamps, or beyond the calendar."""
    step = facts.get("step_seconds")
    if not start or step is None:
        return ""
    begin = datetime.fromisoformat(start.removesuffix("Z"))
    try:
        return f"{begin + timedelta(seconds=float(step) * frame):%H:%M}"
    except OverflowError:
        return ""
