"""TrajGRU: the warp against translations made by hand, the cell against its equations, sizes and strides."""

from __future__ import annotations

import pytest
import torch

from shards.manifest import FrameSpec
from tests.support.models import assert_same
from tests.toolkit.models.reference_trajgru import plain_trajgru_cell, plain_warp
from toolkit.config import make_config
from toolkit.models.base import Sampling, build_model
from toolkit.models.trajgru import TrajGRUCell, larger, smaller, warp


def constant_flow(right: float, down: float, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    flow = torch.empty(1, 1, 2, *size, dtype=dtype)
    flow[:, :, 0], flow[:, :, 1] = right, down
    return flow


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_warp_translates_by_whole_pixels(dtype: torch.dtype) -> None:
    image = torch.arange(1, 31, dtype=dtype).view(1, 1, 5, 6)
    by_hand = torch.zeros_like(image)
    by_hand[..., 0:4, 0:4] = image[..., 1:5, 2:6]  # reads 2 to the right and 1 down; beyond the frame is 0
    moved = warp(image, constant_flow(2, 1, (5, 6), dtype))[:, :, 0]
    assert torch.allclose(moved, by_hand, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)
    by_hand = torch.zeros_like(image)
    by_hand[..., :, 1:] = image[..., :, :-1]
    assert torch.allclose(warp(image, constant_flow(-1, 0, (5, 6), dtype))[:, :, 0], by_hand, rtol=0, atol=1e-4)


def test_warp_by_half_a_pixel_averages_neighbours() -> None:
    image = torch.tensor([[1.0, 3.0, 7.0, 4.0]], dtype=torch.float64).view(1, 1, 1, 4)
    moved = warp(image, constant_flow(0.5, 0, (1, 4), torch.float64)).flatten()
    assert torch.allclose(moved, torch.tensor([2.0, 5.0, 5.5, 2.0], dtype=torch.float64))  # half of 4 is outside
    moved = warp(image.mT, constant_flow(0, 0.5, (4, 1), torch.float64)).flatten()
    assert torch.allclose(moved, torch.tensor([2.0, 5.0, 5.5, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (96, 96)])
def test_no_flow_changes_nothing(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    moved = warp(image, torch.zeros(2, 4, 2, *size))
    assert moved.shape == (2, 3, 4, *size)
    assert torch.allclose(moved, image.unsqueeze(2).expand_as(moved), rtol=0, atol=1e-4)


def test_warp_equals_the_double_sum() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    flow = 2 * torch.randn(2, 2, 2, 4, 5, dtype=torch.float64)
    flow.requires_grad_()
    plain = torch.stack([plain_warp(image, flow[:, field, 0], flow[:, field, 1]) for field in range(2)], 2)
    assert_same([warp(image, flow)], [plain], [image, flow])


@pytest.mark.parametrize("inputs", [3, 0])
def test_cell_equals_the_equations(inputs: int) -> None:
    torch.manual_seed(inputs)
    cell = TrajGRUCell(inputs, 4, fields=3, flow_hidden=5).double()
    x = torch.randn(2, inputs, 5, 6, dtype=torch.float64, requires_grad=True) if inputs else None
    hidden = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    plain = plain_trajgru_cell(x, hidden, dict(cell.named_parameters()), 3)
    wanted = [hidden, *cell.parameters()] + ([x] if x is not None else [])
    assert_same([cell(x, hidden)], [plain], wanted)


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
def test_strides_shrink_and_grow_exactly(stride: int) -> None:
    small = smaller(1, 2, stride)(torch.rand(1, 1, 4 * stride, 7 * stride))
    assert small.shape[-2:] == (4, 7)
    assert larger(2, 1, stride)(small).shape[-2:] == (4 * stride, 7 * stride)


def test_published_kernels() -> None:
    """Strides 5, 3, 2 of the published network have kernels 7, 5, 3 down and 7, 5, 4 up."""
    assert [smaller(1, 1, s).kernel_size[0] for s in (5, 3, 2)] == [7, 5, 3]
    assert [larger(1, 1, s).kernel_size[0] for s in (5, 3, 2)] == [7, 5, 4]


def test_strides_for_radar_give_the_published_grids() -> None:
    with torch.device("meta"):
        model = build_model(make_config({"model": {"name": "trajgru"}}, "test").model, FrameSpec(1, 384, 384))
        states = model._start(torch.rand(1, 10, 1, 384, 384))
    assert [tuple(state.shape[1:]) for state in states] == [(64, 96, 96), (192, 32, 32), (192, 16, 16)]


def test_forecast_needs_the_context_only() -> None:
    torch.manual_seed(0)
    options = {"name": "trajgru", "hidden": [4, 6], "flows": [3, 2], "strides": [2, 2], "stem": 3, "flow_hidden": 4}
    model = build_model(make_config({"model": options}, "test").model, FrameSpec(2, 9, 10))
    frames = torch.rand(3, 7, 2, 9, 10)
    rollout = model(frames, 4, Sampling())
    assert rollout.predictions.shape == (3, 3, 2, 9, 10)
    assert torch.isclose(rollout.losses["data"], (rollout.predictions - frames[:, 4:]).square().mean())
    other = frames.clone()
    other[:, 4:] = 0
    assert torch.equal(model(other, 4, Sampling()).predictions, rollout.predictions)
    alone = model(frames[1:2], 4, Sampling()).predictions  # no batch size is baked in
    assert torch.allclose(alone, rollout.predictions[1:2], atol=1e-6)
