"""One batch under a protocol: from codes and predictions to the columns of a `ScoreTable`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.manifest import Scale
from toolkit.data.windows import observed, to_unit
from toolkit.errors import ConfigError
from toolkit.evaluate import metrics
from toolkit.evaluate.protocols import Protocol
from toolkit.evaluate.table import EXACT, MISSING, NONFINITE, ScoreTable, at

AVERAGED = ("mse", "mae", "psnr", "ssim")


def new_table(protocol: Protocol, horizon: int, thresholds: Sequence[float]) -> ScoreTable:
    """An empty table for what `score_batch` gives."""
    return ScoreTable(protocol.name, horizon, AVERAGED, thresholds)


def threshold_codes(thresholds: Sequence[float], scale: Scale) -> list[int]:
    """For each threshold in the store's unit the smallest code whose value reaches it.

    Raises:
        ConfigError: a threshold that no code reaches or that every code reaches, or a scale that falls.
    """
    if thresholds and scale.gain <= 0:
        raise ConfigError(
            f"eval.thresholds: this store's values fall as its codes rise (gain {scale.gain:g}): "
            "convert the archive with a gain above 0"
        )
    codes = []
    for threshold in thresholds:
        # The little less keeps 0.3 / 0.1 at 3 where float64 says 3.0000000000000004.
        code = math.ceil((threshold - scale.offset) / scale.gain - 1e-9)
        if not 0 < code <= scale.max_code:
            low, high = scale.offset, scale.offset + scale.gain * scale.max_code
            raise ConfigError(
                f"eval.thresholds: {threshold:g} can't be told apart in this store, whose values are {low:g} to "
                f"{high:g} {scale.unit}: choose eval.thresholds above the one and up to the other"
            )
        codes.append(code)
    return codes


def score_batch(
    prediction: Tensor, codes: Tensor, scale: Scale, protocol: Protocol, thresholds: Sequence[float]
) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
    """All columns of one batch.

    Args:
        prediction: [B, T, C, H, W] in the models' unit (code / max_code), as the model gave it.
        codes: uint8 of the same shape, the truth.
        thresholds: in the store's unit.

    Returns:
        Columns of `new_table`, each [B, T]. Averaged columns are NaN in frames whose prediction isn't finite.
    """
    truth, predicted = to_unit(codes, scale), prediction.float()
    seen = observed(codes, scale)
    mask = None if seen is None or bool(seen.all()) else seen
    nonfinite = ~torch.isfinite(predicted).flatten(2).all(2)
    predicted = torch.nan_to_num(predicted, nan=0.0, posinf=0.0, neginf=0.0)  # those frames are made NaN below
    if protocol.clamp:
        predicted = predicted.clamp(0.0, 1.0)
    predicted_levels, true_levels = (_levels(frames, protocol.image_levels) for frames in (predicted, truth))
    psnr, exact = metrics.psnr(predicted_levels, true_levels, protocol.psnr_data_range, protocol.psnr_cap, mask)
    averaged = {
        "mse": metrics.mse(predicted, truth, protocol.error_reduction, mask),
        "mae": metrics.mae(predicted, truth, protocol.error_reduction, mask),
        "psnr": psnr,
        "ssim": metrics.ssim(predicted_levels, true_levels, protocol.ssim_data_range, protocol.ssim_window, mask),
    }
    missing = torch.zeros_like(nonfinite, dtype=torch.int64) if mask is None else (~mask).flatten(2).sum(2)
    counted = {EXACT: exact & ~nonfinite, NONFINITE: nonfinite, MISSING: missing}
    for threshold, code in zip(thresholds, threshold_codes(thresholds, scale), strict=True):
        # The code's own float32 image: a frame that repeats a code then compares as that code does.
        reached = torch.tensor(float(code), dtype=torch.float32, device=truth.device) / scale.max_code
        table = metrics.contingency(predicted >= reached, codes >= code, mask)
        counted[at("hits", threshold)] = table.hits
        counted[at("misses", threshold)] = table.misses
        counted[at("false_alarms", threshold)] = table.false_alarms
    columns = {name: values.masked_fill(nonfinite, torch.nan).cpu().numpy() for name, values in averaged.items()}
    return columns | {name: values.long().cpu().numpy() for name, values in counted.items()}


def _levels(frames: Tensor, levels: int) -> Tensor:
    """Whole levels floor(x * levels). In float32, as the published evaluations do it: code / 255 comes back as code."""
    return (frames.clamp(0.0, 1.0) * levels).floor()
