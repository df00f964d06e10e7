"""PredRNN: the zig-zag, the decoupling loss, and what its options do."""

from __future__ import annotations

import pytest
import torch

from shards.manifest import FrameSpec
from tests.support.models import assert_same
from tests.toolkit.models.reference_predrnn import plain_predrnn
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.models.base import Sampling, StepSequence
from toolkit.models.predrnn import PredRNN

SIZE = FrameSpec(1, 10, 12)


def built(checkpointing: str = "none", shape: FrameSpec = SIZE, **options) -> StepSequence:
    torch.manual_seed(0)
    model = {"name": "predrnn", "layers": 3, "hidden": 4, "kernel": 3, "patch": 2, **options}
    return untrained_model(
        make_config({"model": model, "train": {"activation_checkpointing": {"policy": checkpointing}}}, "test"), shape
    )


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_stack_equals_the_equations(beta: float) -> None:
    cell = built(decouple_beta=beta).cell.double()
    assert isinstance(cell, PredRNN)
    frames = [torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    state = cell.init_state(2, 5, 6, frames[0], None)
    ours = []
    for frame in frames:
        prediction, state = cell.step(frame, state)
        ours.append(prediction)
    plain, cosine = plain_predrnn(frames, dict(cell.named_parameters()), layers=3, hidden=4)
    losses = cell.losses(state, 3)
    assert list(losses) == (["decouple"] if beta else [])
    if beta:
        ours.append(losses["decouple"])
        plain.append(beta * cosine)
    assert_same(ours, plain, [*frames, *cell.parameters()])


def test_decoupling_loss_under_checkpointing_and_without() -> None:
    frames = torch.rand(2, 6, 1, 10, 12)
    grads = []
    for policy in ("none", "step"):
        model = built(policy, decouple_beta=0.1)
        losses = model(frames, 3, Sampling(torch.tensor([[True, False], [False, True]]))).losses
        assert list(losses) == ["data", "decouple"]
        assert losses["decouple"].dtype == torch.float32
        assert 0 < losses["decouple"] < 0.1
        sum(losses.values()).backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
        assert a.abs().max() > 0


def test_black_frames_give_finite_gradients() -> None:
    """Without biases a black frame gives zero updates, whose cosine is 0 / 0."""
    model = built(decouple_beta=0.1)
    rollout = model(torch.zeros(1, 4, 1, 10, 12), 3, Sampling())
    sum(rollout.losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_without_the_loss_there_is_no_adapter() -> None:
    with_it, without = built(decouple_beta=0.1), built()
    extra = sum(p.numel() for p in with_it.parameters()) - sum(p.numel() for p in without.parameters())
    assert extra == 4 * 4
    assert list(without(torch.rand(1, 4, 1, 10, 12), 3, Sampling()).losses) == ["data"]


def test_layer_norm_works_at_any_size() -> None:
    model = built(layer_norm=True).eval()
    for size in ((10, 12), (7, 16)):
        assert model.predict(torch.rand(1, 3, 1, *size), 2).shape == (1, 1, 2, 1, *size)
    alone = model.predict(frames := torch.rand(2, 3, 1, 10, 12), 2)[:, :1]
    assert torch.allclose(alone, model.predict(frames[:1], 2), atol=1e-6)  # per sample


def test_even_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.kernel: must be odd.*: use 3 or 5, got 4"):
        built(kernel=4)
