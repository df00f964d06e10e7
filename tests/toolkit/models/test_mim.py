"""MIM: the equations, the memories inside the blocks, the first step."""

from __future__ import annotations

import pytest
import torch

from shards.manifest import FrameSpec
from tests.support.models import assert_same
from tests.toolkit.models.reference_mim import plain_mim
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.base import Sampling, StepSequence
from toolkit.models.mim import MIM
from toolkit.models.registry import MIMOptions


def built(checkpointing: str = "none", **options) -> StepSequence:
    torch.manual_seed(0)
    options = {"name": "mim", "layers": 3, "hidden": 4, "kernel": 3, "patch": 2, **options}
    config = make_config({"model": options, "train": {"activation_checkpointing": {"policy": checkpointing}}}, "test")
    model = untrained_model(config, FrameSpec(1, 10, 12))
    with torch.no_grad():  # MIM-N starts at +-0.001 and peepholes at 0: too small to show a fault
        for p in model.parameters():
            p.uniform_(-0.3, 0.3)
    return model


@pytest.mark.parametrize("peepholes", [False, True])
def test_the_stack_equals_the_equations(peepholes: bool) -> None:
    cell = built(peepholes=peepholes).cell.double()
    frames = [torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    state = cell.init_state(2, 5, 6, frames[0], None)
    ours = []
    for frame in frames:
        prediction, state = cell.step(frame, state)
        ours.append(prediction)
    plain = plain_mim(frames, dict(cell.named_parameters()), layers=3, hidden=4)
    assert_same(ours, plain, [*frames, *cell.parameters()])


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_sequence_leaves_nothing_behind(layer_norm: bool) -> None:
    one, other = torch.rand(2, 5, 1, 10, 12), torch.rand(3, 5, 1, 10, 12)  # batches of different sizes
    alone = built(layer_norm=layer_norm)(other, 4, Sampling()).predictions
    model = built(layer_norm=layer_norm)
    model(one, 4, Sampling()).losses["data"].backward()
    assert torch.equal(model(other, 4, Sampling()).predictions, alone)


@pytest.mark.parametrize("memory", ["stationary", "non_stationary", "difference"])
def test_gradients_flow_through_the_memories_in_time(memory: str) -> None:
    cell = built().cell
    frames = torch.rand(4, 1, 4, 5, 6)
    _, state = cell.step(frames[0], cell.init_state(1, 5, 6, frames[0], None))
    _, state = cell.step(frames[1], state)
    leaf = getattr(state.blocks[0], memory).detach().requires_grad_()
    state = state._replace(blocks=[state.blocks[0]._replace(**{memory: leaf}), *state.blocks[1:]])
    for frame in frames[2:]:
        prediction, state = cell.step(frame, state)
    (gradient,) = torch.autograd.grad(prediction.sum(), leaf)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_first_step_has_no_difference(layer_norm: bool) -> None:
    cell = built(layer_norm=layer_norm).cell
    assert isinstance(cell, MIM)
    frame = torch.rand(1, 4, 5, 6)
    _, state = cell.step(frame, cell.init_state(1, 5, 6, frame, None))
    for block in state.blocks:
        assert not block.difference.any()
        assert not block.non_stationary.any()
    _, state = cell.step(torch.rand(1, 4, 5, 6), state)
    assert all(block.difference.any() and block.non_stationary.any() for block in state.blocks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_options_under_checkpointing(dtype: torch.dtype) -> None:
    frames = torch.rand(2, 6, 1, 10, 12)
    grads = []
    for policy in ("none", "step"):
        model = built(policy, peepholes=True, layer_norm=True).to(dtype)
        model(frames, 3, Sampling()).losses["data"].backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_mim_n_starts_small() -> None:
    model = untrained_model(make_config({"model": {"name": "mim", "hidden": 4}}, "test"), FrameSpec(1, 8, 8))
    for name, p in model.named_parameters():
        assert (p.abs().max() <= 0.001) == (".non_stationary." in name)


def test_peepholes_are_tied_to_one_size() -> None:
    model = built(peepholes=True)
    with pytest.raises(ToolkitError, match=r"grid of 5 x 6 patches, these frames give 6 x 6: use frames of the size"):
        model.predict(torch.rand(1, 3, 1, 12, 12), 1)
    assert built().predict(torch.rand(1, 3, 1, 12, 12), 1).shape == (1, 1, 1, 1, 12, 12)


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.kernel: must be odd.*: use 5 or 7, got 6"):
        built(kernel=6)
    with pytest.raises(ConfigError, match=r"model\.layers: .*greater than or equal to 2, got 1"):
        built(layers=1)


def test_published_initialisation() -> None:
    torch.manual_seed(0)
    options = MIMOptions(layers=2, hidden=8, kernel=3, peepholes=True, initialisation="published")
    model = MIM(options, FrameSpec(1, 16, 16))
    block = model.blocks[0]

    def bound(weight: torch.Tensor) -> float:
        return weight.abs().max().item()

    assert bound(block.from_hidden[0].weight) == pytest.approx((6 / (8 + 24)) ** 0.5, rel=0.02)
    assert bound(block.stationary.from_input[0].weight) == pytest.approx((6 / (8 + 32)) ** 0.5, rel=0.02)
    assert bound(model.first.from_hidden[0].weight) == pytest.approx((6 / (8 + 32)) ** 0.5, rel=0.02)
    assert bound(model.read_out.weight) == pytest.approx((6 / (8 + 16)) ** 0.5, rel=0.1)
    for memory in (block.stationary, block.non_stationary):  # TensorFlow's variables are [4, 4, 16] and [4, 4, 8]
        assert bound(memory.peepholes[:2]) == pytest.approx((6 / (4 * (4 + 16))) ** 0.5, rel=0.05)
        assert bound(memory.peepholes[2]) == pytest.approx((6 / (4 * (4 + 8))) ** 0.5, rel=0.05)
    assert bound(block.non_stationary.from_input[0].weight) <= 0.001
