"""Capture: the same forward pass, the right tensors, nothing left behind."""

from __future__ import annotations

import pytest
import torch

from shards.manifest import FrameSpec
from tests.support.models import config_of
from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.base import Sampling, StepSequence, build_model
from toolkit.models.capture import capture

STEP_MODELS = ["modernn", "modernn_released", "convlstm", "predrnn", "mim", "conv_tt_lstm", "rim"]


def made(name: str, **options) -> StepSequence:
    torch.manual_seed(0)
    model = build_model(config_of(name, **options).model, FrameSpec(1, 8, 12)).eval()
    assert isinstance(model, StepSequence)
    return model


@pytest.mark.parametrize("name", STEP_MODELS)
def test_nothing_changes_and_nothing_stays(name: str) -> None:
    model, frames = made(name, checkpointing="step"), torch.rand(2, 4, 1, 8, 12)
    before = model.predict(frames, 3)
    with capture(model) as seen:
        assert torch.equal(model.predict(frames, 3), before)
    model.predict(frames, 3)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert len(seen.memory) >= 2
    for steps in seen.memory.values():
        assert len(steps) == 6  # 4 frames and 2 of its own predictions
        assert all(step.shape[0] == 2 and step.shape[2:] == (2, 3) for step in steps)
        assert not torch.equal(steps[4], steps[5])


@pytest.mark.parametrize("name", ["modernn", "modernn_released", "convlstm"])
def test_the_memory_is_the_state(name: str) -> None:
    """Step by step by hand, the last entry of each layer's state."""
    model, frames = made(name), torch.rand(2, 16, 2, 3)
    with capture(model) as seen, torch.no_grad():
        state = model.cell.init_state(2, 2, 3, frames, None)
        for step in range(3):
            _, state = model.cell(frames, state)
            for layer, (_, memory) in enumerate(state):
                assert seen.memory[layer][step] is memory


@pytest.mark.parametrize(("name", "sets"), [("modernn", 4), ("modernn_released", 2)])
def test_slots_and_weights_are_those_that_are_used(name: str, sets: int) -> None:
    model, frames = made(name, slots=2), torch.rand(2, 4, 1, 8, 12)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    at_bind, at_weigh = [], []
    cell = model.cell.cells[1]
    if name == "modernn":
        cell.bind.register_forward_hook(lambda module, inputs, output: at_bind.append(output))
        cell.weigh.register_forward_hook(lambda module, inputs, output: at_weigh.append(output))
    else:
        cell.fuse_og.of_slots.register_forward_pre_hook(lambda module, inputs: at_bind.append(inputs[0]))
        cell.fuse_og.weigh.register_forward_hook(lambda module, inputs, output: at_weigh.append(output))
    with capture(model) as seen:
        model.predict(frames, 1)
    assert len(seen.slots) == len(seen.weights) == 2
    for step in range(4):
        assert seen.slots[1][step].shape == (2, 2, 8, 2, 3)
        assert torch.equal(seen.slots[1][step].flatten(1, 2), at_bind[step])
        weights = seen.weights[1][step]
        assert weights.shape == (2, 2, sets, 16)
        used = at_weigh[step] if name == "modernn" else at_weigh[step].view(2, 3, 16)[:, 1:]
        assert torch.equal(weights if name == "modernn" else weights[:, :, 1], used)
    assert not torch.equal(seen.weights[0][0], seen.weights[1][0])


def test_what_cannot_be_captured_is_refused() -> None:
    model, frames = made("modernn", fusion="equal"), torch.rand(1, 4, 1, 8, 12)
    with capture(model) as seen, pytest.raises(ToolkitError, match=r"gradients on; use torch\.no_grad"):
        model(frames, 2, Sampling())
    assert not seen.memory
    with capture(model, lambda name, tensor: tensor.mean()) as seen:
        model.predict(frames, 1)
    assert seen.memory[0][0].shape == ()
    assert seen.slots
    assert not seen.weights  # there are none to capture
    simvp = build_model(config_of("simvp").model, FrameSpec(1, 8, 12))
    with pytest.raises(ConfigError, match="SimVP has no memory"), capture(simvp):
        pass
