"""Randomness of training as a pure function of (seed, position of the sample): nothing to store, nothing to restore.

Scheduled sampling (Bengio et al. 2015): at optimizer step s, each future input of each sample is the true frame with
chance max(0, start - slope * s), 0 from `stop` on. The schedule depends on the step alone: a resumed run continues it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from toolkit.config import SamplingConfig
from toolkit.data.order import stream_of
from toolkit.models.base import Noise, Sampling


def teacher_rate(step: int, config: SamplingConfig) -> float:
    """The chance that a future input is the true frame."""
    if step >= config.stop:
        return 0.0
    return max(0.0, config.start - config.slope * step)


def draw(
    seed: int, positions: Sequence[int], step: int, horizon: int, config: SamplingConfig, device: torch.device
) -> Sampling:
    """Scheduled sampling and noise for the samples at these positions of the training stream."""
    rate = teacher_rate(step, config)
    coins = np.stack([stream_of("teacher", seed, position).random_sample(horizon - 1) for position in positions])
    seeds = [int(stream_of("noise", seed, position).randint(2**31)) for position in positions]
    return Sampling(torch.from_numpy(coins < rate).to(device), Noise(seeds, device))
