"""Metrics of predicted frames, batched on the device, one value per sample and lead time.

Every function takes `prediction` and `truth` as [B, T, C, H, W] of one shape and, where pixels are missing, a boolean
`mask` of that shape (True: observed). It returns [B, T]: float64 values, or int64 counts. All arithmetic is in
float64. Sums over samples are computed in `table.py`, so that they do not depend on how samples are distributed over
ranks.

A frame without any observed pixel has no value: NaN here, counted and reported by the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from toolkit.errors import ToolkitError

Reduction = Literal["sum", "mean"]

# SSIM is computed in blocks of at most this many pixels. On a CPU the ten float64 maps of a block should fit into the
# cache (2.4 to 3 times faster than 1 << 22); a GPU needs few launches, and memory for the maps.
SSIM_BLOCK = {"cpu": 1 << 16, "cuda": 1 << 22}
SSIM_K1, SSIM_K2 = 0.01, 0.03  # Wang et al. 2004, section III.B


def mse(prediction: Tensor, truth: Tensor, reduction: Reduction, mask: Tensor | None = None) -> Tensor:
    """Squared error per frame, float64 [B, T].

    Args:
        reduction: `mean` over pixels and channels, or their `sum`. With a mask both use observed pixels only, and
            the sum is scaled to the full frame, so that frames with more missing pixels do not score better.
    """
    _check_shapes(prediction, truth, mask)
    return reduced((prediction.double() - truth.double()).square(), reduction, mask)


def mae(prediction: Tensor, truth: Tensor, reduction: Reduction, mask: Tensor | None = None) -> Tensor:
    """Absolute error per frame, float64 [B, T]; see `mse` for `reduction`."""
    _check_shapes(prediction, truth, mask)
    return reduced((prediction.double() - truth.double()).abs(), reduction, mask)


def psnr(
    prediction: Tensor, truth: Tensor, data_range: float, cap: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Peak signal-to-noise ratio per frame, 10 log10(data_range^2 / mse), in dB.

    Args:
        data_range: the greatest possible minus the smallest possible pixel value.
        cap: largest value returned, dB. An exact frame has an infinite ratio; it gets `cap` and is counted.

    Returns:
        (float64 [B, T] in dB, bool [B, T]: the frame is exact).
    """
    error = mse(prediction, truth, "mean", mask)
    exact = error == 0
    ratio = 10.0 * torch.log10(data_range**2 / error.masked_fill(exact, 1.0))
    return ratio.masked_fill(exact, cap).clamp(max=cap), exact


def snr(prediction: Tensor, truth: Tensor, cap: float, mask: Tensor | None = None) -> Tensor:
    """Signal-to-noise ratio per frame, 10 log10(mean(truth^2) / mse), float64 [B, T] in dB.

    Args:
        cap: largest value returned, dB, also for an exact frame. A frame of zeros has no signal: NaN.
    """
    noise = mse(prediction, truth, "mean", mask)
    signal = reduced(truth.double().square(), "mean", mask)
    exact = noise == 0
    ratio = 10.0 * torch.log10(signal / noise.masked_fill(exact, 1.0))
    return ratio.masked_fill(exact, cap).clamp(max=cap).masked_fill(signal == 0, torch.nan)


def ssim(prediction: Tensor, truth: Tensor, data_range: float, window: int = 7, mask: Tensor | None = None) -> Tensor:
    """Structural similarity per frame, float64 [B, T], the mean of the local map over positions and channels.

    The map is that of `skimage.metrics.structural_similarity` with its defaults: a uniform window, sample covariances
    (divided by n - 1), K1 = 0.01, K2 = 0.03, and only windows inside the frame. With a mask the mean is over the
    windows without a missing pixel.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP 13(4), 2004,
    https://doi.org/10.1109/TIP.2003.819861, equation 13.

    Raises:
        ToolkitError: frames smaller than the window, or a window that is not odd and at least 3.
    """
    _check_shapes(prediction, truth, mask)
    batch, time, channels, height, width = truth.shape
    if window < 3 or window % 2 == 0:
        raise ToolkitError(f"SSIM: the window is {window} pixels wide; use an odd number of at least 3")
    if min(height, width) < window:
        raise ToolkitError(
            f"SSIM: frames of {height}x{width} are smaller than its window of {window}x{window}: "
            "score larger frames, or write a protocol with a smaller window in toolkit/evaluate/protocols"
        )
    first, second = (frames.reshape(-1, channels, height, width) for frames in (prediction, truth))
    seen = None if mask is None else mask.reshape(-1, channels, height, width)
    block = max(1, SSIM_BLOCK.get(truth.device.type, 1 << 22) // (channels * height * width))
    parts = [
        _ssim_block(
            first[at : at + block],
            second[at : at + block],
            data_range,
            window,
            None if seen is None else seen[at : at + block],
        )
        for at in range(0, first.shape[0], block)
    ]
    return torch.cat(parts).reshape(batch, time)


def _ssim_block(first: Tensor, second: Tensor, data_range: float, window: int, mask: Tensor | None) -> Tensor:
    """SSIM of frames [N, C, H, W], float64 [N]."""
    pixels = window * window
    x, y = first.double(), second.double()
    if mask is not None:  # windows that touch these are left out below; NaN must not get into the sums
        x, y = x.masked_fill(~mask, 0.0), y.masked_fill(~mask, 0.0)
    mean_x, mean_y = _window_sum(x, window) / pixels, _window_sum(y, window) / pixels
    mean_xx, mean_yy, mean_xy = (_window_sum(product, window) / pixels for product in (x * x, y * y, x * y))
    sample = pixels / (pixels - 1)
    var_x = sample * (mean_xx - mean_x * mean_x)
    var_y = sample * (mean_yy - mean_y * mean_y)
    cov_xy = sample * (mean_xy - mean_x * mean_y)
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * cov_xy + c2)
    denominator = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    similarity = numerator / denominator
    if mask is None:
        return similarity.flatten(1).mean(1)
    complete = _window_sum(mask.double(), window) == pixels
    return similarity.masked_fill(~complete, 0.0).flatten(1).sum(1) / complete.flatten(1).sum(1)


def _window_sum(frames: Tensor, window: int) -> Tensor:
    """Sum over all windows inside the frames, separably: [N, C, H, W] -> [N, C, H - window + 1, W - window + 1].

    For integers (levels and their products) the sums are exact in float64, in any order of addition.
    """
    height, width = (side - window + 1 for side in frames.shape[-2:])
    rows = frames[..., :height, :].clone()
    for offset in range(1, window):  # adding shifted views is twice as fast as avg_pool2d in float64
        rows += frames[..., offset : offset + height, :]
    sums = rows[..., :width].clone()
    for offset in range(1, window):
        sums += rows[..., offset : offset + width]
    return sums


@dataclass(frozen=True)
class Contingency:
    """The 2x2 table of one threshold; int64 [B, T] each."""

    hits: Tensor
    misses: Tensor
    false_alarms: Tensor
    correct_negatives: Tensor


def contingency(forecast: Tensor, observed: Tensor, mask: Tensor | None = None, pool: int = 1) -> Contingency:
    """Count events: hit = forecast and observed, miss = observed only, false alarm = forecast only.

    (The ModeRNN paper, section 4, swaps the names of the last two. This does not affect CSI, but POD and FAR.)

    Args:
        forecast: bool [B, T, C, H, W], the prediction reaches the threshold.
        observed: the same for the observation.
        pool: side of the blocks over which events are max-pooled, without overlap (cut off at the frame's edge); a
            block without an observed pixel is not counted.
    """
    _check_shapes(forecast, observed, mask)
    counted = torch.ones_like(observed) if mask is None else mask
    forecast, observed = forecast & counted, observed & counted
    if pool > 1:
        forecast, observed, counted = (_any_in_square(frames, pool) for frames in (forecast, observed, counted))
    return Contingency(
        hits=_count(forecast & observed),
        misses=_count(observed & ~forecast),
        false_alarms=_count(forecast & ~observed),
        correct_negatives=_count(counted & ~forecast & ~observed),
    )


def _any_in_square(events: Tensor, side: int) -> Tensor:
    return F.max_pool2d(events.flatten(0, 1).float(), side, ceil_mode=True).bool().unflatten(0, events.shape[:2])


class BoxSums:
    """Sums of counts over the squares around each pixel, for any odd side up to `largest`; outside of the frame is 0.

    From running sums, so the cost does not depend on the side. In integers: exact in any order, and deterministic on a
    GPU, where running sums of floats are not.
    """

    def __init__(self, counts: Tensor, largest: int) -> None:
        """
        Args:
            counts: bool or integers [..., H, W].
        """
        self._size, self._margin = counts.shape[-2:], largest // 2
        margin = self._margin
        padded = F.pad(counts.to(torch.int32), (margin + 1, margin, margin + 1, margin))
        self._running = padded.cumsum(-1, dtype=torch.int32).cumsum(-2, dtype=torch.int32)

    def at(self, side: int) -> Tensor:
        """Return the sums over squares of an odd side, int32 [..., H, W]."""
        running = self._running
        for axis, length in zip((-2, -1), self._size, strict=True):
            first, last = self._margin - side // 2, self._margin + side // 2 + 1
            running = running.narrow(axis, last, length) - running.narrow(axis, first, length)
        return running


def fractions(forecast: BoxSums, observed: BoxSums, window: int) -> tuple[Tensor, Tensor]:
    """Compute both terms of the fractions skill score, exact sums over a frame, int64 [B, T].

    With the number of events in the neighbourhood of every pixel, the first is the squared difference of forecast and
    observation, the second the sum of both squares. FSS = 1 - (sum of the first over frames) / (sum of the second); the
    terms of Roberts & Lean are these, divided by window^4 and the number of pixels. Source: Mon. Wea. Rev. 136, 2008,
    equations 5 to 7.

    Args:
        forecast, observed: of events [B, T, C, H, W]; at missing pixels there is none.
        window: the side of a neighbourhood, pixels; odd.
    """
    if window % 2 == 0:
        raise ToolkitError(f"FSS: a neighbourhood is centred on a pixel; its side of {window} pixels must be odd")
    kind = torch.int32 if 2 * window**4 < 2**31 else torch.int64  # the squares have to fit
    one, other = forecast.at(window).to(kind), observed.at(window).to(kind)
    squares = (one - other).square(), one.square() + other.square()
    first, second = (_count(square) for square in squares)
    return first, second


def _count(events: Tensor) -> Tensor:
    """Return sums over frames, int64 [B, T]."""
    return events.flatten(2).sum(2, dtype=torch.int64)


def reduced(errors: Tensor, reduction: Reduction, mask: Tensor | None) -> Tensor:
    """Reduce errors of pixels [B, T, C, H, W] to frames [B, T]; see `mse` for `reduction`."""
    errors = errors.flatten(2)
    pixels = errors.shape[2]
    if mask is None:
        return errors.sum(2) if reduction == "sum" else errors.sum(2) / pixels
    seen = mask.flatten(2)
    mean = errors.masked_fill(~seen, 0.0).sum(2) / seen.sum(2)
    return mean * pixels if reduction == "sum" else mean


def _check_shapes(prediction: Tensor, truth: Tensor, mask: Tensor | None) -> None:
    shapes = {"prediction": prediction.shape, "truth": truth.shape}
    if mask is not None:
        shapes["mask"] = mask.shape
    if truth.ndim != 5 or len(set(shapes.values())) != 1:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ToolkitError(f"metrics take equal shapes [B, T, C, H, W], found {found}")
