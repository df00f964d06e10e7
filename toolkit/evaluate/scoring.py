"""Score one batch by a protocol: from codes and predictions to the columns of a `ScoreTable`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.manifest import Scale
from toolkit.data.windows import numbers, observed, to_unit
from toolkit.evaluate import metrics
from toolkit.evaluate.check import fractional_code, threshold_codes
from toolkit.evaluate.ensemble import cost_of
from toolkit.evaluate.perceptual import LPIPS
from toolkit.evaluate.protocols import Protocol
from toolkit.evaluate.table import EVENTS, EXACT, INFLOW, MISSING, NONFINITE, ScoreTable, at

EVENT_RULE = 2  # since 2026-11-26: a forecast is compared in the store's unit; before (no number) by its rounded code
ROUNDING = 2.0**-22  # relative, four units in the last place of float32
AVERAGED = ("mse", "mae", "psnr", "ssim")


def new_table(
    protocol: Protocol,
    horizon: int,
    thresholds: Sequence[float],
    lpips: bool,
    members: int = 0,
    inflow: bool = False,
) -> ScoreTable:
    """Return an empty table for the columns of `score_batch`, and for `members` above 0 those of `Members.scores`."""
    averaged = (*AVERAGED, *(("snr",) if protocol.snr else ()), *(("lpips",) if lpips else ()))
    events = (thresholds, protocol.event_pools, protocol.fss_windows)
    return ScoreTable(protocol.name, horizon, averaged, *events, members, inflow)


def threshold_level(threshold: float, code: int, scale: Scale) -> float:
    """Return a threshold in the models' unit (code / max_code), for forecasts of float32.

    It lies above the image of code - 1 and below that of `code`, by more than they are rounded by (a GPU multiplies by
    1 / max_code): so a forecast which repeats an observed frame has the observation's events.
    """
    level = fractional_code(threshold, scale) / scale.max_code
    low, high = (code - 1) / scale.max_code * (1 + ROUNDING), code / scale.max_code * (1 - ROUNDING)
    return float(np.float32(min(max(level, low), high)))


class Compared:
    """A batch of predictions and observations, prepared for metrics by a protocol.

    Args:
        prediction: [B, T, C, H, W] in the models' unit (code / max_code), as returned by the model.
        codes: of the same shape, the observation.
        inflow: bool of the same shape, pixels that are not scored although they are observed; None: all are scored.

    Attributes:
        nonfinite: bool [B, T]: the prediction of the frame is not finite; its averaged scores are NaN.
    """

    def __init__(
        self, prediction: Tensor, codes: Tensor, scale: Scale, protocol: Protocol, inflow: Tensor | None = None
    ) -> None:
        self.protocol = protocol
        self.truth, predicted = to_unit(codes, scale), prediction.float()
        self.observed = seen = observed(codes, scale)
        if inflow is not None:
            seen = ~inflow if seen is None else seen & ~inflow
        self.mask = None if seen is None or bool(seen.all()) else seen
        self.nonfinite = ~torch.isfinite(predicted).flatten(2).all(2)
        # Scores of frames that are not finite are set to NaN below.
        predicted = torch.nan_to_num(predicted, nan=0.0, posinf=0.0, neginf=0.0)
        self.predicted = predicted.clamp(0.0, 1.0) if protocol.clamp else predicted

    @cached_property
    def _images(self) -> tuple[Tensor, Tensor]:
        levels = self.protocol.image_levels
        return _image(self.predicted, levels), _image(self.truth, levels)

    @cached_property
    def _psnr(self) -> tuple[Tensor, Tensor]:
        protocol = self.protocol
        return metrics.psnr(*self._images, protocol.psnr_data_range, protocol.psnr_cap, self.mask)

    @property
    def exact(self) -> Tensor:
        """Whether SSIM and PSNR see no difference, bool [B, T]."""
        return self._psnr[1] & ~self.nonfinite

    def averaged(self, name: str) -> Tensor:
        """Return one averaged metric, float64 [B, T]."""
        protocol = self.protocol
        if name == "psnr":
            values = self._psnr[0]
        elif name == "snr":
            values = metrics.snr(self.predicted.clamp(0.0, 1.0), self.truth, protocol.psnr_cap, self.mask)
        elif name == "ssim":
            values = metrics.ssim(*self._images, protocol.ssim_data_range, protocol.ssim_window, self.mask)
        else:
            error = {"mse": metrics.mse, "mae": metrics.mae}[name]
            values = error(self.predicted, self.truth, protocol.error_reduction, self.mask)
        return values.masked_fill(self.nonfinite, torch.nan)

    def lpips(self, model: LPIPS) -> Tensor:
        """Return LPIPS, float64 [B, T]; NaN for frames with missing pixels too, because it cannot exclude pixels."""
        centred = self.protocol.lpips_range == "-1..1"
        frames = (frames.clamp(0.0, 1.0).flatten(0, 1) for frames in (self.predicted, self.truth))
        first, second = (2.0 * frame - 1.0 if centred else frame for frame in frames)
        values = model(first, second).double().view(self.nonfinite.shape)
        incomplete = self.nonfinite if self.mask is None else self.nonfinite | ~self.mask.flatten(2).all(2)
        return values.masked_fill(incomplete, torch.nan)


def member_cost(
    prediction: Tensor, codes: Tensor, scale: Scale, protocol: Protocol, inflow: Tensor | None = None
) -> Tensor:
    """Return the cost of an ensemble member for each sequence, float64 [B], by the protocol's `best_by`."""
    compared = Compared(prediction, codes, scale, protocol, inflow)
    return cost_of(compared.averaged(protocol.best_by), compared.nonfinite, protocol.best_by)


def score_batch(
    prediction: Tensor,
    codes: Tensor,
    scale: Scale,
    protocol: Protocol,
    thresholds: Sequence[float],
    lpips: LPIPS | None = None,
    inflow: Tensor | None = None,
) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
    """Compute all columns of one batch.

    Args:
        prediction, codes, inflow: see `Compared`.
        thresholds: in the store's unit.

    Returns:
        Columns of `new_table`, each [B, T]. Averaged columns are NaN in frames whose prediction is not finite.
    """
    compared = Compared(prediction, codes, scale, protocol, inflow)
    nonfinite, seen = compared.nonfinite, compared.observed
    missing = torch.zeros_like(nonfinite, dtype=torch.int64) if seen is None else (~seen).flatten(2).sum(2)
    columns = {EXACT: compared.exact, NONFINITE: nonfinite, MISSING: missing}
    if inflow is not None:
        columns[INFLOW] = (inflow if seen is None else inflow & seen).flatten(2).sum(2)
    columns |= {name: compared.averaged(name) for name in (*AVERAGED, *(("snr",) if protocol.snr else ()))}
    if lpips is not None:
        columns["lpips"] = compared.lpips(lpips)
    for threshold, code in zip(thresholds, threshold_codes(thresholds, scale), strict=True):
        columns |= _events(compared, codes, threshold, code, scale)
    return {
        name: (values if values.is_floating_point() else values.long()).cpu().numpy()
        for name, values in columns.items()
    }


def _events(compared: Compared, codes: Tensor, threshold: float, code: int, scale: Scale) -> dict[str, Tensor]:
    """Return a threshold's columns: the forecast is compared in the store's unit, the observation by its code."""
    forecast, event = compared.predicted >= threshold_level(threshold, code, scale), numbers(codes) >= code
    columns: dict[str, Tensor] = {}
    for side in compared.protocol.event_pools:
        table = metrics.contingency(forecast, event, compared.mask, side)
        columns |= {at(name, threshold, side): getattr(table, name) for name in EVENTS}
    if windows := compared.protocol.fss_windows:
        seen = (events if compared.mask is None else events & compared.mask for events in (forecast, event))
        boxes, event_boxes = (metrics.BoxSums(events, max(windows)) for events in seen)
        for window in windows:
            terms = zip(("fss_error", "fss_reference"), metrics.fractions(boxes, event_boxes, window), strict=True)
            whole = window**4 * codes[0, 0].numel()
            columns |= {at(name, threshold, window): term.double() / whole for name, term in terms}
    return columns


def _image(frames: Tensor, levels: int | None) -> Tensor:
    """Return the input of SSIM and PSNR: values in 0..1, or integer levels floor(x * levels).

    In float32, as in the published evaluations: code / 255 is converted back to the code.
    """
    inside = frames.clamp(0.0, 1.0)
    return inside if levels is None else (inside * levels).floor()
