"""MIM (Wang et al., "Memory In Memory: A Predictive Neural Network for Learning Higher-Order Non-Stationarity from
Spatiotemporal Dynamics", CVPR 2019).

The first layer is PredRNN's ST-LSTM (toolkit/models/predrnn.py). Every other layer l is a MIM block: an ST-LSTM whose
forget gate for C is replaced by two LSTMs in a row, MIM-N on what changes between time steps and MIM-S on what
doesn't. With * a convolution, . an elementwise product and X = H_t^{l-1}, per time step:

    LSTM(U, V, S)  i, g, f, o from W_u * U + W_v * V;  S' = sigmoid(f + 1) . S + sigmoid(i) . tanh(g)
                   V' = sigmoid(o) . tanh(S')
    MIM-N          D_t, N_t = LSTM(dX, D_{t-1}, N_{t-1});  dX = H_t^1 - H_{t-1}^1 in the first block, the D_t of the
                   block below in the others; D_0 = N_0 = 0, since the first step has nothing to differ from
    MIM-S          T_t, S_t = LSTM(D_t, C_{t-1}, S_{t-1})
    C_t            = T_t + sigmoid(W_xi * X + W_hi * H_{t-1}) . tanh(W_xg * X + W_hg * H_{t-1})
    M              = sigmoid(W_xf * X + W_mf * M + 1) . M + sigmoid(W_xi * X + W_mi * M) . tanh(W_xg * X + W_mg * M)
    H_t            = sigmoid(W_xo * X + W_ho * H_{t-1} + W_mo * M) . tanh(W_1x1 * [C_t, M])     M before the update

The terms W_x * X of i and g are the same in C's and in M's update, as in the authors' code. The input of MIM-N (the
paper's equations difference the hidden states of every layer; the code passes D_t upwards) is the code's. S and N are
part of the state like H, C, D and M: they start at zero with every sequence and are back-propagated through time.

Without biases, without peepholes and without MIM-N's unused 1x1 convolution, 4 x 64 channels with kernel 7 are
18,448,384 parameters on one-channel frames at patch 4 (the ModeRNN paper says 18.45 M).

Options and choices: `peepholes` adds w_i . S, w_f . S (before) and w_o . S' (after) to both LSTMs, with one weight per
channel and position as published, which ties the model to one frame size; they start at zero. `layer_norm` normalises
each k x k convolution over all channels and positions of a sample, with a gain and bias per channel (the authors'
"tensor layer normalisation"). MIM-N's convolutions start uniform in +-0.001, as published. The first block's dX needs
H_{t-1}^1, which the state holds anyway; whether a previous step exists is a number in the state, 0 or 1.

`initialisation: published` also starts the other convolutions as the authors' TensorFlow code does: uniform in
+-sqrt(6 / (inputs + outputs)), channels only, without the kernel's area; and peepholes by TensorFlow's default,
Glorot's bound on an array [h, w, channels]. What still differs from that code: the first layer is PredRNN's ST-LSTM,
with separate input terms for C and M and W_o * [C, M] in the output gate, as in OpenSTL's port (theirs shares the
input terms and has no such map), and convolutions have no biases.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shards.manifest import FrameSpec
from toolkit.errors import ToolkitError
from toolkit.models.base import Noise, StepModel
from toolkit.models.fused import gated_tanh
from toolkit.models.predrnn import FORGET_BIAS, STLSTMCell, STLSTMOutput, convolution
from toolkit.models.registry import MIMOptions

DIFFERENCE_RANGE = 0.001  # MIM-N's weights at the start


class BlockState(NamedTuple):
    """The state of one MIM block, all [B, hidden, h, w]."""

    hidden: Tensor  # H
    cell: Tensor  # C
    difference: Tensor  # D, the output of MIM-N
    non_stationary: Tensor  # N, its memory
    stationary: Tensor  # S, the memory of MIM-S


class MIMState(NamedTuple):
    """The state of the stack."""

    first: tuple[Tensor, Tensor]  # H, C of the ST-LSTM
    blocks: list[BlockState]
    memory: Tensor  # M after the last layer
    seen: Tensor  # a scalar: 0 before the first frame, then 1


class MemoryLSTM(nn.Module):
    """MIM-N or MIM-S: a convolutional LSTM, with peepholes where a grid is given."""

    def __init__(self, hidden: int, kernel: int, layer_norm: bool, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.from_input = convolution(hidden, 4 * hidden, kernel, layer_norm)  # i, g, f, o
        self.from_state = convolution(hidden, 4 * hidden, kernel, layer_norm)
        self.peepholes = nn.Parameter(torch.zeros(3, hidden, *grid)) if grid else None  # of i, f, o

    def forward(self, x: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Input, state and memory [B, hidden, h, w] -> the next state and memory."""
        i, g, f, o = (self.from_input(x) + self.from_state(state)).chunk(4, 1)
        if self.peepholes is not None:
            i, f = i + self.peepholes[0] * memory, f + self.peepholes[1] * memory
        memory = torch.sigmoid(f + FORGET_BIAS) * memory + torch.sigmoid(i) * torch.tanh(g)
        if self.peepholes is not None:
            o = o + self.peepholes[2] * memory
        return torch.sigmoid(o) * torch.tanh(memory), memory


class MIMBlock(nn.Module):
    """One layer above the first."""

    def __init__(self, hidden: int, kernel: int, layer_norm: bool, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.non_stationary = MemoryLSTM(hidden, kernel, layer_norm, grid)
        self.stationary = MemoryLSTM(hidden, kernel, layer_norm, grid)
        self.from_input = convolution(hidden, 4 * hidden, kernel, layer_norm)  # i, g, f, o
        self.from_hidden = convolution(hidden, 3 * hidden, kernel, layer_norm)  # i, g, o
        self.from_memory = convolution(hidden, 4 * hidden, kernel, layer_norm)  # i, g, f, o
        self.reduce = nn.Conv2d(2 * hidden, hidden, 1, bias=False)
        for module in self.non_stationary.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.uniform_(module.weight, -DIFFERENCE_RANGE, DIFFERENCE_RANGE)

    def forward(
        self, x: Tensor, change: Tensor, state: BlockState, memory: Tensor, seen: Tensor
    ) -> tuple[BlockState, Tensor]:
        """X, dX and M [B, hidden, h, w], the state, and whether a step went before -> the next state and M."""
        difference, non_stationary = self.non_stationary(change, state.difference, state.non_stationary)
        difference, non_stationary = difference * seen, non_stationary * seen
        kept, stationary = self.stationary(difference, state.cell, state.stationary)
        xi, xg, xf, xo = self.from_input(x).chunk(4, 1)
        hi, hg, ho = self.from_hidden(state.hidden).chunk(3, 1)
        mi, mg, mf, mo = self.from_memory(memory).chunk(4, 1)
        cell = kept + torch.sigmoid(xi + hi) * torch.tanh(xg + hg)
        memory = torch.sigmoid(xf + mf + FORGET_BIAS) * memory + torch.sigmoid(xi + mi) * torch.tanh(xg + mg)
        reduced = self.reduce(torch.cat([cell, memory], 1))
        hidden = gated_tanh(reduced, xo, ho, mo)
        return BlockState(hidden, cell, difference, non_stationary, stationary), memory


class MIM(StepModel):
    """An ST-LSTM, MIM blocks on top of it, and a 1x1 read-out."""

    def __init__(self, options: MIMOptions, shape: FrameSpec) -> None:
        super().__init__()
        self.hidden = options.hidden
        depth = shape.channels * options.patch**2
        grid = (-(-shape.height // options.patch), -(-shape.width // options.patch))
        self.grid = grid if options.peepholes else None
        self.first = STLSTMCell(depth, options.hidden, options.kernel, options.layer_norm)
        self.blocks = nn.ModuleList(
            MIMBlock(options.hidden, options.kernel, options.layer_norm, self.grid) for _ in range(options.layers - 1)
        )
        self.read_out = nn.Conv2d(options.hidden, depth, 1, bias=False)
        if options.initialisation == "published":
            self._initialise_as_published()

    @torch.no_grad()
    def _initialise_as_published(self) -> None:
        small = {id(m) for block in self.blocks for m in block.get_submodule("non_stationary").modules()}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and id(module) not in small:
                bound = math.sqrt(6.0 / (module.in_channels + module.out_channels))
                module.weight.uniform_(-bound, bound)
            if isinstance(module, MemoryLSTM) and module.peepholes is not None:
                channels, height, width = module.peepholes.shape[1:]
                for part, outputs in ((module.peepholes[:2], 2 * channels), (module.peepholes[2], channels)):
                    bound = math.sqrt(6.0 / (height * (width + outputs)))  # TensorFlow's variables are [h, w, channels]
                    part.uniform_(-bound, bound)

    def init_state(self, batch: int, height: int, width: int, like: Tensor, noise: Noise | None) -> MIMState:
        if self.grid not in (None, (height, width)):
            raise ToolkitError(
                f"model.peepholes: this mim was made for a grid of {self.grid[0]} x {self.grid[1]} patches, these "
                f"frames give {height} x {width}: use frames of the size it was made for, or train without peepholes"
            )
        zero = like.new_zeros(batch, self.hidden, height, width)
        blocks = [BlockState(zero, zero, zero, zero, zero) for _ in self.blocks]
        return MIMState((zero, zero), blocks, zero, like.new_zeros(()))

    def memories(self, state: MIMState) -> list[Tensor]:
        return [state.first[1], *(block.cell for block in state.blocks)]

    def step(self, frame: Tensor, state: MIMState) -> tuple[Tensor, MIMState]:
        before, cell = state.first
        first: STLSTMOutput = self.layer(self.first, frame, before, cell, state.memory)
        x, memory, change = first.hidden, first.memory, first.hidden - before
        after = []
        for block, its_state in zip(self.blocks, state.blocks, strict=True):
            its_state, memory = self.layer(block, x, change, its_state, memory, state.seen)
            x, change = its_state.hidden, its_state.difference
            after.append(its_state)
        seen = torch.ones_like(state.seen)
        return self.read_out(x), MIMState((first.hidden, first.cell), after, memory, seen)
