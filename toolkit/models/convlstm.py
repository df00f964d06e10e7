"""ConvLSTM (Shi et al., "Convolutional LSTM Network", NeurIPS 2015), as a stack of next-frame cells.

    i, f, o, g = W_x * X_t + W_h * H_{t-1} (+ b)            one convolution of [X_t, H_{t-1}]
    C_t = sigmoid(f + forget_bias) . C_{t-1} + sigmoid(i) . tanh(g)
    H_t = sigmoid(o) . tanh(C_t)

The cell's input is the patched frame for the first layer and the H_t of the layer below for the others; a 1x1
convolution without bias reads the next frame from the last H_t. With kernel 5 and 4 x 128 channels this has 11,675,648
parameters on one-channel frames at patch 4.

`peepholes` adds the 2015 paper's W_ci . C_{t-1}, W_cf . C_{t-1} (before the gates) and W_co . C_t, which later
comparisons leave out: one weight per channel and position, so they tie the model to one frame size; they start at zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shards.manifest import FrameSpec
from toolkit.errors import ToolkitError
from toolkit.models.base import Noise
from toolkit.models.fused import lstm
from toolkit.models.registry import ConvLSTMOptions
from toolkit.models.stacked import LayerState, StackedCells


class ConvLSTMCell(nn.Module):
    """One layer, with peepholes where a grid is given."""

    def __init__(
        self,
        inputs: int,
        hidden: int,
        kernel: int,
        bias: bool,
        forget_bias: float,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.forget_bias = forget_bias
        self.gates = nn.Conv2d(inputs + hidden, 4 * hidden, kernel, padding=kernel // 2, bias=bias)
        self.peepholes = nn.Parameter(torch.zeros(3, hidden, *grid)) if grid else None  # of i, f, o

    def forward(self, x: Tensor, state: LayerState) -> LayerState:
        """x [B, inputs, h, w] and (H, C) [B, hidden, h, w] each -> the next (H, C)."""
        hidden, memory = state
        gates = self.gates(torch.cat([x, hidden], 1))
        if self.peepholes is None:
            return lstm(memory, gates, forget_bias=self.forget_bias)
        i, f, o, g = gates.chunk(4, 1)
        i, f = i + self.peepholes[0] * memory, f + self.peepholes[1] * memory
        memory = torch.sigmoid(f + self.forget_bias) * memory + torch.sigmoid(i) * torch.tanh(g)
        o = o + self.peepholes[2] * memory
        return torch.sigmoid(o) * torch.tanh(memory), memory


class ConvLSTM(StackedCells):
    """A stack of ConvLSTM cells with a 1x1 read-out."""

    def __init__(self, options: ConvLSTMOptions, shape: FrameSpec) -> None:
        depth = shape.channels * options.patch**2
        inputs = [depth] + [options.hidden] * (options.layers - 1)
        size = (-(-shape.height // options.patch), -(-shape.width // options.patch))
        grid = size if options.peepholes else None
        cells = (
            ConvLSTMCell(n, options.hidden, options.kernel, options.bias, options.forget_bias, grid) for n in inputs
        )
        super().__init__(depth, options.hidden, cells)
        self.grid = grid

    def init_state(self, batch: int, height: int, width: int, like: Tensor, noise: Noise | None) -> list[LayerState]:
        if self.grid not in (None, (height, width)):
            raise ToolkitError(
                f"model.peepholes: this convlstm was made for a grid of {self.grid[0]} x {self.grid[1]} patches, these "
                f"frames give {height} x {width}: use frames of the size it was made for, or train without peepholes"
            )
        return super().init_state(batch, height, width, like, noise)
