"""The learning rate (and one-cycle's beta1) as a pure function of the optimizer step: nothing to store for a resume.

Equal to torch.optim.lr_scheduler's LinearLR with CosineAnnealingLR, OneCycleLR, StepLR and PolynomialLR stepped after
every optimizer step (a test compares them), but not accumulated from step to step, so that a resumed run has the same
rates to the last bit.
"""

from __future__ import annotations

import math

from toolkit.config.sections import TrainConfig

MOMENTA = (0.85, 0.95)  # one-cycle: beta1 falls to the first while the rate rises, and rises to the second after it


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of the update that makes `step` optimizer steps `step + 1`."""
    schedule, lr = config.schedule, config.lr
    if schedule.kind == "one_cycle":
        return _one_cycle(step, config, lr / schedule.start_divisor, lr, _lowest(config))
    if step < schedule.warmup:
        return lr * (step + 1) / (schedule.warmup + 1)
    after = step - schedule.warmup
    share = min(1.0, after / max(1, config.steps - schedule.warmup))
    if schedule.kind == "cosine":
        return lr * (schedule.final + (1.0 - schedule.final) * (1.0 + math.cos(math.pi * share)) / 2.0)
    if schedule.kind == "polynomial":
        return float(lr * (schedule.final + (1.0 - schedule.final) * (1.0 - share) ** schedule.power))
    if schedule.kind == "step":
        return float(lr * schedule.factor ** (after // schedule.every))
    return lr


def first_moment_decay(step: int, config: TrainConfig) -> float:
    """Return Adam's beta1 (SGD's momentum) at a step: constant, but for one-cycle."""
    constant = config.momentum if config.optimizer == "sgd" else config.betas[0]
    if config.schedule.kind != "one_cycle" or constant == 0:
        return constant
    low, high = MOMENTA
    return _one_cycle(step, config, high, low, high)


def _lowest(config: TrainConfig) -> float:
    return config.lr / config.schedule.start_divisor / config.schedule.final_divisor


def _one_cycle(step: int, config: TrainConfig, first: float, middle: float, last: float) -> float:
    """Return the value at a step of the two half cosines of OneCycleLR (Smith and Topin, arXiv:1708.07120)."""
    last_step = config.steps - 1
    turn = config.schedule.rise * config.steps - 1.0
    step = min(step, last_step)
    if step <= turn:
        return _cosine(first, middle, step / turn if turn > 0 else 1.0)
    return _cosine(middle, last, (step - turn) / (last_step - turn))


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) / 2.0 * (math.cos(math.pi * share) + 1.0)
