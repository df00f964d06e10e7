"""The released wiring of ModeRNN: the equations, its ties to one grid, its normalisations."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend

from shards.manifest import FrameSpec
from tests.support.models import assert_same
from tests.toolkit.models.reference_modernn_released import plain_released_cell
from toolkit.config import make_config
from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.base import build_model, count_parameters
from toolkit.models.modernn_released import ReleasedModeCell

WITHOUT_EFFECT = ("key.2.bias", "fuse_if.context.mask.bias", "fuse_og.context.mask.bias")


def made(slots: int, conv_norm: str, fusion: str) -> ReleasedModeCell:
    torch.manual_seed(slots)
    cell = ReleasedModeCell(width=4, slots=slots, grid=(5, 3), conv_norm=conv_norm, fusion=fusion).double()
    with torch.no_grad():  # ones and zeros at the start would hide a fault
        for p in cell.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return cell


@pytest.mark.parametrize("fusion", ["adaptive", "equal"])
@pytest.mark.parametrize("slots", [1, 2, 4, 8])
@pytest.mark.parametrize("conv_norm", ["sample", "batch"])
def test_the_cell_equals_its_description(slots: int, conv_norm: str, fusion: str) -> None:
    cell = made(slots, conv_norm, fusion)
    x, hidden, bus = (torch.randn(2, 4, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    parameters = dict(cell.named_parameters())
    ours = cell(x, (hidden, bus))
    plain = plain_released_cell(x, hidden, bus, parameters, slots, conv_norm == "batch")
    assert ("fuse_if.weigh.weight" in parameters) == (fusion == "adaptive")
    # BatchNorm takes away what the depthwise convolution's bias adds
    none = (*WITHOUT_EFFECT, *(f"{n}.0.bias" for n in ("query", "key", "value") if conv_norm == "batch"))
    none = tuple(name for name in none if name in parameters)
    effective = [p for name, p in parameters.items() if name not in none]
    assert_same(ours, plain, [x, hidden, bus, *effective])
    idle = torch.autograd.grad(cell(x, (hidden, bus))[0].sum(), [parameters[name] for name in none])
    assert all(gradient.abs().max() < 1e-10 for gradient in idle)


@pytest.mark.parametrize(
    ("size", "patch", "slots", "expected"),
    [
        (64, 4, 1, 3_302_920),
        (64, 4, 2, 3_370_504),
        (64, 4, 8, 3_776_008),
        (128, 4, 4, 5_078_536),
        (384, 8, 4, 7_706_120),
        (384, 4, 4, 21_855_752),  # 86 % of it gains and biases per position
    ],
)
def test_counts_by_slots_and_size(size: int, patch: int, slots: int, expected: int) -> None:
    config = make_config({"model": {"name": "modernn_released", "slots": slots, "patch": patch}}, "test")
    assert count_parameters(config.model, FrameSpec(1, size, size)) == expected


def test_the_default_treats_every_sample_alone() -> None:
    for conv_norm, alone in (("sample", True), ("batch", False)):
        model = {"name": "modernn_released", "layers": 1, "hidden": 8, "conv_norm": conv_norm}
        torch.manual_seed(0)
        predictor = build_model(make_config({"model": model}, "test").model, FrameSpec(1, 8, 12)).eval()
        frames = torch.rand(2, 3, 1, 8, 12)
        together = predictor.predict(frames, 2)[:, :1]
        assert torch.allclose(together, predictor.predict(frames[:1], 2), atol=1e-6) == alone
        assert not list(predictor.buffers())  # no running statistics


def test_attention_never_stores_the_softmax_map(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = ReleasedModeCell(width=8, slots=4, grid=(6, 6), conv_norm="sample")
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        seen.append(SDPBackend(torch._fused_sdp_choice(q, k, v)))
        return attention(q, k, v, scale=scale)

    monkeypatch.setattr("toolkit.models.fused.F.scaled_dot_product_attention", spy)
    x = torch.randn(1, 8, 6, 6)
    cell(x, (x, x))
    assert seen == [SDPBackend.FLASH_ATTENTION]


def test_another_size_is_refused() -> None:
    options = make_config({"model": {"name": "modernn_released", "hidden": 8}}, "test").model
    model = build_model(options, FrameSpec(1, 16, 13))
    assert model.predict(torch.rand(1, 3, 1, 14, 16), 1).shape == (1, 1, 1, 1, 14, 16)  # the same grid of patches
    with pytest.raises(ToolkitError, match=r"grid of 4 x 4 patches, these frames give 5 x 4; .*or the model modernn"):
        model.predict(torch.rand(1, 3, 1, 17, 16), 1)


def test_slots_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"model\.slots: must divide 2 x hidden = 128, .*or use modernn.*, got 3"):
        make_config({"model": {"name": "modernn_released", "slots": 3}}, "test")
