"""Randomness of training as a pure function of (seed, position of the sample): nothing to store, nothing to restore.

Scheduled sampling (Bengio et al. 2015): at optimizer step s, each future input of each sample is the true frame with a
probability that falls with s and is 0 from `stop` on (`train.sampling`; S is its scale):

    linear         max(0, start - slope s)
    exponential    exp(-s / S)
    sigmoid        S / (S + exp(s / S))
    reverse        1/2 before reverse_start, then linearly to 0 at `stop`

Reverse scheduled sampling (PredRNN-V2, Wang et al., arXiv:2103.09504) also samples the inputs of the context after its
first frame: they are true with probability 1/2 before reverse_start, then 1 - 1/2 exp(-(s - reverse_start) / S), and 1
from `stop` on. The schedule depends on the step alone: a resumed run continues it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from toolkit.config.recipe import SamplingConfig
from toolkit.data.order import Restarted
from toolkit.models.base import Noise


def teacher_rate(step: int, config: SamplingConfig) -> float:
    """Return the probability that an input of the horizon is the true frame."""
    if step >= config.stop:
        return 0.0
    if config.kind == "exponential":
        return math.exp(-step / config.scale)
    if config.kind == "sigmoid":
        return 1.0 / (1.0 + math.exp(min(700.0, step / config.scale)) / config.scale)
    if config.kind == "reverse":
        passed = max(0, step - config.reverse_start)
        return 0.5 - 0.5 * passed / (config.stop - config.reverse_start)
    return max(0.0, config.start - config.slope * step)


def context_rate(step: int, config: SamplingConfig) -> float:
    """Return the probability that an input of the context, after its first frame, is the true frame."""
    if config.kind != "reverse" or step >= config.stop:
        return 1.0
    if step < config.reverse_start:
        return 0.5
    return 1.0 - 0.5 * math.exp(-(step - config.reverse_start) / config.scale)


def draw_teacher(
    seed: int, positions: Sequence[int], step: int, context: int, horizon: int, config: SamplingConfig
) -> Tensor:
    """Return the mask of scheduled sampling on the host, as in `Sampling`: bool [B, horizon - 1], or [B, context +
    horizon - 2] for reverse scheduled sampling."""
    mask = _coins("teacher", seed, positions, horizon - 1) < teacher_rate(step, config)
    if config.kind == "reverse":
        known = _coins("reverse", seed, positions, context - 1) < context_rate(step, config)
        mask = np.concatenate([known, mask], axis=1)
    return torch.from_numpy(mask)


def _coins(
    name: str, seed: int, positions: Sequence[int], count: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    stream = Restarted()
    return np.stack([stream.named(name, seed, position).random_sample(count) for position in positions])


def draw_noise(seed: int, positions: Sequence[int], device: torch.device) -> Noise:
    """Return the source of the model's random numbers."""
    stream = Restarted()
    return Noise([int(stream.named("noise", seed, position).randint(2**31)) for position in positions], device)
