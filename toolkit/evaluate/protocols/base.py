"""Definition of a protocol. Does not import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from toolkit.errors import ConfigError


@dataclass(frozen=True)
class Protocol:
    """Every choice that a published number depends on.

    Two numbers are comparable only if all of these agree.
    """

    name: str
    title: str
    source: str  # whose numbers are comparable, with a reference

    clamp: bool  # predictions into 0..1 before MSE and MAE too; image scores always see 0..1
    error_reduction: Literal["sum", "mean"]  # MSE and MAE of one frame, over pixels and channels
    image_levels: int | None  # SSIM and PSNR see floor(x * image_levels) of truth and prediction; None: x in 0..1

    ssim_window: int  # side of the uniform window, pixels; sample covariances, windows inside the frame only
    ssim_data_range: float
    psnr_data_range: float
    psnr_cap: float  # dB, given to exact frames and to anything above
    lpips_range: Literal["-1..1", "0..1"]  # of the frames that LPIPS is given; its authors' is -1..1

    # Of an ensemble under `eval.select: best`, the member that is scored: the best of its sequence in this metric,
    # averaged over lead times.
    best_by: Literal["mse", "mae", "psnr", "ssim"]

    thresholds: tuple[float, ...]  # of events, in the store's unit; empty: `eval.thresholds` is used
    event_pools: tuple[int, ...]  # sides of blocks, without overlap, over which events are max-pooled
    fss_windows: tuple[int, ...]  # sides (odd) of the neighbourhoods of the fractions skill score
    csi_pooling: Literal["counts"]  # counts are pooled before the division
    average: Literal["frames"]  # every frame of every sequence has the same weight
    snr: bool = False  # also the signal-to-noise ratio, on clamped predictions

    def thresholds_for(self, asked: Sequence[float]) -> tuple[float, ...]:
        """Return the event thresholds of an evaluation.

        Raises:
            ConfigError: the protocol defines thresholds, and different ones are requested.
        """
        if self.thresholds and asked and tuple(asked) != self.thresholds:
            raise ConfigError(
                f"eval.thresholds {list(asked)}: protocol {self.name} defines {list(self.thresholds)}: omit them "
                "(evaluate: --thresholds without a number), or choose another eval.protocol"
            )
        return self.thresholds or tuple(asked)

    def choices(self) -> dict[str, object]:
        """Return all fields as plain values, with `text`: their description in sentences.

        `snr` is left out where it is false, so that results from before it stay valid.
        """
        plain = {
            key: list(v) if isinstance(v, tuple) else v
            for key, v in dataclasses.asdict(self).items()
            if v is not False or key != "snr"
        }
        return {**plain, "text": self.sentences()}

    def sentences(self) -> list[str]:
        """Return one sentence per choice, for reports."""
        levels = (
            "on values in 0…1" if self.image_levels is None else f"on integer levels floor(x · {self.image_levels})"
        )
        window = f"uniform {self.ssim_window}×{self.ssim_window} window"
        return [
            "Predictions are clamped to 0…1 before scoring."
            if self.clamp
            else "Predictions are clamped to 0…1 for SSIM, PSNR and LPIPS, but not for MSE and MAE.",
            f"MSE and MAE: on values in 0…1, {self.error_reduction} over the pixels and channels of a frame. RMSE is "
            "the square root of the mean MSE.",
            f"SSIM: {levels}, data range {self.ssim_data_range:g}, {window}, sample covariances, mean over the windows "
            "inside the frame.",
            f"PSNR: {levels}, data range {self.psnr_data_range:g}, per frame in dB, capped at {self.psnr_cap:g} dB "
            "(also for exact frames).",
            *self._snr(),
            f"LPIPS: AlexNet, version 0.1, on frames in {self.lpips_range}.",
            "CSI = hits / (hits + misses + false alarms), POD = hits / (hits + misses), FAR = false alarms / (hits + "
            "false alarms), bias = (hits + false alarms) / (hits + misses): an event is a value at or above the "
            "threshold; counts are pooled over all pixels, frames and sequences before the division." + self._events(),
            "Means are over frames with equal weights. Missing pixels are excluded: errors are means over the observed "
            "pixels (a sum is scaled to the full frame), SSIM is the mean over windows without missing pixels.",
        ]

    def _snr(self) -> list[str]:
        if not self.snr:
            return []
        return [
            f"SNR: 10 log10(mean(truth²) / mean((truth − prediction)²)) of each frame in dB, on predictions clamped to "
            f"0…1, capped at {self.psnr_cap:g} dB (exact frames); a frame that is 0 everywhere has no value."
        ]

    def _events(self) -> str:
        """Describe the thresholds, pooling and neighbourhoods of the protocol, if it has any."""
        text = ""
        if self.thresholds:
            text += f" Thresholds {', '.join(f'{k:g}' for k in self.thresholds)}; mean CSI is the mean over them."
        squares = [pool for pool in self.event_pools if pool > 1]
        if squares:
            sides = " and ".join(f"{side}×{side}" for side in squares)
            text += f" /{', /'.join(map(str, squares))}: after max-pooling events over blocks of {sides} pixels."
        if self.fss_windows:
            text += (
                f" FSS in neighbourhoods of {', '.join(map(str, self.fss_windows))} pixels (Roberts & Lean 2008): sums "
                "over frames and sequences before the division."
            )
        return text
