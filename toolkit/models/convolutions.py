"""Convolutions on CUDA by a Triton kernel: for maps laid out channels-last, any number of groups, bias included.

cuDNN takes a grouped bf16 convolution of channels-last maps apart, into a launch for each group and slices around them,
and adds a bias with a kernel more. This is one launch each way: the gradient of the input is the convolution of the
output's gradient with the same weight, its taps in the opposite order and inputs and outputs exchanged, which strides
say. Sums are made in float32 in a fixed order, so that a repeat is equal bit for bit, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from toolkit.models import kernels
from toolkit.models.operators import operator

DTYPES = (torch.bfloat16, torch.float32)
PROGRAMS = 120  # at least, where a smaller tile still helps: a card has 132 multiprocessors
SHARED = 96 * 2**10  # bytes of loads under way, in shared memory: two such programs fit a multiprocessor
TILES = ((128, 128), (128, 64), (64, 64), (128, 32), (64, 32))  # positions and outputs, what reads least first


def fits(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether `convolution` takes these: maps [B, C, h, w] channels-last, a weight [K, C / groups, r, r] of odd r."""
    side = weight.shape[-1]
    grouped = x.shape[1] == groups * weight.shape[1] and weight.shape[0] % groups == 0
    alike = x.dtype == weight.dtype and x.dtype in DTYPES
    countable = x.shape[0] * x.shape[2] * x.shape[3] < 2**31 - TILES[0][0]
    return alike and grouped and countable and weight.shape[2] == side and side % 2 == 1 and x.stride(1) == 1


def tile(positions: int, outputs: int, inputs: int, groups: int, dtype: torch.dtype) -> dict[str, int]:
    """Return the sizes of a tile, by the least traffic among those that give every multiprocessor a program."""
    widest = max(16, min(128, triton.next_power_of_2(outputs)))
    fitting = [sizes for sizes in TILES if sizes[1] <= widest] or [(128, 16), (64, 16)]

    def programs(sizes: tuple[int, int]) -> int:
        return triton.cdiv(positions, sizes[0]) * triton.cdiv(outputs, sizes[1]) * groups

    rows, columns = next((sizes for sizes in fitting if programs(sizes) >= PROGRAMS), fitting[-1])
    depth = max(16, min(128 // dtype.itemsize, triton.next_power_of_2(inputs)))
    stages = max(3, min(6, SHARED // ((rows + columns) * depth * dtype.itemsize)))
    warps = 8 if rows * columns > 64 * 128 else 4
    return {"POSITIONS": rows, "OUTPUTS": columns, "INPUTS": depth, "num_warps": warps, "num_stages": stages}


def in_a_row(maps: Tensor) -> Tensor:
    """Return maps [B, C, h, w] whose positions of all samples lie in equal distances, each with its channels together.

    A slice of channels of such maps is one; others are copied.
    """
    batch, channels, height, width = maps.shape
    step = maps.stride(3 if width > 1 else 2 if height > 1 else 0)
    right = [width * step, height * width * step]
    even = all(
        size == 1 or stride == wanted
        for size, stride, wanted in zip((height, batch), (maps.stride(2), maps.stride(0)), right, strict=True)
    )
    if even and step >= channels and (channels == 1 or maps.stride(1) == 1):
        return maps
    return torch.empty_like(maps, memory_format=torch.channels_last).copy_(maps)


def distance(maps: Tensor) -> int:
    """Between neighbouring positions of what `in_a_row` returned."""
    return maps.stride(3 if maps.shape[3] > 1 else 2 if maps.shape[2] > 1 else 0)


@operator("(Tensor x, Tensor weight, Tensor? bias, int groups, bool transposed) -> Tensor")
def convolution(
    start: Callable[..., None], x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, transposed: bool
) -> Tensor:
    """Return the convolution of x [B, C, h, w] with weight [K, C / groups, r, r], channels-last on the same grid.

    Transposed, as in nn.ConvTranspose2d with the padding that keeps the grid, x is [B, K, h, w] and the result
    [B, C, h, w]: the gradient of the input of the other.
    """
    many, each, side, _ = weight.shape
    of_weight, into = (many // groups * weight.stride(0), *weight.stride()), many // groups
    inputs, outputs = (into, each) if transposed else (each, into)
    if transposed:
        of_weight = (of_weight[0], of_weight[2], of_weight[1], *of_weight[3:])
    x = in_a_row(x)
    batch, _, height, width = x.shape
    shape, positions = (batch, groups * outputs, height, width), batch * height * width
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    sizes = tile(positions, outputs, inputs, groups, x.dtype)
    programs = triton.cdiv(positions, sizes["POSITIONS"]), triton.cdiv(outputs, sizes["OUTPUTS"]), groups
    tensors = [out, groups * outputs, x, distance(x), weight, of_weight, out if bias is None else bias]
    start(
        kernels.convolution,
        programs,
        *[*tensors, positions, height, width, inputs, outputs],
        STEPS=triton.cdiv(inputs, sizes["INPUTS"]) * side**2,
        SIDE=side,
        FLIPPED=transposed,
        BIAS=bias is not None,
        PRECISION="ieee",
        **sizes,
    )
    return out


@register_flop_formula(convolution)
def flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Two for each position and number of the weight."""
    positions = x[0] * x[2] * x[3]
    count, depth, height, width = weight
    return 2 * positions * count * depth * height * width
