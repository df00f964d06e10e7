"""Verify a forecast with observations: scores by lead time, compared with persistence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from shards.manifest import Codes
from toolkit.data.windows import to_unit
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.scoring import new_table, score_batch
from toolkit.forecast.make import Forecast
from toolkit.table import Row, Table

Curves = Mapping[str, list[float | None]]


def scores(forecast: Forecast, truth: Codes) -> tuple[Curves, Curves]:
    """Score forecast and persistence over lead time, with the protocol and thresholds of the run's config.

    Args:
        truth: codes of the observations in the model's scale, uint8 [T', C, H, W]; T' lead times are scored.
    """
    steps = len(truth)
    units = forecast.units.mean(0)[:steps]
    last = to_unit(torch.from_numpy(forecast.context[-1:]), forecast.scale).numpy()
    return _curves(forecast, units, truth), _curves(forecast, np.repeat(last, steps, 0), truth)


def _curves(forecast: Forecast, units: NDArray[np.float32], truth: Codes) -> Curves:
    asked = forecast.trained.config.eval
    protocol = load_protocol(asked.protocol)
    thresholds = protocol.thresholds_for(asked.thresholds)
    table = new_table(protocol, len(truth), thresholds, lpips=False)
    columns = score_batch(
        torch.from_numpy(units)[None], torch.from_numpy(truth)[None], forecast.scale, protocol, thresholds
    )
    table.update([0], ["forecast"], [None], columns)
    return table.compute().leads


def as_text(forecast: Forecast, truth: Codes) -> str:
    """Return a table for the terminal: RMSE in the archive's unit, and CSI at the run's thresholds."""
    model, persistence = scores(forecast, truth)
    pixels = float(np.prod(truth.shape[1:]))
    protocol = load_protocol(forecast.trained.config.eval.protocol)
    unit = forecast.scale.gain * forecast.scale.max_code

    def rmse(curves: Curves, lead: int) -> str:
        mse = curves["mse"][lead]
        if mse is None:
            return "-"
        mean = mse / pixels if protocol.error_reduction == "sum" else mse
        return f"{unit * mean**0.5:.3f}"

    names = sorted(name for name in model if name.startswith("csi@") and "/" not in name)
    columns = [name for head in (f"RMSE {forecast.scale.unit}", *names) for name in (head, f"{head} persistence")]
    rows = []
    for lead in range(len(truth)):
        cells = [rmse(model, lead), rmse(persistence, lead)]
        for name in names:
            cells += ["-" if (v := curves[name][lead]) is None else f"{v:.3f}" for curves in (model, persistence)]
        rows.append(Row((str(lead + 1), *cells)))
    return "\n".join(Table(("lead", *columns), rows).to_text())
