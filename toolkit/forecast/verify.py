"""Verify a forecast with observations: scores by lead time, compared with persistence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.atomic import replacing, write_atomic
from toolkit.data.windows import to_unit
from toolkit.evaluate.diagrams import Diagrams, sums_of
from toolkit.evaluate.probabilistic import Members
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.scoring import new_table, score_batch
from toolkit.forecast.make import Forecast, Frames
from toolkit.report.html.diagrams import png
from toolkit.table import Row, Table

Curves = Mapping[str, list[float | None]]


def scores(forecast: Forecast, truth: Frames, thresholds: Sequence[float] = ()) -> tuple[Curves, Curves]:
    """Score forecast and persistence over lead time, on the pixels that have a forecast, by the run's protocol.

    Args:
        truth: the observations in the model's scale, [T', C, H, W]; T' lead times are scored, without missing pixels.
        thresholds: of events, in the store's unit; none: those of the run's config.
    """
    steps = len(truth)
    units = forecast.units.mean(0)[:steps]
    last = to_unit(torch.from_numpy(forecast.context.codes[-1:]), forecast.scale).numpy()
    chosen = thresholds or _thresholds(forecast)
    return _curves(forecast, units, truth, chosen), _curves(forecast, np.repeat(last, steps, 0), truth, chosen)


def _thresholds(forecast: Forecast) -> tuple[float, ...]:
    asked = forecast.trained.config.eval
    return load_protocol(asked.protocol).thresholds_for(asked.thresholds)


def _curves(forecast: Forecast, units: NDArray[np.float32], truth: Frames, thresholds: Sequence[float]) -> Curves:
    protocol = load_protocol(forecast.trained.config.eval.protocol)
    table = new_table(protocol, len(truth), thresholds, lpips=False, inflow=True)
    predicted, codes, missing = (
        torch.from_numpy(each)[None] for each in (units, truth.codes, forecast.missing[: len(truth)] | ~truth.seen)
    )
    columns = score_batch(predicted, codes, forecast.scale, protocol, thresholds, inflow=missing)
    table.update([0], ["forecast"], [None], columns)
    return table.compute().leads


def diagrams_of(forecast: Forecast, truth: Frames, thresholds: Sequence[float] = ()) -> dict[str, Any]:
    """Return the verification diagrams of forecast and persistence, by name; none without thresholds.

    Args:
        truth, thresholds: as in `scores`.
    """
    steps, chosen = len(truth), tuple(thresholds or _thresholds(forecast))
    if not chosen:
        return {}
    protocol = load_protocol(forecast.trained.config.eval.protocol)
    members = torch.from_numpy(forecast.units[:, None, :steps])
    last = to_unit(torch.from_numpy(forecast.context.codes[-1:]), forecast.scale).numpy()
    left_out = forecast.missing[:steps] | ~truth.seen
    codes, missing = (torch.from_numpy(each)[None] for each in (truth.codes, left_out))
    made: dict[str, Any] = {}
    for name, predicted in (
        ("forecast", members),
        ("persistence", torch.from_numpy(np.repeat(last, steps, 0))[None, None]),
    ):
        size = len(predicted)
        kept = None
        if size > 1:
            kept = Members(size, codes, forecast.scale, protocol, 0, missing)
            for member in predicted:
                kept.add(member)
        sums = sums_of(predicted.mean(0), codes, forecast.scale, protocol, chosen, kept, missing)
        made[name] = Diagrams(chosen, size, truth.codes.shape[-2:], {0: sums}).compute()
    return made if all(made.values()) else {}


def verification(forecast: Forecast, truth: Frames, thresholds: Sequence[float] = ()) -> dict[str, Any]:
    """Return the scores of a forecast by lead time, as they are saved beside it: RMSE in the archive's unit, and CSI.

    Args:
        truth, thresholds: as in `scores`.

    Returns:
        `lead_minutes` (null without a clock), `unit`, `thresholds`, counts of pixels, for `forecast` and
        `persistence` one list per metric, null where it is undefined, and `diagrams`.
    """
    pixels = float(np.prod(truth.codes.shape[1:]))
    protocol = load_protocol(forecast.trained.config.eval.protocol)
    span = abs(forecast.scale.gain) * forecast.scale.max_code

    def rmse(mse: float | None) -> float | None:
        if mse is None:
            return None
        return float(span * (mse / pixels if protocol.error_reduction == "sum" else mse) ** 0.5)

    minutes = None if forecast.step_seconds is None else forecast.step_seconds / 60
    made: dict[str, Any] = {
        "reference": None if forecast.reference is None else f"{forecast.reference:%Y-%m-%dT%H:%M:%SZ}",
        "lead_minutes": None if minutes is None else [minutes * (lead + 1) for lead in range(len(truth))],
        "unit": forecast.scale.unit,
        "thresholds": list(thresholds or _thresholds(forecast)),
        "pixels": int(truth.codes.size),
        "pixels_without_forecast": int(forecast.missing[: len(truth)].sum()),  # not scored, for persistence either
    }
    for name, curves in zip(("forecast", "persistence"), scores(forecast, truth, thresholds), strict=True):
        csi = {key: curves[key] for key in sorted(curves) if key.startswith("csi@") and "/" not in key}
        made[name] = {"rmse": [rmse(mse) for mse in curves["mse"]], **csi}
    made["diagrams"] = diagrams_of(forecast, truth, thresholds)
    return made


def save_verification(made: Mapping[str, Any], data: Path) -> list[Path]:
    """Write what `verification` gave beside a forecast, FILE.verify.json, and its diagrams, FILE.verify.png.

    Returns:
        The files.
    """
    text, picture = data.with_suffix(".verify.json"), data.with_suffix(".verify.png")
    data.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(text, json.dumps(made, indent=1) + "\n")
    if not made["diagrams"]:
        return [text]
    with replacing(picture) as file:
        file.write(png(made["diagrams"], "" if made["unit"] == "1" else made["unit"]))
    return [text, picture]


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
