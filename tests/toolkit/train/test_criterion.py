"""Losses equal torch's and plain loops, over observed pixels, by rain rate and lead time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from shards import Scale
from toolkit.config.recipe import LossConfig
from toolkit.config.sections import TrainConfig
from toolkit.errors import ConfigError
from toolkit.models.base import mean_square
from toolkit.train.check import rain_levels
from toolkit.train.criterion import make_criterion

UNIT = Scale("intensity", "1", 0.0, 1 / 255)
RAIN = Scale("rain rate", "mm/h", 0.0, 0.25, max_code=254, missing_code=255)
DBZ = Scale("reflectivity", "dBZ", -32.0, 0.5, max_code=254, missing_code=255)


def criterion(scale: Scale = UNIT, **loss: object) -> object:
    return make_criterion(TrainConfig.model_validate({"loss": loss}), scale, 4)


def batch(missing: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(0)
    frames = torch.randint(0, 255, (3, 7, 1, 6, 5)) / 254
    seen = torch.rand(3, 7, 1, 6, 5) > 0.3
    seen[2, -6:] = False
    return torch.rand(3, 6, 1, 6, 5), frames, seen if missing else None


def test_the_default_is_the_plain_mean_square() -> None:
    assert criterion() is mean_square


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("l2", F.mse_loss),
        ("l1", F.l1_loss),
        ("l1+l2", lambda p, t: F.l1_loss(p, t) + F.mse_loss(p, t)),
        ("huber", lambda p, t: F.huber_loss(p, t, delta=0.1)),
    ],
)
def test_losses_are_torchs(kind: str, reference: object) -> None:
    predictions, frames, _ = batch()
    ours = criterion(kind=kind, lead_times=[1, 1, 1, 1])(predictions, frames, None)  # type: ignore[operator]
    assert torch.allclose(ours, reference(predictions, frames[:, 1:]), rtol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "l1+l2"])
def test_pixels_without_a_value_are_left_out(kind: str) -> None:
    predictions, frames, seen = batch(missing=True)
    assert seen is not None
    loss = criterion(kind=kind, lead_times=[1, 1, 1, 1])  # type: ignore[operator]
    whole = [loss(p[None], f[None], s[None]) for p, f, s in zip(predictions, frames, seen, strict=True)]
    assert torch.allclose(loss(predictions, frames, seen), torch.stack(whole).mean())
    assert whole[2] == 0
    spoilt = torch.where(seen[:, 1:], predictions, 1e3)
    assert loss(spoilt, frames, seen) == loss(predictions, frames, seen)


@pytest.mark.parametrize("scale", [RAIN, DBZ])
def test_balanced_losses_weight_by_rain_rate(scale: Scale) -> None:
    """The rule of the HKO-7 paper, written as a loop: weight 1, 2, 5, 10, 30 from 0, 2, 5, 10, 30 mm/h on."""
    predictions = torch.rand(1, 1, 1, 16, 16)
    codes = torch.arange(256).clamp(max=254).view(1, 1, 1, 16, 16)
    frames = torch.cat([codes, codes], 1).float() / 254
    expected = {"balanced_mse": 0.0, "balanced_mae": 0.0}
    for code, predicted in zip(codes.flatten().tolist(), predictions.flatten().tolist(), strict=True):
        value = scale.offset + scale.gain * code
        rate = value if scale.unit == "mm/h" else (10 ** (value / 10) / 200) ** (1 / 1.6)
        weight = next(w for limit, w in ((2, 1), (5, 2), (10, 5), (30, 10), (math.inf, 30)) if rate < limit)
        expected["balanced_mse"] += weight * (predicted - code / 254) ** 2 / 256
        expected["balanced_mae"] += weight * abs(predicted - code / 254) / 256
    expected["balanced"] = sum(expected.values())
    for kind, value in expected.items():
        found = criterion(scale, kind=kind)(predictions, frames, None)  # type: ignore[operator]
        assert found.item() == pytest.approx(value, rel=1e-5), kind


def test_the_weight_changes_at_the_first_code_of_a_range() -> None:
    for most, gain in ((254, 0.25), (65_000, 0.001)):  # of codes of 8 and of 16 bits
        levels = rain_levels(LossConfig(kind="balanced"), Scale("rain rate", "mm/h", 0.0, gain, most, most + 1))
        codes = np.arange(most + 1)
        values = (codes.astype(np.float32) * gain).astype(np.float32)
        for level, threshold in zip(levels, (2, 5, 10, 30), strict=True):
            assert ((codes / most >= level) == (values >= threshold)).all()


def test_lead_times_are_weighted() -> None:
    predictions, frames, _ = batch()
    loss = criterion(lead_times=[0, 0, 2, 4])
    parts = (predictions - frames[:, 1:]).square().mean((0, 2, 3, 4))
    expected = (parts * torch.tensor([1.0, 1, 0, 0, 2, 4])).mean()  # two predictions of the context count once
    assert torch.allclose(loss(predictions, frames, None), expected)  # type: ignore[operator]
    assert torch.allclose(
        loss(predictions[:, 2:], frames, None),  # type: ignore[operator]
        (parts[2:] * torch.tensor([0.0, 0, 2, 4])).mean(),
    )


@pytest.mark.parametrize(
    ("scale", "loss", "message"),
    [
        (UNIT, {"kind": "balanced"}, "this store holds intensity in 1: use a store in mm/h or dBZ"),
        (RAIN, {"lead_times": [1, 2]}, "has 2 weights and data.horizon is 4"),
        (Scale("rain", "mm/h", 60.0, -0.2), {"kind": "balanced_mse"}, "values fall as its codes rise"),
    ],
)
def test_losses_that_do_not_fit_the_store(scale: Scale, loss: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        criterion(scale, **loss)


@pytest.mark.parametrize(
    "loss",
    [
        {"thresholds": [5, 2]},
        {"thresholds": [1], "weights": [1, 2, 3]},
        {"thresholds": [float("nan")], "weights": [1, 2]},
        {"lead_times": [0, 0]},
        {"lead_times": [-1, 2]},
        {"zr": [0, 1.6]},
    ],
)
def test_weights_that_make_no_sense(loss: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"thresholds|weights|lead_times|zr"):
        LossConfig.model_validate(loss)
