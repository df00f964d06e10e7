"""The fields of a forecast and its baselines that are verified when the observations arrive, in one .npz."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards.npz import load_npz
from toolkit.atomic import replacing
from toolkit.data.windows import to_unit
from toolkit.errors import CONTENT_ERRORS, ToolkitError
from toolkit.forecast.make import Forecast
from toolkit.models.baselines import OpticalFlow

FORECAST, PERSISTENCE, OPTICAL_FLOW = METHODS = ("forecast", "persistence", "optical_flow")
EXCLUDED = "excluded"


@dataclass(frozen=True)
class Fields:
    """Fields in 0..1 by method, float32 [T, C, H, W].

    Attributes:
        excluded: pixels that one of them does not predict, bool of the same shape: all are scored on the others.
    """

    values: dict[str, NDArray[np.float32]]
    excluded: NDArray[np.bool_]

    def save(self, path: Path) -> None:
        """Write an .npz, atomically."""
        with replacing(path) as file:
            arrays: dict[str, Any] = {**self.values, EXCLUDED: self.excluded}
            np.savez_compressed(file, **arrays)

    @staticmethod
    def load(path: Path) -> Fields:
        """Read what `save` wrote.

        Raises:
            ToolkitError: the file is missing or damaged.
        """
        try:
            arrays = load_npz(path)
            return Fields({name: arrays[name] for name in METHODS}, arrays[EXCLUDED])
        except CONTENT_ERRORS as error:
            raise ToolkitError(f"{path}: can't be read, so this forecast can't be verified ({error})") from error


def fields_of(forecast: Forecast) -> Fields:
    """Return the ensemble mean of a forecast, and persistence and optical flow from its context."""
    lead, observed = forecast.values.shape[1], forecast.context.seen[-1]
    context = to_unit(torch.from_numpy(forecast.context.codes), forecast.scale)[None]
    moved, inflow = OpticalFlow().predict_with_inflow(context, lead, observed=torch.from_numpy(observed)[None])
    values = {
        FORECAST: forecast.units.mean(0),
        PERSISTENCE: np.repeat(context[0, -1:].numpy(), lead, 0),
        OPTICAL_FLOW: moved[0, 0].clamp(0.0, 1.0).numpy(),
    }
    return Fields(values, forecast.missing | inflow[0, 0].numpy() | ~observed)
