"""SimVP: blocks against their equations, and horizons of any length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shards.manifest import FrameSpec
from tests.support.models import assert_same
from tests.toolkit.models.reference_layers import plain_conv2d, plain_group_norm
from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.models.base import Sampling, build_model
from toolkit.models.cost import count_macs
from toolkit.models.simvp import Block, ConvSC, Decoder, Encoder

TINY = {
    "name": "simvp", "frames": 3, "spatial_hidden": 4, "spatial_layers": 4, "hidden": 6, "layers": 3, "mlp_ratio": 2
}  # fmt: skip


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def plain_block(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    def conv(t: Tensor, name: str, **options: int) -> Tensor:
        return plain_conv2d(t, p[f"{name}.weight"], p[f"{name}.bias"], **options)

    n = x.shape[1]
    normed = plain_group_norm(x, 1, p["norm_attention.weight"], p["norm_attention.bias"])
    near = conv(gelu(conv(normed, "attention.enter")), "attention.near", padding=2, groups=n)
    far = conv(near, "attention.far", padding=9, dilation=3, groups=n)
    both = conv(far, "attention.gate")
    attended = normed + conv(torch.sigmoid(both[:, n:]) * both[:, :n], "attention.leave")
    x = x + p["scale_attention"] * attended
    normed = plain_group_norm(x, 1, p["norm_mlp.weight"], p["norm_mlp.bias"])
    wide = conv(normed, "mlp.0")
    wide = gelu(conv(wide, "mlp.1", padding=1, groups=wide.shape[1]))
    x = x + p["scale_mlp"] * conv(wide, "mlp.3")
    return conv(x, "reduce") if "reduce.weight" in p else x


def plain_conv_sc(x: Tensor, p: dict[str, Tensor], name: str, resize: str = "same") -> Tensor:
    name = f"{name}.layers"
    x = plain_conv2d(x, p[f"{name}.0.weight"], p[f"{name}.0.bias"], 2 if resize == "smaller" else 1, 1)
    if resize == "larger":  # pixel shuffle: channel 4 c + 2 i + j becomes pixel (i, j) of each 2 x 2
        batch, channels, height, width = x.shape
        larger = x.new_zeros(batch, channels // 4, 2 * height, 2 * width)
        for i in range(2):
            for j in range(2):
                larger[:, :, i::2, j::2] = x[:, 2 * i + j :: 4]
        x = larger
    x = plain_group_norm(x, 2, p[f"{name}.2.weight"], p[f"{name}.2.bias"])
    return x * torch.sigmoid(x)


@pytest.mark.parametrize("outputs", [4, 6])
def test_block_equals_the_equations(outputs: int) -> None:
    torch.manual_seed(0)
    block = Block(4, outputs, ratio=2).double()
    with torch.no_grad():
        block.scale_attention.normal_()
        block.scale_mlp.normal_()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert_same([block(x)], [plain_block(x, dict(block.named_parameters()))], [x, *block.parameters()])


def test_encoder_and_decoder_equal_the_equations() -> None:
    torch.manual_seed(0)
    encoder, decoder = Encoder(2, 4, 4).double(), Decoder(2, 4, 4).double()
    x = torch.randn(2, 2, 8, 12, dtype=torch.float64, requires_grad=True)
    p = {f"e.{n}": t for n, t in encoder.named_parameters()} | {f"d.{n}": t for n, t in decoder.named_parameters()}
    ours = encoder(x)
    assert ours[0].shape == (2, 4, 2, 3)
    first = plain_conv_sc(x, p, "e.first")
    inner = first
    for layer, resize in enumerate(("smaller", "same", "smaller")):
        inner = plain_conv_sc(inner, p, f"e.rest.{layer}", resize)
    plain = inner
    for layer, resize in enumerate(("larger", "same", "larger")):
        plain = plain_conv_sc(plain, p, f"d.rest.{layer}", resize)
    plain = plain_conv_sc(plain + first, p, "d.last")
    plain = plain_conv2d(plain, p["d.read_out.weight"], p["d.read_out.bias"])
    assert_same([*ours, decoder(*ours)], [inner, first, plain], [x, *p.values()])


def test_cost_is_the_published_one() -> None:
    config = make_config({"model": {"name": "simvp"}}, "test")
    assert count_macs(config.model, FrameSpec(1, 64, 64), 10, 10) == pytest.approx(16.5e9, rel=0.005)  # OpenSTL: 16.5 G


def test_sizes_of_conv_sc() -> None:
    x = torch.rand(1, 4, 6, 8)
    assert [ConvSC(4, 2, how)(x).shape[-2:] for how in ("same", "smaller", "larger")] == [(6, 8), (3, 4), (12, 16)]


def test_longer_horizons_feed_predictions_back() -> None:
    torch.manual_seed(0)
    model = build_model(make_config({"model": TINY}, "test").model, FrameSpec(1, 9, 10)).eval()
    context = torch.rand(2, 5, 1, 9, 10)
    long = model.predict(context, 8)[0]
    first = model.predict(context[:, -3:], 3)[0]  # only the last `frames` of the context are read
    second = model.predict(first, 3)[0]
    third = model.predict(second, 2)[0]
    assert torch.equal(long, torch.cat([first, second, third], 1))
    assert torch.equal(model.predict(context, 2)[0], first[:, :2])
    frames = torch.cat([context, torch.rand(2, 8, 1, 9, 10)], 1)
    rollout = model(frames, 5, Sampling())
    assert torch.equal(rollout.predictions, long)
    assert torch.isclose(rollout.losses["data"], (long - frames[:, 5:]).square().mean())


def test_a_context_shorter_than_a_pass_is_refused() -> None:
    model = build_model(make_config({"model": TINY}, "test").model, FrameSpec(1, 8, 8))
    with pytest.raises(
        ConfigError, match=r"model\.frames 3 is more than the 2 frames of context: set model\.frames to 2"
    ):
        model.predict(torch.rand(1, 2, 1, 8, 8), 4)
    with pytest.raises(ConfigError, match=r"model\.spatial_layers: input should be a multiple of 2, got 3"):
        make_config({"model": {**TINY, "spatial_layers": 3}}, "test")
