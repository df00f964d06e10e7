"""The plain forms that speed is measured against compute what the toolkit's models compute."""

from __future__ import annotations

import pytest
import torch

from benchmarks.plain import pairs, plain_model
from shards.manifest import FrameSpec
from tests.support.models import config_of
from toolkit.checkpoint.weights import untrained_model
from toolkit.models.base import Noise, Sampling, StepSequence


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("modernn", {"slots": 4}),
        ("modernn", {"slots": 3}),
        ("modernn_released", {"slots": 4}),
        ("convlstm", {}),
        ("predrnn", {}),
    ],
)
def test_the_plain_form_is_the_same_model(name: str, options: dict) -> None:
    torch.manual_seed(0)
    ours = untrained_model(config_of(name, **options), FrameSpec(1, 12, 16))
    assert isinstance(ours, StepSequence)
    with torch.no_grad():  # what starts at zero would hide a fault
        for parameter in ours.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    plain = plain_model(ours)
    frames = torch.rand(2, 6, 1, 12, 16)
    predictions = []
    for model in (ours, plain):
        rollout = model(frames, 3, Sampling(noise=Noise([1, 2])))
        rollout.predictions.square().sum().backward()
        predictions.append(rollout.predictions)
    assert torch.allclose(*predictions, rtol=1e-5, atol=1e-6)
    covered = 0
    for own, theirs, at in pairs(plain, ours):
        assert own.grad is not None and theirs.grad is not None
        assert torch.allclose(own.grad, theirs.grad[at], rtol=1e-3, atol=1e-4 * float(theirs.grad.abs().max() + 1e-2))
        covered += own.numel()
    assert covered == sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in plain.parameters())
