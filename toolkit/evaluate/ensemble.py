"""The rule by which an ensemble is scored as "best of S" (SVG: S = 100).

For every sequence by itself one member is chosen: the one whose *named* metric, averaged over lead times, is best. All
metrics of the sequence are then those of this one member, so that the table describes forecasts that were made. Papers
differ or are silent: Denton & Fergus choose anew for every metric (call this once per metric to do that), ModeRNN's
text says "the best results from 100 output samples".

The choice uses the truth. "Best of S" grows with S and measures how well an ensemble covers what happened, not how well
it forecasts; a deterministic model is scored on its one forecast. State the metric and S beside every such number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolkit.errors import ConfigError

LOWER_IS_BETTER = ("mse", "mae", "lpips")
HIGHER_IS_BETTER = ("psnr", "ssim")


def best_of(scores: Tensor, metric: str) -> Tensor:
    """Which member counts for each sequence.

    Args:
        scores: [S, B, T] of the metric: members, sequences, lead times.
        metric: one of those above; says which end is better.

    Returns:
        int64 [B]. Equal members: the first. A member with a value that isn't finite counts only where all have one.

    Raises:
        ConfigError: another metric.
    """
    if metric not in LOWER_IS_BETTER + HIGHER_IS_BETTER:
        known = ", ".join(LOWER_IS_BETTER + HIGHER_IS_BETTER)
        raise ConfigError(f"best of an ensemble by {metric!r}: unknown; choose the member by one of {known}")
    mean = scores.double().mean(2)
    cost = mean if metric in LOWER_IS_BETTER else -mean
    cost = torch.where(torch.isfinite(cost), cost, torch.inf)
    return cost.sort(dim=0, stable=True).indices[0]


def take(members: Tensor, chosen: Tensor) -> Tensor:
    """The chosen member of every sequence: [S, B, ...] and [B] -> [B, ...]."""
    return members[chosen, torch.arange(members.shape[1], device=members.device)]
