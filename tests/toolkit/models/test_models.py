"""What every model must do: count, shapes, gradients, checkpointing, prediction."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend

from shards.manifest import FrameSpec
from tests.support.models import SMALL, config_of
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.models.base import (
    Noise,
    Sampling,
    count_parameters,
    from_patches,
    mean_square,
    memory_layout,
    to_patches,
)
from toolkit.models.modernn import ModeCell

# A softmax ignores what is added to all of its inputs: these have gradients of rounding errors, or 0.
WITHOUT_EFFECT = ("key.2.1.bias", "key.2.bias", "context.mask.bias")

SU = {"layers": 3, "hidden": 16, "blocks": [2, 3, 3, 2], "skip": 2, "patch": 1}  # Su et al.'s 12 layers


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "modernn"}, 6_347_776),  # the paper says 6.35 M
        ({"name": "modernn", "gate_norm": True}, 6_349_824),
        ({"name": "modernn", "fusion": "equal"}, 5_683_200),
        ({"name": "modernn_released", "fusion": "equal"}, 3_071_488),
        ({"name": "convlstm", "hidden": 128}, 11_675_648),  # live parameters of OpenSTL's 4 x 128, kernel 5
        ({"name": "convlstm", "peepholes": True}, 3_167_232),
        ({"name": "modernn_released"}, 3_505_672),
        ({"name": "predrnn"}, 11_825_152),  # the paper says 11.83 M
        ({"name": "predrnn", "hidden": 128, "kernel": 5}, 23_838_720),
        ({"name": "mim"}, 18_448_384),  # the paper says 18.45 M
        ({"name": "mim", "peepholes": True}, 18_743_296),
        ({"name": "conv_tt_lstm", **SU}, 2_687_281),
        ({"name": "conv_tt_lstm", **SU, "cell": "lstm"}, 3_973_201),
        ({"name": "rim"}, 7_908_608),  # the paper says 7.91 M
        ({"name": "trajgru"}, 11_204_309),
        ({"name": "trajgru", "strides": [5, 3, 2]}, 11_211_157),
        ({"name": "svg_lp"}, 12_614_057),
        ({"name": "svg_lp", "size": 128, "backbone": "vgg", "z": 24}, 39_302_369),
        ({"name": "simvp"}, 46_769_665),  # OpenSTL says 46.8 M
        ({"name": "optical_flow"}, 0),
    ],
)
def test_parameter_counts_are_exact(options: dict, expected: int) -> None:
    config = make_config({"model": options}, "test")
    assert count_parameters(config.model, FrameSpec(1, 64, 64)) == expected


@pytest.mark.parametrize("options", [{"slots": n} for n in (1, 2, 3, 4, 5)] + [{"fusion": "equal"}])
def test_every_row_of_tables_3_and_4_trains(options: dict) -> None:
    model = untrained_model(config_of("modernn", **options), FrameSpec(1, 16, 16))
    rollout = model(torch.rand(2, 5, 1, 16, 16), 3, Sampling(torch.tensor([[True], [False]]), Noise([1, 2])))
    rollout.losses["data"].backward()
    assert rollout.predictions.shape == (2, 4, 1, 16, 16)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = untrained_model(config_of(name), FrameSpec(1, 12, 12))
    with torch.no_grad():  # what starts at zero holds back the gradients of what lies before it
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    rollout = model(torch.rand(2, 8, 1, 12, 12), 4, Sampling(noise=Noise([1, 2])))
    sum(rollout.losses.values()).backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all()
        assert p.grad.abs().max() > 0 or parameter.endswith(WITHOUT_EFFECT), parameter


@pytest.mark.parametrize("name", [name for name in SMALL if name != "svg_lp"])  # SVG's training sees the future
def test_prediction_equals_a_free_running_forward(name: str) -> None:
    torch.manual_seed(0)
    model = untrained_model(config_of(name), FrameSpec(1, 13, 18)).eval()  # 13 and 18 are not multiples of the patch
    frames = torch.rand(2, 9, 1, 13, 18)
    forward = model(frames, 4, Sampling()).predictions[:, -5:]
    predicted = model.predict(frames[:, :4], 5)
    assert predicted.shape == (1, 2, 5, 1, 13, 18)
    assert torch.equal(predicted[0], forward)
    assert model.predict(frames[:, :4], 30).shape[2] == 30


def test_loss_frames() -> None:
    torch.manual_seed(0)
    frames = torch.rand(1, 6, 1, 8, 8)
    losses = {}
    for which in ("all", "future"):
        torch.manual_seed(0)
        model = untrained_model(config_of("convlstm", loss_frames=which), FrameSpec(1, 8, 8))
        rollout = model(frames, 4, Sampling())
        losses[which] = rollout.losses["data"]
        square = (rollout.predictions - frames[:, 1:]).square()
    assert torch.isclose(losses["all"], square.mean())
    assert torch.isclose(losses["future"], square[:, 3:].mean())


def test_slot_bus_is_random_in_training_and_its_mean_at_evaluation() -> None:
    model = untrained_model(config_of("modernn"), FrameSpec(1, 8, 8))
    frames = torch.rand(1, 5, 1, 8, 8)

    def last(noise: Noise | None) -> torch.Tensor:
        return model(frames, 4, Sampling(noise=noise)).predictions.detach()

    assert torch.equal(last(Noise([1])), last(Noise([1])))
    assert not torch.equal(last(Noise([1])), last(Noise([2])))
    model.eval()
    assert torch.equal(last(Noise([1])), last(Noise([2])))
    assert torch.equal(last(Noise([1])), last(None))


def test_noise_does_not_depend_on_the_split_of_the_batch() -> None:
    whole = Noise([7, 8, 9]).normal(4, 3)
    parts = torch.cat([Noise([7]).normal(4, 3), Noise([8, 9]).normal(4, 3)])
    assert torch.equal(whole, parts)


def test_attention_never_stores_the_softmax_map(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = ModeCell(width=8, slots=4, gate_norm=False, forget_bias=1.0)
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        seen.append(SDPBackend(torch._fused_sdp_choice(q, k, v)))
        return attention(q, k, v, scale=scale)

    monkeypatch.setattr("toolkit.models.fused.F.scaled_dot_product_attention", spy)
    x = torch.randn(1, 8, 6, 6)
    cell(x, (x, x))
    assert seen == [SDPBackend.FLASH_ATTENTION]


def test_patches_round_trip() -> None:
    frames = torch.rand(2, 3, 2, 10, 15)
    patched = to_patches(frames, 4)
    assert patched.shape == (2, 3, 32, 3, 4)
    assert torch.equal(from_patches(patched, 4, 10, 15), frames)


def test_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.kernel: must be odd.* use 3 or 5, got 4"):
        untrained_model(config_of("convlstm", kernel=4), FrameSpec(1, 8, 8))


@pytest.mark.parametrize("name", ["convlstm", "mim"])
def test_peepholes_are_of_one_frame_size(name: str) -> None:
    model = untrained_model(config_of(name, peepholes=True), FrameSpec(1, 8, 8))
    with pytest.raises(ValueError, match=r"made for a grid of 2 x 2 patches, these frames give 3 x 2"):
        model(torch.rand(1, 5, 1, 12, 8), 3, Sampling())


def test_context_longer_than_the_sequence_is_refused() -> None:
    model = untrained_model(config_of("convlstm"), FrameSpec(1, 8, 8))
    with pytest.raises(ValueError, match=r"context 5 must be in 1\.\.4"):
        model(torch.rand(1, 5, 1, 8, 8), 5, Sampling())


@pytest.mark.parametrize("name", SMALL)
def test_missing_pixels_are_not_in_the_loss(name: str) -> None:
    """Whatever a missing pixel of a target holds, the loss is the same; a seen one changes it."""
    torch.manual_seed(0)
    model = untrained_model(config_of(name, loss_frames="future"), FrameSpec(1, 16, 16))
    frames = torch.rand(2, 6, 1, 16, 16)
    observed = torch.ones_like(frames, dtype=torch.bool)
    observed[0, 5, :, 4:9] = False  # the last frame: no model's input

    def loss(value: float | None, seen: torch.Tensor | None) -> torch.Tensor:
        changed = frames.clone()
        if value is not None:
            changed[0, 5, :, 4:9] = value
        return model(changed, 3, Sampling(observed=seen)).losses["data"].detach()

    assert torch.isclose(loss(None, None), loss(None, torch.ones_like(observed)))
    if name != "svg_lp":  # its posterior sees the target
        assert torch.equal(loss(0.0, observed), loss(1.0, observed))
    assert not torch.isclose(loss(0.0, None), loss(1.0, None))


def test_the_masked_loss_does_not_depend_on_how_a_batch_is_divided() -> None:
    predictions, frames = torch.rand(4, 3, 1, 5, 5), torch.rand(4, 4, 1, 5, 5)
    observed = torch.rand(4, 4, 1, 5, 5) < 0.3
    observed[2] = False
    whole = mean_square(predictions, frames, observed)
    parts = [mean_square(predictions[i : i + 2], frames[i : i + 2], observed[i : i + 2]) for i in (0, 2)]
    assert torch.isclose(whole, (parts[0] + parts[1]) / 2)
    by_hand = [((p - f[1:])[o[1:]]).square().mean() for p, f, o in zip(predictions, frames, observed, strict=True)]
    assert torch.isclose(whole, torch.stack(by_hand).nan_to_num(0).mean())


def test_how_maps_lie_in_memory() -> None:
    """On a CPU and on CUDA channels-last in bf16, and in any precision for models that ask; nowhere else."""
    last, plain = torch.channels_last, torch.contiguous_format
    expected = {
        ("cpu", torch.bfloat16): (last, last),
        ("cuda", torch.bfloat16): (last, last),
        ("meta", torch.bfloat16): (plain, plain),
        ("cpu", torch.float32): (last, plain),
        ("cuda", torch.float32): (last, plain),
        ("cuda", torch.float64): (last, plain),
        ("meta", torch.float32): (plain, plain),
    }
    cells = [untrained_model(config_of(name), FrameSpec(1, 8, 8)).cell for name in ("modernn", "predrnn")]
    with FakeTensorMode():
        for (device, dtype), layouts in expected.items():
            frames = torch.empty(1, 2, 1, 8, 8, device=device, dtype=dtype)
            assert tuple(memory_layout(cell, frames) for cell in cells) == layouts, (device, dtype)
