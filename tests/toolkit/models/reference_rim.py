"""RIM from its equations: one sample, one module, one position, one head at a time, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.toolkit.models.reference import plain_conv
from toolkit.models.registry import RIMOptions


def plain_rim_cell(
    x: Tensor, hidden: Tensor, memory: Tensor, p: dict[str, Tensor], options: RIMOptions
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """The next H and C [B, K d, h, w], and the active modules of each sample."""
    results = [_sample(x[b], hidden[b], memory[b], p, options) for b in range(len(x))]
    after, memories, active = zip(*results, strict=True)
    return torch.stack(after), torch.stack(memories), list(active)


def _sample(
    x: Tensor, hidden: Tensor, memory: Tensor, p: dict[str, Tensor], options: RIMOptions
) -> tuple[Tensor, Tensor, list[int]]:
    count, v = options.modules, options.value
    d = hidden.shape[0] // count
    height, width = x.shape[1:]
    own = [slice(k * d, (k + 1) * d) for k in range(count)]
    reads, means = [], []
    for k in range(count):
        at = slice(k * options.input_key, (k + 1) * options.input_key)
        read = x.new_zeros(v, height, width)
        total = x.new_zeros(())
        for y in range(height):
            for z in range(width):
                query = p["query.weight"][at, :, 0, 0] @ hidden[own[k], y, z] + p["query.bias"][at]
                key = p["key.weight"][:, :, 0, 0] @ x[:, y, z]
                two = torch.stack([query @ key / math.sqrt(options.input_key), query.sum() * 0])  # the input, the null
                weight = torch.exp(two)[0] / torch.exp(two).sum()
                total = total + weight
                place = torch.zeros(height, width, dtype=x.dtype)
                place[y, z] = 1
                read = read + (weight * (p["value.weight"][:, :, 0, 0] @ x[:, y, z]))[:, None, None] * place
        reads.append(read)
        means.append(float(total.detach()) / (height * width))
    active = sorted(range(count), key=lambda k: (-means[k], k))[: options.active]

    moved, memories = [], []
    for k in range(count):
        if k not in active:
            moved.append(hidden[own[k]])
            memories.append(memory[own[k]])
            continue
        at = slice(k * 4 * d, (k + 1) * 4 * d)
        both = torch.cat([reads[k], hidden[own[k]]])[None]
        i, f, o, g = plain_conv(both, p["dynamics.weight"][at], p["dynamics.bias"][at])[0].split(d)
        c = torch.sigmoid(f + options.forget_bias) * memory[own[k]] + torch.sigmoid(i) * torch.tanh(g)
        moved.append(torch.sigmoid(o) * torch.tanh(c))
        memories.append(c)

    after = []
    for k in range(count):
        heard = _messages(k, moved, active, p, options) if k in active else 0
        after.append(moved[k] + heard)
    return torch.cat(after), torch.cat(memories), sorted(active)


def _messages(k: int, moved: list[Tensor], active: list[int], p: dict[str, Tensor], options: RIMOptions) -> Tensor:
    """What active module k reads from all modules, [d, h, w]."""
    d, height, width = moved[k].shape

    def mapped(name: str, module: int, size: int, head: int, vector: Tensor) -> Tensor:
        first = (module * options.heads + head) * size
        at = slice(first, first + size)
        return p[f"message_{name}.weight"][at, :, 0, 0] @ vector + p[f"message_{name}.bias"][at]

    rows = []
    for y in range(height):
        for z in range(width):
            heads = []
            for head in range(options.heads):
                query = mapped("query", k, options.message_key, head, moved[k][:, y, z])
                scores, values = [], []
                for j in range(options.modules):
                    key = mapped("key", j, options.message_key, head, moved[j][:, y, z])
                    value = mapped("value", j, d, head, moved[j][:, y, z])
                    if j not in active:
                        key, value = key.detach(), value.detach()
                    scores.append(query @ key / math.sqrt(options.message_key))
                    values.append(value)
                weights = torch.softmax(torch.stack(scores), 0)
                heads.append(sum(w * value for w, value in zip(weights, values, strict=True)))
            at = slice(k * d, (k + 1) * d)
            rows.append(p["message_out.weight"][at, :, 0, 0] @ torch.cat(heads) + p["message_out.bias"][at])
    return torch.stack(rows, 1).view(d, height, width)
