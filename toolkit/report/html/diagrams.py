"""Verification diagrams: reliability, ROC, FSS over scale and power spectra, one line per model.

Definitions: toolkit/evaluate/diagrams.py.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from numpy.typing import NDArray
from PIL import Image

from toolkit.report.data.aggregate import PERSISTENCE, Board
from toolkit.report.data.collect import Facts
from toolkit.report.data.tables import checkpoint_title
from toolkit.report.html.figures import (
    BASELINE_COLOUR,
    COLOURS,
    MARKERS,
    STYLE,
    Chart,
    Look,
    chart,
    grid,
    legend,
    row_looks,
)  # fmt: skip
from toolkit.wording import exact_number

OBSERVATION = Look("#000000", "-", "")
BASELINE = Look(BASELINE_COLOUR, ":", "")
SAME = {"color": "#999999", "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 0}
CAPTION = (
    "Over all lead times. Reliability: dashed is perfect, dotted the frequency of the event; bins of less than 10 "
    "pixels are left out. ROC: area below the line in brackets; dashed is no skill. FSS: dotted is the useful skill of "
    "Roberts and Lean (2008), 1/2 + frequency / 2. Power spectra: mean over frames; a forecast below the observation "
    "is too smooth."
)


def diagrams(board: Board, groups: Sequence[str]) -> list[Chart]:
    """Return one figure per threshold, of each row's first seed that has diagrams and of persistence; none without any.

    They are of the first checkpoint for which there are any.
    """
    which, found = next(((name, found) for name in board.checkpoints if (found := _results(board, name))), ("", {}))
    drawn = {label: data["diagrams"] for label, data in found.items() if data}
    if not drawn:
        return []
    style = {**row_looks([row for row in board.rows_at(which) if row.seeds], groups), PERSISTENCE: BASELINE}
    baseline = next((data["persistence"].get("diagrams") for data in found.values() if data), None)
    lines = {**drawn, **({PERSISTENCE: baseline} if baseline else {})}
    ways = "; ".join(
        f"{', '.join(name for name in lines if lines[name]['probability'] == way)}: {way}"
        for way in dict.fromkeys(made["probability"] for made in lines.values())
    )
    absent = ", ".join(label for label in found if label not in drawn)
    missing = f" Without diagrams, because not finite or evaluated before there were any: {absent}." if absent else ""
    caption = f"{checkpoint_title(board, which)}, first seed that has them. Probability: {ways}. {CAPTION}{missing}"
    with matplotlib.rc_context(STYLE):
        made = []
        for place, threshold in enumerate(board.facts["thresholds"]):
            event = f"event ≥ {exact_number(threshold)} {unit_of(board.facts)}".rstrip()
            figure = draw(lines, style, place, event)
            made.append(chart(figure, f"Verification diagrams, {event}", f"{event[0].upper()}{event[1:]}. {caption}"))
        return made


def _results(board: Board, which: str) -> dict[str, Facts | None]:
    """Return for each row with scores the result of its first seed with diagrams, or None; empty if no row has any."""
    found: dict[str, Facts | None] = {}
    for row in board.rows_at(which):
        of_seeds = [board.results[row.label, which, seed].data for seed in row.seeds]
        if of_seeds:
            found[row.label] = next((data for data in of_seeds if data.get("diagrams")), None)
    return found if any(found.values()) else {}


def png(lines: Mapping[str, Any], unit: str) -> bytes:
    """Return the panels of all thresholds below each other as a PNG; forecast and persistence have fixed styles."""
    style = {"forecast": Look(COLOURS[0], "-", MARKERS[0]), "persistence": BASELINE}
    thresholds = next(iter(lines.values()))["thresholds"]
    pages = []
    with matplotlib.rc_context(STYLE):
        for place, threshold in enumerate(thresholds):
            out = io.BytesIO()
            event = f"event ≥ {exact_number(threshold)} {unit}".rstrip()
            draw(lines, style, place, event).savefig(out, format="png", dpi=110)
            pages.append(Image.open(out).convert("RGB"))
    whole = Image.new("RGB", (pages[0].width, sum(page.height for page in pages)))
    for number, page in enumerate(pages):
        whole.paste(page, (0, sum(before.height for before in pages[:number])))
    packed = io.BytesIO()
    whole.save(packed, format="PNG", optimize=True)
    return packed.getvalue()


def unit_of(facts: Facts) -> str:
    """Return the unit of a result, "" for a bare number."""
    unit = str(facts.get("unit", "1"))
    return "" if unit == "1" else unit


def draw(lines: Mapping[str, Any], style: Mapping[str, Look], place: int, event: str) -> Figure:
    """Draw the four panels of one threshold.

    Args:
        lines: what `Diagrams.compute` gives, by label.
        place: of the threshold.
        event: the threshold in words, the title of the first panels.
    """
    figure, axes = grid(4, row=2, panel=(4.6, 3.4))
    first = next(iter(lines.values()))
    titles = (f"Reliability, {event}", f"ROC, {event}", f"FSS, {event}", "Radially averaged power spectrum")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
    reliability, roc, fss, spectrum = axes
    frequency = first["overall"]["frequency"][place]
    for label, made in lines.items():
        curves, look = made["overall"], style[label]
        found = curves["reliability"][place]
        _line(reliability, found["forecast"], found["observed"], look, label, connect=True)
        found = curves["roc"][place]
        area = "" if found["area"] is None else f" ({found['area']:.3f})"
        # From (1, 1) to (0, 0): the area's own line.
        _line(roc, [1.0, *found["pofd"], 0.0], [1.0, *found["pod"], 0.0], look, f"{label}{area}")
        _line(fss, made["scales"], curves["fss"][place], look, label)
        _line(spectrum, made["wavelengths"], curves["spectrum"]["forecast"], look, label, marker="")
    _line(spectrum, first["wavelengths"], first["overall"]["spectrum"]["observation"], OBSERVATION, "observation")
    _finish(axes, frequency)
    legend(figure, spectrum)
    return figure


def _line(
    axis: Axes,
    x: Sequence[float | None],
    y: Sequence[float | None],
    look: Look,
    label: str,
    connect: bool = False,
    marker: str | None = None,
) -> None:
    """Draw a line, without its undefined points; `connect`: across them."""
    points: NDArray[np.float64] = np.array([x, y], dtype=np.float64)
    if connect:
        points = points[:, ~np.isnan(points).any(0)]
    shape = look.marker if marker is None else marker
    axis.plot(
        *points, color=look.colour, linestyle=look.dashes, marker=shape, markersize=3.6, linewidth=1.6, label=label
    )


def _finish(axes: Sequence[Axes], frequency: float | None) -> None:
    reliability, roc, fss, spectrum = axes
    for axis, labels in (
        (reliability, ("forecast probability", "observed frequency")),
        (roc, ("POFD", "POD")),
    ):
        axis.plot([0, 1], [0, 1], **SAME)  # type: ignore[arg-type]
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=labels[0], ylabel=labels[1])
    handles, names = roc.get_legend_handles_labels()
    roc.legend(handles, names, loc="lower right", fontsize=7.5)
    if frequency is not None:
        reliability.axhline(frequency, color="#777777", linewidth=0.9, linestyle=":")
        fss.axhline(0.5 + frequency / 2, color="#777777", linewidth=0.9, linestyle=":")
    fss.set(xscale="log", ylim=(-0.02, 1.02), xlabel="side of the neighbourhood (pixels)")
    spectrum.set(xscale="log", yscale="log", xlabel="wavelength (pixels)", ylabel="power")
    spectrum.invert_xaxis()
    for axis, ticks in ((fss, (1, 3, 7, 15, 31, 63, 127)), (spectrum, (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024))):
        low, high = sorted(axis.get_xlim())
        axis.set_xticks([tick for tick in ticks if low <= tick <= high])
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
