"""TrajGRU from its equations: the warp as the paper's double sum, one flow field at a time, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.toolkit.models.reference import plain_conv
from tests.toolkit.models.reference_layers import plain_leaky


def plain_warp(image: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """out(c, i, j) = sum over m, n of in(c, m, n) max(0, 1 - |i + down - m|) max(0, 1 - |j + right - n|).

    image [B, C, h, w], right and down [B, h, w].
    """
    _, _, height, width = image.shape
    m = torch.arange(height, dtype=image.dtype)
    n = torch.arange(width, dtype=image.dtype)
    rows = []
    for i in range(height):
        columns = []
        for j in range(width):
            vertical = torch.clamp(1 - (i + down[:, i, j, None] - m).abs(), min=0)
            horizontal = torch.clamp(1 - (j + right[:, i, j, None] - n).abs(), min=0)
            columns.append(torch.einsum("bcmn,bm,bn->bc", image, vertical, horizontal))
        rows.append(torch.stack(columns, -1))
    return torch.stack(rows, -2)


def plain_trajgru_cell(x: Tensor | None, hidden: Tensor, p: dict[str, Tensor], fields: int) -> Tensor:
    d = hidden.shape[1]
    features = plain_conv(hidden, p["state_flow.weight"], p["state_flow.bias"])
    if x is not None:
        features = features + plain_conv(x, p["input_flow.weight"], p["input_flow.bias"])
    flow = plain_conv(plain_leaky(features), p["flow.weight"], p["flow.bias"])
    gates = []
    for gate in range(3):
        at = slice(gate * d, (gate + 1) * d)
        total = p["state_gates.bias"][at].view(1, -1, 1, 1)
        for field in range(fields):
            warped = plain_warp(hidden, flow[:, 2 * field], flow[:, 2 * field + 1])
            total = total + plain_conv(warped, p["state_gates.weight"][at, field::fields], None)
        gates.append(total)
    inputs = [torch.zeros_like(hidden)] * 3
    if x is not None:
        inputs = list(plain_conv(x, p["input_gates.weight"], p["input_gates.bias"]).split(d, 1))
    z = torch.sigmoid(inputs[0] + gates[0])
    r = torch.sigmoid(inputs[1] + gates[1])
    candidate = plain_leaky(inputs[2] + r * gates[2])
    return (1 - z) * candidate + z * hidden
