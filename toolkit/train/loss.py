"""The loss of a micro-batch, in two parts: what the host prepares, and what a device can compute without the host.

`inputs` reads the batch, draws random numbers and copies; `compute` runs the model and never waits for the device, so
that it can be recorded once as a CUDA graph and replayed on other inputs (toolkit/train/graphed.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shards import Scale
from toolkit.config import RunConfig
from toolkit.data.batches import Batch
from toolkit.data.windows import observed, to_unit
from toolkit.models.base import Noise, Rollout, Sampling
from toolkit.train.criterion import make_criterion
from toolkit.train.sampling import draw_noise, draw_teacher

Forward = Callable[[Tensor, int, Sampling], Rollout]


@dataclass(frozen=True)
class Inputs:
    """What the loss of a micro-batch depends on, besides the weights.

    Attributes:
        codes: [B, T, C, H, W] as the store holds them.
        teacher: bool [B, horizon - 1] or [B, context + horizon - 2], as in `Sampling`.
        noise: source of the model's random numbers.
    """

    codes: Tensor
    teacher: Tensor
    noise: Noise


class TrainingLoss:
    """Called with a batch, returns its loss by the engine's forward pass.

    Args:
        forward: the model as an engine calls it.
        targets: channels of the batches that are predicted; None: all.
        begin, end: called before and after the forward pass (of a replay: the forward and backward pass).

    Attributes:
        step: the optimizer step that batches belong to; decides the rate of scheduled sampling.
    """

    def __init__(
        self,
        config: RunConfig,
        scale: Scale,
        device: torch.device,
        forward: Forward,
        begin: Callable[[], None] = lambda: None,
        end: Callable[[], None] = lambda: None,
        targets: tuple[int, ...] | None = None,
    ) -> None:
        self.config, self.scale, self.device, self.forward = config, scale, device, forward
        self.begin, self.end = begin, end
        self.criterion = make_criterion(config.train, scale, config.data.horizon, targets)
        self.step = 0

    def inputs(self, batch: Batch) -> Inputs:
        """Return the inputs on the device; the copies don't wait where the batch is in page-locked memory."""
        config = self.config
        data, schedule = config.data, config.train.sampling
        teacher = draw_teacher(config.seed, batch.positions, self.step, data.context, data.horizon, schedule)
        noise = draw_noise(config.seed, batch.positions, self.device)
        if self.device.type == "cuda":
            teacher = teacher.pin_memory()
        codes = batch.frames.to(self.device, non_blocking=True)
        return Inputs(codes, teacher.to(self.device, non_blocking=True), noise)

    def compute(self, forward: Forward, inputs: Inputs) -> Tensor:
        """Return the loss, a scalar in float32."""
        sampling = Sampling(inputs.teacher, inputs.noise, observed(inputs.codes, self.scale), self.criterion)
        rollout = forward(to_unit(inputs.codes, self.scale), self.config.data.context, sampling)
        return torch.stack(list(rollout.losses.values())).sum()

    def __call__(self, batch: Batch) -> Tensor:
        self.begin()
        loss = self.compute(self.forward, self.inputs(batch))
        self.end()
        return loss
