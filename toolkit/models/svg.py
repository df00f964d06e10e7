"""SVG-LP (Denton & Fergus, "Stochastic Video Generation with a Learned Prior", ICML 2018, arXiv 1802.07687).

A frame x_t has a code h_t = Enc(x_t); a random z_t says what is new in frame t. Three LSTMs on codes:

    posterior    mu_t, log_var_t = LSTM_phi(h_t)                 sees the frame that is to be predicted
    prior        mu'_t, log_var'_t = LSTM_psi(h_{t-1})
    predictor    g_t = tanh(W LSTM_theta(h_{t-1}, z_t)),  x^_t = Dec(g_t, skips of Enc)
    training     z_t = mu_t + exp(log_var_t / 2) eps; every h_{t-1} is that of the true frame
                 loss = mean squared error + beta KL(Normal(mu_t, log_var_t) || Normal(mu'_t, log_var'_t))
    forecast     z_t from the posterior while frames are known, from the prior after that; x^_t is the next input

Each LSTM has a linear embedding before its layers. Enc and Dec are the published ones, `dcgan` (4x4 convolutions of
stride 2) or `vgg` (3x3 convolutions, max-pooling, nearest-neighbour upsampling), for 64 (4 levels) or 128 pixels (5
levels) a side, and with fewer or more levels for other powers of two; the last level is 4x4 and one more 4x4
convolution makes the code of it. Frames are padded with zeros below and to the right to the square, and cropped.

What stands otherwise here than in the published code:
    - GroupNorm of 16 channels a group (one group where 16 doesn't divide; for the 1x1 code too) instead of BatchNorm:
      the same parameters, but no running statistics, and equal results on any number of ranks and under recomputation.
      (The published code generates with BatchNorm in training mode.)
    - Both losses are means over time steps and sequences (KL summed over z), so that beta keeps its published meaning;
      the published loss is a sum over steps, which is the same for Adam.
    - Skips come from frame t - 1 during the context and stay those of the last known frame after it, as in the paper;
      the published code stays at the frame before that.
    - Forecasts begin with context steps whose z_t are drawn from the posterior, as published; without a generator every
      z_t is its mean.
    - `train.loss_frames: future` takes both losses over the horizon only. Scheduled sampling has no place here, since
      training always shows the true previous frame.

`initialisation: published` starts convolutions and linear maps at N(0, 0.02) with zero biases, the gains of the
normalisations at N(1, 0.02) and LSTMs as PyTorch does; the default is PyTorch's own for all of them.

Random numbers are drawn before anything that is checkpointed. Under `activation_checkpointing.policy: step` the encoder
and the decoder are recomputed frame by frame; what is kept are codes, LSTM states, and the skips of known frames.
`activation_checkpointing.per_layer` makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from shards.manifest import FrameSpec
from toolkit.errors import ConfigError
from toolkit.models.base import Noise, Rollout, Sampling, SequenceModel, check_context, pad_to
from toolkit.models.registry import SVGOptions

SLOPE = 0.2
DEVIATION = 0.02  # of published initial weights
GROUP = 16
SMALLEST = 4  # side of the last level

LSTMState = list[tuple[Tensor, Tensor]]  # (h, c) of every layer, each [B, units]


def kl_divergence(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
    """KL(Normal(mean, exp(log_var)) || Normal(prior_mean, exp(prior_log_var))): [..., n] each -> [...].

    In float32 at least. Diagonal covariances: the sum over n of
    (log_var' - log_var + (var + (mean - mean')^2) / var' - 1) / 2.
    """
    exact = torch.promote_types(mean.dtype, torch.float32)
    m, v, m0, v0 = (t.to(exact) for t in (mean, log_var, prior_mean, prior_log_var))
    return 0.5 * (v0 - v + torch.exp(v - v0) + (m - m0).square() * torch.exp(-v0) - 1).sum(-1)


def norm(channels: int) -> nn.GroupNorm:
    """Normalise groups of 16 channels, or one group."""
    return nn.GroupNorm(channels // GROUP if channels % GROUP == 0 else 1, channels)


def block(convolution: nn.Module, channels: int) -> nn.Sequential:
    """Build a convolution to `channels`, normalised, LeakyReLU."""
    return nn.Sequential(convolution, norm(channels), nn.LeakyReLU(SLOPE))


def vgg_layers(widths: Sequence[int]) -> nn.Sequential:
    """3x3 convolutions from each width to the next."""
    return nn.Sequential(*(block(nn.Conv2d(n, d, 3, padding=1), d) for n, d in pairwise(widths)))


class Encoder(nn.Module):
    """A frame [B, C, S, S] -> its code [B, g] and the features of every level for the decoder.

    Level i has `widths[i]` channels. dcgan: S / 2, S / 4 ... 4 pixels a side. vgg: S, S / 2 ... 8.
    """

    def __init__(self, channels: int, widths: Sequence[int], latent: int, vgg: bool) -> None:
        super().__init__()
        if vgg:
            self.pool: nn.Module = nn.MaxPool2d(2)
            self.levels = nn.ModuleList(
                vgg_layers([n] + [d] * depth_of(level)) for level, (n, d) in enumerate(pairwise((channels, *widths)))
            )
        else:
            self.pool = nn.Identity()
            self.levels = nn.ModuleList(
                block(nn.Conv2d(n, d, 4, 2, padding=1), d) for n, d in pairwise((channels, *widths))
            )
        self.code = nn.Sequential(nn.Conv2d(widths[-1], latent, SMALLEST), nn.GroupNorm(1, latent), nn.Tanh())

    def forward(self, frame: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, features = frame, []
        for level in self.levels:
            features.append(level(x))
            x = self.pool(features[-1])
        return self.code(x).flatten(1), features


def depth_of(level: int) -> int:
    """Convolutions in a level of the vgg encoder: 2, 2, 3, 3 ..."""
    return 2 if level < 2 else 3


class Decoder(nn.Module):
    """A code [B, g] and the encoder's features -> a frame [B, C, S, S] in 0..1."""

    def __init__(self, channels: int, widths: Sequence[int], latent: int, vgg: bool) -> None:
        super().__init__()
        self.code = block(nn.ConvTranspose2d(latent, widths[-1], SMALLEST), widths[-1])
        self.grow: nn.Module = nn.Upsample(scale_factor=2, mode="nearest") if vgg else nn.Identity()
        levels: list[nn.Module] = []
        for level in range(len(widths) - 1, 0, -1):
            here, above = widths[level], widths[level - 1]
            if vgg:
                levels.append(vgg_layers([2 * here] + [here] * (depth_of(level) - 1) + [above]))
            else:
                levels.append(block(nn.ConvTranspose2d(2 * here, above, 4, 2, padding=1), above))
        first = widths[0]
        if vgg:
            last = [*vgg_layers([2 * first, first]), nn.Conv2d(first, channels, 3, padding=1)]
        else:
            last = [nn.ConvTranspose2d(2 * first, channels, 4, 2, padding=1)]
        self.levels = nn.ModuleList([*levels, nn.Sequential(*last, nn.Sigmoid())])

    def forward(self, code: Tensor, features: list[Tensor]) -> Tensor:
        x = self.code(code[:, :, None, None])
        for level, skip in zip(self.levels, reversed(features), strict=True):
            x = level(torch.cat([self.grow(x), skip], 1))
        return x


class Recurrent(nn.Module):
    """A linear embedding and LSTM layers."""

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__()
        self.units = units
        self.embed = nn.Linear(inputs, units)
        self.layers = nn.ModuleList(nn.LSTMCell(units, units) for _ in range(layers))

    def start(self, batch: int, like: Tensor) -> LSTMState:
        zero = like.new_zeros(batch, self.units)
        return [(zero, zero) for _ in self.layers]

    def forward(self, x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """[B, inputs] -> [B, units] and the next state."""
        x, after = self.embed(x), []
        for layer, before in zip(self.layers, state, strict=True):
            after.append(layer(x, before))
            x = after[-1][0]
        return x, after


class Gaussian(nn.Module):
    """Prior or posterior: codes over time -> mean and log-variance of z."""

    def __init__(self, inputs: int, units: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.lstm = Recurrent(inputs, units, layers)
        self.mean = nn.Linear(units, outputs)
        self.log_var = nn.Linear(units, outputs)

    def forward(self, code: Tensor, state: LSTMState) -> tuple[Tensor, Tensor, LSTMState]:
        """[B, g] -> mean [B, z], log-variance [B, z], the next state."""
        x, state = self.lstm(code, state)
        return self.mean(x), self.log_var(x), state


@torch.no_grad()
def _as_published(module: nn.Module) -> None:
    """Initialise one module as the authors' code does; LSTM cells keep PyTorch's initialisation."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.GroupNorm):
        module.weight.normal_(1.0 if isinstance(module, nn.GroupNorm) else 0.0, DEVIATION)
        if module.bias is not None:
            module.bias.zero_()


class SVG(SequenceModel):
    """SVG-LP; in training the posterior says what will happen, in a forecast the prior."""

    stochastic = True
    feeds_targets = True

    def __init__(self, options: SVGOptions, shape: FrameSpec) -> None:
        super().__init__()
        self.size, self.z, self.beta, self.sample_batch = options.size, options.z, options.beta, options.sample_batch
        self._check_size(shape.height, shape.width)
        count = int(math.log2(options.size // SMALLEST))
        widths = [options.width * min(2**level, 8) for level in range(count)]
        vgg = options.backbone == "vgg"
        self.encoder = Encoder(shape.channels, widths, options.latent, vgg)
        self.decoder = Decoder(shape.channels, widths, options.latent, vgg)
        self.predictor = Recurrent(options.latent + options.z, options.rnn, options.predictor_layers)
        self.predicted = nn.Sequential(nn.Linear(options.rnn, options.latent), nn.Tanh())
        self.posterior = Gaussian(options.latent, options.rnn, options.posterior_layers, options.z)
        self.prior = Gaussian(options.latent, options.rnn, options.prior_layers, options.z)
        if options.initialisation == "published":
            self.apply(_as_published)

    def _check_size(self, height: int, width: int) -> None:
        if max(height, width) > self.size:
            fitting = 1 << (max(height, width) - 1).bit_length()
            raise ConfigError(
                f"model.size {self.size} is smaller than frames of {height}x{width}: set model.size to {fitting}, or "
                "convert the archive at a smaller size"
            )

    def forward(self, frames: Tensor, context: int, sampling: Sampling) -> Rollout:
        check_context(frames, context)
        frames = self.known_frames(frames, context, frames.shape[1])
        batch, length = frames.shape[:2]
        known = self._fit(frames)
        noise = self._noise([sampling.noise], batch, length - 1, known)[0]
        codes, skips = self._encode(known, context)
        posterior, prior, predictor = self._start(batch, known)
        predictions, divergences = [], []
        for t in range(length - 1):  # from frame t to frame t + 1
            mean, log_var, posterior = self.posterior(codes[t + 1], posterior)
            prior_mean, prior_log_var, prior = self.prior(codes[t], prior)
            divergences.append(kl_divergence(mean, log_var, prior_mean, prior_log_var))
            code, predictor = self._next(codes[t], mean + torch.exp(0.5 * log_var) * noise[:, t], predictor)
            skip = skips[min(t, context - 1)]
            predictions.append(self.checkpointing.run(self.decoder, code, skip))
        first = 0 if self.loss_frames == "all" else context - 1
        rollout = torch.stack(predictions, 1)[..., : frames.shape[-2], : frames.shape[-1]]
        kl = torch.stack(divergences[first:]).mean()
        return Rollout(rollout, {"data": sampling.loss(rollout[:, first:], frames), "kl": self.beta * kl})

    def _predict(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        """As in `SequenceModel`. The first members of an ensemble don't depend on its size."""
        batch, known = context.shape[:2]
        sources = [
            Noise.from_generator(generator, batch, context.device) if generator is not None else None
            for _ in range(samples)
        ]
        frames = self._fit(context)
        noise = self._noise(sources, batch, known + horizon - 1, frames)
        codes, skips = self._encode(frames, known)
        beyond = self.known_frames(frames, known, known + 1)[:, -1]
        at_once = max(1, self.sample_batch // batch)
        members = [
            self._forecast(codes, skips[-1], beyond, part, horizon).unflatten(0, (-1, batch))
            for part in noise.split(at_once)
        ]
        return torch.cat(members)[..., : context.shape[-2], : context.shape[-1]]

    def _forecast(self, codes: list[Tensor], skip: list[Tensor], beyond: Tensor, noise: Tensor, horizon: int) -> Tensor:
        """Predict members: codes of known frames [B, g], inputs beyond them that are not targets [B, C, size, size],
        noise [S, B, steps, z] -> [S B, horizon, C, size, size].
        """
        samples, batch = noise.shape[:2]
        codes, skip = ([t.repeat(samples, *[1] * (t.dim() - 1)) for t in tensors] for tensors in (codes, skip))
        noise, beyond = noise.flatten(0, 1), beyond.repeat(samples, 1, 1, 1)
        posterior, prior, predictor = self._start(samples * batch, noise)
        predictions: list[Tensor] = []
        for t in range(noise.shape[1]):
            code = codes[t] if t < len(codes) else self.encoder(self.next_input(predictions[-1], beyond))[0]
            mean, log_var, prior = self.prior(code, prior)
            if t + 1 < len(codes):
                mean, log_var, posterior = self.posterior(codes[t + 1], posterior)
            code, predictor = self._next(code, mean + torch.exp(0.5 * log_var) * noise[:, t], predictor)
            if t + 1 >= len(codes):
                predictions.append(self.decoder(code, skip))
        assert len(predictions) == horizon
        return torch.stack(predictions, 1)

    def _fit(self, frames: Tensor) -> Tensor:
        """[B, T, C, H, W] -> [B, T, C, size, size] in the model's dtype."""
        self._check_size(*frames.shape[-2:])
        return pad_to(frames.to(next(self.parameters()).dtype), self.size, self.size)

    def _noise(self, sources: Sequence[Noise | None], batch: int, steps: int, like: Tensor) -> Tensor:
        """Draw standard normal numbers [S, B, steps, z]; zeros without a generator."""
        drawn = [
            like.new_zeros(batch, steps, self.z) if source is None else source.normal(steps, self.z).to(like.dtype)
            for source in sources
        ]
        return torch.stack(drawn)

    def _encode(self, frames: Tensor, known: int) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Return the code of every frame [B, g], and the features of the first `known`."""
        codes, skips = [], []
        for t, frame in enumerate(frames.unbind(1)):
            code, features = self.checkpointing.run(self.encoder, frame)
            codes.append(code)
            if t < known:
                skips.append(features)
        return codes, skips

    def _start(self, batch: int, like: Tensor) -> tuple[LSTMState, LSTMState, LSTMState]:
        """States of posterior, prior and predictor."""
        posterior, prior = self.posterior.lstm.start(batch, like), self.prior.lstm.start(batch, like)
        return posterior, prior, self.predictor.start(batch, like)

    def _next(self, code: Tensor, z: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """h_{t-1} [B, g] and z_t [B, z] -> g_t [B, g]."""
        x, state = self.predictor(torch.cat([code, z], 1), state)
        return self.predicted(x), state
