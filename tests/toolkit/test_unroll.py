"""Unrolling: which input each step gets, what is kept and recomputed, and that no way of it changes a gradient."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from shards.manifest import FrameSpec
from tests.support.models import SMALL
from tests.support.process_pool import forked_ranks
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.config.sections import TrainConfig
from toolkit.errors import ConfigError
from toolkit.models.base import Noise, Sampling, StepModel, StepSequence
from toolkit.unroll import MORE_STATES, Checkpointing, OnHost, Schedule, covered, schedule_of, unroll

LAYERS = {"per_layer": True}
HOST = {"offload": True}
DEEPSPEED = {"backend": "deepspeed"}
# Every way of recomputing, by `train.activation_checkpointing`; the first three between them use all of the code.
WAYS: list[dict[str, Any]] = [
    {"policy": "step", **LAYERS, **HOST},
    {"policy": "segment", **HOST},
    {"policy": "recursive", **LAYERS},
    *({"policy": p, **a, **b} for p, a, b in product(("step", "segment", "recursive"), ({}, LAYERS), ({}, HOST))),
]


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
        with saved_tensors_hooks(pack, lambda t: t):
            way = Checkpointing(policy)
            unroll(step, frames, torch.zeros(1, 1000), steps, steps, checkpointing=way)[0].sum()
        return sum(kept.values())

    assert saved("none") > 10 * steps * 4000
    assert saved("step") <= 2 * steps * 4000  # one input and one state a step


def test_one_step() -> None:
    out, _ = unroll(tell([]), torch.zeros(2, 1, 3), 0, steps=1, context=1)
    assert out.shape == (2, 1, 3)


def depth_of(part: Schedule) -> int:
    """How often the step that is recomputed most is."""
    return 0 if isinstance(part, int) else 1 + max(map(depth_of, part))


def states_of(part: Schedule) -> int:
    """The most states that are kept at once: one for each part before the one that is run backward, and its own."""
    if isinstance(part, int):
        return 0
    return max(1 + index + max(0, states_of(inner) - 1) for index, inner in enumerate(part))


def length_of(part: Schedule) -> int:
    return part if isinstance(part, int) else sum(map(length_of, part))


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
        way = Checkpointing(policy)
        out, last = unroll(step, frames, start, steps, context, teacher=teacher, checkpointing=way)
        return torch.autograd.grad(out.square().sum() + last.sum(), (weight, start))

    expected = gradients("none")
    assert calls == steps
    assert all(torch.equal(a, b) for a, b in zip(gradients(policy), expected, strict=True))
    assert steps < calls <= steps * (1 + depth_of(schedule_of(policy, steps)))


def test_schedules() -> None:
    assert schedule_of("none", 19) == 19
    assert schedule_of("step", 3) == (1, 1, 1)
    assert schedule_of("segment", 19) == (5, 5, 5, 4)
    assert schedule_of("segment", 16) == (4, 4, 4, 4)
    assert schedule_of("recursive", 1) == (1,)
    assert schedule_of("recursive", 5) == (1, 1, 1, 1, 1)
    assert schedule_of("recursive", 8) == ((1, 1, 1, 1), (1, 1, 1), 1)
    assert [(states_of(s), depth_of(s)) for s in (schedule_of("recursive", n) for n in (19, 199))] == [(6, 2), (7, 4)]


@given(steps=st.integers(1, 1500))
def test_recursive_keeps_and_repeats_few(steps: int) -> None:
    """Both grow with log T: a schedule of r repeats holds 4^r / sqrt(r) steps or more."""
    schedule = schedule_of("recursive", steps)
    repeats = depth_of(schedule)
    assert length_of(schedule) == steps
    assert states_of(schedule) <= repeats + MORE_STATES
    assert repeats == 1 or steps > covered(repeats - 1 + MORE_STATES, repeats - 1)
    assert 4 ** (repeats - 1) <= 4 * steps


@pytest.mark.parametrize("way", [Checkpointing("recursive"), Checkpointing("step", offload=True)])
def test_no_policy_costs_anything_without_gradients(way: Checkpointing) -> None:
    seen: list[float] = []
    with torch.no_grad():
        unroll(tell(seen), torch.arange(5.0).view(1, 5, 1), 0, steps=4, context=2, checkpointing=way)
    assert len(seen) == 4


@pytest.mark.parametrize(("policy", "moved"), [("step", 12), ("segment", 3), ("recursive", 3)])
def test_offloaded_states_leave_the_device(policy: str, moved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the outermost boundaries are moved, none of what is recomputed; and nothing else holds the states."""
    packed: list[tuple[int, ...]] = []
    made: list[weakref.ref[torch.Tensor]] = []

    class Watched(OnHost):
        @staticmethod
        def pack(tensor: torch.Tensor) -> Any:
            packed.append(tuple(tensor.shape))
            device, kept = OnHost.pack(tensor)
            assert kept.data_ptr() != tensor.data_ptr() and kept.stride() == tensor.stride()
            return device, kept

    monkeypatch.setattr("toolkit.unroll.OnHost", Watched)
    weight = torch.ones(1, requires_grad=True)

    def step(frame: torch.Tensor, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        after = torch.sin(state["h"] * weight) + frame.mean()
        made.append(weakref.ref(after))
        return after.mean(1, keepdim=True), {"h": after}

    state = {"h": torch.zeros(1, 1000)}
    way = Checkpointing(policy, offload=True)
    out, state = unroll(step, torch.rand(1, 12, 1), state, 12, 12, checkpointing=way)
    gc.collect()
    assert packed.count((1, 1000)) == moved == len(list(schedule_of(policy, 12)))
    assert [ref() is not None for ref in made] == [False] * 11 + [True]
    out.sum().backward()
    assert packed.count((1, 1000)) == moved


def train_once(name: str, dtype: torch.dtype, frames: int, **way: Any) -> list[torch.Tensor]:
    """Gradients of one batch of 13x18 frames, with noise, scheduled sampling and a padded edge."""
    torch.manual_seed(3)
    config = make_config({"model": {"name": name, **SMALL[name]}, "train": {"activation_checkpointing": way}}, "test")
    model = untrained_model(config, FrameSpec(1, 13, 18)).to(dtype)
    batch, context = torch.rand(2, frames, 1, 13, 18), min(3, frames - 1)
    teacher = torch.rand(2, frames - 1 - context) < 0.5
    sum(model(batch, context, Sampling(teacher, Noise([5, 6]))).losses.values()).backward()
    return [p.grad for p in model.parameters()]


def same(a: Sequence[torch.Tensor | None], b: Sequence[torch.Tensor | None]) -> bool:
    """With one step not every parameter need have a gradient."""
    pairs = zip(a, b, strict=True)
    return all(x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in pairs)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_every_model_are_equal(name: str, dtype: torch.dtype) -> None:
    expected = train_once(name, dtype, 7)
    for way in WAYS[:3]:
        assert same(train_once(name, dtype, 7, **way), expected), way


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", [2, 3, 12])
def test_gradients_of_every_model_are_equal_in_every_way(name: str, dtype: torch.dtype, frames: int) -> None:
    if name == "simvp" and frames < 4:
        pytest.skip("needs a context of model.frames, 3; the next test")
    expected = train_once(name, dtype, frames)
    for way in [*WAYS[3:], {"policy": "step", **DEEPSPEED}]:
        assert same(train_once(name, dtype, frames, **way), expected), way


@pytest.mark.parametrize("name", SMALL)
def test_two_frames_are_the_shortest_training(name: str) -> None:
    if name == "simvp":
        with pytest.raises(ConfigError, match=r"model\.frames 3 is more than the 1 frames of context"):
            train_once(name, torch.float32, 2)
        return
    expected = train_once(name, torch.float32, 2)
    for way in WAYS[:3]:
        assert same(train_once(name, torch.float32, 2, **way), expected), way
    with pytest.raises(ConfigError, match=r"context 0 must be in 1\.\.0 for sequences of 1 frames"):
        train_once(name, torch.float32, 1)


STEP_MODELS = [name for name in SMALL if name not in ("trajgru", "svg_lp", "simvp")]


@pytest.mark.parametrize("name", STEP_MODELS)
@pytest.mark.parametrize("policy", ["step", "recursive"])
def test_every_layer_is_recomputed_by_itself(name: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers of all step models are run through `layer`, and no more often than steps are without it."""
    config = make_config(
        {"model": {"name": name, **SMALL[name]}, "train": {"activation_checkpointing": {"policy": policy, **LAYERS}}},
        "test",
    )
    model = untrained_model(config, FrameSpec(1, 8, 8))
    assert isinstance(model, StepSequence)
    calls = 0

    def layer(self: StepModel, cell: Callable[..., Any], *args: Any) -> Any:
        def counted(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return cell(*args)

        return self.checkpointing.run_layer(counted, *args)

    monkeypatch.setattr(StepModel, "layer", layer)
    rollout = model(torch.rand(1, 5, 1, 8, 8), 2, Sampling(noise=Noise([1])))
    state = model.cell.init_state(1, 2, 2, torch.zeros(1), Noise([1]))
    layers = len(model.cell.memories(state))
    assert calls == 4 * layers
    sum(rollout.losses.values()).backward()
    assert calls == 8 * layers


def test_layers_bound_what_is_alive_at_once() -> None:
    """The most bytes that autograd holds in a backward pass: one layer's share of those of a step."""

    def most(**train: Any) -> int:
        alive = peak = 0

        class Held(torch.autograd.Function):
            """Stands for a layer's activations: 1000 numbers that are kept from forward to backward."""

            @staticmethod
            def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
                nonlocal alive, peak
                kept = x.new_zeros(1000)
                alive += 1
                peak = max(peak, alive)

                def freed() -> None:
                    nonlocal alive
                    alive -= 1

                weakref.finalize(kept, freed)
                ctx.save_for_backward(kept)
                return x * 2

            @staticmethod
            def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
                assert ctx.saved_tensors[0].numel() == 1000
                return grad * 2

        class Stack(StepModel):
            def init_state(self, batch: int, height: int, width: int, like: torch.Tensor, noise: Any) -> Any:
                return like.new_zeros(batch, 1, requires_grad=True)

            def memories(self, state: Any) -> list[torch.Tensor]:
                return [state]

            def step(self, frame: torch.Tensor, state: Any) -> Any:
                for _ in range(8):
                    state = self.layer(Held.apply, state)
                return frame * state.mean(), state

        cell = Stack()
        cell.checkpointing = Checkpointing(**train)
        start = cell.init_state(1, 1, 1, torch.zeros(1), None)
        out, _ = unroll(cell.step, torch.rand(1, 6, 1), start, 6, 6, checkpointing=cell.checkpointing)
        out.sum().backward()
        return peak

    assert most() == 48
    assert 8 <= most(policy="step") <= 9
    assert most(policy="step", layers=True) <= 2
    assert most(policy="recursive", layers=True) <= 2


def test_what_does_not_fit_is_refused_with_the_reason() -> None:
    step = {"policy": "step", **DEEPSPEED}
    for zero, way, reason in [
        (0, {**LAYERS, **HOST}, r"checkpointing\.per_layer, .*checkpointing\.offload changes how .*\.policy is none"),
        (2, step, r"with train\.zero 2: .* gradient once per time step"),
        (0, {**DEEPSPEED, "policy": "recursive"}, r"this is recursive: .* another order"),
        (0, {**step, **LAYERS}, r"this is step with per_layer: .* another order"),
        (0, {**step, **HOST}, r"offload has no effect"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            make_config({"train": {"zero": zero, "activation_checkpointing": way}}, "test")
    fits = make_config({"train": {"activation_checkpointing": step, "zero": 1, "precision": "bf16"}}, "test")
    assert fits.train.activation_checkpointing.policy == "step"


Engines = Callable[[list[dict[str, Any]]], list[str]]


@pytest.fixture
def on_two_ranks(tmp_path: Path) -> Engines:
    """Digests of the state after two optimizer steps of every config, all in one start of 2 ranks."""

    def run(trees: list[dict[str, Any]]) -> list[str]:
        given, result = tmp_path / "trees.json", tmp_path / "digests.json"
        given.write_text(json.dumps(trees))
        done = forked_ranks(2, "tests.toolkit.train.policies", given, result, timeout=1800)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(result.read_text())

    return run


def tree_of(name: str, train: dict[str, Any], way: dict[str, Any]) -> dict[str, Any]:
    data = {"context": 3, "horizon": 4}
    return {
        "model": {"name": name, **SMALL[name]},
        "data": data,
        "train": {"batch": 4, **train, "activation_checkpointing": way},
    }


def assert_equal_groups(groups: list[list[dict[str, Any]]], on_two_ranks: Engines) -> None:
    """All configs of a group end in the same bits."""
    digests = iter(on_two_ranks([tree for group in groups for tree in group]))
    for group in groups:
        first, *rest = [next(digests) for _ in group]
        assert len(first) == 64, first
        for tree, digest in zip(group[1:], rest, strict=True):
            assert digest == first, (tree["model"]["name"], tree["train"])


def test_engines_train_alike_under_every_policy(on_two_ranks: Engines) -> None:
    """On 2 ranks, with and without accumulation, under each ZeRO stage: a part of the table below."""
    accumulated = {"micro_batch": 1}
    groups = [
        ("modernn", {"zero": 0}, [{"policy": "step", **DEEPSPEED}]),
        ("convlstm", {"zero": 1, "precision": "bf16"}, [{"policy": "step", **DEEPSPEED}, WAYS[0]]),
        ("modernn", {"zero": 2, **accumulated}, [WAYS[0], WAYS[2]]),
        ("modernn", {"zero": 3}, [WAYS[0]]),
    ]
    assert_equal_groups([[tree_of(n, train, w) for w in ({}, *ways)] for n, train, ways in groups], on_two_ranks)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SMALL)
def test_engines_train_alike_in_every_way(name: str, on_two_ranks: Engines) -> None:
    groups = []
    stages = get_args(TrainConfig.model_fields["zero"].annotation)
    for precision, zero, micro in product(("fp32", "bf16"), stages, (None, 1)):
        ways = [{}, {"policy": "step"}, *WAYS[:3]]
        if zero < 2 and micro is None:
            ways.append({"policy": "step", **DEEPSPEED})
        groups.append([tree_of(name, {"precision": precision, "zero": zero, "micro_batch": micro}, w) for w in ways])
    assert_equal_groups(groups, on_two_ranks)
