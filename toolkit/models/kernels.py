"""Triton kernels: the cells' elementwise ends, launched by toolkit/models/operators.py, and a convolution, by
convolutions.py.

A program takes a tile of positions and channels of one sample, computes in float32 and rounds once, when it stores.
Tensors are read where they lie, contiguous, channels-last or slices of either: with each come its strides between
samples, channels and positions. Sums over positions are made tile by tile and then over tiles in a fixed order
(`add_tiles`), without atomics: a repeat is equal bit for bit. The equations stand in toolkit/models/fused.py.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x):
    """Within a few units in the last place of float32: by its series where the quotient would cancel."""
    square = x * x
    series = x + x * square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    return tl.where(tl.abs(x) < 0.3, series, 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x)))


@triton.jit
def _tile(depth, positions, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr):
    """Return the sample of this program, its tile of positions, channels [1, c], positions [p, 1] and their masks."""
    across = (positions + POSITIONS - 1) // POSITIONS
    tile = tl.program_id(0) % across
    rest = tl.program_id(0) // across
    groups = (depth + CHANNELS - 1) // CHANNELS
    channel = ((rest % groups) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    position = (tile * POSITIONS + tl.arange(0, POSITIONS))[:, None]
    return rest // groups, tile, channel, position, (channel < depth) & (position < positions)


@triton.jit
def _at(strides, sample, channel, position):
    """Offsets in 64 bits: at 384 x 384 a batch passes 2^31 numbers."""
    of_sample = sample.to(tl.int64) * strides[0]
    return of_sample + channel.to(tl.int64) * strides[1] + position.to(tl.int64) * strides[2]


@triton.jit
def _read(tensor, strides, sample, channel, position, exists):
    return tl.load(tensor + _at(strides, sample, channel, position), mask=exists, other=0.0).to(tl.float32)


@triton.jit
def _write(tensor, strides, sample, channel, position, exists, value):
    tl.store(tensor + _at(strides, sample, channel, position), value.to(tensor.dtype.element_ty), mask=exists)


@triton.jit
def gated_sum(
    out, out_at, omega, omega_at, grid, grid_at, residual, residual_at, features, features_at, depth, positions,
    SLOTS: tl.constexpr, GATES: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    sample, _, channel, position, exists = _tile(depth, positions, CHANNELS, POSITIONS)
    gate = tl.program_id(1)
    x = _read(grid, grid_at, sample, channel, position, exists)
    total = _sigmoid(x) * _read(residual, residual_at, sample, gate * depth + channel, position, exists)
    for n in tl.static_range(SLOTS):
        at = sample.to(tl.int64) * omega_at[0] + n * omega_at[1] + gate * omega_at[2] + channel * omega_at[3]
        weight = tl.load(omega + at, mask=channel < depth, other=0.0).to(tl.float32)
        part = _read(features, features_at, sample, (n * GATES + gate) * depth + channel, position, exists)
        total += _sigmoid(weight * x) * part
    _write(out, out_at, sample, gate * depth + channel, position, exists, total)


@triton.jit
def gated_sum_backward(
    of_omega, of_omega_at, of_grid, of_grid_at, of_residual, of_residual_at, of_features, of_features_at, of_out,
    of_out_at, omega, omega_at, grid, grid_at, residual, residual_at, features, features_at, depth, positions,
    SLOTS: tl.constexpr, GATES: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    sample, tile, channel, position, exists = _tile(depth, positions, CHANNELS, POSITIONS)
    x = _read(grid, grid_at, sample, channel, position, exists)
    passed = _sigmoid(x)
    of_x = tl.full([POSITIONS, CHANNELS], 0.0, tl.float32)
    of_omega += tile.to(tl.int64) * of_omega_at[0] + sample.to(tl.int64) * of_omega_at[1]  # [tiles, B, N, G, D]
    for gate in range(GATES):  # a loop for the machine too: unrolled, its code alone would be 200 kB
        own = gate * depth + channel
        slope = _read(of_out, of_out_at, sample, own, position, exists)
        of_x += slope * _read(residual, residual_at, sample, own, position, exists) * passed * (1.0 - passed)
        _write(of_residual, of_residual_at, sample, own, position, exists, slope * passed)
        for n in tl.static_range(SLOTS):
            at = sample.to(tl.int64) * omega_at[0] + n * omega_at[1] + gate * omega_at[2] + channel * omega_at[3]
            weight = tl.load(omega + at, mask=channel < depth, other=0.0).to(tl.float32)
            each = (n * GATES + gate) * depth + channel
            open_ = _sigmoid(weight * x)
            part = _read(features, features_at, sample, each, position, exists)
            _write(of_features, of_features_at, sample, each, position, exists, slope * open_)
            of_product = slope * part * open_ * (1.0 - open_)
            of_x += of_product * weight
            to = of_omega + n * of_omega_at[2] + gate * of_omega_at[3] + channel * of_omega_at[4]
            tl.store(to, tl.sum(of_product * x, 0)[None, :].to(of_omega.dtype.element_ty), mask=channel < depth)
    _write(of_grid, of_grid_at, sample, channel, position, exists, of_x)


@triton.jit
def weighed_sum(
    out, out_at, weights, weights_at, residual, residual_at, features, features_at, depth, positions,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    sample, _, channel, position, exists = _tile(depth, positions, CHANNELS, POSITIONS)
    at = weights + sample.to(tl.int64) * weights_at[0] + channel * weights_at[2]
    weight = tl.load(at, mask=channel < depth, other=0.0).to(tl.float32)
    total = weight * _read(residual, residual_at, sample, channel, position, exists)
    for n in tl.static_range(SLOTS):
        weight = tl.load(at + (1 + n) * weights_at[1], mask=channel < depth, other=0.0).to(tl.float32)
        part = _read(features, features_at, sample, n * depth + channel, position, exists)
        total += weight * tl.where(part < 0.0, 0.0, part)  # what is no number stays so
    _write(out, out_at, sample, channel, position, exists, total)


@triton.jit
def weighed_sum_backward(
    of_weights, of_weights_at, of_residual, of_residual_at, of_features, of_features_at, of_out, of_out_at,
    weights, weights_at, residual, residual_at, features, features_at, depth, positions,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    sample, tile, channel, position, exists = _tile(depth, positions, CHANNELS, POSITIONS)
    slope = _read(of_out, of_out_at, sample, channel, position, exists)
    of_weights += tile.to(tl.int64) * of_weights_at[0] + sample.to(tl.int64) * of_weights_at[1]  # [tiles, B, 1 + N, D]
    sums = of_weights + channel * of_weights_at[3]
    at = weights + sample.to(tl.int64) * weights_at[0] + channel * weights_at[2]
    weight = tl.load(at, mask=channel < depth, other=0.0).to(tl.float32)
    of_weight = tl.sum(slope * _read(residual, residual_at, sample, channel, position, exists), 0)[None, :]
    tl.store(sums, of_weight.to(sums.dtype.element_ty), mask=channel < depth)
    _write(of_residual, of_residual_at, sample, channel, position, exists, slope * weight)
    for n in tl.static_range(SLOTS):
        weight = tl.load(at + (1 + n) * weights_at[1], mask=channel < depth, other=0.0).to(tl.float32)
        part = _read(features, features_at, sample, n * depth + channel, position, exists)
        of_weight = tl.sum(slope * tl.where(part < 0.0, 0.0, part), 0)[None, :]
        tl.store(sums + (1 + n) * of_weights_at[2], of_weight.to(sums.dtype.element_ty), mask=channel < depth)
        of_part = tl.where(part <= 0.0, 0.0, slope * weight)
        _write(of_features, of_features_at, sample, n * depth + channel, position, exists, of_part)


@triton.jit
def add_tiles(out, sums, numbers, TILES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """ROWS tiles at once, so that their loads overlap."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.arange(0, ROWS)[:, None]
    total = tl.full([ROWS, BLOCK], 0.0, tl.float32)
    for start in range(0, TILES, ROWS):
        tile = start + rows
        exists = (tile < TILES) & (at[None, :] < numbers)
        total += tl.load(sums + tile.to(tl.int64) * numbers + at[None, :], mask=exists, other=0.0)
    tl.store(out + at, tl.sum(total, 0).to(out.dtype.element_ty), mask=at < numbers)


@triton.jit
def lstm(
    hidden, after, out_at, gates, gates_at, memory, memory_at, first, first_at, second, second_at, added, added_at,
    forget_bias, depth, positions, ADDED: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    sample, _, channel, position, exists = _tile(depth, positions, CHANNELS, POSITIONS)
    i = _read(first, first_at, sample, channel, position, exists)
    f = _read(first, first_at, sample, depth + channel, position, exists)
    o = _read(second, second_at, sample, channel, position, exists)
    g = _read(second, second_at, sample, depth + channel, position, exists)
    if ADDED:
        i += _read(added, added_at, sample, channel, position, exists)
        f += _read(added, added_at, sample, depth + channel, position, exists)
        o += _read(added, added_at, sample, 2 * depth + channel, position, exists)
        g += _read(added, added_at, sample, 3 * depth + channel, position, exists)
        _write(gates, gates_at, sample, channel, position, exists, i)
        _write(gates, gates_at, sample, depth + channel, position, exists, f)
        _write(gates, gates_at, sample, 2 * depth + channel, position, exists, o)
        _write(gates, gates_at, sample, 3 * depth + channel, position, exists, g)
    kept = _sigmoid(f + forget_bias) * _read(memory, memory_at, sample, channel, position, exists)
    c = kept + _sigmoid(i) * _tanh(g)
    _write(after, out_at, sample, channel, position, exists, c)
    _write(hidden, out_at, sample, channel, position, exists, _sigmoid(o) * _tanh(c))


@triton.jit
def lstm_backward(
    of_memory, of_memory_at, of_first, of_first_at, of_second, of_second_at, of_hidden, of_hidden_at, of_after,
    of_after_at, memory, memory_at, first, first_at, second, second_at, forget_bias, depth, positions,
    CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    sample, _, channel, position, exists = _tile(depth, positions, CHANNELS, POSITIONS)
    i = _sigmoid(_read(first, first_at, sample, channel, position, exists))
    f = _sigmoid(_read(first, first_at, sample, depth + channel, position, exists) + forget_bias)
    o = _sigmoid(_read(second, second_at, sample, channel, position, exists))
    g = _tanh(_read(second, second_at, sample, depth + channel, position, exists))
    before = _read(memory, memory_at, sample, channel, position, exists)
    shown = _tanh(f * before + i * g)
    slope = _read(of_hidden, of_hidden_at, sample, channel, position, exists)
    of_c = slope * o * (1.0 - shown * shown) + _read(of_after, of_after_at, sample, channel, position, exists)
    _write(of_memory, of_memory_at, sample, channel, position, exists, of_c * f)
    _write(of_first, of_first_at, sample, channel, position, exists, of_c * g * i * (1.0 - i))
    _write(of_first, of_first_at, sample, depth + channel, position, exists, of_c * before * f * (1.0 - f))
    _write(of_second, of_second_at, sample, channel, position, exists, slope * shown * o * (1.0 - o))
    _write(of_second, of_second_at, sample, depth + channel, position, exists, of_c * i * (1.0 - g * g))


@triton.jit
def remember(
    after, into, out_at, gates, gates_at, memory, memory_at, first, first_at, second, second_at, forget_bias, depth,
    positions, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    sample, _, channel, position, exists = _tile(depth, positions, CHANNELS, POSITIONS)
    i = _read(first, first_at, sample, channel, position, exists)
    f = _read(first, first_at, sample, depth + channel, position, exists)
    g = _read(first, first_at, sample, 2 * depth + channel, position, exists)
    i += _read(second, second_at, sample, channel, position, exists)
    f += _read(second, second_at, sample, depth + channel, position, exists)
    g += _read(second, second_at, sample, 2 * depth + channel, position, exists)
    _write(gates, gates_at, sample, channel, position, exists, i)
    _write(gates, gates_at, sample, depth + channel, position, exists, f)
    _write(gates, gates_at, sample, 2 * depth + channel, position, exists, g)
    new = _sigmoid(i) * _tanh(g)
    kept = _sigmoid(f + forget_bias) * _read(memory, memory_at, sample, channel, position, exists)
    _write(into, out_at, sample, channel, position, exists, new)
    _write(after, out_at, sample, channel, position, exists, kept + new)


@triton.jit
def remember_backward(
    of_memory, of_memory_at, of_gates, of_gates_at, of_after, of_after_at, of_into, of_into_at, memory, memory_at,
    gates, gates_at, forget_bias, depth, positions, INTO: tl.constexpr, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    sample, _, channel, position, exists = _tile(depth, positions, CHANNELS, POSITIONS)
    i = _sigmoid(_read(gates, gates_at, sample, channel, position, exists))
    f = _sigmoid(_read(gates, gates_at, sample, depth + channel, position, exists) + forget_bias)
    g = _tanh(_read(gates, gates_at, sample, 2 * depth + channel, position, exists))
    before = _read(memory, memory_at, sample, channel, position, exists)
    slope = _read(of_after, of_after_at, sample, channel, position, exists)
    of_new = slope
    if INTO:
        of_new += _read(of_into, of_into_at, sample, channel, position, exists)
    _write(of_memory, of_memory_at, sample, channel, position, exists, slope * f)
    _write(of_gates, of_gates_at, sample, channel, position, exists, of_new * g * i * (1.0 - i))
    _write(of_gates, of_gates_at, sample, depth + channel, position, exists, slope * before * f * (1.0 - f))
    _write(of_gates, of_gates_at, sample, 2 * depth + channel, position, exists, of_new * i * (1.0 - g * g))


@triton.jit
def show(
    hidden, total, out_at, reduced, reduced_at, first, first_at, second, second_at, third, third_at, depth, positions,
    CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    sample, _, channel, position, exists = _tile(depth, positions, CHANNELS, POSITIONS)
    o = _read(first, first_at, sample, channel, position, exists)
    o += _read(second, second_at, sample, channel, position, exists)
    o += _read(third, third_at, sample, channel, position, exists)
    shown = _tanh(_read(reduced, reduced_at, sample, channel, position, exists))
    _write(total, out_at, sample, channel, position, exists, o)
    _write(hidden, out_at, sample, channel, position, exists, _sigmoid(o) * shown)


@triton.jit
def show_backward(
    of_reduced, of_total, out_at, of_hidden, of_hidden_at, reduced, reduced_at, total, total_at, depth, positions,
    CHANNELS: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    sample, _, channel, position, exists = _tile(depth, positions, CHANNELS, POSITIONS)
    slope = _read(of_hidden, of_hidden_at, sample, channel, position, exists)
    shown = _tanh(_read(reduced, reduced_at, sample, channel, position, exists))
    o = _sigmoid(_read(total, total_at, sample, channel, position, exists))
    _write(of_reduced, out_at, sample, channel, position, exists, slope * o * (1.0 - shown * shown))
    _write(of_total, out_at, sample, channel, position, exists, slope * shown * o * (1.0 - o))


@triton.jit
def convolution(
    out, out_at, x, x_at, weight, weight_at, bias, positions, height, width, inputs, outputs,
    SIDE: tl.constexpr, FLIPPED: tl.constexpr, BIAS: tl.constexpr, PRECISION: tl.constexpr,
    POSITIONS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Convolve, keeping the grid, as a product of [positions of all samples, taps x inputs] with the weight.

    Channels lie side by side; `inputs` and `outputs` are those of a group. `weight_at` are strides between groups,
    outputs, inputs, rows and columns. FLIPPED takes the taps in the opposite order. STEPS: taps times tiles of inputs.
    """
    first = tl.program_id(0) * POSITIONS
    group = tl.program_id(2).to(tl.int64)
    place = tl.arange(0, POSITIONS)
    exists = first + place < positions
    row, column = (first + place) // width % height, (first + place) % width
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    x += first.to(tl.int64) * x_at + group * inputs
    weight += group * weight_at[0]
    total = tl.full([POSITIONS, OUTPUTS], 0.0, tl.float32)
    for step in range(STEPS):
        tap = step % (SIDE * SIDE)
        channel = step // (SIDE * SIDE) * INPUTS + tl.arange(0, INPUTS)
        down, right = tap // SIDE - SIDE // 2, tap % SIDE - SIDE // 2
        y, z = row + down, column + right
        inside = exists & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        at = (place + down * width + right)[:, None] * x_at + channel[None, :]
        part = tl.load(x + at, mask=inside[:, None] & (channel < inputs)[None, :], other=0.0)
        own = SIDE * SIDE - 1 - tap if FLIPPED else tap
        at = own // SIDE * weight_at[3] + own % SIDE * weight_at[4] + channel[:, None] * weight_at[2]
        at += output[None, :] * weight_at[1]
        factor = tl.load(weight + at, mask=(channel < inputs)[:, None] & (output < outputs)[None, :], other=0.0)
        total = tl.dot(part, factor, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + group * outputs + output, mask=output < outputs, other=0.0).to(tl.float32)[None, :]
    out += first.to(tl.int64) * out_at + group * outputs
    at = place[:, None] * out_at + output[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=exists[:, None] & (output < outputs)[None, :])
