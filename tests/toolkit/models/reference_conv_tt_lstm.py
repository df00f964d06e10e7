"""Conv-TT-LSTM from its equations, and the dense kernels that a tensor train stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.toolkit.models.reference import plain_conv

Parameters = dict[str, Tensor]


def plain_conv_tt_cell(
    x: Tensor, past: list[Tensor], memory: Tensor, p: Parameters, order: int, forget_bias: float
) -> tuple[Tensor, Tensor]:
    """`past` is [H_{t-1}, ..., H_{t-steps}]; one core, one lag and one gate at a time."""
    d, steps = memory.shape[1], len(past)
    lags = steps - order + 1
    at = {-k: past[k - 1] for k in range(1, steps + 1)}  # H by its time, relative to t
    train = None
    for core in range(1, order + 1):
        value = p[f"windows.{core - 1}.bias"].view(1, -1, 1, 1)
        for lag in range(lags):
            weight = p[f"windows.{core - 1}.weight"][:, lag * d : (lag + 1) * d]
            value = value + plain_conv(at[-steps + core - 1 + lag], weight, None)
        if train is not None:
            value = value + plain_conv(train, p[f"cores.{core - 2}.weight"], p[f"cores.{core - 2}.bias"])
        train = value
    assert train is not None
    n = x.shape[1]
    i, f, o, g = (
        plain_conv(x, p["gates.weight"][k * d : (k + 1) * d, :n], p["gates.bias"][k * d : (k + 1) * d])
        + plain_conv(train, p["gates.weight"][k * d : (k + 1) * d, n:], None)
        for k in range(4)
    )
    memory = torch.sigmoid(f + forget_bias) * memory + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(memory), memory


def composed(outer: Tensor, inner: Tensor) -> Tensor:
    """The kernel of a convolution by `inner` [b, a, k, k] and then by `outer` [c, b, l, l]: [c, a, k + l - 1, ...]."""
    k, m = inner.shape[-1], outer.shape[-1]
    kernel = inner.new_zeros(outer.shape[0], inner.shape[1], k + m - 1, k + m - 1)
    for oy in range(m):
        for ox in range(m):
            for iy in range(k):
                for ix in range(k):
                    kernel[:, :, oy + iy, ox + ix] += outer[:, :, oy, ox] @ inner[:, :, iy, ix]
    return kernel


def dense_cell(x: Tensor, past: list[Tensor], memory: Tensor, p: Parameters, order: int) -> tuple[Tensor, Tensor]:
    """A higher-order ConvLSTM without biases: for every window of states one dense kernel, multiplied out."""
    n, lags = x.shape[1], len(past) - order + 1
    gates = plain_conv(x, p["gates.weight"][:, :n], None)
    onward = p["gates.weight"][:, n:]
    for core in range(order, 0, -1):
        window = past[::-1][core - 1 : core - 1 + lags]
        gates = gates + plain_conv(torch.cat(window, 1), composed(onward, p[f"windows.{core - 1}.weight"]), None)
        if core > 1:
            onward = composed(onward, p[f"cores.{core - 2}.weight"])
    i, f, o, g = gates.chunk(4, 1)
    memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(memory), memory
