"""The contract tests of a model, for models of one's own: one call in a pytest test.

from toolkit.testing import check_model

def test_my_model():
    check_model("my_model.py:ConvGRU", layers=2, hidden=8)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.manifest import FrameSpec
from toolkit.config import RunConfig, make_config
from toolkit.config.tree import merge
from toolkit.models.base import Noise, Sampling, SequenceModel, StepSequence, build_model, count_parameters
from toolkit.models.plugins import with_absolute_path
from toolkit.plan.cost import area_of
from toolkit.plan.measure import measure
from toolkit.unroll import Checkpointing

CONTEXT, HORIZON = 4, 5
POLICIES = (
    *(Checkpointing("step"), Checkpointing("segment"), Checkpointing("recursive")),
    Checkpointing("step", layers=True),
)
LEARNING_STEPS = 40


def check_model(name: str, shape: tuple[int, int, int] = (1, 24, 20), learn: bool = True, **options: Any) -> None:
    """Check that a model keeps the contract of the toolkit's own. Takes seconds for a small model.

    Checked are: forecasts of any horizon, finite, equal when repeated, of each sequence alone as in a batch; members of
    an ensemble, which differ if `stochastic`, of the model and of its options, is true; gradients
    of all parameters; equal loss and gradients under activation checkpointing; weights in a fresh model; memory states;
    the planner's estimate; learning of one batch.

    Args:
        name: as `model.name` in a config: FILE.py:CLASS, relative to the working directory, or a registered name.
        shape: channels, height and width of frames; sizes that the model has to pad are the better test.
        learn: also train a batch of two sequences for 40 steps.
        **options: of the model; a small one is tested faster.

    Raises:
        AssertionError: naming what does not hold.
        ConfigError: the model can't be built.
    """
    tree = with_absolute_path({"model": {"name": name, **options}}, Path.cwd())
    tree = merge(tree, {"data": {"context": CONTEXT, "horizon": HORIZON}})
    config, frames = make_config(tree, "check_model", typed=True), FrameSpec(*shape)
    model = _built(config, frames)
    assert count_parameters(config.model, frames) > 0, f"{name}: has no trainable parameters"
    _check_forecasts(model, config, frames)
    _check_gradients(config, frames)
    if isinstance(model, StepSequence):
        _check_memories(model, config, frames)
    _check_estimate(config, frames)
    if learn:
        _check_learning(config, frames)


def _built(config: RunConfig, frames: FrameSpec, checkpointing: Checkpointing | None = None) -> SequenceModel:
    torch.manual_seed(0)
    return build_model(config.model, frames, checkpointing or Checkpointing(), horizon=HORIZON)


def _sequences(frames: FrameSpec, length: int, batch: int = 2) -> Tensor:
    """Return moving squares [batch, length, C, H, W] in 0..1."""
    clips = torch.zeros(batch, length, *frames.shape)
    side_y, side_x = max(1, frames.height // 4), max(1, frames.width // 4)
    for number in range(batch):
        for t in range(length):
            y = (2 * number + t) % (frames.height - side_y + 1)
            x = (number + 2 * t) % (frames.width - side_x + 1)
            clips[number, t, :, y : y + side_y, x : x + side_x] = 1
    return clips


def _forecast(model: SequenceModel, context: Tensor, horizon: int = HORIZON) -> Tensor:
    return model.predict(context, horizon, generator=torch.Generator().manual_seed(1))[0]


def _check_forecasts(model: SequenceModel, config: RunConfig, frames: FrameSpec) -> None:
    model.eval()
    context = _sequences(frames, CONTEXT)
    before = torch.get_rng_state()
    for horizon in (1, HORIZON, 3 * HORIZON):
        made = _forecast(model, context, horizon)
        expected = (2, horizon, *frames.shape)
        assert made.shape == expected, f"predict with horizon {horizon} gives {tuple(made.shape)}, not {expected}"
        assert torch.isfinite(made).all(), f"predict with horizon {horizon} gives values that are not finite"
    whole = _forecast(model, context)
    assert torch.equal(whole, _forecast(model, context)), "predict gives another forecast when it is called again"
    assert torch.equal(before, torch.get_rng_state()), (
        "predict draws from torch's global generator: draw from `noise` in `init_state`, nowhere else"
    )
    assert model.stochastic == config.model.stochastic, "`stochastic` of the model and of its options differ"
    members = model.predict(context, HORIZON, 2, torch.Generator().manual_seed(1))
    differ = not torch.equal(members[0], members[1])
    assert differ == model.stochastic, (
        f"members of an ensemble {'differ' if differ else 'are equal'}, and `stochastic` is {model.stochastic}: set it "
        "in the model and in its options class"
    )
    if not model.stochastic:
        alone = _forecast(model, context[:1])
        assert torch.allclose(alone, whole[:1], atol=1e-5), (
            "the forecast of a sequence depends on the others in its batch: no statistics over the batch"
        )
    torch.manual_seed(1)
    other = build_model(config.model, frames, horizon=HORIZON).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(_forecast(other, context), whole), (
        "a fresh model with the same weights gives another forecast: keep what is learnt in parameters and buffers"
    )


def _backward(config: RunConfig, frames: FrameSpec, checkpointing: Checkpointing) -> tuple[Tensor, dict[str, Any]]:
    """Return the loss of a batch, and the gradient of each parameter."""
    model = _built(config, frames, checkpointing).train()
    rollout = model(_sequences(frames, CONTEXT + HORIZON), CONTEXT, Sampling(noise=Noise([1, 2])))
    total = torch.stack(list(rollout.losses.values())).sum()
    total.backward()
    return total.detach(), {name: value.grad for name, value in model.named_parameters() if value.requires_grad}


def _check_gradients(config: RunConfig, frames: FrameSpec) -> None:
    loss, gradients = _backward(config, frames, Checkpointing())
    assert torch.isfinite(loss), f"the loss is {float(loss)}"
    for name, gradient in gradients.items():
        assert gradient is not None, f"parameter {name} has no part in the loss"
        assert torch.isfinite(gradient).all(), f"the gradient of {name} is not finite"
    if not isinstance(_built(config, frames), StepSequence):
        return
    for policy in POLICIES:
        again, others = _backward(config, frames, policy)
        what = f"activation checkpointing {policy.policy}{' per layer' * policy.layers}"
        assert torch.equal(again, loss), f"{what}: the loss is {float(again)}, without it {float(loss)}"
        for name, gradient in gradients.items():
            assert torch.allclose(others[name], gradient, rtol=1e-4, atol=1e-6), (
                f"{what}: the gradient of {name} differs: `step` must be a function of the frame and the state alone"
            )


def _check_memories(model: StepSequence, config: RunConfig, frames: FrameSpec) -> None:
    patch = model.patch
    height, width = -(-frames.height // patch), -(-frames.width // patch)
    like = torch.rand(2, frames.channels * patch**2, height, width)
    with torch.no_grad():
        state = model.cell.init_state(2, height, width, like, Noise([1, 2]))
        predicted, state = model.cell(like, state)
        memories = model.cell.memories(state)
    assert predicted.shape == like.shape, f"step gives frames {tuple(predicted.shape)}, not {tuple(like.shape)}"
    assert memories, "memories gives none: the analysis of mode collapse has nothing to look at"
    for number, memory in enumerate(memories, 1):
        assert memory.dim() == 4 and len(memory) == 2, (
            f"memory {number} has shape {tuple(memory.shape)}, should be [batch, channels, height, width]"
        )


def _check_estimate(config: RunConfig, frames: FrameSpec) -> None:
    measured = measure(config, frames.channels)
    area = area_of(config, frames.height, frames.width)
    constant, _, by_area, *_ = measured["parameters"]
    counted = count_parameters(config.model, frames)
    assert constant + by_area * area == counted, (
        f"the planner counts {constant + by_area * area} of {counted} parameters"
    )


def _check_learning(config: RunConfig, frames: FrameSpec) -> None:
    model = _built(config, frames).train()
    clips = _sequences(frames, CONTEXT + HORIZON)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(LEARNING_STEPS):
        rollout = model(clips, CONTEXT, Sampling(noise=Noise([1, 2])))
        losses.append(float(rollout.losses["data"].detach()))
        optimizer.zero_grad()
        torch.stack(list(rollout.losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    best = min(losses[-5:])
    assert best < 0.5 * losses[0], f"one batch is not learnt: the loss falls from {losses[0]:.4g} to {best:.4g} only"
