"""Protocols on an example small enough to work out by hand, and what tells them apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from shards.manifest import Scale
from tests.support.scoring import Blur, noise_windows, random_trunk
from toolkit.errors import ConfigError
from toolkit.evaluate.perceptual import LPIPS, _heads
from toolkit.evaluate.protocols import known_protocols, load_protocol
from toolkit.evaluate.run import evaluate_model
from toolkit.evaluate.scoring import new_table, score_batch

GREY = Scale("intensity", "1", 0.0, 1.0)  # codes as they are, 0..255


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """A frame of 8 x 8: code 51 (0.2) everywhere, forecast 0.4 but for one pixel of 1.5."""
    prediction = torch.full((1, 1, 1, 8, 8), 0.4)
    prediction[..., 2, 3] = 1.5
    return prediction, torch.full((1, 1, 1, 8, 8), 51, dtype=torch.uint8)


def test_every_protocol_is_tested_here() -> None:
    assert known_protocols() == ["openstl", "paper", "predrnn", "sevir"]


@pytest.mark.parametrize("name", ["paper", "predrnn"])
def test_paper_and_predrnn_clamp_sum_and_floor(name: str) -> None:
    found = score_batch(*example(), GREY, load_protocol(name), ())
    assert found["mse"].item() == pytest.approx(63 * 0.04 + 0.64, rel=1e-6)
    assert found["mae"].item() == pytest.approx(63 * 0.2 + 0.8, rel=1e-6)
    mean_square = (63 * 51**2 + 204**2) / 64  # levels 102 and 255 against 51
    assert found["psnr"].item() == pytest.approx(10 * math.log10(255**2 / mean_square), rel=1e-9)
    levels = np.full((8, 8), 102, np.uint8)
    levels[2, 3] = 255
    expected = structural_similarity(np.full((8, 8), 51, np.uint8), levels, data_range=255)
    assert found["ssim"].item() == pytest.approx(expected, abs=1e-9)


def test_openstl_leaves_errors_unclamped_and_images_in_float() -> None:
    prediction, codes = example()
    found = score_batch(prediction, codes, GREY, load_protocol("openstl"), ())
    assert found["mse"].item() == pytest.approx(63 * 0.04 + 1.3**2, rel=1e-6)
    assert found["psnr"].item() == pytest.approx(-10 * math.log10((63 * 0.04 + 0.64) / 64), rel=1e-6)
    frames = (codes[0, 0, 0].double() / 255).numpy(), prediction[0, 0, 0].clamp(0, 1).double().numpy()
    expected = structural_similarity(*frames, data_range=2.0)
    assert found["ssim"].item() == pytest.approx(expected, abs=1e-6)
    assert expected > structural_similarity(*frames, data_range=1.0)


def test_openstl_has_rmse_and_snr() -> None:
    rng = np.random.default_rng(1)
    codes = torch.from_numpy(rng.integers(1, 256, (3, 2, 1, 8, 8), np.uint8))
    prediction = torch.from_numpy(rng.random((3, 2, 1, 8, 8))) * 1.4 - 0.2
    codes[0, 0], codes[0, 1] = 0, 255
    prediction[0, 1] = 1.2  # exact, once it is clamped
    protocol = load_protocol("openstl")
    table = new_table(protocol, 2, (), lpips=False)
    table.update([0, 1, 2], ["a", "b", "c"], [None] * 3, score_batch(prediction, codes, GREY, protocol, ()))
    scores = table.compute()
    true, predicted = codes.double().numpy() / 255, prediction.double().numpy()
    per_pixel = np.mean((predicted - true) ** 2, axis=(0, 1))  # the sum over pixels of it, and the root of that
    assert scores.overall["rmse"] == pytest.approx(np.sqrt(per_pixel.sum()), rel=1e-6)
    clamped = np.clip(predicted, 0, 1)
    snr = [
        10 * np.log10((true[b, t] ** 2).mean() / ((true[b, t] - clamped[b, t]) ** 2).mean())
        for b in (1, 2)
        for t in (0, 1)
    ]
    assert scores.overall["snr"] == pytest.approx((sum(snr) + 100) / 5, rel=1e-6)  # the cap; without the empty frame
    assert scores.announced["frames_without_value"]["snr"] == 1
    assert "snr" not in load_protocol("paper").choices()


def test_sevir_has_its_own_thresholds_squares_and_neighbourhoods() -> None:
    protocol = load_protocol("sevir")
    found = score_batch(*example(), GREY, protocol, protocol.thresholds_for(()))
    assert found["mse"].item() == pytest.approx((63 * 0.04 + 0.64) / 64, rel=1e-6)
    names = ("hits", "misses", "false_alarms", "correct_negatives")
    counts = {key: [int(found[f"{name}@{key}"].item()) for name in names] for key in ("16", "74", "219", "219/4")}
    assert counts == {"16": [64, 0, 0, 0], "74": [0, 0, 64, 0], "219": [0, 0, 1, 63], "219/4": [0, 0, 1, 3]}
    assert found["fss_error@219/5"].item() == pytest.approx(25 * 0.04**2 / 64)
    scores = evaluate_model(
        Blur(),
        noise_windows(4, scale=GREY),
        context=2,
        horizon=2,
        protocol=protocol,
        thresholds=(),
        batch=2,
        device="cpu",
    ).compute()
    assert {"mean_csi", "mean_csi/4", "mean_csi/16", "csi@133/16", "fss@133/17", "hss@74"} <= scores.overall.keys()
    with pytest.raises(ConfigError, match=r"protocol sevir defines"):
        protocol.thresholds_for((30.0,))


def test_lpips_is_given_frames_in_the_protocols_range() -> None:
    model = LPIPS(random_trunk(), _heads())
    prediction, codes = torch.rand(1, 2, 1, 40, 40), torch.randint(0, 256, (1, 2, 1, 40, 40)).byte()
    truth = codes.float() / 255
    for name, (gain, offset) in {"paper": (2, -1), "predrnn": (1, 0), "openstl": (2, -1)}.items():
        found = score_batch(prediction, codes, GREY, load_protocol(name), (), model)["lpips"]
        expected = model(gain * prediction[0] + offset, gain * truth[0] + offset)
        np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-6)
    broken = prediction.clone()
    broken[0, 1, 0, 3, 3] = torch.nan
    found = score_batch(broken, codes, GREY, load_protocol("paper"), (), model)["lpips"]
    assert np.isfinite(found[0, 0]) and np.isnan(found[0, 1])
