"""Every trainable model learns one tiny batch: a square that moves to the right."""

from __future__ import annotations

import pytest
import torch

from shards.manifest import FrameSpec
from tests.support.models import SMALL, config_of
from toolkit.models.base import Noise, Sampling, build_model

STEPS = 60


@pytest.mark.parametrize("name", SMALL)
def test_overfits_one_batch(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(config_of(name).model, FrameSpec(1, 16, 16))
    frames = torch.full((2, 6, 1, 16, 16), 0.1)
    for t in range(6):
        frames[0, t, 0, 4:9, 1 + 2 * t : 5 + 2 * t] = 0.9
        frames[1, t, 0, 1 + t : 6 + t, 6:11] = 0.7
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(STEPS):
        rollout = model(frames, 3, Sampling(noise=Noise([step, STEPS + step])))
        optimizer.zero_grad()
        sum(rollout.losses.values()).backward()
        optimizer.step()
        losses.append(float(rollout.losses["data"].detach()))
    assert losses[-1] < 0.5 * losses[0]
    still = (frames[:, 3:] - frames[:, 2:3]).square().mean()
    assert losses[-1] < still
