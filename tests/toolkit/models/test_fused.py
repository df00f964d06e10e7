"""The fused ends of cells: values and gradients of the equations in plain autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.models import assert_same
from toolkit.models import fused
from toolkit.models.fused import attention, gated_sum, lstm, padded_attention, weighed_sum


def numbers(*shape: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()


def test_attention_in_bfloat16() -> None:
    """Its gradients are at least as near to float64's as those of PyTorch's own kernel, with the same map."""
    torch.manual_seed(0)
    q, k, v, direction = (torch.randn(2, 40, 3, 8).transpose(1, 2).bfloat16() for _ in range(4))

    def gradients(function, dtype: torch.dtype) -> list[Tensor]:
        inputs = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        out = function(*inputs, scale=0.3)
        return [out, *torch.autograd.grad(out, inputs, direction.to(dtype))]

    plain = torch.nn.functional.scaled_dot_product_attention
    exact, theirs = gradients(plain, torch.float64), gradients(plain, torch.bfloat16)
    ours = gradients(attention, torch.bfloat16)
    assert torch.equal(ours[0], theirs[0])
    for right, near, other in zip(exact, ours, theirs, strict=True):
        assert near.dtype == torch.bfloat16
        assert (near - right).abs().mean() <= 1.01 * (other - right).abs().mean()
    with torch.no_grad():
        assert torch.equal(attention(q, k, v, 0.3), ours[0])


LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])


@LAYOUTS
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("forget_bias", [0.0, 1.0])
def test_lstm(layout: torch.memory_format, parts: int, forget_bias: float) -> None:
    memory = numbers(2, 3, 4, 5, layout=layout)
    gates = [numbers(2, 12 // parts, 4, 5, layout=layout) for _ in range(parts)]
    i, f, o, g = torch.cat(gates, 1).chunk(4, 1)
    after = torch.sigmoid(f + forget_bias) * memory + torch.sigmoid(i) * torch.tanh(g)
    expected = torch.sigmoid(o) * torch.tanh(after), after
    assert_same(lstm(memory, *gates, forget_bias=forget_bias), expected, [memory, *gates])


@LAYOUTS
@pytest.mark.parametrize("slots", [1, 3])
def test_weighed_sum(layout: torch.memory_format, slots: int) -> None:
    weights = numbers(2, 1 + slots, 3)
    residual, features = numbers(2, 3, 4, 5, layout=layout), numbers(2, 3 * slots, 4, 5, layout=layout)
    expected = weights[:, 0, :, None, None] * residual
    for n, part in enumerate(features.chunk(slots, 1)):
        expected = expected + weights[:, 1 + n, :, None, None] * torch.relu(part)
    assert_same([weighed_sum(weights, residual, features)], [expected], [weights, residual, features])


@LAYOUTS
@pytest.mark.parametrize("slots", [1, 3])
def test_gated_sum(layout: torch.memory_format, slots: int) -> None:
    omega, grid = numbers(2, slots, 4, 3), numbers(2, 3, 4, 5, layout=layout)
    residual, features = numbers(2, 12, 4, 5, layout=layout), numbers(2, 12 * slots, 4, 5, layout=layout)
    gates = []
    for gate in range(4):
        own = slice(3 * gate, 3 * gate + 3)
        fused = torch.sigmoid(grid) * residual[:, own]
        for n, part in enumerate(features.chunk(slots, 1)):
            fused = fused + torch.sigmoid(omega[:, n, gate, :, None, None] * grid) * part[:, own]
        gates.append(fused)
    ours = gated_sum(omega, grid, residual, features)
    assert_same([ours], [torch.cat(gates, 1)], [omega, grid, residual, features])


def test_only_what_gradients_need_is_kept() -> None:
    """In numbers per position: the LSTM's 4 gates, C and C'; the sums' own arguments and nothing per product."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.numel() // 20
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        alive = lstm(numbers(1, 2, 4, 5), numbers(1, 8, 4, 5))
        assert sum(kept.values()) == 8 + 2 + 2
        kept.clear()
        alive += (weighed_sum(numbers(1, 4, 2), numbers(1, 2, 4, 5), numbers(1, 6, 4, 5)),)
        assert sum(kept.values()) == 2 + 6
        kept.clear()
        alive += (gated_sum(numbers(1, 3, 4, 2), numbers(1, 2, 4, 5), numbers(1, 8, 4, 5), numbers(1, 24, 4, 5)),)
        assert sum(kept.values()) == 1 + 2 + 8 + 24  # omega: 24 numbers in all
    assert len(alive) == 4


@pytest.mark.parametrize("width", [1, 8, 11, 26, 43])
def test_attention_of_padded_heads(width: int) -> None:
    """The widths of 22 and 128 channels in 2, 3 and 5 slots, as CUDA's kernels take them: equal to the equations."""
    torch.manual_seed(0)
    tokens = [torch.randn(2, 20, 3, width, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    query, key, value = (t.transpose(1, 2) for t in tokens)
    with Widths() as seen:
        ours = padded_attention(query, key, value, 0.3)
    assert seen.widths == {-(-width // 8) * 8}
    expected = torch.softmax(query @ key.transpose(2, 3) * 0.3, 3) @ value
    assert_same([ours], [expected], tokens)


class Widths(TorchDispatchMode):
    """Collects the widths of the heads that attention kernels get."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "attention" in str(func):
            self.widths |= {heads.shape[-1] for heads in args[:3]}
        return func(*args, **(kwargs or {}))


def test_heads_are_padded_where_cuda_needs_it_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(fused, "padded_attention", lambda *args: calls.append(args[0].shape[-1]))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *args, **_: None)
    with FakeTensorMode():
        for width in (11, 16, 26, 32, 43):
            for device in ("cpu", "cuda"):
                attention(*[torch.empty(1, 2, 4, width, device=device) for _ in range(3)], 1.0)
    assert calls == [11, 26, 43]


def test_mean_by_product() -> None:
    """What channels-last maps on CUDA get."""
    maps = torch.randn(3, 5, 4, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(3, 5, dtype=torch.float64)
    found = []
    for mean in (fused.mean_by_product(maps), maps.mean((2, 3))):
        (gradient,) = torch.autograd.grad((mean * weights).sum(), maps)
        found.append((mean, gradient))
    assert all(torch.allclose(*pair, rtol=1e-12, atol=0) for pair in zip(*found, strict=True))
    assert torch.equal(fused.spatial_mean(maps), maps.mean((2, 3)))
