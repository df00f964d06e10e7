"""Ensembles: how N forecasts of a sequence are reduced to the one that is scored (`eval.ensemble_size`, `eval.select`).

    mean    the ensemble mean, pixel by pixel
    best    "best of N" (SVG: N = 100). One member per sequence is selected: the one whose score in the protocol's
            `best_by`, averaged over lead times, is best; the first of equal ones. All scores of the sequence are those
            of this member, so that the table describes actual forecasts. Papers differ or do not specify the rule:
            Denton & Fergus select a member for every metric, the ModeRNN paper says "the best results from 100 output
            samples"

"Best of N" selects using the observation. It grows with N and measures how well an ensemble covers the observation, not
forecast skill; every result and report states N and the rule.

Members are computed and added one at a time. So 100 members need the device memory of two, and their values do not
depend on how many go through the model at once (rounding depends on the batch size). Scores of the ensemble as a
distribution: probabilistic.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOWER_IS_BETTER = ("mse", "mae")
HIGHER_IS_BETTER = ("psnr", "ssim")
DISTRIBUTION = (
    "CRPS, fair CRPS, spread, RMSE of the mean and ranks use all members (for a single forecast CRPS is its MAE)."
)


@dataclass(frozen=True)
class Ensemble:
    """Ensemble size, and which forecast is scored.

    Attributes:
        by: the metric by which `best` selects, one of the above.
    """

    samples: int = 1
    select: Literal["mean", "best"] = "mean"
    by: str = "psnr"

    def described(self) -> dict[str, object] | None:
        """Return what a result records, with a short `label` and a sentence for reports; None for a single forecast."""
        if self.samples == 1:
            return None
        if self.select == "mean":
            label = f"mean of {self.samples}"
            text = f"Scored: the ensemble mean of {self.samples} members. {DISTRIBUTION}"
            return {"samples": self.samples, "select": "mean", "by": None, "label": label, "text": text}
        name = self.by.upper()
        text = (
            f"Best of {self.samples} members: each sequence is scored by the member whose {name}, averaged over lead "
            f"times, is best, in all metrics. The selection uses the observation. {DISTRIBUTION}"
        )
        label = f"best of {self.samples} by {name}"
        return {"samples": self.samples, "select": "best", "by": self.by, "label": label, "text": text}


class MeanMember:
    """The ensemble mean, accumulated in float64 in the order of the members."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, member: Tensor) -> None:
        """Add a forecast [B, T, C, H, W]."""
        self._sum = member.double() if self._sum is None else self._sum.add_(member)
        self._count += 1

    def result(self) -> Tensor:
        """Return the mean in float32, with the shape of a member."""
        assert self._sum is not None
        return (self._sum / self._count).float()


class BestMember:
    """The member with the lowest cost, for each sequence."""

    def __init__(self) -> None:
        self._best: Tensor | None = None
        self._cost: Tensor | None = None

    def add(self, member: Tensor, cost: Tensor) -> None:
        """Add a forecast [B, T, C, H, W] with its cost [B] (see `cost_of`)."""
        if self._best is None or self._cost is None:
            self._best, self._cost = member.clone(), cost
            return
        better = cost < self._cost
        self._best[better] = member[better]
        self._cost = torch.where(better, cost, self._cost)

    def result(self) -> Tensor:
        """Return the selected forecasts, with the shape of a member."""
        assert self._best is not None
        return self._best


def cost_of(scores: Tensor, nonfinite: Tensor, metric: str) -> Tensor:
    """Return the cost of a member for each sequence; lower is better.

    Args:
        scores: [B, T] of `metric`; frames without a value (nothing observed) are NaN and excluded from the mean.
        nonfinite: bool [B, T]: the forecast of the frame is not finite. Such a member is selected only if all are.

    Returns:
        float64 [B].
    """
    assert metric in LOWER_IS_BETTER + HIGHER_IS_BETTER, metric
    mean = scores.double().nanmean(1)
    cost = mean if metric in LOWER_IS_BETTER else -mean
    return torch.where(torch.isnan(cost) | nonfinite.any(1), torch.inf, cost)
