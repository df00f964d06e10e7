"""SVG-LP: the whole training pass against its equations, the KL, and where its random numbers come from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as torch_kl

from shards.manifest import FrameSpec
from tests.toolkit.models.reference_svg import plain_svg
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.models.base import Noise, Sampling
from toolkit.models.registry import SVGOptions
from toolkit.models.svg import SVG, kl_divergence

TINY = {"name": "svg_lp", "size": 16, "width": 2, "latent": 5, "rnn": 6, "z": 3, "beta": 0.5}


def make(train: dict | None = None, **options) -> SVG:
    torch.manual_seed(1)
    config = make_config({"model": {**TINY, **options}, "train": train or {}}, "test")
    model = untrained_model(config, FrameSpec(1, 16, 16))
    assert isinstance(model, SVG)
    return model


@pytest.mark.parametrize(("backbone", "size"), [("dcgan", 16), ("vgg", 16), ("vgg", 32)])
def test_training_pass_equals_the_equations(backbone: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(size=size, backbone=backbone, predictor_layers=2, prior_layers=1, posterior_layers=1).double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the losses, which are float32 otherwise
    frames = torch.rand(2, 5, 1, size, size, dtype=torch.float64)
    rollout = model(frames, 3, Sampling(noise=Noise([3, 4])))
    parameters = dict(model.named_parameters())
    layers = {"predictor": 2, "prior": 1, "posterior": 1}
    noise = Noise([3, 4]).normal(4, 3).double()
    predictions, mse, kl = plain_svg(frames, 3, noise, parameters, size.bit_length() - 3, backbone == "vgg", layers)
    assert torch.allclose(rollout.predictions, predictions, rtol=0, atol=1e-10)
    assert torch.allclose(rollout.losses["data"], mse, rtol=0, atol=1e-10)
    assert torch.allclose(rollout.losses["kl"], 0.5 * kl, rtol=0, atol=1e-10)  # beta stands inside
    ours = torch.autograd.grad(sum(rollout.losses.values()), parameters.values())
    plain = torch.autograd.grad(mse + 0.5 * kl, parameters.values())
    for name, a, b in zip(parameters, ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), name
        assert a.abs().max() > 0, name


def test_kl_equals_the_closed_form_and_a_monte_carlo_estimate() -> None:
    torch.manual_seed(0)
    mean, log_var, mean0, log_var0 = torch.randn(4, 2, 3, dtype=torch.float64)
    ours = kl_divergence(mean, log_var, mean0, log_var0)
    first = Independent(Normal(mean, torch.exp(log_var / 2)), 1)
    second = Independent(Normal(mean0, torch.exp(log_var0 / 2)), 1)
    assert torch.allclose(ours, torch_kl(first, second), rtol=1e-12, atol=0)
    draws = first.sample((200_000,))
    differences = first.log_prob(draws) - second.log_prob(draws)
    assert torch.all((differences.mean(0) - ours).abs() < 5 * differences.std(0) / math.sqrt(len(draws)))
    assert torch.equal(kl_divergence(mean, log_var, mean, log_var), torch.zeros(2, dtype=torch.float64))
    assert kl_divergence(*torch.randn(4, 2, 3).bfloat16()).dtype == torch.float32


def test_loss_frames_takes_both_losses_over_the_horizon() -> None:
    frames = torch.rand(2, 6, 1, 16, 16)
    model = make({"loss_frames": "future"})
    rollout = model(frames, 4, Sampling())
    assert torch.isclose(rollout.losses["data"], (rollout.predictions[:, 3:] - frames[:, 4:]).square().mean())
    model.loss_frames = "all"
    everywhere = model(frames, 4, Sampling())
    assert torch.equal(everywhere.predictions, rollout.predictions)
    assert everywhere.losses["kl"] != rollout.losses["kl"]


def test_skips_are_those_of_the_last_known_frame() -> None:
    """Later frames reach a prediction through their codes only."""
    model, seen = make(), []
    decode = model.decoder.forward
    model.decoder.forward = lambda code, skip: (seen.append(skip[0]), decode(code, skip))[1]
    frames = torch.rand(2, 6, 1, 16, 16)
    model(frames, 3, Sampling())
    first = [model.encoder(frames[:, t])[1][0] for t in range(3)]
    assert [next(t for t in range(3) if torch.equal(skip, first[t])) for skip in seen] == [0, 1, 2, 2, 2]


def test_noise_does_not_depend_on_the_split_of_the_batch() -> None:
    model = make()
    frames = torch.rand(3, 5, 1, 16, 16)
    whole = model(frames, 3, Sampling(noise=Noise([7, 8, 9]))).predictions
    parts = [model(frames[:1], 3, Sampling(noise=Noise([7]))), model(frames[1:], 3, Sampling(noise=Noise([8, 9])))]
    assert torch.allclose(whole, torch.cat([part.predictions for part in parts]), atol=1e-6)
    assert not torch.allclose(whole, model(frames, 3, Sampling(noise=Noise([7, 8, 1]))).predictions, atol=1e-6)


def test_forecasts_are_deterministic_under_a_generator() -> None:
    model = make(sample_batch=4).eval()
    context = torch.rand(2, 3, 1, 16, 16)

    def forecast(samples: int, seed: int | None) -> torch.Tensor:
        return model.predict(context, 4, samples, None if seed is None else torch.Generator().manual_seed(seed))

    members = forecast(5, 1)
    assert members.shape == (5, 2, 4, 1, 16, 16)
    assert torch.equal(members, forecast(5, 1))
    assert not torch.allclose(members, forecast(5, 2))
    assert not torch.allclose(members[0], members[1])
    assert torch.allclose(forecast(2, 1), members[:2], atol=1e-6)  # a smaller ensemble is the start of a larger one
    mean = forecast(3, None)
    assert torch.allclose(mean[0], mean[2], atol=1e-6)
    state = torch.get_rng_state()
    forecast(2, 1)
    assert torch.equal(state, torch.get_rng_state())  # the global generator isn't touched


def test_batched_members_equal_single_ones() -> None:
    model = make().eval()
    context = torch.rand(2, 3, 1, 16, 16)
    together = model.predict(context, 3, 4, torch.Generator().manual_seed(0))
    model.sample_batch = 1
    assert torch.allclose(model.predict(context, 3, 4, torch.Generator().manual_seed(0)), together, atol=1e-6)


@pytest.mark.parametrize(("size", "backbone", "smallest"), [(64, "vgg", 8), (128, "dcgan", 4)])
def test_published_levels(size: int, backbone: str, smallest: int) -> None:
    model = make(size=size, backbone=backbone)
    features = model.encoder(torch.rand(1, 1, size, size))[1]
    assert len(features) == {64: 4, 128: 5}[size]
    assert features[-1].shape[-1] == smallest


def test_frames_larger_than_the_square_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.size 16 is smaller than frames of 16x20: set model\.size to 32"):
        untrained_model(make_config({"model": TINY}, "test"), FrameSpec(1, 16, 20))
    with pytest.raises(ConfigError, match=r"power of two.*use 32 or 64"):
        make_config({"model": {**TINY, "size": 48}}, "test")


def test_published_initialisation() -> None:
    torch.manual_seed(0)
    options = SVGOptions(size=32, width=16, latent=32, rnn=64, initialisation="published")
    model = SVG(options, FrameSpec(1, 32, 32))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.2)
            assert not module.bias.any()
        if isinstance(module, nn.LSTMCell):  # PyTorch's: uniform in +- 1 / sqrt(64)
            assert module.weight_hh.abs().max().item() == pytest.approx(1 / 8, rel=0.01)
        if isinstance(module, nn.GroupNorm):
            assert abs(module.weight.mean().item() - 1) < 0.02
            assert 0 < module.weight.std().item() < 0.04
