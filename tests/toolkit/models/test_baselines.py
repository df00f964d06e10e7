"""Baselines without parameters: what they forecast, and that nobody trains them."""

from __future__ import annotations

import pytest
import torch

from shards.manifest import FrameSpec
from tests.support.models import blobs
from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.models.base import Sampling, build_model, count_parameters
from toolkit.models.baselines import OpticalFlow, Persistence, displaced, smooth
from toolkit.models.registry import MODELS, OpticalFlowOptions


def test_persistence_repeats_the_last_frame() -> None:
    model = build_model(make_config({"model": {"name": "persistence"}}, "test").model, FrameSpec(1, 7, 9))
    context = torch.rand(2, 3, 1, 7, 9)
    forecast = model.predict(context, 4, samples=2)
    assert forecast.shape == (2, 2, 4, 1, 7, 9)
    assert all(torch.equal(forecast[s, :, t], context[:, -1]) for s in range(2) for t in range(4))


@pytest.mark.parametrize("shift", [(1.0, 0.0), (0.0, -1.5), (2.3, 1.2), (-4.0, 3.0), (0.0, 0.0)])
def test_flow_finds_a_translation(shift: tuple[float, float]) -> None:
    flow = OpticalFlow().motion(blobs(shift, 3))
    spots = blobs(shift, 3)[:, -1, 0] > 0.1  # where there is something to see
    for component, true in zip(flow.unbind(1), shift, strict=True):
        assert (component[spots] - true).abs().mean() < 0.1 + 0.05 * abs(true)


@pytest.mark.parametrize("shift", [(1.0, 0.5), (-2.0, 1.0)])
def test_extrapolation_beats_persistence_on_a_translation(shift: tuple[float, float]) -> None:
    frames = blobs(shift, 8)
    errors = {}
    for model in (Persistence(), OpticalFlow()):
        forecast = model.predict(frames[:, :4], 4)[0]
        assert forecast.shape == (1, 4, 1, 48, 48)
        errors[type(model)] = float((forecast - frames[:, 4:]).square().mean())
    assert errors[OpticalFlow] < 0.05 * errors[Persistence]


def test_flow_of_a_sample_does_not_depend_on_its_batch() -> None:
    both = torch.cat([blobs((1.0, 0.0), 4), blobs((0.0, 2.0), 4)])
    model = OpticalFlow()
    assert torch.allclose(model.predict(both, 3)[0][1:], model.predict(both[1:], 3)[0], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (13, 18)])
def test_flow_takes_any_size_and_one_frame(size: tuple[int, int]) -> None:
    context = torch.rand(2, 1, 3, *size)
    assert torch.allclose(OpticalFlow().predict(context, 3)[0], context.expand(-1, 3, -1, -1, -1), atol=1e-5)
    assert torch.isfinite(OpticalFlow().predict(torch.rand(2, 4, 3, *size), 30)).all()


def test_what_moves_in_from_outside() -> None:
    ones = torch.ones(1, 1, 4, 4)
    by = torch.zeros(1, 2, 4, 4)
    by[:, 0] = -1
    assert displaced(ones, by, "zeros")[0, 0].tolist() == [[0.0, 1.0, 1.0, 1.0]] * 4
    assert displaced(ones, by, "border").tolist() == ones.tolist()
    frames = blobs((3.0, 0.0), 3) + 0.25
    outcomes = [
        OpticalFlow(OpticalFlowOptions(outside=outside)).predict(frames, 4)[0, 0, -1] for outside in ("zeros", "border")
    ]
    assert outcomes[0].min() < 0.01 < 0.24 < outcomes[1].min()


def test_smoothing_keeps_a_constant() -> None:
    assert torch.allclose(smooth(torch.full((1, 2, 5, 7), 3.0), 2.0), torch.full((1, 2, 5, 7), 3.0))


@pytest.mark.parametrize("name", ["persistence", "optical_flow"])
def test_baselines_cannot_be_trained(name: str) -> None:
    model = build_model(make_config({"model": {"name": name}}, "test").model, FrameSpec(1, 8, 8))
    with pytest.raises(ConfigError, match="has no parameters: it is evaluated, not trained"):
        model(torch.rand(1, 4, 1, 8, 8), 2, Sampling())


@pytest.mark.parametrize("name", MODELS)
def test_the_registry_says_truly_what_is_trained(name: str) -> None:
    parameters = count_parameters(make_config({"model": {"name": name}}, "test").model, FrameSpec(1, 16, 16))
    assert MODELS[name].trained == (parameters > 0)
