"""SVG-LP's training pass from its equations: one frame and one step at a time, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.toolkit.models.reference_layers import (
    plain_conv2d,
    plain_conv_transpose2d,
    plain_group_norm,
    plain_leaky,
    plain_lstm,
)

Parameters = dict[str, Tensor]


def _normed(x: Tensor, p: Parameters, name: str) -> Tensor:
    channels = x.shape[1]
    groups = channels // 16 if channels % 16 == 0 else 1
    return plain_leaky(plain_group_norm(x, groups, p[f"{name}.1.weight"], p[f"{name}.1.bias"]))


def _conv(x: Tensor, p: Parameters, name: str, **options: int) -> Tensor:
    return plain_conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], **options)


def _vgg(x: Tensor, p: Parameters, name: str, count: int) -> Tensor:
    for layer in range(count):
        x = _normed(_conv(x, p, f"{name}.{layer}.0", padding=1), p, f"{name}.{layer}")
    return x


def plain_encode(x: Tensor, p: Parameters, levels: int, vgg: bool) -> tuple[Tensor, list[Tensor]]:
    features = []
    for level in range(levels):
        name = f"encoder.levels.{level}"
        if vgg:
            x = _vgg(x, p, name, 2 if level < 2 else 3)
            features.append(x)
            x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax((3, 5))  # 2x2 max-pooling
        else:
            x = _normed(_conv(x, p, f"{name}.0", stride=2, padding=1), p, name)
            features.append(x)
    code = _conv(x, p, "encoder.code.0")
    code = plain_group_norm(code, 1, p["encoder.code.1.weight"], p["encoder.code.1.bias"])
    return torch.tanh(code)[:, :, 0, 0], features


def plain_decode(code: Tensor, features: list[Tensor], p: Parameters, vgg: bool) -> Tensor:
    def up(x: Tensor, name: str, stride: int, padding: int) -> Tensor:
        return plain_conv_transpose2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride, padding)

    x = _normed(up(code[:, :, None, None], "decoder.code.0", 1, 0), p, "decoder.code")
    levels = len(features)
    for number, level in enumerate(range(levels - 1, -1, -1)):
        name = f"decoder.levels.{number}"
        if vgg:
            x = x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).flatten(2, 3).flatten(3, 4)  # nearest
        x = torch.cat([x, features[level]], 1)
        if vgg and level:
            x = _vgg(x, p, name, 2 if level < 2 else 3)
        elif vgg:
            x = torch.sigmoid(_conv(_vgg(x, p, name, 1), p, f"{name}.1", padding=1))
        elif level:
            x = _normed(up(x, f"{name}.0", 2, 1), p, name)
        else:
            x = torch.sigmoid(up(x, f"{name}.0", 2, 1))
    return x


def _linear(x: Tensor, p: Parameters, name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _recurrent(x: Tensor, states: list[tuple[Tensor, Tensor]], p: Parameters, name: str) -> Tensor:
    """One step of an embedding and its LSTM layers; replaces the states."""
    x = _linear(x, p, f"{name}.embed")
    for layer, state in enumerate(states):
        states[layer] = plain_lstm(x, state, p, f"{name}.layers.{layer}")
        x = states[layer][0]
    return x


def plain_svg(
    frames: Tensor, context: int, noise: Tensor, p: Parameters, levels: int, vgg: bool, layers: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """frames [B, T, C, S, S], noise [B, T - 1, z] -> predictions [B, T - 1, ...], mean squared error, KL."""
    batch, length = frames.shape[:2]

    def zeros(name: str) -> list[tuple[Tensor, Tensor]]:
        units = p["predictor.embed.weight"].shape[0]
        return [(frames.new_zeros(batch, units), frames.new_zeros(batch, units)) for _ in range(layers[name])]

    states = {name: zeros(name) for name in ("posterior", "prior", "predictor")}
    predictions, errors, divergences = [], [], []
    for t in range(1, length):
        before, features = plain_encode(frames[:, t - 1], p, levels, vgg)
        after, _ = plain_encode(frames[:, t], p, levels, vgg)
        if t <= context:
            skip = features
        told = _recurrent(after, states["posterior"], p, "posterior.lstm")
        guessed = _recurrent(before, states["prior"], p, "prior.lstm")
        mean, log_var = _linear(told, p, "posterior.mean"), _linear(told, p, "posterior.log_var")
        mean0, log_var0 = _linear(guessed, p, "prior.mean"), _linear(guessed, p, "prior.log_var")
        sigma, sigma0 = torch.exp(log_var / 2), torch.exp(log_var0 / 2)
        kl = torch.log(sigma0 / sigma) + (sigma**2 + (mean - mean0) ** 2) / (2 * sigma0**2) - 0.5
        divergences.append(kl.sum() / batch)
        z = mean + sigma * noise[:, t - 1]
        code = _recurrent(torch.cat([before, z], 1), states["predictor"], p, "predictor")
        prediction = plain_decode(torch.tanh(_linear(code, p, "predicted.0")), skip, p, vgg)
        predictions.append(prediction)
        errors.append((prediction - frames[:, t]).square().mean())
    return torch.stack(predictions, 1), sum(errors) / len(errors), sum(divergences) / len(divergences)
