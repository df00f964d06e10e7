"""Baselines without training, which any trained model should beat. They have no parameters: a run is done at step 0 and
only evaluated.

Persistence predicts the last context frame. Optical flow advects it ("Lagrangian persistence", the extrapolation of
radar nowcasting), in two parts:

    motion       Lucas & Kanade (IJCAI 1981), dense, coarse to fine. With I_x, I_y the spatial differences of a pair's
                 earlier frame, shifted along the flow so far, and I_t the later frame less that one, an increment d of
                 the flow solves for every pixel
                     (sum_w [I_x^2, I_x I_y; I_x I_y, I_y^2] + damping 1) d = -sum_w [I_x; I_y] I_t
                 with a Gaussian window w over pixels, and sums over channels and over the last pairs of frames, which
                 are taken to share one motion. The pyramid halves by averages. The damping makes d small where there is
                 no texture, so that the flow of the coarser level stands there.
    advection    backward and semi-Lagrangian, the flow u held fixed in place: a pixel's value n steps on is found where
                 its path led from, s_n(p) = s_{n-1}(p) + u(p - s_{n-1}(p)), s_0 = 0; x_n(p) = x(p - s_n(p)),
                 bilinear, from the last known frame (so that it is resampled once)
    inflow       a value whose path begins outside of the frame, or where the last frame has no observation, is not
                 extrapolated from data; it is what `outside` says. These are the pixels in which the mask of observed
                 pixels, advected like the frame and 0 outside of it, is below 1/2: beyond half a pixel from the edge

A single frame of context has no motion and persists. Nothing is clamped.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from shards.manifest import FrameSpec
from toolkit.errors import ConfigError
from toolkit.models.base import Rollout, Sampling, SequenceModel
from toolkit.models.registry import OpticalFlowOptions, PersistenceOptions


class Baseline(SequenceModel):
    """A forecast without parameters, of the targets from the targets alone."""

    feeds_targets = True

    def forward(self, frames: Tensor, context: int, sampling: Sampling) -> Rollout:
        """Refuse training.

        Raises:
            ConfigError: always; there is nothing to train.
        """
        raise ConfigError(f"{type(self).__name__} has no parameters: it is evaluated, not trained")

    def predict_targets(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        return self._predict(self.target_channels(context), horizon, samples, generator)


class Persistence(Baseline):
    """Predicts that nothing changes."""

    def __init__(self, options: PersistenceOptions | None = None, shape: FrameSpec | None = None) -> None:
        super().__init__()

    def _predict(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        """context [B, Tc, C, H, W] -> [samples, B, horizon, C, H, W], the last context frame everywhere."""
        return context[:, -1:].unsqueeze(0).expand(samples, -1, horizon, -1, -1, -1)


class Advection(Baseline):
    """A forecast that moves the last frame, and knows which values flow in from outside of the observed area."""

    def _predict(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        return self._advect(context, horizon, samples, generator, None)[0]

    @torch.no_grad()
    def predict_with_inflow(
        self,
        context: Tensor,
        horizon: int,
        samples: int = 1,
        generator: torch.Generator | None = None,
        observed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return what `predict` does, and a mask of inflow: True where a value comes from outside the observed area.

        Args:
            observed: bool [B, C, H, W], False where the last context frame has no observation; None: all observed.

        Returns:
            [samples, B, horizon, C, H, W] twice, of the targets, float32 and bool.
        """
        context = self.target_channels(context)
        seen = torch.ones_like(context[:, -1], dtype=torch.bool) if observed is None else self.target_channels(observed)
        predictions, inside = self._advect(context, horizon, samples, generator, seen)
        assert inside is not None
        return predictions, ~inside

    @abstractmethod
    def _advect(
        self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None, observed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the forecast and, if `observed` is given, where it is extrapolated from observed pixels."""


class OpticalFlow(Advection):
    """Predicts that the last frame moves on along its flow."""

    def __init__(self, options: OpticalFlowOptions | None = None, shape: FrameSpec | None = None) -> None:
        super().__init__()
        self.options = options or OpticalFlowOptions()

    def _advect(
        self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None, observed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        frames = context.float()
        flow = self.motion(frames)
        shift = torch.zeros_like(flow)
        predictions, inside = [], []
        for _ in range(horizon):
            shift = shift + displaced(flow, -shift, "border")
            predictions.append(displaced(frames[:, -1], -shift, self.options.outside))
            if observed is not None:
                inside.append(displaced(observed.float(), -shift, "zeros") >= 0.5)
        forecast = torch.stack(predictions, 1).expand(samples, -1, -1, -1, -1, -1)
        return forecast, torch.stack(inside, 1).expand_as(forecast) if inside else None

    def motion(self, frames: Tensor) -> Tensor:
        """[B, T, C, H, W] -> the flow [B, 2, H, W] at the last frame: pixels per step to the right, then down."""
        pairs = min(self.options.pairs, frames.shape[1] - 1)
        height, width = frames.shape[-2:]
        if pairs == 0:
            return frames.new_zeros(frames.shape[0], 2, height, width)
        levels = [frames[:, -pairs - 1 :]]
        while min(levels[-1].shape[-2:]) >= 2 * self.options.coarsest:
            smaller = F.avg_pool2d(levels[-1].flatten(0, 1), 2)
            levels.append(smaller.unflatten(0, levels[-1].shape[:2]))
        flow = frames.new_zeros(frames.shape[0], 2, *levels[-1].shape[-2:])
        for level in reversed(levels):
            flow = resized(flow, level.shape[-2], level.shape[-1])
            for _ in range(self.options.iterations):
                flow = flow + self._increment(level[:, :-1], level[:, 1:], flow)
        return flow

    def _increment(self, earlier: Tensor, later: Tensor, flow: Tensor) -> Tensor:
        """One Lucas-Kanade step: pairs of frames [B, P, C, h, w] and the flow so far [B, 2, h, w] -> its change."""
        pairs = earlier.shape[1]
        before = displaced(earlier.flatten(0, 1), -flow.repeat_interleave(pairs, 0), "border").view_as(earlier)
        dx, dy = differences(before)
        dt = later - before
        products = torch.stack([dx * dx, dx * dy, dy * dy, dx * dt, dy * dt], 1).sum((2, 3))  # [B, 5, h, w]
        xx, xy, yy, xt, yt = smooth(products, self.options.sigma).unbind(1)
        xx, yy = xx + self.options.damping, yy + self.options.damping
        determinant = xx * yy - xy * xy
        return -torch.stack([yy * xt - xy * yt, xx * yt - xy * xt], 1) / determinant.unsqueeze(1)


def displaced(image: Tensor, by: Tensor, outside: str) -> Tensor:
    """image(p + by(p)), bilinear: [B, C, h, w] and [B, 2, h, w] (right, down) in pixels -> [B, C, h, w].

    Pixel centres are at (2 j + 1) / w - 1 in grid_sample's coordinates when its corners aren't aligned.
    """
    height, width = image.shape[-2:]
    across = torch.arange(width, device=image.device, dtype=image.dtype)
    down = torch.arange(height, device=image.device, dtype=image.dtype).unsqueeze(1)
    grid = torch.stack([(2 * (across + by[:, 0]) + 1) / width - 1, (2 * (down + by[:, 1]) + 1) / height - 1], -1)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode=outside, align_corners=False)


def differences(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Central differences to the right and down, [..., h, w] each; one-sided at the edges, 0 along a lone pixel."""
    return tuple(  # type: ignore[return-value]
        torch.gradient(frames, dim=side)[0] if frames.shape[side] > 1 else torch.zeros_like(frames) for side in (-1, -2)
    )


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Apply a Gaussian window over [B, n, h, w], cut at 3 sigma; its weights in the frame sum to 1 at every pixel."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=maps.device, dtype=maps.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma).square())
    for side, kernel in ((2, weights.view(1, 1, -1, 1)), (3, weights.view(1, 1, 1, -1))):
        padding = (radius, 0) if side == 2 else (0, radius)
        flat = maps.flatten(0, 1).unsqueeze(1)
        total = F.conv2d(torch.ones_like(flat[:1]), kernel, padding=padding)
        maps = (F.conv2d(flat, kernel, padding=padding) / total).view_as(maps)
    return maps


def resized(flow: Tensor, height: int, width: int) -> Tensor:
    """Resample a flow [B, 2, h, w] to a grid of another size, in pixels of that grid."""
    if flow.shape[-2:] == (height, width):
        return flow
    scale = flow.new_tensor([width / flow.shape[-1], height / flow.shape[-2]]).view(1, 2, 1, 1)
    return F.interpolate(flow, (height, width), mode="bilinear", align_corners=False) * scale
