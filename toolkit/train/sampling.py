"""Randomness of training as a pure function of (seed, position of the sample): nothing to store, nothing to restore.

Scheduled sampling (Bengio et al. 2015): at optimizer step s, each future input of each sample is the true frame with
chance max(0, start - slope * s), 0 from `stop` on. The schedule depends on the step alone: a resumed run continues it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from toolkit.config_sections import SamplingConfig
from toolkit.data.order import Restarted
from toolkit.models.base import Noise


def teacher_rate(step: int, config: SamplingConfig) -> float:
    """The chance that a future input is the true frame."""
    if step >= config.stop:
        return 0.0
    return max(0.0, config.start - config.slope * step)


def draw_teacher(seed: int, positions: Sequence[int], step: int, horizon: int, config: SamplingConfig) -> Tensor:
    """Return the mask of scheduled sampling, bool [B, horizon - 1], on the host."""
    rate, stream = teacher_rate(step, config), Restarted()
    coins = np.stack([stream.named("teacher", seed, position).random_sample(horizon - 1) for position in positions])
    return torch.from_numpy(coins < rate)


def draw_noise(seed: int, positions: Sequence[int], device: torch.device) -> Noise:
    """Return the source of the model's random numbers."""
    stream = Restarted()
    return Noise([int(stream.named("noise", seed, position).randint(2**31)) for position in positions], device)
