"""Render index.html of a nowcast page: one file beside its pictures, readable from a folder or any web server."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import matplotlib
import numpy as np

from shards.colours import MISSING_COLOUR
from shards.manifest import Scale
from toolkit.forecast.page.fields import FORECAST, METHODS
from toolkit.forecast.page.folder import FORECASTS, Entry
from toolkit.forecast.page.pictures import probability_key
from toolkit.forecast.page.scores import Curves, Scorer
from toolkit.report.html.figures import (
    BASELINE_COLOUR,
    COLOURS,
    DASHES,
    MARKERS,
    STYLE,
    Chart,
    chart,
    grid,
    label_lead_times,
    legend,
    time_unit,
)
from toolkit.report.html.page import fill
from toolkit.report.html.pictures import chosen_leads, frame_key
from toolkit.table import Row, Table
from toolkit.wording import count, exact_number

TICKS = 6
TITLES = {FORECAST: "forecast", "persistence": "persistence", "optical_flow": "optical flow"}


@dataclass(frozen=True)
class Line:
    """A row of pictures: path, and alternative text; no path where there is none."""

    title: str
    pictures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Shown:
    """A forecast on the page.

    Attributes:
        times: valid time and lead time of each column.
        verified: how many lead times are.
    """

    title: str
    data: str
    times: Sequence[tuple[str, str]]
    lines: Sequence[Line]
    verified: str


@dataclass(frozen=True)
class Looks:
    """What all forecasts of a page have in common.

    Attributes:
        model: title of the model.
        mean: whether the forecast is an ensemble mean.
        side: of the neighbourhood of probabilities, pixels.
    """

    quantity: str
    unit: str
    model: str
    step_seconds: float
    mean: bool
    side: int

    @property
    def probability(self) -> str:
        """Return what P is."""
        parts = ["members"] * self.mean
        parts += [f"the {self.side} x {self.side} pixels around each pixel"] * (self.side > 1)
        if not parts:
            return "1 where the forecast is at or above the threshold, 0 elsewhere"
        return f"share of {' and of '.join(parts)} at or above the threshold"


def moment(stamp: str) -> datetime:
    """Return the time of a stamp."""
    return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ")


def shown(entry: Entry, present: set[str], looks: Looks, newest: datetime, full: bool) -> Shown:
    """Return a forecast as it is shown.

    Args:
        present: names of the pictures that are there.
        newest: time of the newest frame.
        full: also members and probabilities.
    """
    reference, step = moment(entry.stamp), timedelta(seconds=looks.step_seconds)
    times = [(f"{reference + lead * step:%H:%M}", f"+{_lead(lead, looks)}") for lead in entry.shown]
    rows = [("observation", "-observation"), ("ensemble mean" if looks.mean else "forecast", "-forecast")]
    if full:
        rows += [(f"member {number}", f"-member{number}") for number in range(1, entry.members + 1)]
        rows += [
            (f"P(≥ {exact_number(k)} {looks.unit})".replace(" )", ")"), f"-probability{number}")
            for number, k in enumerate(entry.thresholds, 1)
        ]
    lines = []
    for title, what in rows:
        names = [(lead, entry.name(f"{what}-{lead:02d}.png")) for lead in entry.shown]
        cells = [
            (f"{FORECASTS}/{name}", f"{title}, {clock} UTC, {after}")
            if name in present
            else ("", "no frame" if reference + (lead - 0.5) * step < newest else "not yet observed")
            for (lead, name), (clock, after) in zip(names, times, strict=True)
        ]
        if any(path for path, _ in cells) or not full:
            lines.append(Line(title, cells))
    done = count(len(entry.scored()), "lead time")
    return Shown(f"{reference:%Y-%m-%d %H:%M} UTC", f"{FORECASTS}/{entry.name('.nc')}", times, lines, done)


def _lead(steps: int, looks: Looks) -> str:
    size, unit = time_unit({"step_seconds": looks.step_seconds})
    return f"{steps * size:g} {'min' if unit == 'minutes' else unit}"


def score_chart(curves: dict[str, Curves], looks: Looks, scorer: Scorer) -> Chart | None:
    """Draw the scores over lead time, a panel for each; None while nothing is verified."""
    names = [name for name in curves[FORECAST] if any(_known(each[name]) for each in curves.values())]
    if not names:
        return None
    facts = {"step_seconds": looks.step_seconds}
    leads = np.arange(1, scorer.lead + 1) * time_unit(facts)[0]
    with matplotlib.rc_context(STYLE):
        figure, axes = grid(len(names), row=min(3, len(names)))
        for place, (axis, name) in enumerate(zip(axes, names, strict=True)):
            for number, method in enumerate(METHODS):
                values = np.array(curves[method][name], dtype=np.float64)  # None is NaN
                colour = COLOURS[0] if method == FORECAST else (BASELINE_COLOUR if number == 1 else COLOURS[1])
                style: dict[str, Any] = {"linewidth": 1.7, "marker": MARKERS[number], "markersize": 3.6}
                axis.plot(leads, values, color=colour, linestyle=DASHES[number], label=TITLES[method], **style)
            axis.set_title(heading(name, looks.unit))
            if name != "rmse":
                axis.set_ylim(min(0.0, axis.get_ylim()[0]), 1.02)
            label_lead_times(axis, facts)
            axis.set_xticks(leads[chosen_leads(scorer.lead, TICKS)])
            if place == 0:
                axis.set_ylim(bottom=0)
                legend(figure, axis)
        caption = (
            "CSI and FSS: higher is better, 1 is perfect; RMSE: lower is better. FSS in a square of "
            f"{scorer.window} pixels."
        )
        return chart(figure, "Scores of forecast, persistence and optical flow over lead time", caption)


def heading(name: str, unit: str) -> str:
    """Return the title of a score: `RMSE (dBZ)`, `CSI ≥ 30 dBZ`."""
    if name == "rmse":
        return f"RMSE ({unit})" if unit else "RMSE"
    score, _, at = name.partition("@")
    return f"{score.upper()} ≥ {at.partition('/')[0]} {unit}".rstrip()


def score_table(curves: dict[str, Curves], verified: Sequence[int], looks: Looks) -> Table:
    """Return the scores as a table, a row for each lead time."""
    names = list(curves[FORECAST])
    groups = [("", 2), *((heading(name, looks.unit), len(METHODS)) for name in names)]
    header = ["Lead time", "Forecasts", *(TITLES[method] for _ in names for method in METHODS)]
    rows = []
    for place, number in enumerate(verified):
        cells = [_lead(place + 1, looks), f"{number:,}"]
        for name in names:
            values = (curves[method][name][place] for method in METHODS)
            cells += [
                "–" if value is None else f"{value:.3g}" if name == "rmse" else f"{value:.3f}" for value in values
            ]
        rows.append(Row(tuple(cells)))
    return Table(header, rows, groups)


def _known(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


def nowcast_page(scale: Scale, looks: Looks, **values: object) -> str:
    """Return the complete page.

    Args:
        values: the other variables of the template.
    """
    key = dataclasses.replace(frame_key(scale), missing=MISSING_COLOUR)  # also of a scale without a code for it
    return fill("nowcast.html", key=key, probabilities=probability_key(), looks=looks, **values)
