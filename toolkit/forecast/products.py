"""Products of a forecast: the probability of reaching thresholds, and the accumulated precipitation.

    probability     share of values at or above a threshold: over the members of an ensemble, and over a square of
                    `neighbourhood` pixels around each pixel (Theis et al., Meteorol. Appl. 12, 2005; both: Schwartz et
                    al., Wea. Forecasting 25, 2010), without the missing pixels of the square
    accumulation    sum of rain rate x time step over the lead times, mm, of each member. Each forecast frame stands for
                    the time step that ends at its valid time. Reflectivity becomes a rate by Z = a R^b; a rate below
                    `DRY` counts as 0

A pixel that is missing in the forecast is missing in the probability of that time, and in the accumulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shards.manifest import Scale, Values
from toolkit.errors import ConfigError
from toolkit.evaluate.check import threshold_codes
from toolkit.evaluate.diagrams import NEIGHBOURHOOD
from toolkit.evaluate.metrics import BoxSums
from toolkit.evaluate.scoring import threshold_level
from toolkit.forecast.make import Forecast
from toolkit.train.check import RATES

MARSHALL_PALMER = (200.0, 1.6)
DRY = 0.1  # mm/h


@dataclass(frozen=True)
class Products:
    """What to derive of a forecast.

    Attributes:
        thresholds: of the probabilities, in the store's unit; none: no probability.
        neighbourhood: side of the square, an odd number of pixels; None: 1 for an ensemble, else `NEIGHBOURHOOD`.
        accumulation: whether to accumulate.
        zr: a and b of Z = a R^b, for reflectivity.
    """

    thresholds: tuple[float, ...] = ()
    neighbourhood: int | None = None
    accumulation: bool = False
    zr: tuple[float, float] = MARSHALL_PALMER

    def check(self, scale: Scale, step_seconds: float | None) -> None:
        """Check that forecasts of a scale have these products.

        Raises:
            ConfigError: a threshold outside of the scale, an even neighbourhood, a quantity that doesn't accumulate.
        """
        threshold_codes(self.thresholds, scale, "--probability")
        if self.neighbourhood is not None and self.neighbourhood % 2 == 0:
            raise ConfigError(
                f"--neighbourhood {self.neighbourhood}: a square is centred on a pixel: use {self.neighbourhood + 1}"
            )
        if not self.accumulation:
            return
        if scale.physical_unit != "dBZ" and scale.physical_unit not in RATES:
            raise ConfigError(
                f"--accumulation: the forecast is {scale.quantity} in {scale.physical_unit}, which has no sum in mm: "
                "use a model of reflectivity (dBZ) or of a rain rate (mm/h)"
            )
        if step_seconds is None:
            raise ConfigError("--accumulation: the archive has no time stamps, so the time step is not known")

    def side(self, members: int) -> int:
        """Return the side of the neighbourhood for an ensemble size."""
        return self.neighbourhood or (1 if members > 1 else NEIGHBOURHOOD)


def probability(forecast: Forecast, threshold: float, side: int) -> NDArray[np.float32]:
    """Return the probability that a value reaches a threshold in the store's unit, [T, C, H, W], NaN where missing."""
    level = threshold_level(threshold, threshold_codes([threshold], forecast.scale)[0], forecast.scale)
    reached = (forecast.units >= level).sum(0, dtype=np.int32)
    reached[forecast.missing] = 0
    events, seen = (BoxSums(torch.from_numpy(counts), side).at(side) for counts in (reached, ~forecast.missing))
    found = (events.double() / (len(forecast.units) * seen.clamp(min=1))).numpy()
    found[forecast.missing] = np.nan
    return np.asarray(found, dtype=np.float32)


def accumulation(forecast: Forecast, zr: Sequence[float]) -> Values:
    """Return the precipitation of all lead times together, float32 [S, C, H, W] in mm, NaN where missing."""
    assert forecast.step_seconds is not None
    rate = rain_rate(forecast.values, forecast.scale.physical_unit, zr)
    return np.asarray(rate.sum(1) * forecast.step_seconds / 3600, dtype=np.float32)


def rain_rate(values: Values, unit: str, zr: Sequence[float]) -> NDArray[np.float64]:
    """Return rain rates in mm/h of reflectivities in dBZ or of rates; what is below `DRY` is 0, NaN stays."""
    exact = values.astype(np.float64)
    a, b = zr
    rate = (10 ** (exact / 10) / a) ** (1 / b) if unit == "dBZ" else exact
    return np.where(rate < DRY * (1 - 1e-6), 0.0, rate)
