"""Unrolling: which input each step gets, and what a checkpointed unroll keeps in memory."""

from __future__ import annotations

import pytest
import torch

from toolkit.unroll import cuts_of, unroll


def tell(seen: list[float]):
    """A step that notes its input and predicts the input plus 100."""

    def step(frame: torch.Tensor, state: int) -> tuple[torch.Tensor, int]:
        seen.append(float(frame[0, 0]))
        return frame + 100, state + 1

    return step


def test_context_then_own_predictions() -> None:
    seen: list[float] = []
    out, state = unroll(tell(seen), torch.arange(5.0).view(1, 5, 1), 0, steps=4, context=2)
    assert state == 4
    assert seen == [0, 1, 101, 201]
    assert out.flatten().tolist() == [100, 101, 201, 301]


def test_teacher_mixes_true_frames_per_sample() -> None:
    frames = torch.stack([torch.arange(6.0), torch.arange(6.0) + 10]).unsqueeze(-1)
    teacher = torch.tensor([[True, False, True], [False, True, False]])
    out, _ = unroll(lambda frame, state: (frame + 100, state), frames, None, steps=5, context=2, teacher=teacher)
    inputs = (out - 100).squeeze(-1)
    assert inputs[0].tolist() == [0, 1, 2, 102, 4]
    assert inputs[1].tolist() == [10, 11, 111, 13, 113]


@pytest.mark.parametrize("steps", [6, 12])
def test_step_policy_keeps_only_the_boundaries(steps: int) -> None:
    """What autograd saves between forward and backward, in bytes: ten activations a step, or one input and state."""
    weight = torch.ones(1, requires_grad=True)

    def step(frame: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for _ in range(10):
            state = torch.sin(state * weight) + frame
        return state, state

    def saved(policy: str) -> int:
        kept: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            kept[t.data_ptr()] = t.numel() * 4
            return t

        frames = torch.rand(1, steps, 1000)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            unroll(step, frames, torch.zeros(1, 1000), steps, steps, policy=policy)[0].sum()
        return sum(kept.values())

    assert saved("none") > 10 * steps * 4000
    assert saved("step") <= 2 * steps * 4000  # one input and one state a step


def test_one_step() -> None:
    out, _ = unroll(tell([]), torch.zeros(2, 1, 3), 0, steps=1, context=1)
    assert out.shape == (2, 1, 3)


@pytest.mark.parametrize("policy", ["step", "segment", "recursive"])
@pytest.mark.parametrize("steps", [1, 2, 7, 19, 20])
def test_gradients_of_every_policy_are_equal(policy: str, steps: int) -> None:
    """Bit for bit, with scheduled sampling, and every step runs as often as the policy says."""
    calls = 0

    def gradients(policy: str) -> tuple[torch.Tensor, ...]:
        nonlocal calls
        calls = 0
        weight = torch.full((3,), 0.7, requires_grad=True)
        start = torch.linspace(-1, 1, 6).view(2, 3).requires_grad_()

        def step(frame: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal calls
            calls += 1
            state = torch.tanh(state * weight + frame)
            return state * weight, state

        context = min(3, steps)
        teacher = torch.rand(2, steps - context, generator=torch.Generator().manual_seed(0)) < 0.5
        frames = torch.rand(2, steps + 1, 3, generator=torch.Generator().manual_seed(1))
        out, last = unroll(step, frames, start, steps, context, teacher=teacher, policy=policy)
        return torch.autograd.grad(out.square().sum() + last.sum(), (weight, start))

    expected = gradients("none")
    assert calls == steps
    assert all(torch.equal(a, b) for a, b in zip(gradients(policy), expected, strict=True))
    assert steps <= calls <= steps * (1 + len(cuts_of(policy, steps)))


def test_cuts() -> None:
    assert cuts_of("segment", 19) == (5,)
    assert cuts_of("segment", 16) == (4,)
    assert cuts_of("recursive", 19) == (16, 4, 1)
    assert cuts_of("recursive", 200) == (64, 16, 4, 1)
    assert cuts_of("recursive", 1) == (1,)


def test_no_policy_costs_anything_without_gradients() -> None:
    seen: list[float] = []
    with torch.no_grad():
        unroll(tell(seen), torch.arange(5.0).view(1, 5, 1), 0, steps=4, context=2, policy="recursive")
    assert len(seen) == 4
