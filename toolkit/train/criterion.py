"""The loss of predictions against observations (`train.loss`), over observed pixels, by rain rate and lead time.

Each sample's loss is the mean of weight x error over its observed pixels, not divided by the sum of the weights; the
batch's is the mean over its samples: it does not depend on how a batch is divided. A sample without an observed pixel
counts as 0. All of it runs on the device without waiting for it, so that it can be part of a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shards import Scale
from toolkit.config.recipe import LossConfig
from toolkit.config.sections import TrainConfig
from toolkit.models.base import Criterion, mean_square
from toolkit.models.channels import select_channels
from toolkit.train.check import check_lead_times, rain_levels


def make_criterion(
    config: TrainConfig, scale: Scale, horizon: int, targets: tuple[int, ...] | None = None
) -> Criterion:
    """Return the loss that `train.loss` names, for a store of some scale.

    Args:
        targets: channels of the frames that alone have a part in it; None: all.

    Raises:
        ConfigError: as `check_lead_times` and `rain_levels`.
    """
    if targets is not None:
        return OfTargets(make_criterion(config, scale, horizon), targets)
    loss = config.loss
    if loss.kind == "l2" and loss.lead_times is None:
        return mean_square
    check_lead_times(loss, horizon)
    return WeightedLoss(loss, rain_levels(loss, scale))


class OfTargets:
    """A loss of some channels of predictions and frames."""

    def __init__(self, criterion: Criterion, targets: tuple[int, ...]) -> None:
        self.criterion, self.targets = criterion, targets

    def __call__(self, predictions: Tensor, frames: Tensor, observed: Tensor | None) -> Tensor:
        seen = None if observed is None else select_channels(observed, self.targets)
        return self.criterion(select_channels(predictions, self.targets), select_channels(frames, self.targets), seen)


class WeightedLoss:
    """A loss by kind, rain rate and lead time; called as `mean_square` is.

    Args:
        levels: of the observation in 0..1, at which the weight of a balanced loss changes.
    """

    def __init__(self, config: LossConfig, levels: tuple[float, ...]) -> None:
        self.config, self.levels = config, levels
        self._leads: Tensor | None = None  # made once: a copy from the host can't be part of a CUDA graph

    def __call__(self, predictions: Tensor, frames: Tensor, observed: Tensor | None) -> Tensor:
        """Return the loss of predictions [B, P, C, H, W] of the last P of frames [B, T, C, H, W], in float32."""
        last = predictions.shape[1]
        predicted, true = predictions.float(), frames[:, -last:].float()
        errors = self._errors(predicted, true)
        if self.levels:
            errors = errors * self._rain_weights(true)
        if self.config.lead_times is not None:
            errors = errors * self._lead_weights(last, errors).view(1, -1, 1, 1, 1)
        if observed is None:
            return errors.mean()
        seen = observed[:, -last:].flatten(1)
        return ((errors.flatten(1) * seen).sum(1) / seen.sum(1).clamp(min=1)).mean()

    def _errors(self, predicted: Tensor, true: Tensor) -> Tensor:
        kind = self.config.kind.removeprefix("balanced_")
        if kind == "huber":
            return F.huber_loss(predicted, true, reduction="none", delta=self.config.huber_delta)
        absolute = (predicted - true).abs()
        if kind in ("l2", "mse"):
            return absolute.square()
        if kind in ("l1", "mae"):
            return absolute
        return absolute + absolute.square()  # l1+l2, balanced

    def _rain_weights(self, true: Tensor) -> Tensor:
        """Return the weight of each pixel by the observed rain rate (Shi et al. 2017, equation of B-MSE and B-MAE)."""
        weights = torch.full_like(true, self.config.weights[0])
        for level, weight in zip(self.levels, self.config.weights[1:], strict=True):
            weights = torch.where(true >= level, weight, weights)
        return weights

    def _lead_weights(self, last: int, like: Tensor) -> Tensor:
        """Return [P] weights: 1 for predictions of the context, then those of the horizon."""
        if self._leads is None or len(self._leads) != last or self._leads.device != like.device:
            leads = self.config.lead_times or ()
            numbers = [1.0] * (last - len(leads)) + list(leads)
            self._leads = torch.tensor(numbers[-last:], dtype=torch.float32, device=like.device)
        return self._leads
