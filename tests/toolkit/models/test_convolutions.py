"""The Triton convolution against PyTorch's in float64: in Triton's interpreter, and on a GPU by `make gpu`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("triton", reason="no Triton: it comes with PyTorch for CUDA, or by pip install triton (Linux)")

from shards.manifest import FrameSpec
from tests.support.kernels import BFLOAT16, interpret
from tests.support.precision import SameNoise
from toolkit.config import make_config
from toolkit.models import convolutions, fused
from toolkit.models.base import Noise, Sampling, SequenceModel, build_model
from toolkit.train import deferred
from toolkit.train.deferred import DeferredGradients

LAST = torch.channels_last
TILES = convolutions.TILES


@pytest.fixture(scope="module", params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the operator runs: on the CPU, its kernel interpreted, or compiled on a GPU."""
    from toolkit.models.operators import IMPLEMENTATIONS

    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        yield "cuda"
        return
    with pytest.MonkeyPatch.context() as patch, torch.library._scoped_library("modernn", "IMPL") as library:
        interpret(patch)
        multiply_bfloat16(patch)
        for name, implementation in IMPLEMENTATIONS.items():
            library.impl(name, implementation, "CPU")
        patch.setattr(fused, "TRITON_DEVICES", {"cpu"})
        patch.setattr(convolutions, "TILES", ((16, 64), (16, 32)))  # time goes by the size of tiles, full or not
        yield "cpu"


def multiply_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """Let Triton's interpreter multiply matrices of bfloat16, which it keeps as 16 bits without arithmetic."""
    import triton.language
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    product = InterpreterBuilder.create_dot

    def widened(t: Any) -> Any:
        if t.dtype.scalar != triton.language.bfloat16:
            return t
        return TensorHandle((t.data.astype(np.uint32) << 16).view(np.float32), triton.language.float32)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return product(self, widened(a), widened(b), *others)

    patch.setattr(InterpreterBuilder, "create_dot", create_dot)


def drawn(*shape: int, dtype: torch.dtype, device: str) -> Tensor:
    t = torch.randn(*shape).to(device, dtype)
    return t.contiguous(memory_format=LAST) if len(shape) == 4 else t


def apart(found: Tensor, true: Tensor) -> float:
    """Relative to the norm."""
    assert found.shape == true.shape
    return float((found.cpu().double() - true).norm() / true.norm())


SIZES = pytest.mark.parametrize(
    ("batch", "grid", "groups", "inputs", "outputs", "side"),  # channels of a group
    [
        (1, (1, 1), 1, 3, 5, 3),
        (2, (7, 5), 1, 43, 26, 3),
        (3, (5, 7), 2, 11, 43, 1),
        (2, (9, 1), 3, 26, 11, 3),
        (2, (6, 5), 4, 32, 32, 3),
        (1, (3, 4), 4, 8, 512, 1),
        (1, (2, 3), 2, 512, 8, 3),
        (2, (3, 7), 5, 11, 9, 5),
        (1, (1, 9), 1, 16, 130, 3),
        (1, (9, 9), 1, 72, 40, 3),
    ],
)


@SIZES
@pytest.mark.parametrize("dtype", convolutions.DTYPES)
def test_values_and_input_gradients(
    batch: int,
    grid: tuple[int, int],
    groups: int,
    inputs: int,
    outputs: int,
    side: int,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Each rounded once, from sums in float32."""
    torch.manual_seed(0)
    x = drawn(batch, groups * inputs, *grid, dtype=dtype, device=device)
    weight = drawn(groups * outputs, inputs, side, side, dtype=dtype, device=device)
    bias = drawn(groups * outputs, dtype=dtype, device=device)
    slope = drawn(batch, groups * outputs, *grid, dtype=dtype, device=device)
    exact = [t.cpu().double() for t in (x, weight, bias, slope)]
    exact[0].requires_grad_()
    true = F.conv2d(*exact[:3], padding=side // 2, groups=groups)
    (of_x,) = torch.autograd.grad(true, exact[0], exact[3])
    near = BFLOAT16[device] if dtype == torch.bfloat16 else 4e-6
    operator = torch.ops.modernn.convolution
    found = operator(x, weight, bias, groups, False), operator(slope, weight, None, groups, True)
    assert all(t.dtype == dtype and t.is_contiguous(memory_format=LAST) for t in found)
    assert apart(found[0], true.detach()) < near and apart(found[1], of_x) < near
    if device == "cuda" or side == 5:
        weight = weight.contiguous()
        again = operator(x, weight, bias, groups, False), operator(slope, weight, None, groups, True)
        assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))


def test_slices_and_other_layouts_are_read_as_they_lie(device: str) -> None:
    torch.manual_seed(0)
    weight = drawn(6, 4, 3, 3, dtype=torch.float32, device=device)
    wide = drawn(3, 20, 5, 7, dtype=torch.float32, device=device)
    seen = [wide[:, 8:16], wide[:2, :8], wide[:, 4:12, 1:4], wide[..., ::2][:, :8], wide[:, :8].contiguous()]
    seen += [wide[:, :8, :1, :1].expand(3, 8, 5, 7), wide[::2, :8], wide[:, 4:12, :, 2:3]]
    for x in seen:
        true = F.conv2d(x.cpu().double(), weight.cpu().double(), padding=1, groups=2)
        assert apart(torch.ops.modernn.convolution(x, weight, None, 2, False), true) < 1e-6
    assert convolutions.in_a_row(seen[0]) is seen[0]
    assert convolutions.in_a_row(seen[2]) is not seen[2]


def test_only_what_the_kernel_computes_is_taken() -> None:
    x, weight = torch.empty(2, 8, 5, 7).contiguous(memory_format=LAST), torch.empty(6, 4, 3, 3)
    assert convolutions.fits(x, weight, 2)
    assert not convolutions.fits(x.contiguous(), weight, 2)  # channels apart
    assert not convolutions.fits(x, weight, 1)
    assert not convolutions.fits(x, weight[:5], 2)
    assert not convolutions.fits(x, weight[..., :2, :2], 2)
    assert not convolutions.fits(x, weight[..., :2, :], 2)
    assert not convolutions.fits(x, weight.bfloat16(), 2)
    assert not convolutions.fits(x.double(), weight.double(), 2)


@pytest.mark.parametrize("positions", [35, 2048, 73_728])
@pytest.mark.parametrize("outputs", [1, 11, 26, 32, 43, 64, 128, 512])
@pytest.mark.parametrize("groups", [1, 4])
def test_tiles_fill_the_card_where_they_can(
    positions: int, outputs: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "TILES", TILES)  # not those that the interpreter is given
    sizes = convolutions.tile(positions, outputs, 128, groups, torch.bfloat16)
    programs = -(-positions // sizes["POSITIONS"]) * -(-outputs // sizes["OUTPUTS"]) * groups
    least = max(16, min(32, 1 << (outputs - 1).bit_length()))
    assert programs >= convolutions.PROGRAMS or (sizes["POSITIONS"], sizes["OUTPUTS"]) == (64, least)
    assert sizes["OUTPUTS"] < 2 * max(outputs, 16)


LAYERS = {
    "3x3": nn.Conv2d(8, 6, 3, padding=1),
    "1x1": nn.Conv2d(8, 6, 1),
    "groups": nn.Conv2d(8, 6, 3, padding=1, groups=2),
    "no bias": nn.Conv2d(8, 6, 5, padding=2, bias=False),
}
OTHERS = {
    "depthwise": nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "strided": nn.Conv2d(8, 6, 3, padding=1, stride=2),
    "dilated": nn.Conv2d(8, 6, 3, padding=1, dilation=2),
    "unpadded": nn.Conv2d(8, 6, 3),
    "even": nn.Conv2d(8, 6, 2, padding=1),
    "transposed": nn.ConvTranspose2d(8, 6, 3, padding=1),
}


@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_layers_in_a_deferred_step(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that fit are the kernel's, forward and backward, the others PyTorch's; gradients are the same."""
    layer = {**LAYERS, **OTHERS}[name].to(device, torch.bfloat16)
    calls = []
    kernel = torch.ops.modernn.convolution
    monkeypatch.setattr(convolutions, "convolution", lambda *a: calls.append(a[4]) or kernel(*a))
    x = drawn(2, 8, 6, 5, dtype=torch.bfloat16, device=device)

    def run(block: Any, layer: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        with block:
            out = layer(layer(x)) if out_is_in(layer) else layer(x)
            out.square().sum().backward()
        found = [x.grad, *(p.grad for p in layer.parameters())]
        layer.zero_grad()
        return [out.detach(), *(t for t in found if t is not None)]

    def out_is_in(layer: Any) -> bool:
        return bool(layer.in_channels == layer.out_channels)

    found = run(DeferredGradients(layer), layer, x)
    assert calls == ([False, True] if name in LAYERS else [])
    exact = run(nullcontext(), layer.cpu().double(), x.cpu().double())
    assert all(apart(near, true) < 0.02 for near, true in zip(found, exact, strict=True))
    calls.clear()
    monkeypatch.setattr(deferred, "TRITON_CONVOLUTIONS", "grouped")
    run(DeferredGradients(layer), layer.to(device, torch.bfloat16), x)
    assert calls == ([False, True] if name == "groups" else [])
    calls.clear()
    monkeypatch.setattr(deferred, "TRITON_CONVOLUTIONS", "none")
    run(DeferredGradients(layer), layer, x)
    assert calls == []


def model_of(device: str, dtype: torch.dtype) -> SequenceModel:
    torch.manual_seed(0)
    config = make_config({"model": {"name": "modernn", "hidden": 6, "layers": 1, "slots": 3}}, "test")
    model = build_model(config.model, FrameSpec(1, 8, 8)).to(device, dtype)
    model.layout = LAST
    return model


def loss_of(model: SequenceModel, frames: Tensor, noise: Noise) -> Tensor:
    return model(frames.to(next(model.parameters())), 2, Sampling(noise=noise)).losses["data"]


def gradients(model: SequenceModel) -> Tensor:
    return torch.cat([p.grad.double().flatten().cpu() for p in model.parameters() if p.grad is not None])


def test_gradients_of_a_model_in_a_deferred_step(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No farther from float64 than by PyTorch's convolutions."""
    frames = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = {}
    for which in ("all", "none", "exact"):
        monkeypatch.setattr(deferred, "TRITON_CONVOLUTIONS", "none" if which == "exact" else which)
        model = model_of(*(("cpu", torch.float64) if which == "exact" else (device, torch.bfloat16)))
        with torch.no_grad():
            rounded = [p.bfloat16() for p in model_of("cpu", torch.float64).parameters()]
            torch._foreach_copy_(list(model.parameters()), rounded)
        with DeferredGradients(model):
            loss_of(model, frames.bfloat16(), SameNoise([1, 2], next(model.parameters()).device)).backward()
        found[which] = gradients(model)
    ours, theirs = (apart(found[which], found["exact"]) for which in ("all", "none"))
    assert 0 < ours < max(1.5 * theirs, 0.03) < 0.2
    assert not torch.equal(found["all"], found["none"])


@pytest.mark.gpu
def test_a_cuda_graph_replays_a_deferred_step() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = model_of("cuda", torch.bfloat16)
    frames = torch.rand(2, 3, 1, 8, 8, dtype=torch.bfloat16, device="cuda")
    noise = SameNoise([1, 2], "cuda")
    state = [torch.randn(2, 6, 2, 2, dtype=torch.bfloat16, device="cuda")]
    noise.normal = lambda *shape: state[0]  # type: ignore[method-assign]

    def step() -> None:
        for p in model.parameters():
            p.grad.zero_()  # type: ignore[union-attr]
        with DeferredGradients(model):
            loss_of(model, frames, noise).backward()

    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    frames.uniform_()
    graph.replay()
    torch.cuda.synchronize()
    replayed = gradients(model)
    step()
    assert replayed.norm() > 0
    assert apart(replayed, gradients(model)) < 5e-3  # attention adds in no order
