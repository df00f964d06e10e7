"""Deferred weight gradients: equal to plain autograd's, with one weight-gradient kernel for each layer."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from shards.manifest import FrameSpec
from tests.support.models import SMALL
from tests.support.process_pool import forked_ranks
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.base import Noise, Sampling, SequenceModel
from toolkit.train import deferred
from toolkit.train.deferred import DeferredGradients, _layout_for

RECURRENT = ("modernn", "modernn_released", "convlstm", "predrnn", "mim", "conv_tt_lstm", "rim")
EVERY = {name: SMALL[name] for name in (*RECURRENT, "trajgru", "svg_lp", "simvp")}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Kernels(TorchDispatchMode):
    """Counts convolution_backward by what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.of_inputs = self.of_weights = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            mask = args[10]
            self.of_inputs += mask[0]
            self.of_weights += mask[1]
        return func(*args, **(kwargs or {}))


def model_of(name: str, dtype: torch.dtype = torch.float64, train: dict | None = None, **options: Any) -> SequenceModel:
    torch.manual_seed(0)
    settings = {"name": name, **EVERY[name], **options}
    model = untrained_model(make_config({"model": settings, "train": train or {}}, "test"), FrameSpec(1, 12, 12))
    with torch.no_grad():  # what starts at zero holds back the gradients of what lies before it
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.to(dtype)


def gradients(model: SequenceModel, block: AbstractContextManager[Any], frames: int = 6, batches: int = 1) -> Tensor:
    """All gradients of so many micro-batches, end to end."""
    for parameter in model.parameters():
        parameter.grad = None
    for seed in range(batches):
        generator = torch.Generator().manual_seed(seed)
        like = next(model.parameters())
        shown = torch.rand(2, frames, 1, 12, 12, generator=generator, dtype=torch.float64).to(like)
        teacher = torch.tensor([[True, False], [False, False]], device=like.device)[:, : frames - 4]
        with block:
            rollout = model(shown, 3, Sampling(teacher, Noise([1, 2], like.device)))
            torch.stack(list(rollout.losses.values())).sum().backward()
    found = [p.grad for p in model.parameters()]
    assert all(grad is not None for grad in found)
    return torch.cat([grad.detach().double().flatten() for grad in found])


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", RECURRENT)
def test_every_recurrent_model_has_the_same_gradients(name: str, layout: str) -> None:
    model = model_of(name)
    model.layout = LAYOUTS[layout]
    plain = gradients(model, nullcontext(), batches=2)
    assert plain.norm() > 0
    assert difference(gradients(model, DeferredGradients(model), batches=2), plain) < 1e-12
    model = model.to(torch.float32)
    assert difference(gradients(model, DeferredGradients(model), batches=2), plain) < 1e-5


@pytest.mark.parametrize("name", ["trajgru", "simvp"])
def test_models_without_a_step_have_the_same_gradients(name: str) -> None:
    model = model_of(name)
    plain = gradients(model, nullcontext())
    assert difference(gradients(model, DeferredGradients(model)), plain) < 1e-12


@pytest.mark.parametrize("name", ["modernn", "predrnn"])
def test_bfloat16_comes_no_farther_from_the_exact_gradients(name: str) -> None:
    """Both start from the same rounded weights and frames; T partial sums aren't rounded any more."""
    model = model_of(name, torch.bfloat16)
    plain, ours = gradients(model, nullcontext()), gradients(model, DeferredGradients(model))
    exact = gradients(model.double(), nullcontext())
    assert difference(ours, exact) < 1.05 * difference(plain, exact) < 0.2


@pytest.mark.parametrize("name", RECURRENT)
def test_one_weight_gradient_for_each_convolution(name: str) -> None:
    model = model_of(name)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    with Kernels() as plain:
        gradients(model, nullcontext())
    with Kernels() as ours:
        gradients(model, DeferredGradients(model))
    assert plain.of_weights > 4 * len(convolutions)
    assert ours.of_weights == len(convolutions)
    assert ours.of_inputs == plain.of_inputs


def test_sixty_steps_of_adam_follow_the_same_losses() -> None:
    def losses(block: Callable[[nn.Module], AbstractContextManager[Any]]) -> list[float]:
        model = model_of("modernn", torch.float32)
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        found = []
        for step in range(60):
            frames = torch.rand(2, 5, 1, 12, 12, generator=torch.Generator().manual_seed(step % 5))
            adam.zero_grad(set_to_none=step % 2 == 0)
            with block(model):
                loss = model(frames, 3, Sampling(noise=Noise([step, step + 1]))).losses["data"]
                loss.backward()
            adam.step()
            found.append(loss.item())
        return found

    plain = losses(nullcontext)
    assert plain[-1] < plain[0]
    ours = losses(DeferredGradients)
    assert ours[0] == plain[0]  # forward passes are the same
    assert ours == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(
    "train",
    [
        {"activation_checkpointing": {"policy": "step"}},
        {"activation_checkpointing": {"policy": "segment"}},
        {"activation_checkpointing": {"policy": "recursive", "per_layer": True}},
        {"activation_checkpointing": {"policy": "step", "offload": True}},
        {"activation_checkpointing": {"policy": "step", "backend": "deepspeed"}},
    ],
    ids=str,
)
def test_recomputed_calls_are_deferred_too(train: dict) -> None:
    plain = gradients(model_of("modernn"), nullcontext())
    model = model_of("modernn", train=train)
    with Kernels() as kernels:
        ours = gradients(model, DeferredGradients(model))
    assert difference(ours, plain) < 1e-12
    if "backend" not in train["activation_checkpointing"]:  # DeepSpeed's runs a backward pass for each time step
        assert kernels.of_weights == sum(isinstance(module, nn.Conv2d) for module in model.modules())


def test_the_records_stay_within_their_bound() -> None:
    """And hold what the formula says: inputs and outputs of all calls."""
    model = model_of("convlstm")
    calls: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, x, out: calls.append(8 * (x[0].numel() + out.numel())))
    plain = gradients(model, nullcontext())
    everything, largest = sum(calls), max(calls)
    unbounded = DeferredGradients(model)
    gradients(model, unbounded)
    assert unbounded.peak_bytes == everything
    on_meta = DeferredGradients(model.to("meta"))  # without computing, as the planner finds what a step needs
    with on_meta:
        model(torch.empty(2, 6, 1, 12, 12, device="meta"), 3, Sampling()).losses["data"].backward()
    assert on_meta.peak_bytes == everything
    model = model_of("convlstm")
    bounded = DeferredGradients(model, everything // 3)
    with Kernels() as kernels:
        assert difference(gradients(model, bounded), plain) < 1e-12
    assert everything // 3 < bounded.peak_bytes <= everything // 3 + largest
    assert 2 * 3 < kernels.of_weights <= 4 * 3  # three layers, three or four times


SIZES = st.integers(1, 7)


@settings(max_examples=60)
@given(data=st.data())
def test_single_convolutions(data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 3), "groups")
    inputs, outputs = (groups * data.draw(st.integers(1, 3), name) for name in ("inputs", "outputs"))
    transposed = data.draw(st.booleans(), "transposed")
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)), "kernel")
    stride, dilation = data.draw(st.integers(1, 2), "stride"), data.draw(st.integers(1, 2), "dilation")
    padding = data.draw(st.integers(0, 1), "padding")
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    bias = data.draw(st.booleans(), "bias")
    settings: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = kind(inputs, outputs, kernel, bias=bias, dtype=torch.float64, **settings)
    layer.weight.requires_grad_(data.draw(st.booleans(), "trained weight"))
    if layer.bias is not None:
        layer.bias.requires_grad_(data.draw(st.booleans(), "trained bias"))
    layout = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)), "layout")]
    height, width = (dilation * 2 + 1 + data.draw(SIZES, name) for name in ("height", "width"))
    wants = data.draw(st.booleans(), "input wants a gradient")

    def run(block: AbstractContextManager[Any]) -> list[Tensor | None]:
        torch.manual_seed(0)
        layer.zero_grad(set_to_none=True)
        shapes = [(2, height, width), (1, height, width), (2, height + 1, width)]
        xs = [torch.randn(b, inputs, h, w, dtype=torch.float64) for b, h, w in shapes]
        xs = [x.contiguous(memory_format=layout).requires_grad_(wants) for x in xs]
        with block:
            loss = sum(layer(x).square().sum() for x in xs)
            if loss.requires_grad:
                loss.backward()
        return [*(x.grad for x in xs), *(p.grad for p in layer.parameters())]

    for ours, plain in zip(run(DeferredGradients(layer)), run(nullcontext()), strict=True):
        assert (ours is None) == (plain is None)
        if ours is not None and plain is not None:
            assert torch.allclose(ours, plain, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(dims: int, bias: bool) -> None:
    layer = nn.Linear(3, 4, bias=bias, dtype=torch.float64)
    xs = [torch.randn(*(2, 5, 2)[: dims - 1], 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    results = []
    for block in (nullcontext(), DeferredGradients(layer)):
        layer.zero_grad(set_to_none=True)
        with block:
            sum(layer(x).square().sum() for x in xs).backward()
        results.append([x.grad for x in xs] + [p.grad for p in layer.parameters()])
        for x in xs:
            x.grad = None
    for plain, ours in zip(*results, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-12, atol=1e-12)


def test_gradients_accumulate_into_the_tensors_that_are_there() -> None:
    """Those of a CUDA graph are static."""
    model = model_of("convlstm")
    once = gradients(model, DeferredGradients(model))
    static = [torch.ones_like(p) for p in model.parameters()]
    for parameter, grad in zip(model.parameters(), static, strict=True):
        parameter.grad = grad
    with DeferredGradients(model):
        rollout = model(torch.rand(2, 6, 1, 12, 12, generator=torch.Generator().manual_seed(0)).double(), 3, Sampling())
        rollout.losses["data"].backward()
    for parameter, grad in zip(model.parameters(), static, strict=True):
        assert parameter.grad is grad
    assert once.norm() > 0


def test_a_new_gradient_lies_in_memory_as_its_parameter() -> None:
    layer = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    with DeferredGradients(layer):
        layer(torch.rand(2, 3, 5, 5)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.stride() == layer.weight.stride()


def test_what_cannot_wait_is_computed_as_without_the_block() -> None:
    double = {"dtype": torch.float64}
    x = torch.randn(1, 2, 5, 5, **double)
    scaled = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3, **double))
    wide = nn.utils.parametrizations.weight_norm(nn.Linear(5, 2, **double))
    calls: list[tuple[nn.Module, Tensor]] = [
        (scaled, x),  # a weight made of parameters
        (wide, x),
        (nn.Conv2d(2, 2, 3, padding="same", **double), x),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular", **double), x),
        (nn.Conv2d(2, 2, 3, **double), x[0]),  # no batch
        (nn.Linear(5, 2, **double), x[0, 0, 0]),
        (nn.Conv1d(5, 2, 3, **double), x[0]),
    ]
    for layer, shown in calls:
        parameters = list(layer.parameters())
        plain = torch.autograd.grad(layer(shown).square().sum(), parameters)
        block = DeferredGradients(layer)
        with block:
            ours = torch.autograd.grad(layer(shown).square().sum(), parameters)
        assert all(map(torch.equal, ours, plain))
        assert block.peak_bytes == 0


def test_frozen_layers_and_calls_without_gradients_record_nothing() -> None:
    layer = nn.Conv2d(2, 2, 3)
    block = DeferredGradients(layer)
    with block, torch.no_grad():
        assert not layer(torch.rand(1, 2, 5, 5)).requires_grad
    layer.weight.requires_grad_(False)
    with block:
        layer(torch.rand(1, 2, 5, 5)).sum().backward()
    assert layer.bias is not None and layer.bias.grad is not None
    assert block.peak_bytes == 0


def test_outside_of_the_block_the_model_is_as_before() -> None:
    model = model_of("convlstm")
    before = [dict(module.__dict__) for module in model.modules()]

    def stopped() -> None:
        with DeferredGradients(model):
            assert [dict(module.__dict__) for module in model.modules()] != before
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert [dict(module.__dict__) for module in model.modules()] == before


def test_an_output_gradient_that_is_changed_later_is_refused() -> None:
    """As by a hook that scales in place."""
    layer = nn.Conv2d(1, 1, 1)
    seen: list[Tensor] = []

    def scaled_later() -> None:
        with DeferredGradients(layer):
            first = layer(torch.rand(1, 1, 2, 2))
            second = layer(first)
            second.register_hook(lambda grad: seen.append(grad))
            first.register_hook(lambda grad: torch.mul(seen[0], 2, out=seen[0]) is None or None)
            (3 * second).sum().backward()

    with pytest.raises(ToolkitError, match=r"weight \[1, 1, 1, 1\] was changed in place"):
        scaled_later()
    assert layer.weight.grad is None
    with DeferredGradients(layer):  # nothing of the failed block is left
        layer(torch.ones(1, 1, 2, 2)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.item() == 4


def test_hooks_see_the_whole_gradient_once() -> None:
    """ZeRO reduces gradients in such hooks."""
    layer = nn.Conv2d(1, 1, 1, bias=False)
    seen: list[float] = []
    layer.weight.register_hook(lambda grad: seen.append(grad.item()))
    layer.weight.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad.item()))
    with DeferredGradients(layer):
        (layer(torch.ones(1, 1, 2, 2)).sum() + layer(torch.ones(1, 1, 3, 1)).sum()).backward()
    assert seen == [7, 7]


def test_nothing_of_a_block_outlives_it() -> None:
    """The gate and its record don't keep each other: no garbage collection is needed to free them."""
    model = model_of("convlstm")
    gc.collect()
    gc.disable()
    try:
        gradients(model, DeferredGradients(model))
        assert not [thing for thing in gc.get_objects() if type(thing).__name__ in ("_Record", "_GateBackward")]
    finally:
        gc.enable()


def test_compiled_code_keeps_the_plain_backward_pass() -> None:
    layer = nn.Conv2d(2, 2, 3, dtype=torch.float64)
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    layer(x).square().sum().backward()
    plain, layer.weight.grad = layer.weight.grad, None
    compiled = torch.compile(layer, backend="aot_eager")
    block = DeferredGradients(layer)
    with block:
        compiled(x).square().sum().backward()
    assert block.peak_bytes == 0
    assert torch.allclose(layer.weight.grad, plain)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_weights_lie_as_a_cuda_input_does(device: str) -> None:
    last, as_it_is = torch.channels_last, torch.preserve_format
    with FakeTensorMode():
        weight, x = torch.empty(4, 3, 3, 3, device=device), torch.empty(2, 3, 5, 5, device=device)
        assert _layout_for(x, weight) == as_it_is
        turned = torch.empty(2, 3, 5, 5, device=device, memory_format=last)
        assert _layout_for(turned, weight) == (last if device == "cuda" else as_it_is)
        assert _layout_for(torch.empty(2, 3, device=device), torch.empty(4, 3, device=device)) == as_it_is


def test_a_weight_read_channels_last_has_its_own_layout_in_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU too where it is told so: what CUDA does, but for the kernels."""
    monkeypatch.setattr(deferred, "_layout_for", lambda x, weight: torch.channels_last)
    layer = nn.Conv2d(4, 4, 3, groups=2, dtype=torch.float64)
    x = torch.rand(2, 4, 5, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    results = []
    for block in (nullcontext(), DeferredGradients(layer)):
        layer.zero_grad()
        with block:
            (layer(x).square().sum() + layer(x + 1).square().sum()).backward()
        results.append(layer.weight.grad)
    plain, ours = results
    assert plain is not None
    assert ours is not None
    assert torch.allclose(ours, plain, rtol=1e-12)
    assert ours.stride() == layer.weight.stride()


def test_compiled_steps_and_zero_3_are_refused() -> None:
    model = model_of("convlstm")
    model.cell.compile(backend="eager")
    with pytest.raises(ConfigError, match=r"step is compiled: use train\.compile=none"):
        DeferredGradients(model)
    layer = nn.Conv2d(1, 1, 1)
    layer.weight.ds_id = 0  # DeepSpeed's mark
    with pytest.raises(ConfigError, match=r"use train\.zero 2 or less"):
        DeferredGradients(layer)


def test_zero_reduces_deferred_gradients(tmp_path: Path) -> None:
    """On two ranks, at the stages that reduce by hooks and without; training stays the same."""
    done = forked_ranks(2, "tests.toolkit.train.deferred_ranks", tmp_path / "norms.json")
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads((tmp_path / "norms.json").read_text())
    reference = seen["0"][0]
    assert min(reference) > 0
    for stage in "012":
        for norms in seen[stage]:
            assert norms == pytest.approx(reference, rel=1e-5)


on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("policy", ["none", "step", "recursive"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_on_the_device(layout: str, policy: str) -> None:
    """Where the backward pass, and with it what is recomputed, runs in a thread of its own."""
    model = model_of("modernn", train={"activation_checkpointing": {"policy": policy}}).cuda()
    model.layout = LAYOUTS[layout]
    plain = gradients(model, nullcontext())
    with Kernels() as kernels:
        ours = gradients(model, DeferredGradients(model))
    assert difference(ours, plain) < 1e-10
    assert kernels.of_weights == sum(isinstance(module, nn.Conv2d) for module in model.modules())


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("most_bytes", [1 << 16, 4 << 30])
def test_a_cuda_graph_of_the_block(most_bytes: int) -> None:
    """Replayed with other frames and weights it adds what the plain backward pass gives into the static gradients."""
    model = model_of("modernn").cuda()
    frames = torch.rand(2, 6, 1, 12, 12, dtype=torch.float64, device="cuda")

    def backward(block: AbstractContextManager[Any]) -> None:
        with block:
            model(frames, 3, Sampling()).losses["data"].backward()

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    block = DeferredGradients(model, most_bytes)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        backward(block)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backward(block)
    with torch.no_grad():
        frames.copy_(torch.rand_like(frames))
        for parameter in model.parameters():
            parameter.mul_(1.1)
            assert parameter.grad is not None
            parameter.grad.zero_()
    graph.replay()
    graph.replay()
    ours = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    backward(nullcontext())
    plain = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert plain.norm() > 0
    assert difference(ours, 2 * plain) < 1e-10
