"""Independent plain references, written from the equations: loops, no tricks, float64. The oracle, not the model."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def plain_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with 'same' zero padding as a sum over kernel positions."""
    size = weight.shape[-1]
    half = size // 2
    padded = F.pad(x, (half, half, half, half))
    out = x.new_zeros(x.shape[0], weight.shape[0], *x.shape[2:])
    for dy in range(size):
        for dx in range(size):
            window = padded[:, :, dy : dy + x.shape[2], dx : dx + x.shape[3]]
            out = out + torch.einsum("oc,bchw->bohw", weight[:, :, dy, dx], window)
    return out if bias is None else out + bias.view(1, -1, 1, 1)


def plain_separable(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    weight, bias = p[f"{name}.0.weight"], p[f"{name}.0.bias"]
    one = [slice(c, c + 1) for c in range(x.shape[1])]  # depthwise: every channel by itself
    maps = [plain_conv(x[:, c], weight[c], bias[c]) for c in one]
    return plain_conv(torch.cat(maps, 1), p[f"{name}.1.weight"], p[f"{name}.1.bias"])


def plain_projection(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return plain_separable(F.relu(plain_separable(x, p, f"{name}.0")), p, f"{name}.2")


def plain_mode_cell(x: Tensor, hidden: Tensor, bus: Tensor, p: dict[str, Tensor], slots: int) -> tuple[Tensor, Tensor]:
    """ModeCell, one slot and one gate at a time, with the softmax map written out; without `weigh`, equal fusion."""
    batch, d, height, width = x.shape
    both = 2 * d
    w = -(-both // slots)
    grid = torch.cat([x, hidden], 1)
    q, k, v = (plain_projection(t, p, n) for t, n in ((bus, "query"), (grid, "key"), (grid, "value")))
    features = []
    for n in range(slots):
        part = slice(n * w, (n + 1) * w)
        qn, kn, vn = (t[:, part].flatten(2).transpose(1, 2) for t in (q, k, v))  # [B, HW, w]
        attention = torch.softmax(qn @ kn.transpose(1, 2) / math.sqrt(w), dim=-1)
        slot = (attention @ vn).transpose(1, 2).reshape(batch, w, height, width)
        slot = F.relu(plain_conv(slot, p["bind.0.weight"][part], p["bind.0.bias"][part]))
        features.append(plain_conv(slot, p["bind.2.weight"][part], p["bind.2.bias"][part]))
    pooled = grid.mean((2, 3))
    gates = []
    for g in range(4):
        if "weigh.weight" in p:
            part = slice(g * d, (g + 1) * d)
            reduced = F.relu(pooled @ p["weigh.reduce.weight"][part].T + p["weigh.reduce.bias"][part])
        rows = slice(g * both, (g + 1) * both)
        fused = torch.sigmoid(grid) * plain_conv(grid, p["fuse_input.weight"][rows], p["fuse_input.bias"][rows])
        for n in range(slots):
            weight = torch.full_like(grid, 0.5)
            if "weigh.weight" in p:
                omega = reduced @ p["weigh.weight"][g, n].T + p["weigh.bias"][g, n]
                weight = torch.sigmoid(omega[:, :, None, None] * grid)
            at = slice((n * 4 + g) * both, (n * 4 + g + 1) * both)
            fused = fused + weight * plain_conv(features[n], p["fuse_slots.weight"][at], p["fuse_slots.bias"][at])
        out = slice(g * d, (g + 1) * d)
        gates.append(
            plain_conv(fused, p["gate_fused.weight"][out], p["gate_fused.bias"][out])
            + plain_conv(grid, p["gate_input.weight"][out], p["gate_input.bias"][out])
        )
    i, f, o, g_ = gates
    bus = torch.sigmoid(f) * bus + torch.sigmoid(i) * torch.tanh(g_)
    return torch.sigmoid(o) * torch.tanh(bus), bus


def plain_convlstm_cell(
    x: Tensor, hidden: Tensor, memory: Tensor, p: dict[str, Tensor], forget_bias: float
) -> tuple[Tensor, Tensor]:
    """ConvLSTM, the input's and the state's convolution apart, one gate at a time; peepholes where `p` has some."""
    d, n = hidden.shape[1], x.shape[1]
    gates = []
    for g in range(4):
        weight = p["gates.weight"][g * d : (g + 1) * d]
        gates.append(plain_conv(x, weight[:, :n], None) + plain_conv(hidden, weight[:, n:], None))
    i, f, o, g_ = gates
    none = torch.zeros(3, 1, 1, 1, dtype=memory.dtype)
    of_input, of_forget, of_output = p.get("peepholes", none)
    memory = torch.sigmoid(f + of_forget * memory + forget_bias) * memory + torch.sigmoid(
        i + of_input * memory
    ) * torch.tanh(g_)
    return torch.sigmoid(o + of_output * memory) * torch.tanh(memory), memory
