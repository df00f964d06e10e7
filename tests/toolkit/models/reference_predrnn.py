"""PredRNN from its equations: one gate at a time, the zig-zag written out."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.toolkit.models.reference import plain_conv

Parameters = dict[str, Tensor]


def plain_st_lstm(
    x: Tensor, h: Tensor, c: Tensor, m: Tensor, p: Parameters, prefix: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """H, C, M and the two updates i . g and i' . g'."""
    d = h.shape[1]

    def part(name: str, place: int, of: Tensor) -> Tensor:
        return plain_conv(of, p[f"{prefix}{name}.0.weight"][place * d : (place + 1) * d], None)

    i = torch.sigmoid(part("from_input", 0, x) + part("from_hidden", 0, h))
    f = torch.sigmoid(part("from_input", 1, x) + part("from_hidden", 1, h) + 1)
    g = torch.tanh(part("from_input", 2, x) + part("from_hidden", 2, h))
    c = f * c + i * g
    i2 = torch.sigmoid(part("from_input", 3, x) + part("from_memory", 0, m))
    f2 = torch.sigmoid(part("from_input", 4, x) + part("from_memory", 1, m) + 1)
    g2 = torch.tanh(part("from_input", 5, x) + part("from_memory", 2, m))
    m = f2 * m + i2 * g2
    of_c = plain_conv(c, p[f"{prefix}from_both.0.weight"][:, :d], None)
    of_m = plain_conv(m, p[f"{prefix}from_both.0.weight"][:, d:], None)
    o = torch.sigmoid(part("from_input", 6, x) + part("from_hidden", 3, h) + of_c + of_m)
    reduced = plain_conv(torch.cat([c, m], 1), p[f"{prefix}reduce.weight"], None)
    return o * torch.tanh(reduced), c, m, i * g, i2 * g2


def plain_predrnn(frames: list[Tensor], p: Parameters, layers: int, hidden: int) -> tuple[list[Tensor], Tensor]:
    """Predictions from true frames [B, depth, h, w], and the mean over steps, layers, samples, channels of |cos|."""
    zero = frames[0].new_zeros(frames[0].shape[0], hidden, *frames[0].shape[2:])
    h, c, m = [zero] * layers, [zero] * layers, zero
    predictions, cosines = [], []
    for frame in frames:
        x = frame
        for layer in range(layers):
            h[layer], c[layer], m, dc, dm = plain_st_lstm(x, h[layer], c[layer], m, p, f"cells.{layer}.")
            x = h[layer]
            if "adapter.weight" in p:
                a, b = plain_conv(dc, p["adapter.weight"], None), plain_conv(dm, p["adapter.weight"], None)
                for sample in range(a.shape[0]):
                    for channel in range(hidden):
                        u, v = a[sample, channel].flatten(), b[sample, channel].flatten()
                        cosines.append((u @ v / (u.norm() * v.norm())).abs())
        predictions.append(plain_conv(x, p["read_out.weight"], None))
    return predictions, torch.stack(cosines).mean() if cosines else frames[0].new_zeros(())
