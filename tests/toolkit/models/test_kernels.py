"""The ends' Triton kernels against plain autograd in float64: in Triton's interpreter, and on a GPU by `make gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from shards.manifest import FrameSpec
from tests.support.kernels import BFLOAT16, interpret
from toolkit.config import make_config
from toolkit.models import fused
from toolkit.models.base import Sampling, build_model
from toolkit.models.fused import gated_sum, gated_tanh, lstm, st_lstm_memories, weighed_sum

pytest.importorskip("triton", reason="no Triton: it comes with PyTorch for CUDA, or by pip install triton (Linux)")

CONTIGUOUS, LAST = torch.contiguous_format, torch.channels_last
FLOAT32 = {"cuda": (2e-6, 2e-6), "cpu": (1e-6, 1e-6)}  # relative, and to the largest; a GPU's exp is off by 2 units


@pytest.fixture(scope="module", params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the operators run: on the CPU, their kernels interpreted, or compiled on a GPU."""
    from toolkit.models.operators import IMPLEMENTATIONS

    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        yield "cuda"
        return
    with pytest.MonkeyPatch.context() as patch, torch.library._scoped_library("modernn", "IMPL") as library:
        interpret(patch)
        for name, implementation in IMPLEMENTATIONS.items():
            library.impl(name, implementation, "CPU")
        patch.setattr(fused, "TRITON_DEVICES", {"cpu"})
        yield "cpu"


def numbers(*shape: int, layout: torch.memory_format = CONTIGUOUS) -> Tensor:
    return (2 * torch.randn(*shape)).contiguous(memory_format=layout if len(shape) == 4 else CONTIGUOUS)


def assert_near(
    ours: Callable[..., object],
    plain: Callable[..., object],
    inputs: list[Tensor],
    dtype: torch.dtype,
    device: str,
    kept: float = 0.0,
) -> None:
    """Values and all gradients of a random projection lie by float64's of the same inputs, as near as the type can.

    `kept` is what bfloat16 may be off, beside that, relative to the largest number, where a rounded sum is kept.
    """

    def run(function: Callable[..., object], inputs: list[Tensor]) -> list[Tensor]:
        for t in inputs:
            t.requires_grad_()
        made = function(*inputs)
        outputs = [made] if isinstance(made, Tensor) else list(made)  # type: ignore[call-overload]
        slopes = [d.to(o) for d, o in zip(directions, outputs, strict=False)]
        return [t.detach().cpu().double() for t in [*outputs, *torch.autograd.grad(outputs, inputs, slopes)]]

    rounded = [t.to(device, dtype) for t in inputs]
    exact = [t.cpu().double() for t in rounded]
    shape = plain(*exact)
    shape = shape if isinstance(shape, Tensor) else shape[0]  # type: ignore[index]
    directions = [torch.randn(shape.shape).to(dtype) for _ in range(5)]
    assert fused.operators(rounded[0]) is not None
    found, right = run(ours, rounded), run(plain, exact)
    for near, true in zip(found, right, strict=True):
        relative, absolute = (BFLOAT16[device], max(kept, 1e-4)) if dtype == torch.bfloat16 else FLOAT32[device]
        torch.testing.assert_close(near, true, rtol=relative, atol=absolute * float(true.abs().max().clamp(min=1)))
        assert true.abs().max() > 0
    if device == "cuda":
        again = run(ours, [t.detach() for t in rounded])
        assert all(torch.equal(*pair) for pair in zip(found, again, strict=True))


CASES = pytest.mark.parametrize(
    ("slots", "grid", "layouts", "dtype"),
    [
        (1, (1, 1), (CONTIGUOUS, CONTIGUOUS), torch.float32),
        (2, (7, 5), (LAST, LAST), torch.float32),
        (3, (7, 5), (CONTIGUOUS, LAST), torch.float32),
        (4, (16, 16), (LAST, LAST), torch.bfloat16),
        (5, (16, 16), (CONTIGUOUS, CONTIGUOUS), torch.bfloat16),
        (2, (33, 17), (LAST, CONTIGUOUS), torch.float32),
    ],
)


def plain_gated_sum(omega: Tensor, grid: Tensor, residual: Tensor, features: Tensor) -> Tensor:
    x = grid[:, None, None]
    slots = (torch.sigmoid(omega[..., None, None] * x) * features.unflatten(1, omega.shape[1:])).sum(1)
    return (torch.sigmoid(x[:, 0]) * residual.unflatten(1, omega.shape[2:]) + slots).flatten(1, 2)


@CASES
def test_gated_sum(
    slots: int, grid: tuple[int, int], layouts: tuple[torch.memory_format, ...], dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    first, second = layouts
    omega = numbers(2, 4, 6, slots).permute(0, 3, 1, 2)  # [B, N, G, D], not side by side
    maps = [numbers(2, 6, *grid, layout=first), numbers(2, 24, *grid, layout=second)]
    features = numbers(2, 24 * slots, *grid, layout=first)
    assert_near(gated_sum, plain_gated_sum, [omega, *maps, features], dtype, device)


def plain_weighed_sum(weights: Tensor, residual: Tensor, features: Tensor) -> Tensor:
    first, others = weights[:, 0, :, None, None], weights[:, 1:, :, None, None]
    return first * residual + (others * torch.relu(features).unflatten(1, others.shape[1:3])).sum(1)


@CASES
def test_weighed_sum(
    slots: int, grid: tuple[int, int], layouts: tuple[torch.memory_format, ...], dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    maps = [numbers(3, 5, *grid, layout=layouts[0]), numbers(3, 5 * slots, *grid, layout=layouts[1])]
    assert_near(weighed_sum, plain_weighed_sum, [numbers(3, 1 + slots, 5), *maps], dtype, device)


def plain_lstm(forget_bias: float, memory: Tensor, added: Tensor | float, *gates: Tensor) -> tuple[Tensor, Tensor]:
    i, f, o, g = (torch.cat(gates, 1) + added).chunk(4, 1)
    after = torch.sigmoid(f + forget_bias) * memory + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(after), after


PARTS = [[20], [10, 10], [5, 15], [5, 5, 10]]


@CASES
@pytest.mark.parametrize("with_addend", [False, True])
def test_lstm(
    with_addend: bool,
    slots: int,
    grid: tuple[int, int],
    layouts: tuple[torch.memory_format, ...],
    dtype: torch.dtype,
    device: str,
) -> None:
    torch.manual_seed(0)
    parts, forget_bias = PARTS[slots % 4], slots / 4
    memory, addend, *gates = (
        numbers(2, n, *grid, layout=layout) for n, layout in zip([5, 20, *parts], layouts * 3, strict=False)
    )

    def ours(memory: Tensor, *gates: Tensor) -> tuple[Tensor, Tensor]:
        if with_addend:
            return lstm(memory, *gates[1:], added=gates[0], forget_bias=forget_bias)
        return lstm(memory, *gates, forget_bias=forget_bias)

    def plain(memory: Tensor, *gates: Tensor) -> tuple[Tensor, Tensor]:
        return plain_lstm(forget_bias, memory, *(gates if with_addend else (0.0, *gates)))

    # The sum of gates and addend is kept rounded for the backward pass: up to 2^-8 of 16 moves a slope by a hundredth.
    inputs = [memory, addend, *gates] if with_addend else [memory, *gates]
    assert_near(ours, plain, inputs, dtype, device, kept=0.02 if with_addend else 0.0)


def plain_st_lstm(cell: Tensor, memory: Tensor, *of: Tensor) -> list[Tensor]:
    """All that the two ends give: H', C', M' and what entered these."""
    reduced, of_both, of_x, of_h, of_m = of
    xi, xf, xg, xi2, xf2, xg2, xo = of_x.chunk(7, 1)
    hi, hf, hg, ho = of_h.chunk(4, 1)
    mi, mf, mg = of_m.chunk(3, 1)
    into_cell = torch.sigmoid(xi + hi) * torch.tanh(xg + hg)
    into_memory = torch.sigmoid(xi2 + mi) * torch.tanh(xg2 + mg)
    cell = torch.sigmoid(xf + hf + 1.25) * cell + into_cell
    memory = torch.sigmoid(xf2 + mf + 1.25) * memory + into_memory
    return [torch.sigmoid(xo + ho + of_both) * torch.tanh(reduced), cell, memory, into_cell, into_memory]


@CASES
def test_st_lstm(
    slots: int, grid: tuple[int, int], layouts: tuple[torch.memory_format, ...], dtype: torch.dtype, device: str
) -> None:
    torch.manual_seed(0)
    channels = [5, 5, 5, 5, 35, 20, 15]
    inputs = [numbers(2, n, *grid, layout=layout) for n, layout in zip(channels, layouts * 4, strict=False)]

    def ours(cell: Tensor, memory: Tensor, *of: Tensor) -> list[Tensor]:
        reduced, of_both, *of_gates = of
        cells, memories, of_output = st_lstm_memories(*of_gates, cell, memory, 1.25)
        if slots == 1:  # nothing looks at what entered
            return [gated_tanh(reduced, *of_output, of_both), cells[0], memories[0]]
        return [gated_tanh(reduced, *of_output, of_both), cells[0], memories[0], cells[1], memories[1]]

    def plain(*inputs: Tensor) -> list[Tensor]:
        return plain_st_lstm(*inputs)[: 3 if slots == 1 else 5]

    assert_near(ours, plain, inputs, dtype, device, kept=0.02)


def test_lstm_of_hard_numbers(device: str) -> None:
    """Small ones keep their relative exactness, large ones saturate, what is no number shows; slices, rows cut off."""
    values = [1e-30, 1e-4, 0.01, 0.29, 0.31, 1.0, 9.0, 50.0, 200.0, float("inf"), float("nan")]
    x = torch.tensor([*values, *(-v for v in values)], device=device)
    closed, opened = torch.full_like(x, -1e4), torch.full_like(x, 1e4)  # C' = tanh(g), H' = tanh(C')
    gates = torch.stack([opened, closed, opened, x]).view(1, 4, 2, 11)
    wide = F.pad(gates, (3, 8))[..., 3:14]
    assert not wide.is_contiguous()
    memory = torch.zeros(1, 1, 1, 1, device=device).expand(1, 1, 2, 11)
    with np.errstate(over="ignore", invalid="ignore"):  # in the interpreter exp(400) warns
        hidden, after = lstm(memory, wide)
    exact = torch.tanh(gates[:, 3:].double())
    near = 6e-7 if device == "cpu" else 1.5e-6
    torch.testing.assert_close(after.double(), exact, rtol=near, atol=0, equal_nan=True)
    torch.testing.assert_close(hidden.double(), torch.tanh(exact), rtol=2 * near, atol=0, equal_nan=True)


def test_no_number_passes_a_weighed_sum(device: str) -> None:
    features = torch.tensor([float("nan"), -1.0, 1.0], device=device).view(1, 3, 1, 1).requires_grad_()
    out = weighed_sum(torch.ones(1, 4, 1, device=device), torch.zeros(1, 1, 1, 1, device=device), features)
    assert out.isnan().all()
    slope = torch.autograd.grad(out.sum(), features)[0]
    assert slope.flatten().tolist() == [1.0, 0.0, 1.0]


def test_checkpointing_gives_the_same(device: str) -> None:
    torch.manual_seed(0)
    tensors = [
        numbers(2, 3, 4, 3),
        numbers(2, 3, 4, 4),
        numbers(2, 12, 4, 4),
        numbers(2, 36, 4, 4),
        numbers(2, 3, 4, 4),
    ]
    inputs = [t.to(device).requires_grad_() for t in tensors]

    def cell(*t: Tensor) -> Tensor:
        fused_gates = gated_sum(*t[:4])
        hidden, after = lstm(t[4], fused_gates)
        return hidden + weighed_sum(t[0][:, :, 0], after, hidden.repeat(1, 2, 1, 1))

    plain = torch.autograd.grad(cell(*inputs).sum(), inputs)
    again = torch.autograd.grad(checkpoint(cell, *inputs, use_reentrant=False).sum(), inputs)
    assert all(torch.equal(*pair) for pair in zip(plain, again, strict=True))


@pytest.mark.parametrize("name", ["modernn", "modernn_released", "convlstm", "conv_tt_lstm", "predrnn", "mim"])
def test_models_train_the_same(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of a model with the kernels and with PyTorch's own."""
    seen: set[str] = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.update([func.namespace])
            return func(*args, **(kwargs or {}))

    results = []
    for kernels_used in (True, False):
        monkeypatch.setattr(fused, "TRITON", kernels_used)
        torch.manual_seed(0)
        options = make_config({"model": {"name": name, "hidden": 4}}, "t").model
        model = build_model(options, FrameSpec(1, 16, 16)).to(device)
        frames = torch.rand(1, 3, 1, 16, 16, generator=torch.Generator().manual_seed(1)).to(device)
        with Seen():
            loss = model(frames, 2, Sampling()).losses["data"]
            loss.backward()
        assert ("modernn" in seen) == kernels_used
        seen.clear()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((loss.detach(), gradients.double()))
    (ours, of_ours), (plain, of_plain) = results
    exact = device == "cpu"  # a GPU may have rounded to TF32 between the ends
    torch.testing.assert_close(ours, plain, rtol=1e-6 if exact else 1e-4, atol=0)
    assert (of_ours - of_plain).norm() <= (1e-5 if exact else 3e-3) * of_plain.norm()


@pytest.mark.gpu
def test_a_cuda_graph_replays_the_kernels() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    shapes = [(2, 3, 4, 8), (2, 8, 16, 16), (2, 32, 16, 16), (2, 96, 16, 16), (2, 8, 16, 16)]
    inputs = [torch.zeros(shape, device="cuda", requires_grad=True) for shape in shapes]

    def step() -> list[Tensor]:
        hidden, after = lstm(inputs[4], gated_sum(*inputs[:4]))
        total = weighed_sum(inputs[0][:, :, 0], hidden, after.repeat(1, 2, 1, 1))
        # Detached: what holds on to this graph of autograd would tie later ones to the stream of the capture.
        return [total.detach(), *torch.autograd.grad(total.square().sum(), inputs)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for t in inputs:
        t.data.normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(*pair) for pair in zip(captured, step(), strict=True))
    assert captured[0].abs().max() > 0


@pytest.mark.gpu
def test_more_numbers_than_32_bits_count() -> None:
    """[1, 2, 32768, 33024] bfloat16: 2^31 positions and more over both channels."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free GPU memory")
    features = torch.ones(1, 2, 32768, 33024, dtype=torch.bfloat16, device="cuda")
    features[0, 1, -1, -1] = 5
    assert features.numel() > 2**31
    weights = torch.tensor([[[1.0], [2.0], [3.0]]], dtype=torch.bfloat16, device="cuda")
    out = weighed_sum(weights, features[:, :1], features)
    assert out[0, 0, -1, -2:].tolist() == [6.0, 18.0]
    assert out[0, 0, 0, :2].tolist() == [6.0, 6.0]


def test_no_more_is_kept_than_by_the_plain_ends(device: str) -> None:
    """In numbers: the LSTM's gates and C; the sums' own arguments."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.numel()
        return t

    def given(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, requires_grad=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        alive = lstm(given(1, 2, 4, 5), given(1, 8, 4, 5))
        assert sum(kept.values()) == 20 * (8 + 2)
        kept.clear()
        alive += lstm(given(1, 2, 4, 5), given(1, 8, 4, 5), added=given(1, 8, 4, 5))
        assert sum(kept.values()) == 20 * (8 + 2)
        kept.clear()
        alive += (weighed_sum(given(1, 4, 2), given(1, 2, 4, 5), given(1, 6, 4, 5)),)
        assert sum(kept.values()) == 8 + 20 * (2 + 6)
        kept.clear()
        alive += (gated_sum(given(1, 3, 4, 2), given(1, 2, 4, 5), given(1, 8, 4, 5), given(1, 24, 4, 5)),)
        assert sum(kept.values()) == 24 + 20 * (2 + 8 + 24)
        kept.clear()
        of_gates = given(1, 14, 4, 5), given(1, 8, 4, 5), given(1, 6, 4, 5)
        cells, memories, of_output = st_lstm_memories(*of_gates, given(1, 2, 4, 5), given(1, 2, 4, 5), 1.0)
        alive += (gated_tanh(given(1, 2, 4, 5), *of_output, given(1, 2, 4, 5)), *cells, *memories)
        assert sum(kept.values()) == 20 * (2 * (6 + 2) + 2 + 2)
    assert len(alive) == 11


def test_operators_are_what_they_say(device: str) -> None:
    """PyTorch's own check: schema, no aliases, and the shapes told for tensors without data are those of real ones."""
    from toolkit.models import convolutions  # noqa: F401
    from toolkit.models.operators import IMPLEMENTATIONS

    omega, memory = torch.randn(2, 3, 4, 5, device=device), torch.randn(2, 5, 7, 3, device=device)
    wide, gates = torch.randn(2, 60, 7, 3, device=device), torch.randn(2, 20, 7, 3, device=device)
    narrow = wide[:, :15]
    last = gates.contiguous(memory_format=LAST)
    calls = {
        "gated_sum": (omega, memory, gates, wide),
        "gated_sum_backward": (gates, omega.transpose(1, 3).contiguous().transpose(1, 3), memory, last, wide),
        "weighed_sum": (omega[:, 0], memory, narrow),
        "weighed_sum_backward": (memory, omega[:, 0], memory, narrow),
        "add_tiles": (omega.permute(0, 2, 3, 1), torch.bfloat16),
        "lstm": (memory, [last], gates, 1.0),
        "lstm_backward": (memory, memory, memory, [gates[:, :10], last[:, 10:]], 1.0),
        "remember": (memory, narrow, last[:, 5:], 0.0),
        "remember_backward": (memory, None, memory, narrow.contiguous(memory_format=LAST), 0.0),
        "show": (memory, narrow[:, :5], gates[:, 5:10], last[:, :5]),
        "show_backward": (memory, last[:, :5], memory),
        "convolution": (last, torch.randn(6, 10, 3, 3, device=device), torch.randn(6, device=device), 2, False),
    }
    assert set(calls) == set(IMPLEMENTATIONS)
    for name, arguments in calls.items():
        operator = getattr(torch.ops.modernn, name).default
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
