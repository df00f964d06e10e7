"""The cells' elementwise ends on CUDA: operators of one launch each, and the autograd functions made of them.

Each launch is one operator of the namespace `modernn` that tells PyTorch the shapes of its results, so that
FakeTensorMode counts it like PyTorch's own. Sizes of tiles follow from shapes alone: nothing is timed or chosen at run
time, and a CUDA graph can capture every launch that was made once before (the first compiles). Only what the backward
pass needs is kept, and never more than toolkit/models/fused.py keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from toolkit.errors import ToolkitError
from toolkit.models import kernels

TILE = 1024  # numbers per tile: eight for each thread of four warps
CHANNELS_ABREAST = 32  # of a tile where channels lie side by side in memory: 64 bytes of bfloat16
POSITIONS_ABREAST = 256  # of a tile where positions do
ROWS, SUMS = 16, 64  # of add_tiles: tiles read at once, and sums that a program makes

LIBRARY = torch.library.Library("modernn", "DEF")
IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}  # by operator
Strides = tuple[int, int, int]  # between samples, channels and positions


def operator(schema: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function with an argument `launch` the operator modernn::NAME, for CUDA and for tensors without data."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        LIBRARY.define(name + schema)
        IMPLEMENTATIONS[name] = partial(function, launch)
        LIBRARY.impl(name, IMPLEMENTATIONS[name], "CUDA")
        torch.library.register_fake(f"modernn::{name}", partial(function, lambda *_, **__: None), lib=LIBRARY)
        made: Callable[..., Any] = getattr(torch.ops.modernn, name)
        return made

    return register


def launch(kernel: Any, programs: tuple[int, ...], *arguments: Any, **sizes: int) -> None:
    """Launch a kernel on the device of its first argument. Raise ToolkitError if it cannot be built."""
    try:
        with torch.cuda.device_of(arguments[0]):
            kernel[programs](*arguments, **sizes)
    except Exception as error:
        raise ToolkitError(
            f"Triton can't build or start the kernel {kernel.__name__} ({type(error).__name__}: {error}); with "
            "MODERNN_TRITON=0 in the environment PyTorch's own kernels take its place, several for each of these"
        ) from error


def along(maps: Tensor) -> tuple[Tensor, Strides]:
    """Return maps [B, C, h, w] and their strides, one over all positions: maps with rows cut off are copied for it."""
    height, width = maps.shape[2:]
    if height > 1 and width > 1 and maps.stride(2) != width * maps.stride(3):
        maps = maps.contiguous()
    return maps, (maps.stride(0), maps.stride(1), maps.stride(3 if width > 1 else 2))


def blank(like: Tensor, channels: int | None = None) -> tuple[Tensor, Strides]:
    """Return maps without values in the layout of `like`, contiguous or channels-last, with `channels` channels."""
    shape = (like.shape[0], like.shape[1] if channels is None else channels, *like.shape[2:])
    layout = torch.channels_last if like.stride(1) == 1 else torch.contiguous_format
    return along(torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout))


def tiling(depth: int, like: Tensor) -> tuple[int, int, dict[str, int]]:
    """Return how many tiles cover all positions and how many programs take [B, depth, h, w], and a tile's sizes."""
    positions = like.shape[2] * like.shape[3]
    channels_size, positions_size = triton.next_power_of_2(depth), triton.next_power_of_2(positions)
    if like.stride(1) == 1:
        channels_size = min(channels_size, CHANNELS_ABREAST)
        positions_size = min(positions_size, TILE // channels_size)
    else:
        positions_size = min(positions_size, POSITIONS_ABREAST)
        channels_size = min(channels_size, TILE // positions_size)
    tiles = triton.cdiv(positions, positions_size)
    sizes = {"CHANNELS": channels_size, "POSITIONS": positions_size}
    return tiles, like.shape[0] * triton.cdiv(depth, channels_size) * tiles, sizes


@operator("(Tensor omega, Tensor grid, Tensor residual, Tensor features) -> Tensor")
def gated_sum(start: Callable[..., None], omega: Tensor, grid: Tensor, residual: Tensor, features: Tensor) -> Tensor:
    _, slots, gates, depth = omega.shape
    out = blank(residual)
    _, programs, sizes = tiling(depth, residual)
    maps = [*out, omega, omega.stride(), *along(grid), *along(residual), *along(features)]
    extent = depth, grid.shape[2] * grid.shape[3]
    start(kernels.gated_sum, (programs, gates), *maps, *extent, SLOTS=slots, GATES=gates, **sizes)
    return out[0]


@operator("(Tensor of_out, Tensor omega, Tensor grid, Tensor residual, Tensor features) -> Tensor[]")
def gated_sum_backward(
    start: Callable[..., None], of_out: Tensor, omega: Tensor, grid: Tensor, residual: Tensor, features: Tensor
) -> list[Tensor]:
    """Return omega's gradient [tiles, B, N, G, D], still to be summed over tiles, grid's, residual's, features'."""
    _, slots, gates, depth = omega.shape
    tiles, programs, sizes = tiling(depth, residual)
    of_omega = per_tile(omega, tiles)
    of_grid, of_residual, of_features = blank(grid), blank(residual), blank(features)
    maps = [of_omega, of_omega.stride(), *of_grid, *of_residual, *of_features, *along(of_out)]
    maps += [omega, omega.stride(), *along(grid), *along(residual), *along(features)]
    extent = depth, grid.shape[2] * grid.shape[3]
    start(kernels.gated_sum_backward, (programs,), *maps, *extent, SLOTS=slots, GATES=gates, **sizes)
    return [of_omega, of_grid[0], of_residual[0], of_features[0]]


@operator("(Tensor weights, Tensor residual, Tensor features) -> Tensor")
def weighed_sum(start: Callable[..., None], weights: Tensor, residual: Tensor, features: Tensor) -> Tensor:
    depth = residual.shape[1]
    out = blank(residual)
    _, programs, sizes = tiling(depth, residual)
    maps = [*out, weights, weights.stride(), *along(residual), *along(features)]
    extent = depth, residual.shape[2] * residual.shape[3]
    start(kernels.weighed_sum, (programs,), *maps, *extent, SLOTS=weights.shape[1] - 1, **sizes)
    return out[0]


@operator("(Tensor of_out, Tensor weights, Tensor residual, Tensor features) -> Tensor[]")
def weighed_sum_backward(
    start: Callable[..., None], of_out: Tensor, weights: Tensor, residual: Tensor, features: Tensor
) -> list[Tensor]:
    """Return the weights' gradient [tiles, B, 1 + N, D], still to be summed over tiles, residual's, features'."""
    depth = residual.shape[1]
    tiles, programs, sizes = tiling(depth, residual)
    of_weights = per_tile(weights, tiles)
    of_residual, of_features = blank(residual), blank(features)
    maps = [of_weights, of_weights.stride(), *of_residual, *of_features, *along(of_out)]
    maps += [weights, weights.stride(), *along(residual), *along(features)]
    extent = depth, residual.shape[2] * residual.shape[3]
    start(kernels.weighed_sum_backward, (programs,), *maps, *extent, SLOTS=weights.shape[1] - 1, **sizes)
    return [of_weights, of_residual[0], of_features[0]]


def per_tile(like: Tensor, tiles: int) -> Tensor:
    """Return room for one gradient per tile, each with its dimensions in the order in memory of `like`.

    What a single tile gives is final, and is rounded at once.
    """
    order = sorted(range(like.dim()), key=like.stride, reverse=True)
    dtype = like.dtype if tiles == 1 else torch.float32
    room = torch.empty((tiles, *(like.shape[i] for i in order)), dtype=dtype, device=like.device)
    return room.permute(0, *(1 + order.index(i) for i in range(like.dim())))


@operator("(Tensor sums, ScalarType dtype) -> Tensor")
def add_tiles(start: Callable[..., None], sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum over the first dimension of what `per_tile` made, rounded once."""
    out = torch.empty_like(sums[0], dtype=dtype)
    numbers = out.numel()
    programs = triton.cdiv(numbers, SUMS)
    start(kernels.add_tiles, (programs,), out, sums, numbers, TILES=len(sums), ROWS=ROWS, BLOCK=SUMS)
    return out


@operator("(Tensor memory, Tensor[] gates, Tensor? added, float forget_bias) -> Tensor[]")
def lstm(
    start: Callable[..., None], memory: Tensor, gates: Sequence[Tensor], added: Tensor | None, forget_bias: float
) -> list[Tensor]:
    """Return H' and C', and with `added` the gates after the addition."""
    depth = memory.shape[1]
    hidden, after = blank(gates[0], depth), blank(gates[0], depth)
    summed = None if added is None else blank(gates[0], 4 * depth)
    _, programs, sizes = tiling(depth, gates[0])
    maps = [hidden[0], *after, *(summed or after), *along(memory), *halves(gates)]
    maps += along(memory if added is None else added)
    extent = forget_bias, depth, memory.shape[2] * memory.shape[3]
    start(kernels.lstm, (programs,), *maps, *extent, ADDED=added is not None, **sizes)
    return [hidden[0], after[0]] + ([summed[0]] if summed else [])


@operator("(Tensor of_hidden, Tensor of_after, Tensor memory, Tensor[] gates, float forget_bias) -> Tensor[]")
def lstm_backward(
    start: Callable[..., None],
    of_hidden: Tensor,
    of_after: Tensor,
    memory: Tensor,
    gates: Sequence[Tensor],
    forget_bias: float,
) -> list[Tensor]:
    """Return the gradients of C and of each part of the gates."""
    depth = memory.shape[1]
    of_memory = blank(gates[0], depth)
    of_gates = [blank(part)[0] for part in gates]
    _, programs, sizes = tiling(depth, gates[0])
    maps = [*of_memory, *halves(of_gates), *along(of_hidden), *along(of_after), *along(memory), *halves(gates)]
    extent = forget_bias, depth, memory.shape[2] * memory.shape[3]
    start(kernels.lstm_backward, (programs,), *maps, *extent, **sizes)
    return [of_memory[0], *of_gates]


def halves(gates: Sequence[Tensor]) -> tuple[Tensor, Strides, Tensor, Strides]:
    """Return i, f and o, g [B, 2 d, h, w] of gates in one part or in these two."""
    first, second = gates[0].chunk(2, 1) if len(gates) == 1 else gates
    return *along(first), *along(second)


@operator("(Tensor memory, Tensor first, Tensor second, float forget_bias) -> Tensor[]")
def remember(
    start: Callable[..., None], memory: Tensor, first: Tensor, second: Tensor, forget_bias: float
) -> list[Tensor]:
    """Return C', what entered it, and i, f, g after the addition."""
    depth = memory.shape[1]
    after, into, gates = blank(first, depth), blank(first, depth), blank(first)
    _, programs, sizes = tiling(depth, first)
    maps = [after[0], *into, *gates, *along(memory), *along(first), *along(second)]
    extent = forget_bias, depth, memory.shape[2] * memory.shape[3]
    start(kernels.remember, (programs,), *maps, *extent, **sizes)
    return [after[0], into[0], gates[0]]


@operator("(Tensor of_after, Tensor? of_into, Tensor memory, Tensor gates, float forget_bias) -> Tensor[]")
def remember_backward(
    start: Callable[..., None],
    of_after: Tensor,
    of_into: Tensor | None,
    memory: Tensor,
    gates: Tensor,
    forget_bias: float,
) -> list[Tensor]:
    """Return the gradients of C and of i, f, g."""
    depth = memory.shape[1]
    of_memory, of_gates = blank(gates, depth), blank(gates)
    _, programs, sizes = tiling(depth, gates)
    maps = [*of_memory, *of_gates, *along(of_after), *along(of_after if of_into is None else of_into)]
    maps += [*along(memory), *along(gates)]
    extent = forget_bias, depth, memory.shape[2] * memory.shape[3]
    start(kernels.remember_backward, (programs,), *maps, *extent, INTO=of_into is not None, **sizes)
    return [of_memory[0], of_gates[0]]


@operator("(Tensor reduced, Tensor first, Tensor second, Tensor third) -> Tensor[]")
def show(start: Callable[..., None], reduced: Tensor, first: Tensor, second: Tensor, third: Tensor) -> list[Tensor]:
    """Return H and o after the additions."""
    depth = reduced.shape[1]
    hidden, total = blank(reduced), blank(reduced)
    _, programs, sizes = tiling(depth, reduced)
    maps = [hidden[0], *total, *along(reduced), *along(first), *along(second), *along(third)]
    start(kernels.show, (programs,), *maps, depth, reduced.shape[2] * reduced.shape[3], **sizes)
    return [hidden[0], total[0]]


@operator("(Tensor of_hidden, Tensor reduced, Tensor total) -> Tensor[]")
def show_backward(start: Callable[..., None], of_hidden: Tensor, reduced: Tensor, total: Tensor) -> list[Tensor]:
    """Return the gradients of what tanh is taken of and of o."""
    depth = reduced.shape[1]
    of_reduced, of_total = blank(reduced), blank(reduced)
    _, programs, sizes = tiling(depth, reduced)
    maps = [of_reduced[0], *of_total, *along(of_hidden), *along(reduced), *along(total)]
    start(kernels.show_backward, (programs,), *maps, depth, reduced.shape[2] * reduced.shape[3], **sizes)
    return [of_reduced[0], of_total[0]]


class GatedSum(torch.autograd.Function):
    """Keeps its arguments."""

    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Tensor:
        ctx.save_for_backward(*arguments)
        out: Tensor = gated_sum(*arguments)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor, ...]:
        arguments = ctx.saved_tensors
        of_omega, *others = gated_sum_backward(of_out, *arguments)
        return over_tiles(of_omega, arguments[0]), *others


class WeighedSum(torch.autograd.Function):
    """Keeps its arguments."""

    @staticmethod
    def forward(ctx: Any, *arguments: Tensor) -> Tensor:
        ctx.save_for_backward(*arguments)
        out: Tensor = weighed_sum(*arguments)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor, ...]:
        arguments = ctx.saved_tensors
        of_weights, *others = weighed_sum_backward(of_out, *arguments)
        return over_tiles(of_weights, arguments[0]), *others


def over_tiles(sums: Tensor, like: Tensor) -> Tensor:
    """Return sums [tiles, ...] over all tiles: as they are where there is but one."""
    total: Tensor = sums[0] if len(sums) == 1 else add_tiles(sums, like.dtype)
    return total


class LSTM(torch.autograd.Function):
    """Keeps C and the gates before their activations, after the addition where there is one."""

    @staticmethod
    def forward(
        ctx: Any, memory: Tensor, forget_bias: float, added: Tensor | None, *gates: Tensor
    ) -> tuple[Tensor, Tensor]:
        hidden, after, *summed = lstm(memory, gates, added, forget_bias)
        ctx.save_for_backward(memory, *(summed or gates))
        ctx.forget_bias, ctx.sizes = forget_bias, None if added is None else [part.shape[1] for part in gates]
        return hidden, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, of_after: Tensor) -> tuple[Tensor | None, ...]:
        memory, *gates = ctx.saved_tensors
        of_memory, *of_gates = lstm_backward(of_hidden, of_after, memory, gates, ctx.forget_bias)
        if ctx.sizes is None:
            return of_memory, None, None, *of_gates
        return of_memory, None, of_gates[0], *of_gates[0].split(ctx.sizes, 1)


class Remember(torch.autograd.Function):
    """Keeps C and i, f, g before their activations."""

    @staticmethod
    def forward(ctx: Any, memory: Tensor, first: Tensor, second: Tensor, forget_bias: float) -> tuple[Tensor, Tensor]:
        after, into, gates = remember(memory, first, second, forget_bias)
        ctx.save_for_backward(memory, gates)
        ctx.forget_bias = forget_bias
        ctx.set_materialize_grads(False)  # nothing but a decoupling loss looks at what entered
        return after, into

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_after: Tensor | None, of_into: Tensor | None) -> tuple[Tensor | None, ...]:
        memory, gates = ctx.saved_tensors
        if of_after is None:
            of_after = torch.zeros_like(memory)
        of_memory, of_gates = remember_backward(of_after, of_into, memory, gates, ctx.forget_bias)
        return of_memory, of_gates, of_gates, None


class Show(torch.autograd.Function):
    """Keeps o before its activation, and what tanh is taken of."""

    @staticmethod
    def forward(ctx: Any, reduced: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        hidden, total = show(reduced, first, second, third)
        ctx.save_for_backward(reduced, total)
        out: Tensor = hidden
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor) -> tuple[Tensor, ...]:
        of_reduced, of_total = show_backward(of_hidden, *ctx.saved_tensors)
        return of_reduced, of_total, of_total, of_total
