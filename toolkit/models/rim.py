"""A convolutional RIM, after Goyal et al., "Recurrent Independent Mechanisms" (ICLR 2021, arXiv 1909.10893).

K modules with parameters of their own share a layer. At every time step the k_A of them that find most in the input are
active: they read it, take an LSTM step and then read from each other. The others sleep. Per layer, module k and step t,
for a sample and a position p of the grid:

    input        X_t(p) stands beside a null input, 0; key map W^e and value map W^v are shared and linear, so that the
                 null input has key and value 0:
                 a_k(p) = the first of softmax(q_k(p) . W^e X_t(p) / sqrt(d_e), 0), q_k = W_k^q H_{t-1,k}
                 A_k(p) = a_k(p) W^v X_t(p)
    activation   S_t = the k_A modules with the least attention on the null input, the mean over p of 1 - a_k(p)
    dynamics     for k in S_t: i, f, o, g = D_k * [A_k, H_{t-1,k}], a convolution of the module's own
                 C_k = sigmoid(f + forget_bias) . C_{t-1,k} + sigmoid(i) . tanh(g);  H~_k = sigmoid(o) . tanh(C_k)
                 for k not in S_t: C_k = C_{t-1,k}, H~_k = H_{t-1,k}
    messages     for k in S_t: H_{t,k}(p) = H~_k(p) + W_k^o [softmax over j of Q_k(p) . K_j(p) / sqrt(d_m)] V_j(p),
                 several heads; keys and values come from all modules, queries from active ones
                 for k not in S_t: H_{t,k} = H_{t-1,k}, bit for bit

From the paper: the null input, the two attentions and who takes part in them, the choice of the k_A modules, residual
messages, sleeping modules that keep their state, and no gradient into sleeping modules. Design, since the paper's
modules are vectors and no image code was published: both attentions act at each position (1x1 maps) and the dynamics
are convolutions; a module is active for a whole frame of a sample, by its mean over positions; layers are stacked on
the joined H of all modules, and a 1x1 read-out without bias follows the last. W_k^o (a map after the heads) and the
heads and key sizes are those of public code; its dropout in both attentions is left out.

The gradient is blocked in this sense: from a step in which module k sleeps, none of its own parameters gets any, and
its state gets only what is due to it as a state that is carried over and that the layer above sees. When an active
module reads a sleeping one, the key and the value are therefore constants. The choice S_t is not differentiated, a_k
is.

Neither the ModeRNN paper nor RIM's authors give a configuration for images. The default, 4 layers of 6 modules of 32
channels with kernel 5, 4 of them active (6 and 4 stand in public code), has 7,908,608 parameters at patch 4: the 7.91 M
of the ModeRNN paper's table 2. That it is their configuration doesn't follow.

Ties in the activation go to the module of lower number (a stable sort; topk promises no order). Scores are averaged in
float32, also under bf16. A sleeping module is computed and thrown away: all samples of a batch go through one
convolution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from shards.manifest import FrameSpec
from toolkit.models.registry import RIMOptions
from toolkit.models.stacked import LayerState, StackedCells


class RIMCell(nn.Module):
    """One layer of K modules of `width` channels each."""

    def __init__(self, inputs: int, options: RIMOptions) -> None:
        super().__init__()
        self.modules_, self.active, self.heads = options.modules, options.active, options.heads
        self.width = -(-options.hidden // options.modules)
        self.forget_bias = options.forget_bias
        every = options.modules * self.width
        self.key = nn.Conv2d(inputs, options.input_key, 1, bias=False)
        self.value = nn.Conv2d(inputs, options.value, 1, bias=False)
        self.query = self._own(every, options.input_key)
        self.dynamics = nn.Conv2d(
            options.modules * (options.value + self.width),
            4 * every,
            options.kernel,
            padding=options.kernel // 2,
            groups=options.modules,
        )
        self.message_query = self._own(every, options.heads * options.message_key)
        self.message_key = self._own(every, options.heads * options.message_key)
        self.message_value = self._own(every, options.heads * self.width)
        self.message_out = self._own(options.modules * options.heads * self.width, self.width)

    def _own(self, inputs: int, outputs: int) -> nn.Conv2d:
        """Apply a 1x1 map to `outputs` channels, with separate parameters for each module."""
        return nn.Conv2d(inputs, self.modules_ * outputs, 1, groups=self.modules_)

    def _apart(self, maps: Tensor) -> Tensor:
        """[B, K n, h, w] -> [B, K, n, h, w]."""
        return maps.unflatten(1, (self.modules_, -1))

    def read(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Input attention: X_t [B, n, h, w], H_{t-1} -> A [B, K, v, h, w] and a [B, K, h, w]."""
        query = self._apart(self.query(hidden))
        score = (query * self.key(x).unsqueeze(1)).sum(2) / math.sqrt(query.shape[2])
        attention = torch.sigmoid(score)  # the softmax of this score and the null input's, which is 0
        return attention.unsqueeze(2) * self.value(x).unsqueeze(1), attention

    def choose(self, attention: Tensor) -> Tensor:
        """Activation: a [B, K, h, w] -> bool [B, K], True for the k_A modules of highest mean."""
        scores = attention.detach().float().mean((2, 3))
        order = scores.sort(dim=1, descending=True, stable=True).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, order[:, : self.active], True)

    def move(self, read: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the LSTM step of every module: A [B, K, v, h, w] and (H, C) [B, K, d, h, w] each -> (H~, C)."""
        gates = self.dynamics(torch.cat([read, hidden], 2).flatten(1, 2))
        i, f, o, g = gates.unflatten(1, (self.modules_, 4, self.width)).unbind(2)
        memory = torch.sigmoid(f + self.forget_bias) * memory + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(memory), memory

    def messages(self, hidden: Tensor, active: Tensor) -> Tensor:
        """Attend between modules: H~ [B, K, d, h, w], active bool [B, K, 1, 1, 1] -> [B, K, d, h, w]."""
        flat = hidden.flatten(1, 2)
        query, key, value = (
            self._apart(of(flat)).unflatten(2, (self.heads, -1))  # [B, K, heads, n, h, w]
            for of in (self.message_query, self.message_key, self.message_value)
        )
        awake = active.unsqueeze(2)
        key, value = (torch.where(awake, t, t.detach()) for t in (key, value))
        scores = torch.einsum("bknchw,bjnchw->bnkjhw", query, key) / math.sqrt(query.shape[3])
        read = torch.einsum("bnkjhw,bjnvhw->bknvhw", torch.softmax(scores, dim=3), value)
        return self._apart(self.message_out(read.flatten(1, 3)))

    def forward(self, x: Tensor, state: LayerState) -> LayerState:
        """X_t [B, n, h, w] and (H, C)_{t-1} [B, K d, h, w] each -> (H, C)_t."""
        before, memory_before = (self._apart(t) for t in state)
        read, attention = self.read(x, state[0])
        active = self.choose(attention)[:, :, None, None, None]
        hidden, memory = self.move(read, before, memory_before)
        hidden, memory = torch.where(active, hidden, before), torch.where(active, memory, memory_before)
        hidden = torch.where(active, hidden + self.messages(hidden, active), before)
        return hidden.flatten(1, 2), memory.flatten(1, 2)


class RIM(StackedCells):
    """A stack of RIM layers with a 1x1 read-out; H and C are [B, K d, h, w], module by module."""

    def __init__(self, options: RIMOptions, shape: FrameSpec) -> None:
        depth = shape.channels * options.patch**2
        hidden = options.modules * -(-options.hidden // options.modules)
        inputs = [depth] + [hidden] * (options.layers - 1)
        super().__init__(depth, hidden, (RIMCell(n, options) for n in inputs))
