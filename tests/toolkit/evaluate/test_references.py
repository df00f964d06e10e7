"""Every metric, through scoring and table, against the libraries that people trust: on awkward frames, over 10,000
frames in float32, and with what isn't a number thrown in. LPIPS: test_perceptual.py; ensembles: test_probabilistic.py.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from shards.manifest import Scale
from toolkit.errors import ToolkitError
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.scoring import new_table, score_batch
from toolkit.evaluate.table import Cells, Scores

PAPER, SEVIR = load_protocol("paper"), load_protocol("sevir")
CODES = Scale("vertically integrated liquid", "1", 0.0, 1.0)  # codes as they are
MASKED = Scale("vertically integrated liquid", "1", 0.0, 1.0, max_code=254, missing_code=255)
RELATIVE = 1e-5
SIDE = 16


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*shape, SIDE, SIDE)).astype(np.uint8)


def awkward() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(forecast, truth) codes [16, 16] by name."""
    one, two = noise(1), noise(2)
    dot = np.zeros_like(one)
    dot[8, 6] = 230
    return {
        "random": (one, two),
        "exact": (one, one),
        "constants": (np.full_like(one, 17), np.full_like(one, 203)),
        "equal constants": (np.full_like(one, 99), np.full_like(one, 99)),
        "black": (np.zeros_like(one), np.zeros_like(one)),
        "no event": (one // 16, two // 16),
        "one pixel forecast": (dot, np.zeros_like(one)),
        "one pixel missed": (np.zeros_like(one), dot),
        "nothing observed": (one, np.full_like(one, 255)),
    }


def score(forecasts: np.ndarray, truths: np.ndarray, modes: list[str], protocol: Any, scale: Scale) -> Scores:
    """Scores of codes [n, T, 16, 16] as an evaluation makes them, in batches."""
    thresholds = protocol.thresholds_for((74.0,) if protocol is PAPER else ())
    table = new_table(protocol, forecasts.shape[1], thresholds, lpips=False)
    for at in range(0, len(modes), 50):
        part = slice(at, at + 50)
        prediction = torch.from_numpy(forecasts[part, :, None]).float() / scale.max_code
        columns = score_batch(prediction, torch.from_numpy(truths[part, :, None]), scale, protocol, thresholds)
        names = modes[part]
        table.update(range(at, at + len(names)), [f"s{at + i}" for i in range(len(names))], names, columns)
    return table.compute()


@pytest.fixture(scope="module")
def awkward_scores() -> dict[str, Scores]:
    """Each case as a mode, under the protocols `paper` and `sevir`."""
    cases = awkward()
    forecasts, truths = (np.stack([pair[i] for pair in cases.values()])[:, None] for i in (0, 1))
    return {p.name: score(forecasts, truths, list(cases), p, MASKED) for p in (PAPER, SEVIR)}


def same(found: float | int | None, expected: float) -> None:
    """None stands for what a library gives as NaN or infinite."""
    if not math.isfinite(expected):
        assert found is None
    else:
        assert found == pytest.approx(expected, rel=RELATIVE, abs=1e-9)


@pytest.mark.parametrize("name", awkward())
def test_errors_and_images_of_awkward_frames(name: str, awkward_scores: dict[str, Scores]) -> None:
    found = awkward_scores["paper"].modes[name]
    forecast, truth = awkward()[name]
    if name == "nothing observed":
        assert [found[key] for key in ("mse", "mae", "psnr", "ssim")] == [None] * 4
        return
    difference = (forecast.astype(np.float64) - truth) / 254
    same(found["mse"], float((difference**2).sum()))
    same(found["mae"], float(np.abs(difference).sum()))
    # The protocol's images are floor(255 x) of x = code / 254 in float32.
    levels = [
        np.floor(frame.astype(np.float32) / np.float32(254) * 255).astype(np.uint8) for frame in (truth, forecast)
    ]
    same(found["ssim"], float(structural_similarity(*levels, data_range=255)))
    exact = np.array_equal(*levels)
    same(found["psnr"], 100.0 if exact else float(peak_signal_noise_ratio(*levels, data_range=255)))


def test_what_awkward_frames_have_is_announced(awkward_scores: dict[str, Scores]) -> None:
    announced = awkward_scores["paper"].announced
    assert announced["exact_frames"] == 3
    assert announced["missing_pixels"] == SIDE * SIDE
    assert announced["frames_without_value"] == dict.fromkeys(("mse", "mae", "psnr", "ssim"), 1)
    nothing = awkward_scores["paper"].modes["no event"]
    assert (nothing["csi@74"], nothing["events@74"], nothing["forecasts@74"]) == (None, 0, 0)


def squares(events: np.ndarray, side: int) -> np.ndarray:
    return events.reshape(SIDE // side, side, SIDE // side, side).any((1, 3))


@pytest.mark.parametrize("name", awkward())
def test_events_of_awkward_frames_are_pysteps(name: str, awkward_scores: dict[str, Scores]) -> None:
    det = pytest.importorskip("pysteps.verification.detcatscores", reason="the extra pysteps isn't installed")
    spatial = pytest.importorskip("pysteps.verification.spatialscores")
    found = awkward_scores["sevir"].modes[name]
    forecast, truth = (frame.astype(np.float64) for frame in awkward()[name])
    missing = truth == 255
    names = {"CSI": "csi", "POD": "pod", "FAR": "far", "BIAS": "bias", "HSS": "hss"}
    for threshold in SEVIR.thresholds:
        seen = [np.where(missing, -1.0, frame) for frame in (forecast, truth)]
        for side in (1, 4, 16):
            fields = [frame[~missing] for frame in seen]
            if side > 1:
                fields = [squares(frame >= threshold, side)[~squares(missing, side)] * threshold for frame in seen]
            if not len(fields[0]):
                assert all(
                    found[f"{ours}@{threshold:g}{'' if side == 1 else f'/{side}'}"] is None for ours in names.values()
                )
                continue
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")  # 0 / 0 is a RuntimeWarning there, None here
                expected = det.det_cat_fct(*fields, threshold - 0.5, list(names))  # theirs is `>`, ours `>=`
            for theirs, ours in names.items():
                same(found[f"{ours}@{threshold:g}" + ("" if side == 1 else f"/{side}")], float(expected[theirs]))
        for window in SEVIR.fss_windows:
            with np.errstate(all="ignore"):
                same(found[f"fss@{threshold:g}/{window}"], float(spatial.fss(*seen, threshold, window)))


def test_ten_thousand_frames() -> None:
    """Forecasts in float32, 1,000 sequences of 10 frames: means over all of them to 1e-5."""
    truth = noise(3, 1000, 10)
    random = np.random.default_rng(4)
    shift = random.normal(scale=40, size=truth.shape)
    forecast = (truth + shift).clip(0, 254).astype(np.uint8)
    forecast[::7, 3] = truth[::7, 3]  # exact ones among them
    found = score(forecast, truth, ["all"] * 1000, PAPER, CODES).overall
    flat = [frames.reshape(-1, SIDE, SIDE) for frames in (truth, forecast)]
    difference = (flat[1].astype(np.float64) - flat[0]) / 255
    same(found["mse"], float((difference**2).sum((1, 2)).mean()))
    same(found["mae"], float(np.abs(difference).sum((1, 2)).mean()))
    square = (255 * difference) ** 2
    means = square.mean((1, 2))
    ratios = np.where(means == 0, 100.0, 10 * np.log10(255.0**2 / np.where(means == 0, 1.0, means)))
    same(found["psnr"], math.fsum(ratios) / len(ratios))
    similar = [structural_similarity(*pair, data_range=255) for pair in zip(*flat, strict=True)]
    same(found["ssim"], math.fsum(similar) / len(similar))
    hits, either = (np.logical_and, np.logical_or)
    events = [frames >= 74 for frames in flat]
    same(found["csi@74"], hits(*events).sum() / either(*events).sum())


def test_a_frame_of_one_pixel_has_errors_and_no_structure() -> None:
    from toolkit.evaluate import metrics

    forecast, truth = torch.full((1, 1, 1, 1, 1), 0.25), torch.full((1, 1, 1, 1, 1), 0.75)
    assert metrics.mse(forecast, truth, "sum").item() == metrics.mse(forecast, truth, "mean").item() == 0.25
    assert metrics.mae(forecast, truth, "mean").item() == 0.5
    assert metrics.psnr(forecast, truth, 1.0, 100.0)[0].item() == pytest.approx(-10 * math.log10(0.25), rel=RELATIVE)
    with pytest.raises(ToolkitError, match=r"frames of 1x1 are smaller than its window of 7x7"):
        metrics.ssim(forecast, truth, 1.0)


def undefined(scores: Scores) -> Iterator[tuple[Cells, str]]:
    """(its group's scores, name) of every score that is None."""
    groups = [scores.overall, *scores.modes.values()]
    yield from ((cells, name) for cells in groups for name, value in cells.items() if value is None)


def explained(scores: Scores, cells: Cells, name: str) -> bool:
    """A count in the result says why it is None."""
    if scores.announced["nonfinite_frames"] or scores.announced["frames_without_value"].get(name):
        return True
    kind, _, where = name.partition("@")
    if kind.startswith("mean_csi"):
        side = kind.removeprefix("mean_csi")
        return any(cells[f"csi@{threshold:g}{side}"] is None for threshold in SEVIR.thresholds)
    place = where.partition("/")[0] if kind == "fss" else where
    events, forecasts = cells[f"events@{place}"], cells[f"forecasts@{place}"]
    if kind in ("pod", "bias"):
        return events == 0
    if kind == "far":
        return forecasts == 0
    return events == forecasts if kind == "hss" else events == forecasts == 0


@given(seed=st.integers(0, 2**31), faults=st.sets(st.sampled_from(["nan", "inf", "-inf", "huge", "missing", "dry"])))
@settings(max_examples=25)
def test_no_nan_or_infinity_is_left_unannounced(seed: int, faults: set[str]) -> None:
    """Whatever comes in: results are numbers or None, and for each None a count says why."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 255, (3, 2, 1, SIDE, SIDE)).astype(np.uint8)
    prediction = torch.from_numpy(random.random(codes.shape).astype(np.float32))
    spoil = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 3e38}
    for fault in faults & spoil.keys():
        prediction[tuple(random.integers(0, size) for size in codes.shape)] = spoil[fault]
    if "missing" in faults:
        codes[random.integers(0, 3), random.integers(0, 2)] = 255
    if "dry" in faults:
        codes[codes < 255], prediction = 0, torch.zeros_like(prediction)
    for protocol in (PAPER, SEVIR):
        thresholds = protocol.thresholds_for(())
        table = new_table(protocol, 2, thresholds, lpips=False)
        columns = score_batch(prediction, torch.from_numpy(codes), MASKED, protocol, thresholds)
        table.update([0, 1, 2], list("xyz"), ["a", "b", "a"], columns)
        scores = table.compute()
        json.dumps(scores.as_dict(), allow_nan=False)
        for cells, name in undefined(scores):
            assert explained(scores, cells, name), name
