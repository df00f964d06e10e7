"""MIM from its equations: one gate at a time, the first step apart."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.toolkit.models.reference import plain_conv
from tests.toolkit.models.reference_predrnn import Parameters, plain_st_lstm


def plain_lstm(u: Tensor, v: Tensor, s: Tensor, p: Parameters, prefix: str) -> tuple[Tensor, Tensor]:
    """MIM-N or MIM-S: (V', S')."""
    d = u.shape[1]
    i, g, f, o = (
        plain_conv(u, p[f"{prefix}from_input.0.weight"][k * d : (k + 1) * d], None)
        + plain_conv(v, p[f"{prefix}from_state.0.weight"][k * d : (k + 1) * d], None)
        for k in range(4)
    )
    peepholes = p.get(f"{prefix}peepholes", u.new_zeros(3, *u.shape[1:]))
    after = torch.sigmoid(f + peepholes[1] * s + 1) * s + torch.sigmoid(i + peepholes[0] * s) * torch.tanh(g)
    return torch.sigmoid(o + peepholes[2] * after) * torch.tanh(after), after


def plain_mim(frames: list[Tensor], p: Parameters, layers: int, hidden: int) -> list[Tensor]:
    """Predictions from true frames [B, depth, h, w]."""
    zero = frames[0].new_zeros(frames[0].shape[0], hidden, *frames[0].shape[2:])
    h, c, d, n, s = ([zero] * layers for _ in range(5))
    m = zero
    predictions = []
    for t, frame in enumerate(frames):
        before = h[0]
        h[0], c[0], m, _, _ = plain_st_lstm(frame, h[0], c[0], m, p, "first.")
        for layer in range(1, layers):
            at = f"blocks.{layer - 1}."
            if t > 0:
                change = h[0] - before if layer == 1 else d[layer - 1]
                d[layer], n[layer] = plain_lstm(change, d[layer], n[layer], p, f"{at}non_stationary.")
            kept, s[layer] = plain_lstm(d[layer], c[layer], s[layer], p, f"{at}stationary.")
            x = h[layer - 1]

            def part(name: str, place: int, of: Tensor, at: str = at) -> Tensor:
                return plain_conv(of, p[f"{at}{name}.0.weight"][place * hidden : (place + 1) * hidden], None)

            i = torch.sigmoid(part("from_input", 0, x) + part("from_hidden", 0, h[layer]))
            g = torch.tanh(part("from_input", 1, x) + part("from_hidden", 1, h[layer]))
            i2 = torch.sigmoid(part("from_input", 0, x) + part("from_memory", 0, m))
            g2 = torch.tanh(part("from_input", 1, x) + part("from_memory", 1, m))
            f2 = torch.sigmoid(part("from_input", 2, x) + part("from_memory", 2, m) + 1)
            o = torch.sigmoid(part("from_input", 3, x) + part("from_hidden", 2, h[layer]) + part("from_memory", 3, m))
            c[layer] = kept + i * g
            m = f2 * m + i2 * g2
            h[layer] = o * torch.tanh(plain_conv(torch.cat([c[layer], m], 1), p[f"{at}reduce.weight"], None))
        predictions.append(plain_conv(h[-1], p["read_out.weight"], None))
    return predictions
