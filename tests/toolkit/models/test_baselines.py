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


@pytest.mark.parametrize(
    ("shift", "inside"), [((3.0, 0.0), (slice(None), slice(13, None))), ((0.0, -2.0), (slice(0, 39),))]
)
def test_inflow_is_what_the_motion_brings_from_outside(shift: tuple[float, float], inside: tuple[slice, ...]) -> None:
    """After four steps of 3 pixels to the right, the 12 columns at the left edge are unknown; a pixel of tolerance."""
    frames, model = blobs(shift, 4), OpticalFlow()
    made, inflow = model.predict_with_inflow(frames, 4, samples=2)
    assert torch.equal(made, model.predict(frames, 4, samples=2)) and inflow.shape == made.shape
    assert inflow.dtype == torch.bool and torch.equal(inflow[0], inflow[1])
    assert not inflow[0, 0, -1, 0][inside].any()
    moved = round(4 * abs(shift[0] + shift[1]))
    at_edge = inflow[0, 0, -1, 0].float().mean(0 if shift[0] else 1)  # the motion is known where the spots are
    assert moved - 3 <= at_edge.sum() <= moved + 1
    assert inflow[0, 0, 0].sum() < inflow[0, 0, -1].sum()


def test_what_flows_in_from_unobserved_pixels_is_inflow() -> None:
    frames = blobs((3.0, 0.0), 4)
    seen = torch.ones(1, 1, 48, 48, dtype=torch.bool)
    seen[..., :10] = False
    inflow = OpticalFlow().predict_with_inflow(frames, 4, observed=seen)[1][0, 0, :, 0]
    row = inflow[:, 14]  # through a spot, where the motion is exact
    assert [int(line.sum()) for line in row] == pytest.approx([13, 16, 19, 22], abs=1)


def test_without_motion_nothing_flows_in() -> None:
    frames = blobs((0.0, 0.0), 4)
    assert not OpticalFlow().predict_with_inflow(frames, 30)[1].any()
