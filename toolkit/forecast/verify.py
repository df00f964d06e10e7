"""Verify a forecast with observations: scores by lead time, compared with persistence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


def scores(forecast: Forecast, truth: Codes, thresholds: Sequence[float] = ()) -> tuple[Curves, Curves]:
    """Score forecast and persistence over lead time, on the pixels that have a forecast, by the run's protocol.

    Args:
        truth: codes of the observations in the model's scale, uint8 [T', C, H, W]; T' lead times are scored.
        thresholds: of events, in the store's unit; none: those of the run's config.
    """
    steps = len(truth)
    units = forecast.units.mean(0)[:steps]
    last = to_unit(torch.from_numpy(forecast.context[-1:]), forecast.scale).numpy()
    chosen = thresholds or _thresholds(forecast)
    return _curves(forecast, units, truth, chosen), _curves(forecast, np.repeat(last, steps, 0), truth, chosen)


def _thresholds(forecast: Forecast) -> tuple[float, ...]:
    asked = forecast.trained.config.eval
    return load_protocol(asked.protocol).thresholds_for(asked.thresholds)


def _curves(forecast: Forecast, units: NDArray[np.float32], truth: Codes, thresholds: Sequence[float]) -> Curves:
    protocol = load_protocol(forecast.trained.config.eval.protocol)
    table = new_table(protocol, len(truth), thresholds, lpips=False, inflow=True)
    predicted, codes, missing = (
        torch.from_numpy(each)[None] for each in (units, truth, forecast.missing[: len(truth)])
    )
    columns = score_batch(predicted, codes, forecast.scale, protocol, thresholds, inflow=missing)
    table.update([0], ["forecast"], [None], columns)
    return table.compute().leads


def verification(forecast: Forecast, truth: Codes, thresholds: Sequence[float] = ()) -> dict[str, object]:
    """Return the scores of a forecast by lead time, as they are saved beside it: RMSE in the archive's unit, and CSI.

    Args:
        truth, thresholds: as in `scores`.

    Returns:
        `lead_minutes` (null without a clock), `unit`, `thresholds`, counts of pixels, and for `forecast` and
        `persistence` one list per metric; null where it is undefined.
    """
    pixels = float(np.prod(truth.shape[1:]))
    protocol = load_protocol(forecast.trained.config.eval.protocol)
    span = abs(forecast.scale.gain) * forecast.scale.max_code

    def rmse(mse: float | None) -> float | None:
        if mse is None:
            return None
        return float(span * (mse / pixels if protocol.error_reduction == "sum" else mse) ** 0.5)

    minutes = None if forecast.step_seconds is None else forecast.step_seconds / 60
    made: dict[str, object] = {
        "reference": None if forecast.reference is None else f"{forecast.reference:%Y-%m-%dT%H:%M:%SZ}",
        "lead_minutes": None if minutes is None else [minutes * (lead + 1) for lead in range(len(truth))],
        "unit": forecast.scale.unit,
        "thresholds": list(thresholds or _thresholds(forecast)),
        "pixels": int(truth.size),
        "pixels_without_forecast": int(forecast.missing[: len(truth)].sum()),  # not scored, for persistence either
    }
    for name, curves in zip(("forecast", "persistence"), scores(forecast, truth, thresholds), strict=True):
        csi = {key: curves[key] for key in sorted(curves) if key.startswith("csi@") and "/" not in key}
        made[name] = {"rmse": [rmse(mse) for mse in curves["mse"]], **csi}
    return made


def as_text(made: Mapping[str, Any]) -> str:
    """Return what `verification` gave as a table for the terminal; lead times in minutes where there is a clock."""
    minutes = made["lead_minutes"]
    names = list(made["forecast"])
    heads = [f"RMSE {made['unit']}" if name == "rmse" else name for name in names]
    rows = []
    for lead in range(len(made["forecast"]["rmse"])):
        cells = [f"{lead + 1}" if minutes is None else f"{minutes[lead]:g}"]
        for name in names:
            values = (made[which][name][lead] for which in ("forecast", "persistence"))
            cells += ["-" if value is None else f"{value:.3f}" for value in values]
        rows.append(Row(tuple(cells)))
    columns = [name for head in heads for name in (head, f"{head} persistence")]
    text = "\n".join(Table(("lead" if minutes is None else "lead min", *columns), rows).to_text())
    if missing := made["pixels_without_forecast"]:
        text += f"\nNot scored: {missing:,} of {made['pixels']:,} pixels, which have no forecast."
    return text
