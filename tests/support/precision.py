"""How far gradients on a device, in a precision, are from those in float64 on a CPU; for `make test` and `make gpu`."""

from __future__ import annotations

import torch

from shards.manifest import FrameSpec
from tests.support.models import config_of
from toolkit.models.base import Noise, Sampling, build_model

SHAPE = FrameSpec(1, 32, 32)
# Of `apart`: four times and more what was found with rounded operands on a CPU, over all models.
LIMITS = {"fp32": 1e-5, "tf32": 5e-3, "bf16": 6e-2}


class SameNoise(Noise):
    """Numbers drawn on the CPU whatever the device, whose own generators give others."""

    def __init__(self, seeds: list[int], device: torch.device | str) -> None:
        super().__init__(seeds)
        self.target = device

    def normal(self, *shape: int) -> torch.Tensor:
        return super().normal(*shape).to(self.target)


def gradients(name: str, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Of every parameter, in float64 on the CPU, of one loss with noise and scheduled sampling."""
    torch.manual_seed(0)
    model = build_model(config_of(name).model, SHAPE).to(device, dtype)
    drawn = torch.Generator().manual_seed(1)
    frames = torch.rand(2, 6, 1, 32, 32, generator=drawn).to(device)
    teacher = (torch.rand(2, 2, generator=drawn) < 0.5).to(device)
    losses = model(frames, 3, Sampling(teacher=teacher, noise=SameNoise([7, 8], device))).losses
    torch.stack(list(losses.values())).sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    return {key: parameter.grad.double().cpu() for key, parameter in model.named_parameters()}


def apart(found: dict[str, torch.Tensor], true: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of all gradients over the norm of the true ones."""
    assert list(found) == list(true)
    off = torch.stack([(found[key] - true[key]).norm() for key in true]).norm()
    return float(off / torch.stack([value.norm() for value in true.values()]).norm())
