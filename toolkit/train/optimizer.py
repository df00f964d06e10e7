"""torch's optimizers by `train.optimizer`, their groups of parameters, and the rates of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from toolkit.config.sections import TrainConfig
from toolkit.train.schedule import first_moment_decay, learning_rate

MOMENTS = {"adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def trainable_groups(model: nn.Module, config: TrainConfig) -> list[list[tuple[str, nn.Parameter]]]:
    """Return the parameters that are trained, by name: those with weight decay, then biases and norms without it.

    Without weight decay there is one group.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not config.weight_decay:
        return [named]
    decayed = [item for item in named if item[1].dim() > 1 and not item[0].endswith("bias")]
    others = [item for item in named if item[1].dim() <= 1 or item[0].endswith("bias")]
    return [group for group in (decayed, others) if group]


def make_optimizer(groups: Sequence[Sequence[Tensor]], config: TrainConfig) -> Optimizer:
    """Return the optimizer of a config; the first group has the weight decay, a second one has none."""
    options = [
        {"params": list(group), "weight_decay": 0.0 if number else config.weight_decay}
        for number, group in enumerate(groups)
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(options, lr=config.lr, momentum=config.momentum, fused=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(options, lr=config.lr, betas=config.betas, fused=True)


def set_rates(optimizer: Optimizer, config: TrainConfig, step: int) -> None:
    """Set learning rate and beta1 (momentum) for the update after `step` optimizer steps."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
        if config.optimizer == "sgd":
            group["momentum"] = first_moment_decay(step, config)
        else:
            group["betas"] = (first_moment_decay(step, config), config.betas[1])


def state_of(weight: Tensor, updates: int, config: TrainConfig) -> dict[str, Tensor]:
    """Return an optimizer's state of one weight after `updates` updates, with moments of zero, to be filled."""
    moments = {key: torch.zeros_like(weight) for key in MOMENTS[config.optimizer]}
    if config.optimizer == "sgd":
        return moments
    return {"step": torch.tensor(float(updates), device=weight.device), **moments}
