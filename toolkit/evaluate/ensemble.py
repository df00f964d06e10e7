"""Ensembles: how N forecasts of a sequence become the one that is scored (`eval.ensemble_size`, `eval.select`).

    mean    the mean of the members, pixel by pixel
    best    "best of N" (SVG: N = 100). For every sequence by itself one member is kept: the one whose score in the
            protocol's `best_by`, averaged over lead times, is best; of equals the first. All scores of the sequence
            are then those of this one member, so that the table describes forecasts that were made. Papers differ or
            are silent: Denton & Fergus choose anew for every metric, ModeRNN's text says "the best results from 100
            output samples"

"Best of N" chooses by the truth. It grows with N and measures how well an ensemble covers what happened, not how well
it forecasts; every result and report states N and the rule beside it.

Members are made and taken in one at a time. So on the device 100 of them need the memory of two, and their numbers
don't depend on how many go through the model at once: a network's last bits change with the size of its batch. What
all of them are worth as a distribution is scored beside, see probabilistic.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOWER_IS_BETTER = ("mse", "mae")
HIGHER_IS_BETTER = ("psnr", "ssim")
DISTRIBUTION = (
    "CRPS, fair CRPS, spread, RMSE of the mean and ranks are of all members (of a single forecast the CRPS is its MAE)."
)


@dataclass(frozen=True)
class Ensemble:
    """How many forecasts are made of each sequence, and which is scored.

    Attributes:
        by: the metric that `best` goes by, one of the above.
    """

    samples: int = 1
    select: Literal["mean", "best"] = "mean"
    by: str = "psnr"

    def described(self) -> dict[str, object] | None:
        """What a result records, with a short `label` and a sentence for reports; None for a single forecast."""
        if self.samples == 1:
            return None
        if self.select == "mean":
            label = f"mean of {self.samples}"
            text = f"The mean of {self.samples} forecasts of each sequence is scored. {DISTRIBUTION}"
            return {"samples": self.samples, "select": "mean", "by": None, "label": label, "text": text}
        name = self.by.upper()
        text = (
            f"Best of {self.samples} forecasts: each sequence is scored by the one whose {name}, averaged over lead "
            f"times, is best; all its scores are of that one. The choice uses the truth. {DISTRIBUTION}"
        )
        label = f"best of {self.samples} by {name}"
        return {"samples": self.samples, "select": "best", "by": self.by, "label": label, "text": text}


class MeanMember:
    """The mean of forecasts, added up in float64 in the order in which they come."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, member: Tensor) -> None:
        """Take in a forecast [B, T, C, H, W]."""
        self._sum = member.double() if self._sum is None else self._sum.add_(member)
        self._count += 1

    def result(self) -> Tensor:
        """The mean in float32, of the members' shape."""
        assert self._sum is not None
        return (self._sum / self._count).float()


class BestMember:
    """The forecast of least cost of each sequence."""

    def __init__(self) -> None:
        self._best: Tensor | None = None
        self._cost: Tensor | None = None

    def add(self, member: Tensor, cost: Tensor) -> None:
        """Take in a forecast [B, T, C, H, W] and what it costs [B] (see `cost_of`)."""
        if self._best is None or self._cost is None:
            self._best, self._cost = member.clone(), cost
            return
        better = cost < self._cost
        self._best[better] = member[better]
        self._cost = torch.where(better, cost, self._cost)

    def result(self) -> Tensor:
        """The kept forecasts, of the members' shape."""
        assert self._best is not None
        return self._best


def cost_of(scores: Tensor, nonfinite: Tensor, metric: str) -> Tensor:
    """How bad a member is at each sequence: the less, the better.

    Args:
        scores: [B, T] of `metric`; frames without a value (nothing observed) are NaN and left out of the mean.
        nonfinite: bool [B, T]: the forecast of the frame isn't finite. Such a member counts only where all are so.

    Returns:
        float64 [B].
    """
    assert metric in LOWER_IS_BETTER + HIGHER_IS_BETTER, metric
    mean = scores.double().nanmean(1)
    cost = mean if metric in LOWER_IS_BETTER else -mean
    return torch.where(torch.isnan(cost) | nonfinite.any(1), torch.inf, cost)
