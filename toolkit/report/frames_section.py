"""Rows of frames: context, truth and every model's prediction of the same sequence, lead times in one column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from html import escape

from shards.manifest import Codes
from toolkit.report.aggregate import Board
from toolkit.report.animation import gif_uri
from toolkit.report.collect import Facts, Sweep
from toolkit.report.figures import time_unit
from toolkit.report.pictures import (
    Samples,
    ScaleFacts,
    chosen_leads,
    columns_for,
    difference_svg,
    difference_uri,
    legend_svg,
    load_samples,
    png_uri,
)
from toolkit.rundir import CHECKPOINTS

SHORT = {"minutes": " min", "seconds": " s", "frames": ""}
Stamp = tuple[str, str]  # lead time, and the hour where there is a clock
Shown = tuple[str, int, str, Samples]  # group, seed, checkpoint and what of an ensemble, its frames


def render(sweep: Sweep, board: Board) -> str:
    """The section's HTML below its heading."""
    shown = _choose(sweep, board)
    if not shown:
        return "<p>The evaluations kept no frames; set eval.show to a number above 0 and score again.</p>"
    first = shown[0][3]
    height, width = next(iter(first.truth.values())).shape[-2:]
    columns = columns_for(height, width)
    horizon = int(board.facts["horizon"])
    some = "" if horizon <= columns else f" {columns} of {horizon} lead times are shown."
    parts = [
        "<p>The first sequences of each mode, the same for all models; of each model its first seed, best-validation "
        "checkpoint where there is one. MSE is the sequence's mean over lead times. Of each mode's first sequence "
        f"there are the differences too, and an animation.{some}</p>",
        legend_svg(first.scale),
        difference_svg(first.scale),
    ]
    modes: dict[str, list[str]] = {}
    for key in first.keys:
        modes.setdefault(first.mode[key], []).append(key)
    for mode, keys in modes.items():
        parts.append(f"<h3>{escape(mode)}</h3>" if mode else "")
        parts += [_sequence(key, shown, columns, board.facts, place == 0) for place, key in enumerate(keys)]
    return "\n".join(parts)


def _choose(sweep: Sweep, board: Board) -> list[Shown]:
    """For every group the lowest seed with frames, at the best checkpoint rather than the last."""
    chosen: list[Shown] = []
    for group in sweep.groups:
        candidates = [
            (CHECKPOINTS.index(which), seed, result)
            for (owner, which, seed), result in board.results.items()
            if owner == group and result.samples is not None
        ]
        if candidates:
            place, seed, result = min(candidates, key=lambda candidate: candidate[:2])
            assert result.samples is not None
            how = f", {ensemble['label']}" if (ensemble := result.data.get("ensemble")) else ""
            chosen.append((group, seed, CHECKPOINTS[place] + how, load_samples(result.samples)))
    return chosen


def _sequence(key: str, shown: Sequence[Shown], columns: int, facts: Facts, whole: bool) -> str:
    """One sequence; `whole`: with the differences to the truth, and as an animation."""
    first = shown[0][3]
    context, truth, start = first.context[key], first.truth[key], first.time[key]
    stamps = [
        (_time(place - len(context) + 1, facts), _clock(start, place, facts))
        for place in range(len(context) + len(truth))
    ]
    before = chosen_leads(len(context), columns)
    after = chosen_leads(len(truth), columns)
    rows = [
        _labels([stamps[place] for place in before], columns),
        _row("context", "", context, before, first.scale, columns, key),
        _labels([stamps[len(context) + place] for place in after], columns, later=True),
        _row("truth", "", truth, after, first.scale, columns, key),
    ]
    panels = {"truth": truth}
    for group, seed, which, samples in shown:
        note = f"seed {seed}, {which}"
        if key not in samples.prediction:
            rows.append(
                f'<tr><th class="who">{escape(group)}<span>{note}: kept no frames of this sequence</span></th></tr>'
            )
            continue
        note += f" · MSE {samples.mse[key]:.4g}"
        panels[group] = samples.prediction[key]
        rows.append(_row(group, note, panels[group], after, samples.scale, columns, key))
        if whole:
            rows.append(_row("", "less truth", panels[group], after, samples.scale, columns, key, truth))
    moving = _animation(key, context, panels, stamps, first.scale) if whole else ""
    began = f", begins {start.replace('T', ' ').removesuffix('Z')} UTC" if start else ""
    return (
        f'<figure class="sequence"><figcaption class="small">sequence <code>{escape(key)}</code>{began}</figcaption>'
        f'<div class="wide"><table class="frames">{"".join(rows)}</table></div>{moving}</figure>'
    )


def _animation(
    key: str, context: Codes, panels: Mapping[str, Codes], stamps: Sequence[Stamp], scale: ScaleFacts
) -> str:
    labels = [", ".join(part for part in (lead, f"{clock} UTC" if clock else "") if part) for lead, clock in stamps]
    image = f'<img alt="animation of {escape(key)}" src="{gif_uri(context, panels, labels, scale)}">'
    return f'<details class="moving"><summary>Animation</summary>{image}</details>'


def _labels(stamps: Sequence[Stamp], columns: int, later: bool = False) -> str:
    texts = [f"{lead}<br>{clock}" if clock else lead for lead, clock in stamps]
    cells = "".join(f"<th>{text}</th>" for text in texts) + "<th></th>" * (columns - len(texts))
    return f'<tr{" class=later" if later else ""}><th class="who"></th>{cells}</tr>'


def _row(
    name: str,
    note: str,
    frames: Codes,
    places: Sequence[int],
    scale: ScaleFacts,
    columns: int,
    key: str,
    truth: Codes | None = None,
) -> str:
    """Frames side by side; with `truth` what they differ by."""
    shown = {
        place: png_uri(frames[place], scale) if truth is None else difference_uri(frames[place], truth[place], scale)
        for place in places
    }
    images = "".join(
        f'<td><img alt="{escape(name or note)}, {escape(key)}, frame {place + 1}" src="{uri}"></td>'
        for place, uri in shown.items()
    )
    small = f"<span>{escape(note)}</span>" if note else ""
    empty = "<td></td>" * (columns - len(places))
    return f'<tr><th class="who">{escape(name)}{small}</th>{images}{empty}</tr>'


def _time(frames: int, facts: Facts) -> str:
    """`+3`, `−2`, `0`; with a clock `+15 min`."""
    length, unit = time_unit(facts)
    value = frames * length
    sign = "+" if value > 0 else "−" if value < 0 else ""
    return f"{sign}{abs(value):g}" + SHORT[unit]


def _clock(start: str, frame: int, facts: Facts) -> str:
    """The hour of a frame, UTC, where the store knows when the sequence began."""
    if not start:
        return ""
    begin = datetime.fromisoformat(start.removesuffix("Z"))
    return f"{begin + timedelta(seconds=float(facts['step_seconds']) * frame):%H:%M}"
