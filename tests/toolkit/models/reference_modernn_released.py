"""The released ModeRNN cell from its description: one slot and one gate pair at a time, the softmax written out."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.toolkit.models.reference import plain_conv

Parameters = dict[str, Tensor]
EPSILON = 1e-5


def normalised(x: Tensor, over: tuple[int, ...]) -> Tensor:
    mean = x.mean(over, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).square().mean(over, keepdim=True) + EPSILON)


def plain_separable(x: Tensor, p: Parameters, name: str, batch_norm: bool) -> Tensor:
    one = [slice(c, c + 1) for c in range(x.shape[1])]
    maps = torch.cat([plain_conv(x[:, c], p[f"{name}.0.weight"][c], p[f"{name}.0.bias"][c]) for c in one], 1)
    maps = normalised(maps, (0, 2, 3) if batch_norm else (1, 2, 3))
    maps = maps * p[f"{name}.1.weight"].view(1, -1, 1, 1) + p[f"{name}.1.bias"].view(1, -1, 1, 1)
    return plain_conv(maps, p[f"{name}.2.weight"], p[f"{name}.2.bias"])


def plain_fusion(grid: Tensor, slots: list[Tensor], p: Parameters, name: str) -> Tensor:
    channels = grid.shape[1]
    z = plain_context(grid, p, name) if f"{name}.weigh.weight" in p else None
    fused = torch.zeros_like(grid)
    for n in range(len(slots) + 1):
        rows = slice(n * channels, (n + 1) * channels)
        weight = torch.full((len(grid), channels, 1, 1), 0.5, dtype=grid.dtype)
        if z is not None:
            fc = z @ p[f"{name}.weigh.weight"][rows].T + p[f"{name}.weigh.bias"][rows]
            weight = torch.sigmoid(fc)[:, :, None, None]
        if n == 0:
            fused = fused + weight * plain_conv(grid, p[f"{name}.of_input.weight"], p[f"{name}.of_input.bias"])
        else:
            of = slice((n - 1) * channels, n * channels)
            maps = plain_conv(slots[n - 1], p[f"{name}.of_slots.weight"][of], p[f"{name}.of_slots.bias"][of])
            fused = fused + weight * F.relu(maps)
    return fused


def plain_context(grid: Tensor, p: Parameters, name: str) -> Tensor:
    batch, channels = grid.shape[:2]
    mask = plain_conv(grid, p[f"{name}.context.mask.weight"], p[f"{name}.context.mask.bias"])
    pooled = []
    for sample in range(batch):
        weights = torch.exp(mask[sample, 0]) / torch.exp(mask[sample, 0]).sum()
        pooled.append(torch.stack([(grid[sample, c] * weights).sum() for c in range(channels)]))
    z = torch.stack(pooled) @ p[f"{name}.context.reduce.weight"].T + p[f"{name}.context.reduce.bias"]
    z = normalised(z, (1,)) * p[f"{name}.context.norm.weight"] + p[f"{name}.context.norm.bias"]
    return torch.sigmoid(F.relu(z) @ p[f"{name}.context.expand.weight"].T + p[f"{name}.context.expand.bias"])


def plain_released_cell(
    x: Tensor, hidden: Tensor, bus: Tensor, p: Parameters, slots: int, batch_norm: bool
) -> tuple[Tensor, Tensor]:
    batch, d, height, width = x.shape
    w = 2 * d // slots
    grid = torch.cat([x, hidden], 1)
    q, k, v = (plain_separable(t, p, name, batch_norm) for t, name in ((bus, "query"), (grid, "key"), (grid, "value")))
    features = []
    for n in range(slots):
        qn, kn, vn = (t[:, n * w : (n + 1) * w].flatten(2).transpose(1, 2) for t in (q, k, v))
        attention = torch.softmax(qn @ kn.transpose(1, 2) / math.sqrt(d), dim=-1)
        features.append((attention @ vn).transpose(1, 2).reshape(batch, w, height, width))
    gates = []
    for pair in ("if", "og"):
        fused = normalised(plain_fusion(grid, features, p, f"fuse_{pair}"), (1, 2, 3))
        gates += (fused * p[f"norm_{pair}.weight"] + p[f"norm_{pair}.bias"]).chunk(2, 1)
    i, f, o, g = gates
    bus = torch.sigmoid(f) * bus + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(bus), bus
