"""The plain forms of four models: the equations one slot and one gate at a time, as one would first write them down.

What `benchmarks/cell.py` compares with. Every convolution is a module of its own, attention writes its softmax map out,
everything between is plain autograd, all in the layout that PyTorch starts with. `plain_model` takes the weights of one
of the toolkit's models; a test shows that both give the same predictions and gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.models.base import StepSequence
from toolkit.models.convlstm import ConvLSTMCell
from toolkit.models.modernn import GATES, ModeCell
from toolkit.models.modernn_released import Fusion, ReleasedModeCell
from toolkit.models.predrnn import FORGET_BIAS, STLSTMCell, STLSTMOutput

Pair = tuple[nn.Parameter, nn.Parameter, tuple[slice | int, ...]]  # plain, the toolkit's, which part of it


def conv(inputs: int, outputs: int, kernel: int, bias: bool = True) -> nn.Conv2d:
    """A convolution of 'same' size."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def rows(part: int, width: int) -> tuple[slice | int, ...]:
    """Output channels part * width .. of a convolution that computes several at once."""
    return (slice(part * width, (part + 1) * width),)


def same(plain: nn.Module, ours: nn.Module) -> Iterator[Pair]:
    """Modules of the same form."""
    for (_, a), (_, b) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        yield a, b, ()


def part_of(plain: nn.Conv2d | nn.Linear, ours: nn.Conv2d | nn.Linear, at: tuple[slice | int, ...]) -> Iterator[Pair]:
    """One of the convolutions that ours computes at once."""
    yield plain.weight, ours.weight, at
    if plain.bias is not None:
        yield plain.bias, ours.bias, at


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """One head: [B, w, h, w'] each -> softmax(Q K^T scale) V, the map written out."""
    q, k, v = (t.flatten(2).transpose(1, 2) for t in (query, key, value))
    return (torch.softmax(q @ k.transpose(1, 2) * scale, dim=-1) @ v).transpose(1, 2).reshape(query.shape)


class PlainModeCell(ModeCell):
    """ModeCell by the paper's text (equations 1-5), as in toolkit/models/modernn.py."""

    def __init__(self, ours: ModeCell) -> None:
        nn.Module.__init__(self)  # of ModeCell only init_bus is wanted
        d, n, both = ours.width, ours.slots, 2 * ours.width
        w = -(-both // n)
        self.width, self.n, self.w = d, n, w
        self.bus_mean, self.bus_log_var = (nn.Parameter(torch.empty(d)) for _ in range(2))
        self.query, self.key, self.value = (self._projection(c, both, n * w) for c in (d, both, both))
        self.bind = nn.ModuleList(nn.Sequential(conv(w, w, 3), nn.ReLU(), conv(w, w, 3)) for _ in range(n))
        self.reduce = nn.ModuleList(nn.Linear(both, d) for _ in range(GATES))
        self.weigh = nn.ModuleList(nn.ModuleList(nn.Linear(d, both) for _ in range(n)) for _ in range(GATES))
        self.fuse_input = nn.ModuleList(conv(both, both, 3) for _ in range(GATES))
        self.fuse_slots = nn.ModuleList(nn.ModuleList(conv(w, both, 3) for _ in range(n)) for _ in range(GATES))
        self.gate_fused = nn.ModuleList(conv(both, d, 1) for _ in range(GATES))
        self.gate_input = nn.ModuleList(conv(both, d, 1) for _ in range(GATES))

    @staticmethod
    def _projection(inputs: int, width: int, outputs: int) -> nn.Sequential:
        def separable(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, a, 3, padding=1, groups=a), nn.Conv2d(a, b, 1))

        return nn.Sequential(separable(inputs, width), nn.ReLU(), separable(width, outputs))

    def pairs(self, ours: ModeCell) -> Iterator[Pair]:
        d, both = self.width, 2 * self.width
        assert ours.weigh is not None
        yield self.bus_mean, ours.bus_mean, ()
        yield self.bus_log_var, ours.bus_log_var, ()
        for name in ("query", "key", "value"):
            yield from same(getattr(self, name), getattr(ours, name))
        for n in range(self.n):
            for place in (0, 2):
                yield from part_of(self.bind[n][place], ours.bind[place], rows(n, self.w))
        for g in range(GATES):
            yield from part_of(self.reduce[g], ours.weigh.reduce, rows(g, d))
            yield from part_of(self.fuse_input[g], ours.fuse_input, rows(g, both))
            yield from part_of(self.gate_fused[g], ours.gate_fused, rows(g, d))
            yield from part_of(self.gate_input[g], ours.gate_input, rows(g, d))
            for n in range(self.n):
                yield self.weigh[g][n].weight, ours.weigh.weight, (g, n)
                yield self.weigh[g][n].bias, ours.weigh.bias, (g, n)
                yield from part_of(self.fuse_slots[g][n], ours.fuse_slots, rows(n * GATES + g, both))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, bus = state
        grid = torch.cat([x, hidden], 1)
        heads = [t.split(self.w, 1) for t in (self.query(bus), self.key(grid), self.value(grid))]
        slots = [bind(attention(q, k, v, self.w**-0.5)) for bind, q, k, v in zip(self.bind, *heads, strict=True)]
        gates = []
        for g in range(GATES):
            context = F.relu(self.reduce[g](grid.mean((2, 3))))
            fused = torch.sigmoid(grid) * self.fuse_input[g](grid)
            for n, slot in enumerate(slots):
                omega = self.weigh[g][n](context)[:, :, None, None]
                fused = fused + torch.sigmoid(omega * grid) * self.fuse_slots[g][n](slot)
            gates.append(self.gate_fused[g](fused) + self.gate_input[g](grid))
        i, f, o, g_ = gates
        bus = torch.sigmoid(f) * bus + torch.sigmoid(i) * torch.tanh(g_)
        return torch.sigmoid(o) * torch.tanh(bus), bus


class PlainFusion(nn.Module):
    """Context and fusion of the released wiring, for one pair of gates."""

    def __init__(self, channels: int, reduced: int, slots: int) -> None:
        super().__init__()
        self.channels, self.slots = channels, slots
        self.mask = conv(channels, 1, 1)
        self.reduce, self.norm = nn.Linear(channels, reduced), nn.LayerNorm(reduced)
        self.expand = nn.Linear(reduced, reduced)
        self.of_input = conv(channels, channels, 3)
        self.of_slots = nn.ModuleList(conv(channels // slots, channels, 3) for _ in range(slots))
        self.weigh = nn.ModuleList(nn.Linear(reduced, channels) for _ in range(1 + slots))

    def pairs(self, ours: Fusion) -> Iterator[Pair]:
        assert ours.context is not None and ours.weigh is not None
        for name in ("mask", "reduce", "norm", "expand"):
            yield from same(getattr(self, name), getattr(ours.context, name))
        yield from same(self.of_input, ours.of_input)
        for n in range(self.slots):
            yield from part_of(self.of_slots[n], ours.of_slots, rows(n, self.channels))
        for n in range(1 + self.slots):
            yield from part_of(self.weigh[n], ours.weigh, rows(n, self.channels))

    def forward(self, grid: Tensor, slots: list[Tensor]) -> Tensor:
        share = torch.softmax(self.mask(grid).flatten(2), dim=-1)  # [B, 1, P]
        pooled = (grid.flatten(2) * share).sum(-1)
        z = torch.sigmoid(self.expand(F.relu(self.norm(self.reduce(pooled)))))
        weights = [torch.sigmoid(fc(z))[:, :, None, None] for fc in self.weigh]
        fused = weights[0] * self.of_input(grid)
        for weight, of_slot, slot in zip(weights[1:], self.of_slots, slots, strict=True):
            fused = fused + weight * F.relu(of_slot(slot))
        return fused


class PlainReleasedModeCell(nn.Module):
    """The released wiring, as in toolkit/models/modernn_released.py."""

    def __init__(self, ours: ReleasedModeCell) -> None:
        super().__init__()
        d, both, n = ours.key[0].in_channels // 2, ours.key[0].in_channels, ours.slots
        self.scale, self.w = d**-0.5, both // n
        self.query, self.key, self.value = (self._separable(c, both) for c in (d, both, both))
        self.fuse_if = PlainFusion(both, max(d, 32), n)
        self.fuse_og = PlainFusion(both, max(d, 32), n)
        self.norm_if = nn.LayerNorm(ours.norm_if.normalized_shape)
        self.norm_og = nn.LayerNorm(ours.norm_og.normalized_shape)

    @staticmethod
    def _separable(inputs: int, outputs: int) -> nn.Sequential:
        depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        return nn.Sequential(depthwise, nn.GroupNorm(1, inputs), nn.Conv2d(inputs, outputs, 1))

    def pairs(self, ours: ReleasedModeCell) -> Iterator[Pair]:
        for name in ("query", "key", "value", "norm_if", "norm_og"):
            yield from same(getattr(self, name), getattr(ours, name))
        yield from self.fuse_if.pairs(ours.fuse_if)
        yield from self.fuse_og.pairs(ours.fuse_og)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, bus = state
        grid = torch.cat([x, hidden], 1)
        heads = [t.split(self.w, 1) for t in (self.query(bus), self.key(grid), self.value(grid))]
        slots = [attention(q, k, v, self.scale) for q, k, v in zip(*heads, strict=True)]
        i, f = self.norm_if(self.fuse_if(grid, slots)).chunk(2, 1)
        o, g = self.norm_og(self.fuse_og(grid, slots)).chunk(2, 1)
        bus = torch.sigmoid(f) * bus + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(bus), bus


class PlainConvLSTMCell(nn.Module):
    """ConvLSTM, one convolution for each gate."""

    def __init__(self, ours: ConvLSTMCell) -> None:
        super().__init__()
        every, four, kernel = ours.gates.in_channels, ours.gates.out_channels, ours.gates.kernel_size[0]
        self.d, self.forget_bias = four // 4, ours.forget_bias
        self.gates = nn.ModuleList(conv(every, self.d, kernel, ours.gates.bias is not None) for _ in range(4))

    def pairs(self, ours: ConvLSTMCell) -> Iterator[Pair]:
        for place, gate in enumerate(self.gates):
            yield from part_of(gate, ours.gates, rows(place, self.d))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, memory = state
        both = torch.cat([x, hidden], 1)
        i, f, o, g = (gate(both) for gate in self.gates)
        memory = torch.sigmoid(f + self.forget_bias) * memory + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(memory), memory


class PlainSTLSTMCell(nn.Module):
    """PredRNN's ST-LSTM, one convolution for each gate and each of its inputs."""

    SOURCES = (("from_input", 7), ("from_hidden", 4), ("from_memory", 3), ("from_both", 1))

    def __init__(self, ours: STLSTMCell) -> None:
        super().__init__()
        self.d = ours.reduce.out_channels
        for name, count in self.SOURCES:
            whole = getattr(ours, name)[0]
            every, kernel = whole.in_channels, whole.kernel_size[0]
            setattr(self, name, nn.ModuleList(conv(every, self.d, kernel, bias=False) for _ in range(count)))
        self.reduce = conv(2 * self.d, self.d, 1, bias=False)

    def pairs(self, ours: STLSTMCell) -> Iterator[Pair]:
        for name, count in self.SOURCES:
            for place in range(count):
                yield from part_of(getattr(self, name)[place], getattr(ours, name)[0], rows(place, self.d))
        yield from same(self.reduce, ours.reduce)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor, memory: Tensor) -> STLSTMOutput:
        xi, xf, xg, xi2, xf2, xg2, xo = (of(x) for of in self.from_input)
        hi, hf, hg, ho = (of(hidden) for of in self.from_hidden)
        mi, mf, mg = (of(memory) for of in self.from_memory)
        into_cell = torch.sigmoid(xi + hi) * torch.tanh(xg + hg)
        cell = torch.sigmoid(xf + hf + FORGET_BIAS) * cell + into_cell
        into_memory = torch.sigmoid(xi2 + mi) * torch.tanh(xg2 + mg)
        memory = torch.sigmoid(xf2 + mf + FORGET_BIAS) * memory + into_memory
        both = torch.cat([cell, memory], 1)
        output = torch.sigmoid(xo + ho + self.from_both[0](both))
        return STLSTMOutput(output * torch.tanh(self.reduce(both)), cell, memory, into_cell, into_memory)


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    ModeCell: PlainModeCell,
    ReleasedModeCell: PlainReleasedModeCell,
    ConvLSTMCell: PlainConvLSTMCell,
    STLSTMCell: PlainSTLSTMCell,
}


def plain_model(ours: StepSequence) -> StepSequence:
    """The same model with the same weights in its plain form."""
    plain = copy.deepcopy(ours)
    plain.layout = torch.contiguous_format
    for place, cell in enumerate(ours.cell.cells):
        plain.cell.cells[place] = PLAIN[type(cell)](cell)
    with torch.no_grad():
        for own, theirs, at in pairs(plain, ours):
            own.copy_(theirs[at])
    return plain


def pairs(plain: StepSequence, ours: StepSequence) -> Iterator[Pair]:
    """Every parameter of the plain form, and which part of which of ours it is."""
    for (name, part), (_, other) in zip(plain.cell.named_children(), ours.cell.named_children(), strict=True):
        if name == "cells":
            for cell, its in zip(part, other, strict=True):
                yield from cell.pairs(its)
        else:
            yield from same(part, other)
