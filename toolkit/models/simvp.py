"""SimVP with gated spatiotemporal attention (Tan et al., "SimVP: Towards Simple yet Powerful Spatiotemporal Predictive
Learning", arXiv 2211.12509; OpenSTL calls it SimVP+gSTA). Convolutions only, no recurrence.

    encoder      every frame by itself: N_S layers of a 3x3 convolution, GroupNorm(2), SiLU; layers 2, 4 ... stride 2
    translator   the T frames' features joined along channels, T x hid_S; N_T blocks with N_T x hid_T in the middle:
                 x = x + s_1 . A(norm(x)),  x = x + s_2 . M(norm(x)), s learned per channel from 0.01; then a 1x1
                 convolution where the width changes (first and last block)
                 A(x) = x + W_2 U(GELU(W_1 x)),  U = sigmoid(g) . f with f, g = 1x1 of a 7x7 convolution with dilation 3
                 of a 5x5 one, both depthwise: together a view of 23 pixels
                 M: 1x1 to 8 times the width, depthwise 3x3, GELU, 1x1 back
    decoder      mirrors the encoder, with pixel shuffles for strides; the first encoder layer's features of frame t are
                 added before the last layer of output t; a 1x1 read-out

At hid_S 64, hid_T 512, N_S 4, N_T 8 and 10 frames this has 46,769,665 parameters and 16.47 GMACs on 64 x 64: the 46.8 M
and 16.5 G of OpenSTL's tables. The two norms of a block are GroupNorm with one group here, as the later MetaFormers
have them, where OpenSTL has BatchNorm: the same parameters without running statistics. Drop path is left out (OpenSTL's
rate on Moving MNIST is 0).

T frames in give T frames out: T = `model.frames`, and the last T frames of a longer context are read. A longer horizon
is reached by feeding the predictions back, in training too; of the last pass only what is needed is used. Sizes that
2^(N_S / 2) doesn't divide are padded with zeros below and to the right, and cropped. `Rollout.predictions` holds the
horizon only, so `train.loss_frames` makes no difference; there is nothing that scheduled sampling could replace. Under
`activation_checkpointing.policy: step` a "step" is the encoder, a block of the translator or the decoder; that is a
layer already, so `per_layer` makes no difference.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.manifest import FrameSpec
from toolkit.errors import ConfigError
from toolkit.models.base import Rollout, Sampling, SequenceModel, check_context, pad_to
from toolkit.models.registry import SimVPOptions

FIRST_SCALE = 0.01
FIRST_STD = 0.02


class ConvSC(nn.Module):
    """3x3 convolution, GroupNorm(2), SiLU; to half the size, the same size or twice the size."""

    def __init__(self, inputs: int, outputs: int, resize: str = "same") -> None:
        super().__init__()
        larger = resize == "larger"
        stride = 2 if resize == "smaller" else 1
        convolution = nn.Conv2d(inputs, outputs * 4 if larger else outputs, 3, stride, padding=1)
        nn.init.trunc_normal_(convolution.weight, std=FIRST_STD)
        assert convolution.bias is not None
        nn.init.zeros_(convolution.bias)
        self.layers = nn.Sequential(
            convolution, nn.PixelShuffle(2) if larger else nn.Identity(), nn.GroupNorm(2, outputs), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Encoder(nn.Module):
    """Frames [N, C, H, W] -> features [N, hid_S, H / 2^(N_S / 2), ...], and those of the first layer at full size."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.first = ConvSC(channels, width)
        self.rest = nn.Sequential(
            *(ConvSC(width, width, "smaller" if layer % 2 else "same") for layer in range(1, layers))
        )

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(frames)
        return self.rest(first), first


class Decoder(nn.Module):
    """The encoder's mirror image."""

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.rest = nn.Sequential(
            *(ConvSC(width, width, "larger" if layer % 2 else "same") for layer in range(layers - 1, 0, -1))
        )
        self.last = ConvSC(width, width)
        self.read_out = nn.Conv2d(width, channels, 1)

    def forward(self, features: Tensor, first: Tensor) -> Tensor:
        return self.read_out(self.last(self.rest(features) + first))


class GatedAttention(nn.Module):
    """A(x): [B, n, h, w] -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(width, width, 1)
        self.near = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.far = nn.Conv2d(width, width, 7, padding=9, dilation=3, groups=width)
        self.gate = nn.Conv2d(width, 2 * width, 1)
        self.leave = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        f, g = self.gate(self.far(self.near(F.gelu(self.enter(x))))).chunk(2, 1)
        return x + self.leave(torch.sigmoid(g) * f)


class Block(nn.Module):
    """One block of the translator, [B, inputs, h, w] -> [B, outputs, h, w]."""

    def __init__(self, inputs: int, outputs: int, ratio: int) -> None:
        super().__init__()
        inner = ratio * inputs
        self.norm_attention = nn.GroupNorm(1, inputs)
        self.attention = GatedAttention(inputs)
        self.norm_mlp = nn.GroupNorm(1, inputs)
        self.mlp = nn.Sequential(
            nn.Conv2d(inputs, inner, 1),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
            nn.GELU(),
            nn.Conv2d(inner, inputs, 1),
        )
        self.scale_attention = nn.Parameter(torch.full((inputs, 1, 1), FIRST_SCALE))
        self.scale_mlp = nn.Parameter(torch.full((inputs, 1, 1), FIRST_SCALE))
        for module in (*self.attention.modules(), *self.mlp.modules()):
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        self.reduce = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale_attention * self.attention(self.norm_attention(x))
        x = x + self.scale_mlp * self.mlp(self.norm_mlp(x))
        return self.reduce(x)


class SimVP(SequenceModel):
    """Encoder, translator, decoder; as many passes as the horizon needs."""

    feeds_targets = True

    def __init__(self, options: SimVPOptions, shape: FrameSpec) -> None:
        super().__init__()
        self.frames = options.frames
        self.stride = 2 ** (options.spatial_layers // 2)
        joined = options.frames * options.spatial_hidden
        widths = [joined] + [options.hidden] * (options.layers - 1) + [joined]
        self.encoder = Encoder(shape.channels, options.spatial_hidden, options.spatial_layers)
        self.translator = nn.ModuleList(Block(n, d, options.mlp_ratio) for n, d in pairwise(widths))
        self.decoder = Decoder(shape.channels, options.spatial_hidden, options.spatial_layers)

    def forward(self, frames: Tensor, context: int, sampling: Sampling) -> Rollout:
        check_context(frames, context)
        predictions = self._run(frames[:, :context], frames.shape[1] - context)
        return Rollout(predictions, {"data": sampling.loss(predictions, frames)})

    def _predict(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        return self._run(context, horizon).expand(samples, -1, -1, -1, -1, -1)

    def _run(self, context: Tensor, horizon: int) -> Tensor:
        """[B, Tc, C, H, W] -> [B, horizon, C, H, W]."""
        if context.shape[1] < self.frames:
            raise ConfigError(
                f"model.frames {self.frames} is more than the {context.shape[1]} frames of context: "
                f"set model.frames to {context.shape[1]} for a new run, or raise data.context"
            )
        height, width = context.shape[-2:]
        padded = (height + -height % self.stride, width + -width % self.stride)
        known = context[:, -self.frames :].to(next(self.parameters()).dtype)
        beyond = self.known_frames(known, self.frames, self.frames + 1)[:, -1:].expand_as(known)
        passes: list[Tensor] = []
        for _ in range(-(-horizon // self.frames)):
            known = self.next_input(self._pass(pad_to(known, *padded))[..., :height, :width], beyond)
            passes.append(known)
        return torch.cat(passes, 1)[:, :horizon]

    def _pass(self, frames: Tensor) -> Tensor:
        """[B, T, C, H, W] -> the T frames after them."""
        batch, length = frames.shape[:2]
        features, first = self.checkpointing.run(self.encoder, frames.flatten(0, 1))
        x = features.unflatten(0, (batch, length)).flatten(1, 2)
        for block in self.translator:
            x = self.checkpointing.run(block, x)
        x = x.unflatten(1, (length, -1)).flatten(0, 1)
        return self.checkpointing.run(self.decoder, x, first).unflatten(0, (batch, length))
