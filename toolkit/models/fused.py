"""Elementwise ends of the recurrent cells as single functions, with their gradients written out.

Plain autograd keeps every product and activation between convolutions for the backward pass, and runs a kernel for
each. These keep the least from which gradients follow exactly, recompute the cheap rest, and work slot by slot, so that
no product over all slots is ever stored. The equations stand in the docstrings; tests compare values and gradients with
the same in plain autograd, in float64. Second derivatives aren't defined. Under torch.compile the equations are left as
they are: the compiler fuses them, and decides itself what to keep.

On CUDA, where Triton can be imported, an end is one kernel each way (toolkit/models/operators.py), except in float64.
The environment variable MODERNN_TRITON=0 leaves PyTorch's kernels in place, to compare the two.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ATTENTION_WIDTH = 8  # a head's channels are a multiple of this where the kernel asks for it

aten = torch.ops.aten
sigmoid_backward, tanh_backward, threshold_backward = (
    aten.sigmoid_backward,
    aten.tanh_backward,
    aten.threshold_backward,
)
TRITON = os.environ.get("MODERNN_TRITON", "1") != "0" and find_spec("triton") is not None
TRITON_DEVICES = {"cuda"}


def operators(like: Tensor) -> ModuleType | None:
    """Return toolkit.models.operators where tensors like this one are for its kernels. Elsewhere nothing imports it."""
    if not TRITON or like.device.type not in TRITON_DEVICES or like.dtype == torch.float64:
        return None
    from toolkit.models import operators

    return operators


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(Q K^T scale) V, each [B, heads, tokens, width], without the map in memory.

    PyTorch's scaled_dot_product_attention. On a CPU in bfloat16 its backward kernel is slower than float32's, by half:
    there the backward pass is made in float32, and is more exact too. On CUDA its kernels that don't store the map take
    widths that are multiples of 8 (4 in float32): others are padded with zeros.
    """
    if query.device.type == "cuda" and query.shape[-1] % ATTENTION_WIDTH:
        return padded_attention(query, key, value, scale)
    slow = query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled()
    if slow and not torch.compiler.is_compiling():
        out: Tensor = _Attention.apply(query, key, value, scale)
        return out
    return F.scaled_dot_product_attention(query, key, value, scale=scale)


def padded_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return `attention` of heads padded with zeros to a multiple of ATTENTION_WIDTH: the scores are the same."""
    width = query.shape[-1]
    zeros = query.new_zeros(*query.shape[:-1], -width % ATTENTION_WIDTH)
    # Not by F.pad, which takes two kernels for each.
    query, key, value = (torch.cat([heads, zeros], -1) for heads in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, scale=scale)[..., :width]


class _Attention(torch.autograd.Function):
    """Keeps its arguments and result, and a number per token."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        out, log_sum = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.scale = scale
        result: Tensor = out
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        *maps, log_sum = ctx.saved_tensors
        exact = [t.float() for t in (of_out, *maps)]
        gradients = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *exact, log_sum, 0.0, False, scale=ctx.scale
        )
        return *(t.to(of_out.dtype) for t in gradients), None


def spatial_mean(maps: Tensor) -> Tensor:
    """Return the mean over positions [B, C] of maps [B, C, h, w].

    On CUDA and channels-last as a product with ones: PyTorch's reduction there reads one position after the other.
    """
    return mean_by_product(maps) if maps.is_cuda and maps.stride(1) == 1 else maps.mean((2, 3))


def mean_by_product(maps: Tensor) -> Tensor:
    """Return the same; the sum is rounded once before it is divided."""
    tokens = maps.flatten(2).transpose(1, 2)
    ones = tokens.new_ones(1, 1, tokens.shape[1]).expand(maps.shape[0], -1, -1)
    return torch.bmm(ones, tokens)[:, 0] / tokens.shape[1]


def lstm(
    memory: Tensor, *gates: Tensor, added: Tensor | None = None, forget_bias: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Update an LSTM: C' = sigmoid(f + forget_bias) . C + sigmoid(i) . tanh(g), H' = sigmoid(o) . tanh(C').

    Args:
        memory: C [B, d, h, w].
        gates: i, f, o, g before their activations, joined along the channels in that order: [B, 4 d, h, w], or parts
            that give this side by side.
        added: another addend of all gates [B, 4 d, h, w].

    Returns:
        H', C' [B, d, h, w].
    """
    triton = None if torch.compiler.is_compiling() else operators(memory)
    if triton:
        halves = len(gates) == 2 and gates[0].shape == gates[1].shape
        parts = gates if halves or len(gates) == 1 else (torch.cat(gates, 1),)
        hidden, after = triton.LSTM.apply(memory, forget_bias, added, *parts)
        return hidden, after
    if added is not None:
        gates = ((gates[0] if len(gates) == 1 else torch.cat(gates, 1)) + added,)
    if torch.compiler.is_compiling():
        i, f, o, g = torch.cat(gates, 1).chunk(4, 1)
        after = torch.sigmoid(f + forget_bias) * memory + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(after), after
    hidden, after = _LSTM.apply(memory, forget_bias, *gates)
    return hidden, after


class _LSTM(torch.autograd.Function):
    """Keeps the four activated gates, C and C'."""

    @staticmethod
    def forward(ctx: Any, memory: Tensor, forget_bias: float, *gates: Tensor) -> tuple[Tensor, Tensor]:
        d = memory.shape[1]
        raw = gates[0] if len(gates) == 1 else torch.cat(gates, 1)
        active = torch.empty_like(raw)
        i, f, o, g = active.split(d, 1)
        torch.sigmoid(raw[:, : 3 * d], out=active[:, : 3 * d])
        if forget_bias:
            torch.sigmoid(raw[:, d : 2 * d] + forget_bias, out=f)
        torch.tanh(raw[:, 3 * d :], out=g)
        after = (f * memory).addcmul_(i, g)
        ctx.save_for_backward(active, memory, after)
        ctx.sizes = [part.shape[1] for part in gates]
        return o * torch.tanh(after), after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, of_after: Tensor) -> tuple[Tensor | None, ...]:
        active, memory, after = ctx.saved_tensors
        i, f, o, g = active.split(memory.shape[1], 1)
        shown = torch.tanh(after)
        of_memory = tanh_backward(of_hidden * o, shown).add_(of_after)  # of C', from here on
        gradient = torch.empty_like(active)
        of_i, of_f, of_o, of_g = gradient.split(memory.shape[1], 1)
        sigmoid_backward(of_memory * g, i, grad_input=of_i)
        sigmoid_backward(of_memory * memory, f, grad_input=of_f)
        sigmoid_backward(of_hidden * shown, o, grad_input=of_o)
        tanh_backward(of_memory * i, g, grad_input=of_g)
        return of_memory.mul_(f), None, *gradient.split(ctx.sizes, 1)


def st_lstm_memories(
    of_x: Tensor, of_h: Tensor, of_m: Tensor, cell: Tensor, memory: Tensor, forget_bias: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Update an ST-LSTM: C' = sigmoid(f + forget_bias) . C + sigmoid(i) . tanh(g), and M' by its own gates.

    Args:
        of_x: what the input adds to i, f, g, i', f', g', o [B, 7 d, h, w].
        of_h: what the hidden state adds to i, f, g, o [B, 4 d, h, w].
        of_m: what M adds to i', f', g' [B, 3 d, h, w].
        cell, memory: C and M [B, d, h, w].

    Returns:
        C' and what entered it, M' and what entered it, the two addends of o; each [B, d, h, w].
    """
    triton = None if torch.compiler.is_compiling() else operators(of_x)
    if triton:
        d = cell.shape[1]
        to_cell, to_memory, xo = of_x.split([3 * d, 3 * d, d], 1)
        of_cell, ho = of_h.split([3 * d, d], 1)
        cells = triton.Remember.apply(cell, to_cell, of_cell, forget_bias)
        return cells, triton.Remember.apply(memory, to_memory, of_m, forget_bias), (xo, ho)
    xi, xf, xg, xi2, xf2, xg2, xo = of_x.chunk(7, 1)
    hi, hf, hg, ho = of_h.chunk(4, 1)
    mi, mf, mg = of_m.chunk(3, 1)
    into_cell = torch.sigmoid(xi + hi) * torch.tanh(xg + hg)
    cell = torch.sigmoid(xf + hf + forget_bias) * cell + into_cell
    into_memory = torch.sigmoid(xi2 + mi) * torch.tanh(xg2 + mg)
    memory = torch.sigmoid(xf2 + mf + forget_bias) * memory + into_memory
    return (cell, into_cell), (memory, into_memory), (xo, ho)


def gated_tanh(reduced: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """sigmoid(first + second + third) . tanh(reduced), all of one shape."""
    triton = None if torch.compiler.is_compiling() else operators(reduced)
    if triton:
        hidden: Tensor = triton.Show.apply(reduced, first, second, third)
        return hidden
    return torch.sigmoid(first + second + third) * torch.tanh(reduced)


def weighed_sum(weights: Tensor, residual: Tensor, features: Tensor) -> Tensor:
    """w^0 . residual + sum_n w^n . ReLU(features^n), with one weight per sample and channel.

    Args:
        weights: [B, 1 + N, D].
        residual: [B, D, h, w].
        features: [B, N D, h, w], slot by slot.

    Returns:
        [B, D, h, w].
    """
    if torch.compiler.is_compiling():
        first, others = weights[:, 0, :, None, None], weights[:, 1:, :, None, None]
        return first * residual + (others * torch.relu(features).unflatten(1, others.shape[1:3])).sum(1)
    triton = operators(residual)
    out: Tensor = (triton.WeighedSum if triton else _WeighedSum).apply(weights, residual, features)
    return out


class _WeighedSum(torch.autograd.Function):
    """Keeps its arguments, the features after their ReLU."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, residual: Tensor, features: Tensor) -> Tensor:
        active = torch.relu(features)
        first, *others = weights[..., None, None].unbind(1)
        out = residual * first
        for weight, part in zip(others, active.split(residual.shape[1], 1), strict=True):
            out.addcmul_(part, weight)
        ctx.save_for_backward(weights, residual, active)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, residual, active = ctx.saved_tensors
        of_features = torch.empty_like(active)
        first, *others = weights[..., None, None].unbind(1)
        of_weights = [(of_out * residual).sum((2, 3))]
        width = residual.shape[1]
        parts = zip(others, active.split(width, 1), of_features.split(width, 1), strict=True)
        for weight, part, of_part in parts:
            of_weights.append((of_out * part).sum((2, 3)))
            threshold_backward(of_out * weight, part, 0, grad_input=of_part)
        return torch.stack(of_weights, 1), of_out * first, of_features


def gated_sum(omega: Tensor, grid: Tensor, residual: Tensor, features: Tensor) -> Tensor:
    """Equation 4 of ModeRNN for G gates: sigmoid(I) . residual + sum_n sigmoid(omega^n . I) . features^n.

    Args:
        omega: importance weights [B, N, G, D].
        grid: I [B, D, h, w].
        residual: [B, G D, h, w], gate by gate.
        features: [B, N G D, h, w], slot by slot and in each gate by gate.

    Returns:
        F [B, G D, h, w].
    """
    if torch.compiler.is_compiling():
        each = grid[:, None, None]
        passed = torch.sigmoid(omega[..., None, None] * each)  # [B, N, G, D, h, w]
        slots = (passed * features.unflatten(1, omega.shape[1:])).sum(1)
        return (torch.sigmoid(each[:, 0]) * residual.unflatten(1, omega.shape[2:]) + slots).flatten(1, 2)
    triton = operators(residual)
    out: Tensor = (triton.GatedSum if triton else _GatedSum).apply(omega, grid, residual, features)
    return out


class _GatedSum(torch.autograd.Function):
    """Keeps its arguments; all sigmoids are taken again."""

    @staticmethod
    def forward(ctx: Any, omega: Tensor, grid: Tensor, residual: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(omega, grid, residual, features)
        gates = omega.shape[2]
        out = residual * torch.sigmoid(grid).repeat(1, gates, 1, 1)
        for weight, part in zip(_per_channel(omega), features.split(residual.shape[1], 1), strict=True):
            out.addcmul_(torch.sigmoid_(grid.repeat(1, gates, 1, 1).mul_(weight)), part)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        omega, grid, residual, features = ctx.saved_tensors
        gates, both = omega.shape[2:]
        every = grid.repeat(1, gates, 1, 1)
        passed = torch.sigmoid(every)
        of_residual = of_out * passed
        of_every = sigmoid_backward(of_out * residual, passed)
        of_features = torch.empty_like(features)
        of_omega = []
        width = residual.shape[1]
        parts = zip(_per_channel(omega), features.split(width, 1), of_features.split(width, 1), strict=True)
        for weight, part, of_part in parts:
            passed = torch.sigmoid_(every * weight)
            torch.mul(of_out, passed, out=of_part)
            of_product = sigmoid_backward(of_out * part, passed)
            of_every.addcmul_(of_product, weight)
            of_omega.append(of_product.mul_(every).sum((2, 3)).view(-1, gates, both))
        of_grid = torch.stack(of_every.split(both, 1)).sum(0)
        return torch.stack(of_omega, 1), of_grid, of_residual, of_features


def _per_channel(omega: Tensor) -> tuple[Tensor, ...]:
    """[B, N, G, D] -> for each slot [B, G D, 1, 1]."""
    return omega.flatten(2)[..., None, None].unbind(1)
