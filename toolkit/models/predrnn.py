"""PredRNN (Wang et al., "PredRNN: Recurrent Neural Networks for Predictive Learning using Spatiotemporal LSTMs",
NeurIPS 2017), with the decoupling loss of PredRNN-V2 (Wang et al., arXiv 2103.09504) as an option.

One ST-LSTM, * a convolution without bias, . an elementwise product, X the frame or the H of the layer below:

    i, f, g    = sigmoid(W_xi * X + W_hi * H), sigmoid(W_xf * X + W_hf * H + 1), tanh(W_xg * X + W_hg * H)
    C_t        = f . C_{t-1} + i . g
    i', f', g' = sigmoid(W'_xi * X + W_mi * M), sigmoid(W'_xf * X + W_mf * M + 1), tanh(W'_xg * X + W_mg * M)
    M          = f' . M + i' . g'
    o          = sigmoid(W_xo * X + W_ho * H + W_co * [C_t, M])         the sum W_co * C + W_mo * M of the paper
    H_t        = o . tanh(W_1x1 * [C_t, M])

H and C belong to a layer. M is one memory for the whole stack and runs a zig-zag: up through the layers within a time
step, then from the last layer at t - 1 to the first layer at t. All layers therefore have the same width. The next
frame is read from the last H by a 1x1 convolution without bias. 4 x 64 channels with kernel 7 are 11,825,152
parameters on one-channel frames at patch 4 (the ModeRNN paper says 11.83 M), 4 x 128 with kernel 5 are 23,838,720.

The decoupling loss asks that what enters C and what enters M differ. Per layer and time step, with one 1x1 convolution
A for all of them and the cosine taken over positions, channel by channel:

    L = beta * mean over samples, channels, layers and steps of |cos(A * (i . g), A * (i' . g'))|

The paper sums where this takes means, as the authors' code does: beta then doesn't depend on the frame size. The sum
over time is kept in the state. Without the loss (beta = 0, the default) A isn't made.

A choice of ours: `layer_norm` normalises over all channels and positions of a sample with one gain and bias per
channel, for the outputs of the four convolutions. Gains per position would tie the weights to one frame size. Initial
weights are PyTorch's defaults, as in the authors' PyTorch code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.manifest import FrameSpec
from toolkit.models.base import Noise, StepModel
from toolkit.models.fused import gated_tanh, st_lstm_memories
from toolkit.models.registry import PredRNNOptions

FORGET_BIAS = 1.0  # of both forget gates


class STLSTMOutput(NamedTuple):
    """What one ST-LSTM gives, all [B, hidden, h, w]."""

    hidden: Tensor
    cell: Tensor
    memory: Tensor
    into_cell: Tensor  # i . g
    into_memory: Tensor  # i' . g'


class PredRNNState(NamedTuple):
    """The state of the stack."""

    layers: list[tuple[Tensor, Tensor]]  # H, C
    memory: Tensor  # M after the last layer
    similarity: Tensor  # sum over the time steps so far of the layers' mean |cos|; a float32 scalar


def convolution(inputs: int, outputs: int, kernel: int, layer_norm: bool) -> nn.Sequential:
    """Build a convolution of 'same' size without bias, and its normalisation if there is one."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)]
    if layer_norm:
        layers.append(nn.GroupNorm(1, outputs))
    return nn.Sequential(*layers)


class STLSTMCell(nn.Module):
    """One spatiotemporal LSTM."""

    def __init__(self, inputs: int, hidden: int, kernel: int, layer_norm: bool) -> None:
        super().__init__()
        self.from_input = convolution(inputs, 7 * hidden, kernel, layer_norm)  # i, f, g, i', f', g', o
        self.from_hidden = convolution(hidden, 4 * hidden, kernel, layer_norm)  # i, f, g, o
        self.from_memory = convolution(hidden, 3 * hidden, kernel, layer_norm)  # i', f', g'
        self.from_both = convolution(2 * hidden, hidden, kernel, layer_norm)  # o
        self.reduce = nn.Conv2d(2 * hidden, hidden, 1, bias=False)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor, memory: Tensor) -> STLSTMOutput:
        """x [B, inputs, h, w], H_{t-1}, C_{t-1} and M [B, hidden, h, w] -> the next three and what entered them."""
        of_x, of_h, of_m = self.from_input(x), self.from_hidden(hidden), self.from_memory(memory)
        (cell, into_cell), (memory, into_memory), of_output = st_lstm_memories(
            of_x, of_h, of_m, cell, memory, FORGET_BIAS
        )
        both = torch.cat([cell, memory], 1)
        of_both = self.from_both(both)
        return STLSTMOutput(gated_tanh(self.reduce(both), *of_output, of_both), cell, memory, into_cell, into_memory)


class PredRNN(StepModel):
    """A stack of ST-LSTMs with a zig-zag memory and a 1x1 read-out."""

    def __init__(self, options: PredRNNOptions, shape: FrameSpec) -> None:
        super().__init__()
        self.hidden = options.hidden
        self.decouple_beta = options.decouple_beta
        depth = shape.channels * options.patch**2
        inputs = [depth] + [options.hidden] * (options.layers - 1)
        self.cells = nn.ModuleList(STLSTMCell(n, options.hidden, options.kernel, options.layer_norm) for n in inputs)
        self.read_out = nn.Conv2d(options.hidden, depth, 1, bias=False)
        self.adapter = nn.Conv2d(options.hidden, options.hidden, 1, bias=False) if options.decouple_beta else None

    def init_state(self, batch: int, height: int, width: int, like: Tensor, noise: Noise | None) -> PredRNNState:
        zero = like.new_zeros(batch, self.hidden, height, width)
        return PredRNNState([(zero, zero) for _ in self.cells], zero, like.new_zeros((), dtype=torch.float32))

    def memories(self, state: PredRNNState) -> list[Tensor]:
        return [cell for _, cell in state.layers]

    def step(self, frame: Tensor, state: PredRNNState) -> tuple[Tensor, PredRNNState]:
        after, similarities = [], []
        x, memory = frame, state.memory
        for cell, (h, c) in zip(self.cells, state.layers, strict=True):
            x, c, memory, similarity = self.layer(self._one, cell, x, h, c, memory)
            after.append((x, c))
            if similarity is not None:
                similarities.append(similarity)
        similarity = state.similarity + torch.stack(similarities).mean() if similarities else state.similarity
        return self.read_out(x), PredRNNState(after, memory, similarity)

    def _one(
        self, cell: STLSTMCell, x: Tensor, hidden: Tensor, c: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """H, C and M after one layer, and its term of the decoupling loss where there is one."""
        out: STLSTMOutput = cell(x, hidden, c, memory)
        similarity = None
        if self.adapter is not None:
            similarity = self._similarity(self.adapter(out.into_cell), self.adapter(out.into_memory))
        return out.hidden, out.cell, out.memory, similarity

    def losses(self, state: PredRNNState, steps: int) -> dict[str, Tensor]:
        if self.adapter is None:
            return {}
        return {"decouple": self.decouple_beta * state.similarity / steps}

    @staticmethod
    def _similarity(a: Tensor, b: Tensor) -> Tensor:
        """Mean |cos| over samples and channels of two [B, d, h, w], in float32 or more; 0 where one of them is 0."""
        exact = torch.promote_types(a.dtype, torch.float32)
        return F.cosine_similarity(a.to(exact).flatten(2), b.to(exact).flatten(2), dim=2).abs().mean()
