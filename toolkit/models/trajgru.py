"""TrajGRU (Shi et al., "Deep Learning for Precipitation Nowcasting: A Benchmark and a New Model", NeurIPS 2017).

A ConvGRU whose recurrent connections follow a motion field that is computed at every step. Per layer with L flow
fields:

    flows        U_t, V_t = gamma(X_t, H_{t-1}): two 5x5 convolutions, of X_t and of H_{t-1}, to 32 channels, added,
                 LeakyReLU, a 5x5 convolution to 2 L channels; (U^l, V^l) are pixels to the right and down
    warp         W^l(y, x) = H_{t-1}(y + V^l(y, x), x + U^l(y, x)), bilinear, 0 outside
    gates        Z, R = sigmoid(W_x * X_t + sum_l W_h^l W^l), 3x3 for the input, 1x1 for the state
                 H' = leaky(W_xh * X_t + R . sum_l W_hh^l W^l);  H_t = (1 - Z) . H' + Z . H_{t-1}

    encoder      for every layer from the frame up: strided convolution, LeakyReLU, TrajGRU; run over the context
    forecaster   the same layers from the top down, starting from the encoder's states: TrajGRU, transposed convolution,
                 LeakyReLU; the top one has no input. After the last a 3x3 convolution, LeakyReLU, a 1x1 convolution

From the paper and its published networks: all of the above, slope 0.2, widths 64-192-192, L = 13, 13, 9, strides 5, 3,
2 for 480 x 480 with kernels 7, 5, 3 down and 7, 5, 4 up (generally stride + 2, and one less for even strides
downwards), 8 channels next to the frame. Choices: a layer has the same L in the forecaster as in the encoder; strides
4, 3, 2 by default, since they divide 384; other sizes are padded with zeros below and to the right, and cropped. Loss:
L2 as in the ModeRNN paper instead of the balanced losses.

Why `align_corners=False` here: grid_sample maps -1 and 1 to the centres of the corner pixels with True and to the outer
edges with False, so pixel j of W has its centre at 2 j / (W - 1) - 1 or at (2 j + 1) / W - 1. Either is right with its
own formula. Older code has the first formula and, since torch 1.3 made False the default, the second convention: every
warp then also stretches the state, even at zero flow. The second pair is used because it holds for W = 1 too.
Coordinates are float32 at least: in bf16 a step between 64 and 128 is half a pixel. On CUDA grid_sample adds gradients
in no fixed order; under `train.deterministic` the four neighbours are gathered instead, which takes five times its
memory.

The model fits `SequenceModel` without being a next-frame step: it predicts the horizon only, so `Rollout.predictions`
holds that, `train.loss_frames` makes no difference, and there is nothing that scheduled sampling could replace. Under
`activation_checkpointing.policy: step` each time step of encoder and forecaster is recomputed; `per_layer` makes no
difference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.manifest import FrameSpec
from toolkit.models.base import Rollout, Sampling, SequenceModel, check_context, pad_to
from toolkit.models.registry import TrajGRUOptions

SLOPE = 0.2


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Read an image at displaced positions.

    Args:
        image: [B, C, h, w].
        flow: [B, L, 2, h, w] in pixels; first the displacement to the right, then down.

    Returns:
        [B, C, L, h, w]: image(y + down, x + right), bilinear between pixels, 0 beyond the outermost ones.
    """
    batch, channels, height, width = image.shape
    fields = flow.shape[1]
    exact = torch.promote_types(image.dtype, torch.float32)
    across = torch.arange(width, device=image.device, dtype=exact)
    down = torch.arange(height, device=image.device, dtype=exact).unsqueeze(1)
    right, below = across + flow[:, :, 0].to(exact), down + flow[:, :, 1].to(exact)  # [B, L, h, w]
    if image.is_cuda and torch.are_deterministic_algorithms_enabled():
        return gathered(image.to(exact), right, below).to(image.dtype)
    x, y = (2 * right + 1) / width - 1, (2 * below + 1) / height - 1
    grid = torch.stack([x, y], -1).flatten(1, 2)  # [B, L h, w, 2]: one taller picture instead of L copies of the state
    read = F.grid_sample(image.to(exact), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return read.view(batch, channels, fields, height, width).to(image.dtype)


def gathered(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read [B, C, h, w] at columns and rows [B, L, h, w], as `warp` does -> [B, C, L, h, w].

    By rows of an index, whose backward CUDA sorts (torch's deterministic form of `index_put_`), so that it adds in a
    fixed order.
    """
    batch, channels, height, width = image.shape
    pixels = image.permute(0, 2, 3, 1).reshape(-1, channels)
    first = (height * width * torch.arange(batch, device=image.device)).view(-1, 1, 1, 1)
    left, top = x.detach().floor(), y.detach().floor()
    read = None
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            place = first + torch.where(inside, row * width + column, 0.0).long()
            part = torch.where(inside, across * down, 0.0).unsqueeze(-1) * pixels[place]  # [B, L, h, w, C]
            read = part if read is None else read + part
    assert read is not None
    return read.permute(0, 4, 1, 2, 3)


class TrajGRUCell(nn.Module):
    """One layer; `inputs` 0 makes one that runs on its state alone."""

    def __init__(self, inputs: int, hidden: int, fields: int, flow_hidden: int) -> None:
        super().__init__()
        self.fields = fields
        self.input_flow = nn.Conv2d(inputs, flow_hidden, 5, padding=2) if inputs else None
        self.state_flow = nn.Conv2d(hidden, flow_hidden, 5, padding=2)
        self.flow = nn.Conv2d(flow_hidden, 2 * fields, 5, padding=2)
        self.input_gates = nn.Conv2d(inputs, 3 * hidden, 3, padding=1) if inputs else None
        self.state_gates = nn.Conv2d(hidden * fields, 3 * hidden, 1)

    def flows(self, x: Tensor | None, hidden: Tensor) -> Tensor:
        """X_t and H_{t-1} -> [B, L, 2, h, w] in pixels."""
        features = self.state_flow(hidden)
        if self.input_flow is not None:
            features = features + self.input_flow(x)
        return self.flow(F.leaky_relu(features, SLOPE)).unflatten(1, (self.fields, 2))

    def forward(self, x: Tensor | None, hidden: Tensor) -> Tensor:
        """X_t [B, inputs, h, w] (None for a cell without input) and H_{t-1} [B, hidden, h, w] -> H_t."""
        warped = warp(hidden, self.flows(x, hidden)).flatten(1, 2)  # channel c of field l at c L + l
        z, r, new = self.state_gates(warped).chunk(3, 1)
        if self.input_gates is None:
            z, candidate = torch.sigmoid(z), F.leaky_relu(torch.sigmoid(r) * new, SLOPE)
        else:
            x_z, x_r, x_new = self.input_gates(x).chunk(3, 1)
            z, candidate = torch.sigmoid(z + x_z), F.leaky_relu(x_new + torch.sigmoid(r + x_r) * new, SLOPE)
        return (1 - z) * candidate + z * hidden


def smaller(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    """Build a convolution to exactly 1 / stride of a size that stride divides."""
    return nn.Conv2d(inputs, outputs, stride + 1 + stride % 2, stride, padding=1)


def larger(inputs: int, outputs: int, stride: int) -> nn.ConvTranspose2d:
    """Build a transposed convolution to exactly stride times the size."""
    return nn.ConvTranspose2d(inputs, outputs, stride + 2, stride, padding=1)


class TrajGRU(SequenceModel):
    """Encoder over the context, forecaster over the horizon."""

    feeds_targets = True  # it reads no prediction at all

    def __init__(self, options: TrajGRUOptions, shape: FrameSpec) -> None:
        super().__init__()
        hidden, fields, strides = options.hidden, options.flows, options.strides
        below = (options.stem, *hidden[1:])  # channels between the layer below and layer i
        entering = (shape.channels, *hidden[:-1])
        leaving = (options.stem, *hidden[:-1])
        self.hidden, self.stride = hidden, math.prod(strides)
        self.shrink = nn.ModuleList(smaller(n, d, s) for n, d, s in zip(entering, below, strides, strict=True))
        self.encoder = nn.ModuleList(
            TrajGRUCell(n, d, count, options.flow_hidden) for n, d, count in zip(below, hidden, fields, strict=True)
        )
        inputs = (*hidden[:-1], 0)  # what layer i gets from above
        self.forecaster = nn.ModuleList(
            TrajGRUCell(n, d, count, options.flow_hidden) for n, d, count in zip(inputs, hidden, fields, strict=True)
        )
        self.grow = nn.ModuleList(larger(n, d, s) for n, d, s in zip(hidden, leaving, strides, strict=True))
        self.read_out = nn.Sequential(
            nn.Conv2d(options.stem, options.stem, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(options.stem, shape.channels, 1),
        )

    def forward(self, frames: Tensor, context: int, sampling: Sampling) -> Rollout:
        check_context(frames, context)
        predictions = self._run(frames[:, :context], frames.shape[1] - context)
        return Rollout(predictions, {"data": sampling.loss(predictions, frames)})

    def _predict(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        return self._run(context, horizon).expand(samples, -1, -1, -1, -1, -1)

    def _run(self, context: Tensor, horizon: int) -> Tensor:
        """[B, Tc, C, H, W] -> [B, horizon, C, H, W]."""
        height, width = context.shape[-2:]
        padded = (height + -height % self.stride, width + -width % self.stride)
        frames = pad_to(context.to(next(self.parameters()).dtype), *padded)
        states = self._start(frames)
        for frame in frames.unbind(1):
            states = self.checkpointing.run(self.encode, frame, states)
        predictions = []
        for _ in range(horizon):
            prediction, states = self.checkpointing.run(self.forecast, states)
            predictions.append(prediction)
        return torch.stack(predictions, 1)[..., :height, :width]

    def _start(self, frames: Tensor) -> list[Tensor]:
        """Zeros for each layer, from the frame up."""
        (height, width), states = frames.shape[-2:], []
        for layer, hidden in zip(self.shrink, self.hidden, strict=True):
            assert isinstance(layer, nn.Conv2d)
            height, width = height // layer.stride[0], width // layer.stride[1]
            states.append(frames.new_zeros(frames.shape[0], hidden, height, width))
        return states

    def encode(self, frame: Tensor, states: list[Tensor]) -> list[Tensor]:
        """One frame [B, C, H, W] of the context; H and W are multiples of the strides' product."""
        x, after = frame, []
        for shrink, cell, hidden in zip(self.shrink, self.encoder, states, strict=True):
            x = cell(F.leaky_relu(shrink(x), SLOPE), hidden)
            after.append(x)
        return after

    def forecast(self, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the next frame [B, C, H, W] from the states, starting at the frame, and the states after it."""
        x: Tensor | None = None
        after = []
        for grow, cell, hidden in reversed(list(zip(self.grow, self.forecaster, states, strict=True))):
            h = cell(x, hidden)
            after.append(h)
            x = F.leaky_relu(grow(h), SLOPE)
        return self.read_out(x), after[::-1]
