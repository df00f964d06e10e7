"""ModeRNN by the wiring of its authors' released code (github.com/thuml/ModeRNN), dead parts left out: 3,505,672
parameters at 4 x 64, N = 4, patch 4 on 64 x 64. The code as published doesn't run; this is what it says. The model by
the paper's text is toolkit/models/modernn.py.

Symbols: d channels of input, hidden state and slot bus, D = 2 d, N slots of w = D / N channels, I_t = [X_t, H_{t-1}],
* a convolution, . an elementwise product, all convolutions with bias. Per layer and time step:

    slot bus    B_0 = 0. The code has a Gaussian, but always passes zeros, so its parameters never act
    queries     Q = sep_q(B_{t-1}), K = sep_k(I_t), V = sep_v(I_t); sep: depthwise 3x3, normalisation, 1x1 to D
    attention   slot^n = softmax(Q^n K^nT / sqrt(d)) V^n; tokens are positions, one head per slot. The scale is the
                code's, sqrt(64) = sqrt(d), though a head is w wide
    context     z = sigmoid(1x1(ReLU(LN(1x1(c))))), both 1x1 to max(d, 32); c = sum over positions of
                softmax(1x1(I_t)) . I_t; the last 1x1 starts at zero
    fusion      F = sigmoid(fc_0(z)) . (conv_0 * I_t) + sum_n sigmoid(fc_n(z)) . ReLU(conv_n * slot^n), 3x3 to D
    gates       (i, f) = LN(F_if), (o, g) = LN(F_og): context and fusion are there twice, with their own parameters;
                LN over channels and positions with a gain and bias for each, which ties the weights to one grid
    transition  B_t = sigmoid(f) . B_{t-1} + sigmoid(i) . tanh(g);  H_t = sigmoid(o) . tanh(B_t), no forget bias

A 1x1 embedding and read-out without bias join patches and channels.

The paper's ablations are options, as in toolkit/models/modernn.py: `slots: 1` is "w/o slot binding"; with
`fusion: equal`, "w/o adaptive slot fusion", context and fc_0..N with all their parameters are gone, and every
sigmoid(fc_n(z)) in the fusion becomes 1/2, its value at 0, that of conv_0 too (3,071,488 parameters).

What differs from the code. Its separable convolutions use BatchNorm with running statistics, which activation
checkpointing would update twice and data-parallel ranks would let drift apart. `conv_norm: sample` (the default) has
the same parameters but normalises over all channels and positions of one sample. `conv_norm: batch` normalises over
the micro-batch, always: for the same weights it gives what the code gives in training mode, and depends on how a batch
is split. The code's widths are fixed at d = 64; others follow the same rules here.

Two parts of the count can't change the output, because a softmax ignores what is added to all of its inputs: the bias
of the context's mask, and that of sep_k's 1x1. They are kept so that weights and counts agree.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.manifest import FrameSpec
from toolkit.errors import ToolkitError
from toolkit.models.base import Noise, Probe
from toolkit.models.fused import attention, lstm, weighed_sum
from toolkit.models.modernn import from_heads, to_heads
from toolkit.models.registry import ReleasedModeRNNOptions
from toolkit.models.stacked import LayerState, StackedCells


def separable(inputs: int, outputs: int, conv_norm: str) -> nn.Sequential:
    """Build a depthwise 3x3 convolution, its normalisation, and a 1x1 convolution."""
    batch = conv_norm == "batch"
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs),
        nn.BatchNorm2d(inputs, track_running_stats=False) if batch else nn.GroupNorm(1, inputs),
        nn.Conv2d(inputs, outputs, 1),
    )


class Context(nn.Module):
    """A summary of I_t: attention pooling and a two-layer transform."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.mask = nn.Conv2d(channels, 1, 1)
        self.reduce = nn.Linear(channels, reduced)
        self.norm = nn.LayerNorm(reduced)
        self.expand = nn.Linear(reduced, reduced)
        nn.init.kaiming_normal_(self.mask.weight, nonlinearity="relu")
        for zero in (self.mask.bias, self.expand.weight, self.expand.bias):
            assert zero is not None
            nn.init.zeros_(zero)

    def forward(self, interaction: Tensor) -> Tensor:
        """Reduce I_t [B, D, h, w'] to z [B, reduced]."""
        attention = self.mask(interaction).flatten(1).softmax(1)
        pooled = torch.einsum("bcp,bp->bc", interaction.flatten(2), attention)
        return torch.sigmoid(self.expand(F.relu(self.norm(self.reduce(pooled)))))


class Fusion(nn.Module):
    """Slots and I_t weighed by the context, for one pair of gates."""

    def __init__(self, channels: int, reduced: int, slots: int, adaptive: bool) -> None:
        super().__init__()
        self.slots = slots
        self.context = Context(channels, reduced) if adaptive else None
        self.of_input = nn.Conv2d(channels, channels, 3, padding=1)  # conv_0
        self.of_slots = nn.Conv2d(channels, slots * channels, 3, padding=1, groups=slots)  # conv_1..N
        self.weigh = nn.Linear(reduced, (1 + slots) * channels) if adaptive else None  # fc_0..N

    def weights(self, interaction: Tensor) -> Tensor:
        """Compute fc_n(z) [B, 1 + N, D] from I_t [B, D, h, w']; 0 without adaptive fusion."""
        if self.context is None or self.weigh is None:
            return interaction.new_zeros(interaction.shape[0], 1 + self.slots, interaction.shape[1])
        return self.weigh(self.context(interaction)).unflatten(1, (1 + self.slots, -1))

    def forward(self, interaction: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
        """Fuse I_t and the slots [B, D, h, w'] with their weights [B, 1 + N, D] to F [B, D, h, w']."""
        return weighed_sum(weights, self.of_input(interaction), self.of_slots(slots))


class GridNorm(nn.LayerNorm):
    """LayerNorm over channels and positions of [B, D, h, w'] that leaves channels-last maps channels-last."""

    def forward(self, maps: Tensor) -> Tensor:
        if maps.is_contiguous():
            return super().forward(maps)
        channels, height, width = self.normalized_shape
        gain, bias = self.weight.permute(1, 2, 0), self.bias.permute(1, 2, 0)
        last = maps.permute(0, 2, 3, 1)
        return F.layer_norm(last, (height, width, channels), gain, bias, self.eps).permute(0, 3, 1, 2)


class ReleasedModeCell(nn.Module):
    """One recurrent unit on a grid of fixed size."""

    def __init__(self, width: int, slots: int, grid: tuple[int, int], conv_norm: str, fusion: str = "adaptive") -> None:
        super().__init__()
        both, adaptive = 2 * width, fusion == "adaptive"
        self.slots = slots
        self.scale = width**-0.5
        self.query = separable(width, both, conv_norm)
        self.key = separable(both, both, conv_norm)
        self.value = separable(both, both, conv_norm)
        self.fuse_if = Fusion(both, max(width, 32), slots, adaptive)
        self.fuse_og = Fusion(both, max(width, 32), slots, adaptive)
        self.norm_if = GridNorm([both, *grid])
        self.norm_og = GridNorm([both, *grid])
        self.slots_seen, self.weights_seen = Probe("slots"), Probe("weights")

    def attend(self, bus: Tensor, interaction: Tensor) -> Tensor:
        """B_{t-1} [B, d, h, w'] and I_t [B, D, h, w'] -> the slots side by side [B, D, h, w']."""
        query, key, value = (
            to_heads(t, self.slots) for t in (self.query(bus), self.key(interaction), self.value(interaction))
        )
        return from_heads(attention(query, key, value, self.scale), bus)

    def forward(self, x: Tensor, state: LayerState) -> LayerState:
        """X_t [B, d, h, w'] and (H, B)_{t-1} -> (H, B)_t, all [B, d, h, w']."""
        hidden, bus = state
        interaction = torch.cat([x, hidden], 1)
        slots = self.attend(bus, interaction)
        weights = torch.stack([self.fuse_if.weights(interaction), self.fuse_og.weights(interaction)], 2)
        self.slots_seen(slots.unflatten(1, (self.slots, -1)))
        self.weights_seen(weights[:, 1:])
        of_if, of_og = torch.sigmoid(weights).unbind(2)
        gates = (
            self.norm_if(self.fuse_if(interaction, slots, of_if)),
            self.norm_og(self.fuse_og(interaction, slots, of_og)),
        )
        return lstm(bus, *gates)


class ReleasedModeRNN(StackedCells):
    """A stack of cells between a 1x1 patch embedding and a 1x1 read-out."""

    channels_last = True

    def __init__(self, options: ReleasedModeRNNOptions, shape: FrameSpec) -> None:
        grid = (-(-shape.height // options.patch), -(-shape.width // options.patch))
        cells = (
            ReleasedModeCell(options.hidden, options.slots, grid, options.conv_norm, options.fusion)
            for _ in range(options.layers)
        )
        super().__init__(shape.channels * options.patch**2, options.hidden, cells, embed=True)
        self.grid = grid

    def init_state(self, batch: int, height: int, width: int, like: Tensor, noise: Noise | None) -> list[LayerState]:
        if self.grid != (height, width):
            raise ToolkitError(
                f"modernn_released was made for a grid of {self.grid[0]} x {self.grid[1]} patches, these frames give "
                f"{height} x {width}; its LayerNorm has weights per position: use frames of the size it was made for, "
                "or the model modernn"
            )
        return super().init_state(batch, height, width, like, noise)
