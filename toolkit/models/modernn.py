"""ModeRNN by the paper's text (Yao et al., "ModeRNN: Harnessing Spatiotemporal Mode Collapse in Unsupervised
Predictive Learning", arXiv 2110.03882), in a reading whose size is the paper's own: 6,347,776 parameters
at 4 x 64, N = 4.

Symbols: d_x = d_h = d channels of input and hidden state, D = d_x + d_h, N slots of w = ceil(D / N) channels,
I_t = [X_t, H_{t-1}], * a convolution, . an elementwise product. Per layer and time step:

    slot bus     B_0 ~ Normal(mu, exp(log_var)), mu and log_var learned per channel; its mean at evaluation
    queries      slot_{t-1}^1..N = Split(W_q * B_{t-1}); keys and values alike from I_t. Each W is two 3x3 depthwise-
                 separable convolutions (d -> D -> N w for W_q, D -> D -> N w for the others), a ReLU between
    equation 1   slot_t^n = softmax(slot_{t-1}^n K_t^nT / sqrt(w)) V_t^n; tokens are positions, one head per slot
    equation 2   slot_t^n = FFN_bind^n(slot_t^n): two 3x3 convolutions w -> w, a ReLU between
    equation 3   omega_t^n = FFN_fuse^n(ReLU(FC(GAP(I_t)))), FC: D -> d, FFN_fuse^n: d -> D
    equation 4   F_t = sigmoid(I_t) . (W_fuse^0 * I_t) + sum_n sigmoid(omega_t^n . I_t) . (W_fuse^n * slot_t^n),
                 W_fuse 3x3
    gates        i, f, o, g from a_t = W_ff * F_t + W_fi * I_t (1x1), each with its own F_t: footnote 2 gives every
                 gate its own FC, FFN_fuse, W_fuse, W_ff and W_fi (slots and FFN_bind are shared)
    equation 5   B_t = f . B_{t-1} + i . g;  H_t = o . tanh(B_t)

The paper's ablations (Tables 3 and 4) are options. `slots: 1` is the row "w/o slot binding": one slot, nothing to bind
to. `fusion: equal` is "w/o adaptive slot fusion": equation 3 and all its parameters (FC, FFN_fuse^n) are gone, and in
equation 4 every sigmoid(omega_t^n . I_t) becomes 1/2, its value at omega = 0: the slots are added with equal weights,
and what is left is the same net at the same scale (5,683,200 parameters). The residual's sigmoid(I_t) stays: it weighs
no slot and has no parameters.

The text leaves open what stands above after "a ReLU between", the width of FC and the kernels of W_ff and W_fi; the
forget gate starts with a bias (`forget_bias`), as LSTMs commonly do. A 1x1 embedding and read-out, without bias, join
patches and channels. Shapes in comments: B batch, h x w' grid, G = 4 gates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.manifest import FrameSpec
from toolkit.models.base import Noise, Probe
from toolkit.models.fused import attention, gated_sum, lstm, spatial_mean
from toolkit.models.registry import ModeRNNOptions
from toolkit.models.stacked import LayerState, StackedCells

GATES = 4  # in the order i, f, o, g
FORGET = 1
FIRST_BUS_STD = 0.1


def separable(inputs: int, outputs: int) -> nn.Sequential:
    """Build a 3x3 depthwise-separable convolution (Chollet 2017)."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs),
        nn.Conv2d(inputs, outputs, 1),
    )


def projection(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """W_q, W_k or W_v: two separable convolutions."""
    return nn.Sequential(separable(inputs, width), nn.ReLU(), separable(width, outputs))


def to_heads(maps: Tensor, slots: int) -> Tensor:
    """[B, N w, h, w'] -> [B, N, h w', w], tokens with their channels side by side in memory: else attention falls back
    to storing the softmax map. Maps laid out channels-last are only viewed.
    """
    last = maps.permute(0, 2, 3, 1).contiguous()
    return last.view(maps.shape[0], -1, slots, maps.shape[1] // slots).transpose(1, 2)


def from_heads(heads: Tensor, like: Tensor) -> Tensor:
    """[B, N, h w', w] -> [B, N w, h, w'], on the grid and in the memory layout of `like`."""
    maps = heads.transpose(1, 2).reshape(heads.shape[0], *like.shape[2:], -1).permute(0, 3, 1, 2)
    return maps.contiguous() if like.is_contiguous() else maps


class SlotWeights(nn.Module):
    """Equation 3 for all gates and slots: a context vector becomes importance weights.

    FC is one matrix D -> G d; FFN_fuse^n are G N matrices d -> D, multiplied in one batch.
    """

    def __init__(self, context: int, reduced: int, slots: int) -> None:
        super().__init__()
        self.slots, self.reduced = slots, reduced
        self.reduce = nn.Linear(context, GATES * reduced)
        bound = 1 / math.sqrt(reduced)  # the range that nn.Linear uses
        self.weight = nn.Parameter(torch.empty(GATES, slots, context, reduced).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(GATES, slots, context).uniform_(-bound, bound))

    def forward(self, pooled: Tensor) -> Tensor:
        """GAP(I_t) [B, D] -> omega [B, N, G, D]."""
        reduced = F.relu(self.reduce(pooled)).view(-1, GATES, self.reduced).transpose(0, 1)
        # As einsum, with a copy fewer on the way back.
        each = torch.bmm(reduced, self.weight.flatten(1, 2).transpose(1, 2))  # [G, B, N D]
        return each.unflatten(2, self.bias.shape[1:]).permute(1, 2, 0, 3) + self.bias.transpose(0, 1)


class ModeCell(nn.Module):
    """One recurrent unit: state interaction and slot binding, adaptive slot fusion, slot bus transition."""

    def __init__(self, width: int, slots: int, gate_norm: bool, forget_bias: float, fusion: str = "adaptive") -> None:
        super().__init__()
        both = 2 * width
        per_slot = -(-both // slots)
        inner = slots * per_slot
        self.width, self.slots = width, slots
        self.bus_mean = nn.Parameter(torch.zeros(width))
        self.bus_log_var = nn.Parameter(torch.full((width,), 2 * math.log(FIRST_BUS_STD)))
        self.query = projection(width, both, inner)
        self.key = projection(both, both, inner)
        self.value = projection(both, both, inner)
        self.bind = nn.Sequential(
            nn.Conv2d(inner, inner, 3, padding=1, groups=slots),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, groups=slots),
        )
        self.weigh = SlotWeights(both, width, slots) if fusion == "adaptive" else None
        self.slots_seen, self.weights_seen = Probe("slots"), Probe("weights")
        self.fuse_input = nn.Conv2d(both, GATES * both, 3, padding=1)  # W_fuse^0 of every gate
        self.fuse_slots = nn.Conv2d(inner, slots * GATES * both, 3, padding=1, groups=slots)  # W_fuse^n of every gate
        self.gate_fused = nn.Conv2d(GATES * both, GATES * width, 1, groups=GATES)  # W_ff
        self.gate_input = nn.Conv2d(both, GATES * width, 1)  # W_fi
        self.norm = nn.GroupNorm(GATES, GATES * width) if gate_norm else nn.Identity()
        with torch.no_grad():
            assert self.gate_input.bias is not None
            self.gate_input.bias[FORGET * width : (FORGET + 1) * width] = forget_bias

    def init_bus(self, batch: int, height: int, width: int, noise: Noise | None) -> Tensor:
        """B_0 [B, d, h, w']: drawn per position, or the mean everywhere."""
        mean = self.bus_mean.view(1, -1, 1, 1)
        if noise is None:
            return mean.expand(batch, -1, height, width)
        drawn = noise.normal(self.width, height, width).to(mean.dtype)
        return mean + torch.exp(0.5 * self.bus_log_var).view(1, -1, 1, 1) * drawn

    def attend(self, bus: Tensor, interaction: Tensor) -> Tensor:
        """Equation 1: B_{t-1} [B, d, h, w'] and I_t [B, D, h, w'] -> slots [B, N w, h, w']."""
        query, key, value = (
            to_heads(t, self.slots) for t in (self.query(bus), self.key(interaction), self.value(interaction))
        )
        return from_heads(attention(query, key, value, query.shape[3] ** -0.5), bus)

    def fuse(self, interaction: Tensor, slots: Tensor) -> Tensor:
        """Equations 3 and 4 for every gate: I_t [B, D, h, w'] and slots [B, N w, h, w'] -> F_t [B, G D, h, w']."""
        residual = self.fuse_input(interaction)
        if self.weigh is None:
            return residual * torch.sigmoid(interaction).repeat(1, GATES, 1, 1) + self._equal_sum(slots)
        omega = self.weigh(spatial_mean(interaction))
        self.weights_seen(omega)
        return gated_sum(omega, interaction, residual, self.fuse_slots(slots))

    def _equal_sum(self, slots: Tensor) -> Tensor:
        """sum_n (W_fuse^n * slot^n) / 2 of every gate: one convolution over all slots."""
        weight, bias = self.fuse_slots.weight, self.fuse_slots.bias
        assert bias is not None
        joined = weight.unflatten(0, (self.slots, -1)).transpose(0, 1).flatten(1, 2)  # [G D, N w, 3, 3]
        return F.conv2d(slots, joined / 2, bias.view(self.slots, -1).sum(0) / 2, padding=1)

    def forward(self, x: Tensor, state: LayerState) -> LayerState:
        """X_t [B, d, h, w'] and (H, B)_{t-1} -> (H, B)_t, all [B, d, h, w']."""
        hidden, bus = state
        interaction = torch.cat([x, hidden], 1)
        slots = self.bind(self.attend(bus, interaction))
        self.slots_seen(slots.unflatten(1, (self.slots, -1)))
        of_fused, of_input = self.gate_fused(self.fuse(interaction, slots)), self.gate_input(interaction)
        if isinstance(self.norm, nn.Identity):
            return lstm(bus, of_fused, added=of_input)
        return lstm(bus, self.norm(of_fused + of_input))


class ModeRNN(StackedCells):
    """A stack of ModeCells between a 1x1 patch embedding and a 1x1 read-out."""

    channels_last = True

    def __init__(self, options: ModeRNNOptions, shape: FrameSpec) -> None:
        cells = (
            ModeCell(options.hidden, options.slots, options.gate_norm, options.forget_bias, options.fusion)
            for _ in range(options.layers)
        )
        super().__init__(shape.channels * options.patch**2, options.hidden, cells, embed=True)
        self.sample_at_eval = self.stochastic = options.sample_at_eval

    def init_state(self, batch: int, height: int, width: int, like: Tensor, noise: Noise | None) -> list[LayerState]:
        drawn = noise if self.training or self.sample_at_eval else None
        zero = like.new_zeros(batch, self.hidden, height, width)
        cells = (cell for cell in self.cells if isinstance(cell, ModeCell))
        return [(zero, cell.init_bus(batch, height, width, drawn)) for cell in cells]
