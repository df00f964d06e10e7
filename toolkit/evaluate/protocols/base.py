"""What a protocol has to say. Does not import torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Protocol:
    """Every choice that a published number depends on.

    Two numbers may stand in one column only if all of these agree.
    """

    name: str
    title: str
    source: str  # whose numbers it makes comparable, and where that is written

    clamp: bool  # predictions into 0..1 before anything else
    error_reduction: Literal["sum", "mean"]  # MSE and MAE of one frame, over pixels and channels
    image_levels: int  # SSIM and PSNR see floor(x * image_levels) of truth and prediction, x in 0..1

    ssim_window: int  # side of the uniform window, pixels; sample covariances, whole windows only
    ssim_data_range: float
    psnr_data_range: float
    psnr_cap: float  # dB, given to exact frames and to anything above

    # Of an ensemble under `eval.select: best`, the member that is scored: the best of its sequence in this metric,
    # averaged over lead times.
    best_by: Literal["mse", "mae", "psnr", "ssim"]

    csi_pooling: Literal["counts"]  # hits, misses and false alarms are added up first, then divided
    average: Literal["frames"]  # every frame of every sequence has the same weight

    def choices(self) -> dict[str, Any]:
        """All of it as plain values, with `text`: the same in sentences."""
        return {**dataclasses.asdict(self), "text": self.sentences()}

    def sentences(self) -> list[str]:
        """One sentence per choice, for reports."""
        levels = f"on whole levels floor(x · {self.image_levels})"
        window = f"uniform {self.ssim_window}×{self.ssim_window} window"
        return [
            "Predictions are clamped to 0…1 before scoring." if self.clamp else "Predictions are scored as they are.",
            f"MSE and MAE: on values in 0…1, {self.error_reduction} over the pixels and channels of a frame.",
            f"SSIM: {levels}, data range {self.ssim_data_range:g}, {window}, sample covariances, mean over the windows "
            "inside the frame.",
            f"PSNR: {levels}, data range {self.psnr_data_range:g}, per frame in dB; an exact frame counts as "
            f"{self.psnr_cap:g} dB, and so does anything above.",
            "CSI = hits / (hits + misses + false alarms), POD = hits / (hits + misses), FAR = false alarms / (hits + "
            "false alarms), bias = (hits + false alarms) / (hits + misses): an event is a value at or above the "
            "threshold; counts are added up over all pixels, frames and sequences, then divided.",
            "Means are over frames, each with the same weight. Missing pixels are left out: errors are means over the "
            "observed pixels (a sum is scaled to the whole frame), SSIM is the mean over the windows without any.",
        ]
