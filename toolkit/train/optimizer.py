"""torch's optimizers by `train.optimizer`, their groups of parameters, and the rates of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from toolkit.config.sections import TrainConfig
from toolkit.train.schedule import first_moment_decay, learning_rate

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)  # the last: all batch and instance norms


@dataclass(frozen=True)
class Group:
    """Trained parameters by name, and their weight decay."""

    weight_decay: float
    named: list[tuple[str, nn.Parameter]]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named]


def moments_of(config: TrainConfig) -> tuple[str, ...]:
    """Return the names of what an optimizer keeps of each parameter; nothing for SGD without momentum."""
    if config.optimizer == "sgd":
        return ("momentum_buffer",) if config.momentum else ()
    return "exp_avg", "exp_avg_sq"


def trainable_groups(model: nn.Module, config: TrainConfig) -> list[Group]:
    """Return the parameters that are trained: those with weight decay, then biases, norms and scales without it.

    Without weight decay there is one group. No group is empty.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not config.weight_decay:
        return [Group(0.0, named)]
    # By module and not by shape: a layer norm over positions has weights [C, H, W].
    norms = {id(one) for module in model.modules() if isinstance(module, NORMS) for one in module.parameters(False)}

    def is_free(name: str, parameter: nn.Parameter) -> bool:
        per_channel = parameter.dim() <= 1 or tuple(parameter.shape[1:]) == (1, 1)  # [C, 1, 1] scales a map
        return per_channel or name.endswith("bias") or id(parameter) in norms

    decayed = [item for item in named if not is_free(*item)]
    others = [item for item in named if is_free(*item)]
    return [group for group in (Group(config.weight_decay, decayed), Group(0.0, others)) if group.named]


def make_optimizer(groups: Sequence[tuple[float, Sequence[Tensor]]], config: TrainConfig) -> Optimizer:
    """Return the optimizer of a config for groups of (weight decay, what is updated)."""
    options = [{"params": list(held), "weight_decay": decay} for decay, held in groups]
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
    moments = {key: torch.zeros_like(weight) for key in moments_of(config)}
    if config.optimizer == "sgd":
        return moments
    return {"step": torch.tensor(float(updates), device=weight.device), **moments}
