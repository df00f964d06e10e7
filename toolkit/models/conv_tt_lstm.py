"""Conv-TT-LSTM (Su et al., "Convolutional Tensor-Train LSTM for Spatio-temporal Learning", NeurIPS 2020).

A ConvLSTM whose gates see the last `steps` hidden states instead of one, through a convolutional tensor train of
`order` cores and `rank` channels between them. With m = order, lags = steps - order + 1, * a convolution with bias:

    W_l      = [H_{t-steps+l-1}, ..., H_{t-steps+l+lags-2}],  l = 1..m      windows of `lags` states, the oldest first
    V_1      = K_1 * W_1
    V_l      = K_l * W_l + G_{l-1} * V_{l-1},  l = 2..m                     K_l: lags d -> rank, G_l: rank -> rank
    i f o g  = G_m * [X_t, V_m]                                             G_m: d_x + rank -> 4 d
    C_t      = sigmoid(f + forget_bias) . C_{t-1} + sigmoid(i) . tanh(g)
    H_t      = sigmoid(o) . tanh(C_t)

A state that is l cores away from the gates passes l + 1 convolutions, so the train stands for a sum of wide kernels at
linear cost. The ring of past H (zeros before the first frame) and C are the state of a layer.

Shapes. Su et al.: a net of four blocks of three cells, 32, 48, 48 and 32 channels, no patches; a block's output is
joined by that of the block two before it, the last one's too, and a 1x1 convolution with bias reads the next frame.
With kernel 5, order 3, 3 steps and rank 8 that has 2,687,281 parameters on one-channel frames; with ConvLSTM cells
(`cell: lstm`, also with biases) 3,973,201. The ModeRNN paper: one stack of 4 x 64; it gives neither kernel nor train,
and its 7.58 M parameters fit no reading found, so the defaults here keep Su et al.'s numbers at patch 4: 1,704,624.

Su et al. train with L1 + L2 loss; the loss here is every model's. A sigmoid after the read-out is an option
(theirs on KTH); no forget bias is theirs too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shards.manifest import FrameSpec
from toolkit.models.base import Noise, StepModel
from toolkit.models.convlstm import ConvLSTMCell
from toolkit.models.fused import lstm
from toolkit.models.registry import ConvTTLSTMOptions

LayerState = tuple[tuple[Tensor, ...], Tensor]  # the last H, newest first; C


class ConvTTLSTMCell(nn.Module):
    """One layer."""

    def __init__(
        self, inputs: int, hidden: int, kernel: int, order: int, steps: int, rank: int, forget_bias: float
    ) -> None:
        super().__init__()
        self.order, self.past, self.forget_bias = order, steps, forget_bias
        self.lags = steps - order + 1
        half = kernel // 2
        self.windows = nn.ModuleList(nn.Conv2d(self.lags * hidden, rank, kernel, padding=half) for _ in range(order))
        self.cores = nn.ModuleList(nn.Conv2d(rank, rank, kernel, padding=half) for _ in range(order - 1))
        self.gates = nn.Conv2d(inputs + rank, 4 * hidden, kernel, padding=half)  # i, f, o, g

    def forward(self, x: Tensor, state: LayerState) -> LayerState:
        """x [B, inputs, h, w], the last `steps` H and C [B, hidden, h, w] each -> the next ring and C."""
        ring, memory = state
        oldest_first = ring[::-1]
        train = self.windows[0](torch.cat(oldest_first[: self.lags], 1))
        for place in range(1, self.order):
            window = torch.cat(oldest_first[place : place + self.lags], 1)
            train = self.windows[place](window) + self.cores[place - 1](train)
        hidden, memory = lstm(memory, self.gates(torch.cat([x, train], 1)), forget_bias=self.forget_bias)
        return (hidden, *ring[:-1]), memory


class PlainCell(nn.Module):
    """A ConvLSTM cell behind the same interface: a ring of one H."""

    past = 1

    def __init__(self, inputs: int, hidden: int, kernel: int, forget_bias: float) -> None:
        super().__init__()
        self.cell = ConvLSTMCell(inputs, hidden, kernel, bias=True, forget_bias=forget_bias)

    def forward(self, x: Tensor, state: LayerState) -> LayerState:
        (hidden,), memory = state
        hidden, memory = self.cell(x, (hidden, memory))
        return (hidden,), memory


class ConvTTLSTM(StepModel):
    """Blocks of cells with skip connections and a 1x1 read-out."""

    def __init__(self, options: ConvTTLSTMOptions, shape: FrameSpec) -> None:
        super().__init__()
        self.skip = options.skip
        self.sigmoid = options.sigmoid
        self.widths = [factor * options.hidden for factor in options.blocks]
        depth = shape.channels * options.patch**2
        self.blocks = nn.ModuleList()
        inputs = depth
        for place, width in enumerate(self.widths):
            firsts = [inputs] + [width] * (options.layers - 1)
            self.blocks.append(nn.ModuleList(_cell(options, n, width) for n in firsts))
            inputs = width + (self.widths[place - self.skip] if self._joined(place) else 0)
        self.read_out = nn.Conv2d(inputs, depth, 1)

    def _joined(self, place: int) -> bool:
        """Whether the output of block `place` is joined with that of an earlier one."""
        return 0 < self.skip <= place

    def init_state(
        self, batch: int, height: int, width: int, like: Tensor, noise: Noise | None
    ) -> list[list[LayerState]]:
        state = []
        for block, channels in zip(self.blocks, self.widths, strict=True):
            assert isinstance(block, nn.ModuleList)
            zero = like.new_zeros(batch, channels, height, width)
            cells = (cell for cell in block if isinstance(cell, ConvTTLSTMCell | PlainCell))
            state.append([((zero,) * cell.past, zero) for cell in cells])
        return state

    def memories(self, state: list[list[LayerState]]) -> list[Tensor]:
        return [memory for block in state for _, memory in block]

    def step(self, frame: Tensor, state: list[list[LayerState]]) -> tuple[Tensor, list[list[LayerState]]]:
        x = frame
        after: list[list[LayerState]] = []
        outputs: list[Tensor] = []
        for place, (block, layers) in enumerate(zip(self.blocks, state, strict=True)):
            assert isinstance(block, nn.ModuleList)
            after.append([])
            for cell, layer in zip(block, layers, strict=True):
                layer = self.layer(cell, x, layer)
                x = layer[0][0]
                after[-1].append(layer)
            outputs.append(x)
            if self._joined(place):
                x = torch.cat([x, outputs[place - self.skip]], 1)
        read = self.read_out(x)
        return torch.sigmoid(read) if self.sigmoid else read, after


def _cell(options: ConvTTLSTMOptions, inputs: int, hidden: int) -> nn.Module:
    if options.cell == "lstm":
        return PlainCell(inputs, hidden, options.kernel, options.forget_bias)
    train = (options.order, options.steps, options.rank)
    return ConvTTLSTMCell(inputs, hidden, options.kernel, *train, options.forget_bias)
