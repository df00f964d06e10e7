"""Scheduled sampling: probabilities by step, and masks that depend on the sample alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shards.manifest import FrameSpec
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.config.recipe import SamplingConfig
from toolkit.errors import ConfigError
from toolkit.models.base import Sampling
from toolkit.train.sampling import context_rate, draw_teacher, teacher_rate

V2 = SamplingConfig(kind="reverse")  # the published schedule: 25,000, 50,000 and 5,000 steps


def published(step: int) -> tuple[float, float]:
    """Rates of the context and of the horizon in PredRNN-V2, by its published description."""
    if step < 25_000:
        return 0.5, 0.5
    if step < 50_000:
        return 1.0 - 0.5 * math.exp(-(step - 25_000) / 5000), 0.5 - 0.5 / 25_000 * (step - 25_000)
    return 1.0, 0.0


@pytest.mark.parametrize("step", [0, 24_999, 25_000, 25_001, 40_000, 49_999, 50_000, 80_000])
def test_reverse_scheduled_sampling_has_the_published_rates(step: int) -> None:
    assert (context_rate(step, V2), teacher_rate(step, V2)) == pytest.approx(published(step))


def test_decays_by_kind() -> None:
    linear = SamplingConfig(start=0.8, slope=1e-3, stop=500)
    assert [teacher_rate(step, linear) for step in (0, 100, 499, 500)] == pytest.approx([0.8, 0.7, 0.301, 0.0])
    exponential = SamplingConfig(kind="exponential", scale=100.0)
    assert teacher_rate(50, exponential) == pytest.approx(math.exp(-0.5))
    sigmoid = SamplingConfig(kind="sigmoid", scale=100.0)
    assert teacher_rate(300, sigmoid) == pytest.approx(100 / (100 + math.exp(3)))
    assert teacher_rate(49_999, SamplingConfig(kind="sigmoid", scale=1.0)) == pytest.approx(0.0)  # no overflow
    for config in (linear, exponential, sigmoid):
        rates = [teacher_rate(step, config) for step in range(0, 60_000, 500)]
        assert rates == sorted(rates, reverse=True) and rates[-1] == 0
        assert context_rate(0, config) == 1.0


def test_masks_depend_on_the_sample_alone() -> None:
    together = draw_teacher(3, [5, 9, 11], 100, 4, 6, V2)
    assert together.shape == (3, 3 + 5)
    assert torch.equal(together[1:2], draw_teacher(3, [9], 100, 4, 6, V2))
    linear = draw_teacher(3, [5, 9, 11], 100, 4, 6, SamplingConfig(start=0.5, slope=0.0))
    assert torch.equal(linear, together[:, 3:])  # the horizon's part has the same draws under the same probability


def test_context_inputs_are_replaced_by_predictions() -> None:
    config = make_config({"model": {"name": "convlstm", "layers": 1, "hidden": 4, "patch": 2}}, "test")
    model = untrained_model(config, FrameSpec(1, 8, 8))
    frames = torch.rand(2, 6, 1, 8, 8)

    def predictions(teacher: Tensor | None) -> Tensor:
        with torch.no_grad():
            return model(frames, 4, Sampling(teacher)).predictions

    none = torch.zeros(2, 1, dtype=torch.bool)
    known = torch.cat([torch.ones(2, 3, dtype=torch.bool), none], 1)
    assert torch.equal(predictions(known), predictions(none))
    replaced = known.clone()
    replaced[:, 1] = False  # the third frame
    assert torch.equal(predictions(replaced)[:, :2], predictions(none)[:, :2])
    fed = frames.clone()
    fed[:, 2] = predictions(none)[:, 1]
    with torch.no_grad():
        assert torch.equal(predictions(replaced), model(fed, 4, Sampling(none)).predictions)


@pytest.mark.parametrize("name", ["simvp", "trajgru", "svg_lp"])
def test_models_without_inputs_to_replace_refuse(name: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.sampling\.kind reverse"):
        make_config({"model": {"name": name}, "train": {"sampling": {"kind": "reverse"}}}, "test")
