"""Scores of the kept forecasts and their baselines by lead time, as evaluations compute them (toolkit/evaluate).

RMSE: root of the mean squared error over frames, in the store's unit. CSI: counts are pooled over forecasts before the
division. FSS (Roberts & Lean 2008): sums over forecasts, in a square of `window` pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shards.manifest import Codes, Scale
from toolkit.evaluate.diagrams import NEIGHBOURHOOD
from toolkit.evaluate.protocols import Protocol
from toolkit.evaluate.scoring import score_batch
from toolkit.evaluate.table import INFLOW, MISSING, ScoreTable, at
from toolkit.forecast.page.fields import FORECAST, METHODS, Fields
from toolkit.forecast.page.folder import Columns, Entry

Curves = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Scorer:
    """How forecasts are scored.

    Attributes:
        lead: lead times T.
        thresholds: of events, in the store's unit.
        side: the shorter side of a frame, pixels.
    """

    protocol: Protocol
    scale: Scale
    lead: int
    thresholds: tuple[float, ...]
    side: int

    @property
    def window(self) -> int:
        """The side of the squares of FSS: 15 pixels, for smaller frames less."""
        return min(NEIGHBOURHOOD, self.side - 1 + self.side % 2)

    def _rules(self) -> Protocol:
        return dataclasses.replace(
            self.protocol, error_reduction="mean", event_pools=(1,), fss_windows=(self.window,), snr=False
        )

    def _table(self, lead: int) -> ScoreTable:
        return ScoreTable("page", lead, ("mse",), self.thresholds, (1,), (self.window,), inflow=True)

    def score(self, fields: Fields, place: int, codes: Codes, seen: NDArray[np.bool_]) -> dict[str, Columns]:
        """Return the columns of one lead time by method.

        Args:
            place: of the lead time, from 0.
            codes, seen: of the observation, codes and bool [C, H, W].
        """
        table, found = self._table(1), dict[str, Columns]()
        excluded = fields.excluded[place]
        truth, left_out = (torch.from_numpy(each)[None, None] for each in (codes, excluded | ~seen))
        for method, values in fields.values.items():
            predicted = torch.from_numpy(values[place])[None, None]
            made = score_batch(predicted, truth, self.scale, self._rules(), self.thresholds, inflow=left_out)
            made[INFLOW], made[MISSING] = np.array([[(excluded & seen).sum()]]), np.array([[(~seen).sum()]])
            cells = {name: float(made[name][0, 0]) for name in (*table.averaged, *table.counted)}
            found[method] = {name: None if math.isnan(value) else value for name, value in cells.items()}
        return found

    def curves(self, entries: Sequence[Entry], method: str) -> Curves:
        """Return `rmse` in the store's unit, `csi@K` and `fss@K/WINDOW` by lead time, of all forecasts together."""
        table = self._table(self.lead)
        kinds = {name: np.nan if name == "mse" else 0.0 for name in table.averaged} | dict.fromkeys(table.counted, 0)
        for index, entry in enumerate(entries):
            columns = {name: np.full((1, self.lead), empty) for name, empty in kinds.items()}
            for lead, cells in entry.scores.get(method, {}).items():
                for name, value in cells.items():
                    columns[name][0, int(lead) - 1] = np.nan if value is None else value
            table.update([index], [entry.stamp], [None], columns)
        leads = table.compute().leads
        span = abs(self.scale.gain) * self.scale.max_code
        wanted = [at(name, k, side) for name, side in (("csi", 1), ("fss", self.window)) for k in self.thresholds]
        rmse = [None if value is None else span * value for value in leads["rmse"]]
        return {"rmse": rmse, **{name: leads[name] for name in wanted}}

    def verified(self, entries: Iterable[Entry]) -> list[int]:
        """Return the number of verified forecasts by lead time."""
        scored = [entry.scored() for entry in entries]
        return [sum(lead in found for found in scored) for lead in range(1, self.lead + 1)]

    def excluded(self, entries: Iterable[Entry]) -> int:
        """Return the number of observed pixels that are not scored."""
        every = (cells for entry in entries for cells in entry.scores.get(FORECAST, {}).values())
        return int(sum(cells.get(INFLOW) or 0 for cells in every))

    def is_sound(self, entry: Entry) -> bool:
        """Return whether the scores of a record have the form that `score` gives them."""
        table, leads = self._table(1), {str(lead) for lead in range(1, self.lead + 1)}
        names = {*table.averaged, *table.counted}
        return set(entry.scores) in ({*METHODS}, set()) and all(
            isinstance(of, dict)
            and set(of) == set(entry.scores[FORECAST]) <= leads
            and all(isinstance(cells, dict) and set(cells) == names for cells in of.values())
            and all(value is None or type(value) in (int, float) for cells in of.values() for value in cells.values())
            for of in entry.scores.values()
        )
