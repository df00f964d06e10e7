"""Plain layers for the references: sums over kernel positions and groups, from the definitions."""

from __future__ import annotations

import torch
from torch import Tensor


def plain_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """out(o, y, x) = b(o) + sum over c, i, j of w(o, c, i, j) in(c, s y + d i - p, s x + d j - p), group by group."""
    batch, channels, height, width = x.shape
    outputs, per_group, size, _ = weight.shape
    reach = dilation * (size - 1) + 1
    rows, columns = ((n + 2 * padding - reach) // stride + 1 for n in (height, width))
    padded = x.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    results = []
    for group in range(groups):
        own = padded[:, group * per_group : (group + 1) * per_group]
        kernels = weight[group * (outputs // groups) : (group + 1) * (outputs // groups)]
        out = x.new_zeros(batch, outputs // groups, rows, columns)
        for i in range(size):
            for j in range(size):
                top, left = i * dilation, j * dilation
                seen = own[:, :, top : top + (rows - 1) * stride + 1 : stride]
                seen = seen[:, :, :, left : left + (columns - 1) * stride + 1 : stride]
                out = out + torch.einsum("oc,bchw->bohw", kernels[:, :, i, j], seen)
        results.append(out)
    joined = torch.cat(results, 1)
    return joined if bias is None else joined + bias.view(1, -1, 1, 1)


def plain_conv_transpose2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Every input pixel paints its kernel (weight [in, out, k, k]) at stride times its place; the rim is cut off."""
    batch, _, height, width = x.shape
    _, outputs, size, _ = weight.shape
    canvas = x.new_zeros(batch, outputs, (height - 1) * stride + size, (width - 1) * stride + size)
    for y in range(height):
        for z in range(width):
            painted = torch.einsum("bc,coij->boij", x[:, :, y, z], weight)
            stamp = torch.zeros_like(canvas)
            stamp[:, :, y * stride : y * stride + size, z * stride : z * stride + size] = painted
            canvas = canvas + stamp
    end_y, end_x = (n - padding for n in canvas.shape[2:])
    return canvas[:, :, padding:end_y, padding:end_x] + bias.view(1, -1, 1, 1)


def plain_group_norm(x: Tensor, groups: int, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Each sample and group of channels to mean 0 and (biased) variance 1, then per channel scale and shift."""
    size = x.shape[1] // groups
    parts = []
    for group in range(groups):
        own = x[:, group * size : (group + 1) * size]
        mean = own.mean((1, 2, 3), keepdim=True)
        variance = (own - mean).square().mean((1, 2, 3), keepdim=True)
        parts.append((own - mean) / torch.sqrt(variance + eps))
    return torch.cat(parts, 1) * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def plain_leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def plain_lstm(x: Tensor, state: tuple[Tensor, Tensor], p: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """An LSTM cell in torch's order of gates: i, f, g, o."""
    h, c = state
    n = h.shape[1]
    i, f, g, o = (
        x @ p[f"{name}.weight_ih"][at].T
        + p[f"{name}.bias_ih"][at]
        + h @ p[f"{name}.weight_hh"][at].T
        + p[f"{name}.bias_hh"][at]
        for at in (slice(k * n, (k + 1) * n) for k in range(4))
    )
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
