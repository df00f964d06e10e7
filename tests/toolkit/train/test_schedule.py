"""Learning rates are those of torch's schedulers, at every step."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from toolkit.config import make_config
from toolkit.config.sections import TrainConfig
from toolkit.errors import ConfigError
from toolkit.train.schedule import first_moment_decay, learning_rate

LR, STEPS = 3e-4, 60


def config(optimizer: str = "adam", steps: int = STEPS, **schedule: object) -> TrainConfig:
    return TrainConfig.model_validate({"lr": LR, "steps": steps, "optimizer": optimizer, "schedule": schedule})


def rates(make: object, optimizer: str = "adam", steps: int = STEPS) -> list[tuple[float, float]]:
    """The rate and first moment's decay of each optimizer step under one of torch's schedulers."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optim = torch.optim.Adam([weight], LR) if optimizer == "adam" else torch.optim.SGD([weight], LR, momentum=0.9)
    scheduler = make(optim)  # type: ignore[operator]
    out = []
    for _ in range(steps):
        group = optim.param_groups[0]
        out.append((group["lr"], group["betas"][0] if optimizer == "adam" else group["momentum"]))
        optim.step()
        scheduler.step()
    return out


def warmed(optim: torch.optim.Optimizer, after: lr_scheduler.LRScheduler, warmup: int) -> lr_scheduler.LRScheduler:
    rise = lr_scheduler.LinearLR(optim, 1 / (warmup + 1), 1.0, warmup)
    return lr_scheduler.SequentialLR(optim, [rise, after], [warmup])


REFERENCES = {
    "constant": ({}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
    "cosine": ({"final": 0.01}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, 0.01 * LR)),
    "step": ({"every": 7, "factor": 0.5}, lambda o: lr_scheduler.StepLR(o, 7, 0.5)),
    "polynomial": ({"power": 2.0}, lambda o: lr_scheduler.PolynomialLR(o, STEPS, 2.0)),
    "one_cycle": ({}, lambda o: lr_scheduler.OneCycleLR(o, LR, STEPS)),
}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("kind", REFERENCES)
def test_rates_are_torchs(kind: str, optimizer: str) -> None:
    options, reference = REFERENCES[kind]
    cfg = config(optimizer, kind=kind, **options)
    for step, (rate, decay) in enumerate(rates(reference, optimizer)):
        assert learning_rate(step, cfg) == pytest.approx(rate, rel=1e-9, abs=1e-15), step
        assert first_moment_decay(step, cfg) == pytest.approx(decay, rel=1e-9), step


@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
@pytest.mark.parametrize("warmup", [1, 10])
def test_warm_up_rises_linearly_and_the_decay_follows(warmup: int) -> None:
    def reference(optim: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        return warmed(optim, lr_scheduler.CosineAnnealingLR(optim, STEPS - warmup), warmup)

    cfg = config(kind="cosine", warmup=warmup)
    for step, (rate, _) in enumerate(rates(reference)):
        assert learning_rate(step, cfg) == pytest.approx(rate, rel=1e-9, abs=1e-15), step


def test_a_rate_depends_on_the_step_alone() -> None:
    cfg = config(kind="one_cycle")
    assert max(learning_rate(step, cfg) for step in range(STEPS)) == LR
    assert learning_rate(10 * STEPS, cfg) == learning_rate(STEPS - 1, cfg)  # a run that is longer keeps the last


@pytest.mark.parametrize("rise", [0.01, 0.3, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("steps", [1, 3, 7, 10])
def test_a_short_cycle_ends_at_its_last_rate_as_torchs_does(steps: int, rise: float) -> None:
    """However few steps are left after the rise."""
    cfg = config(steps=steps, kind="one_cycle", rise=rise, start_divisor=10.0, final_divisor=100.0)
    reference = rates(
        lambda o: lr_scheduler.OneCycleLR(o, LR, steps, None, None, rise, div_factor=10.0, final_div_factor=100.0),
        steps=steps,
    )
    for step, (rate, decay) in enumerate(reference):
        assert learning_rate(step, cfg) == pytest.approx(rate, rel=1e-9), step
        assert first_moment_decay(step, cfg) == pytest.approx(decay, rel=1e-9), step


def test_one_cycle_takes_no_warm_up() -> None:
    with pytest.raises(ConfigError, match=r"leave train.schedule.warmup at 0"):
        make_config({"train": {"schedule": {"kind": "one_cycle", "warmup": 5}}}, "test")
