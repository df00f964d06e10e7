"""Reliability, ROC, FSS over scale and power spectra: against plain loops, and pysteps where it is installed."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shards.manifest import Scale
from tests.support.scoring import DBZ, Blur, Dice, ListedWindows, evaluate, members_of
from toolkit.evaluate.diagrams import NEIGHBOURHOOD, _probabilities
from toolkit.evaluate.ensemble import Ensemble
from toolkit.evaluate.protocols import load_protocol
from toolkit.models.baselines import Persistence

THRESHOLDS = (20.0, 40.0)
SEVIR = Scale("vertically integrated liquid", "1", 0.0, 1.0)
SHAPES = [(12, 12), (9, 20), (33, 15)]


def windows(shape: tuple[int, int], missing: bool = False, count: int = 5) -> ListedWindows:
    random = np.random.default_rng(3)
    frames = random.integers(0, 255, (count, 4, 1, *shape)).astype(np.uint8)
    frames = np.sort(frames, -1)  # brighter to the right, so that neighbours are alike
    if missing:
        frames[:, :, :, :2, 1:4] = 255
        frames[0, 3] = 255  # nothing observed
    return ListedWindows(frames, DBZ)


def forecasts(data: ListedWindows, members: int) -> np.ndarray:
    """[N, n, T, H, W] in dBZ: what is evaluated below."""
    if members == 1:
        context = np.where(data.frames[:, 1:2, 0] == 255, 0, data.frames[:, 1:2, 0])
        return (0.25 * np.repeat(context, 2, 1))[None].astype(np.float64)
    found = members_of(data, 3, members)
    stacked = np.stack([np.concatenate([batch[member].numpy() for batch in found]) for member in range(members)])
    return 0.25 * 254 * stacked[:, :, :, 0].astype(np.float64)


def shares(dbz: np.ndarray, seen: np.ndarray, threshold: float) -> np.ndarray:
    """Probability at every pixel [n, T, H, W]."""
    reached = dbz >= threshold - 1e-6
    if len(dbz) > 1:
        return reached.mean(0)
    share, half = np.zeros(seen.shape), NEIGHBOURHOOD // 2
    for n, t, y, x in np.ndindex(seen.shape):
        rows, columns = slice(max(0, y - half), y + half + 1), slice(max(0, x - half), x + half + 1)
        there = seen[n, t, rows, columns]
        share[n, t, y, x] = reached[0, n, t, rows, columns][there].mean() if there.any() else 0
    return share


def diagrams(data: ListedWindows, members: int, **options: Any) -> dict[str, Any]:
    model = Persistence() if members == 1 else Dice()
    table = evaluate(model, data, thresholds=THRESHOLDS, ensemble=Ensemble(members, "mean"), diagrams=True, **options)
    assert table.diagrams is not None
    made = table.diagrams.compute()
    assert made is not None
    return json.loads(json.dumps(made, allow_nan=False))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("members", [1, 7])
@pytest.mark.parametrize("missing", [False, True])
def test_reliability_and_roc_by_hand(shape: tuple[int, int], members: int, missing: bool) -> None:
    data = windows(shape, missing)
    if missing and members > 1:
        pytest.skip("the members of the model are drawn from whole frames")
    found = diagrams(data, members)
    truth, seen = 0.25 * data.frames[:, 2:, 0].astype(np.float64), data.frames[:, 2:, 0] != 255
    for place, threshold in enumerate(THRESHOLDS):
        share, event = shares(forecasts(data, members), seen, threshold)[seen], (truth >= threshold)[seen]
        edges = [-1e-6 + number * (1 + 2e-6) / 10 for number in range(11)]
        for number in range(10):
            low, high = edges[number : number + 2]
            inside = (share > low) & (share <= high)
            row = {key: values[number] for key, values in found["overall"]["reliability"][place].items()}
            if abs(share - low).min() > 1e-9 and abs(share - high).min() > 1e-9:  # 1/2 is on an edge
                assert row["pixels"] == inside.sum()
                if row["pixels"] >= 10:
                    assert row["forecast"] == pytest.approx(share[inside].mean())
                    assert row["observed"] == pytest.approx(event[inside].mean())
                else:
                    assert row["forecast"] is row["observed"] is None
        roc = found["overall"]["roc"][place]
        for number, limit in enumerate(np.linspace(0, 1, 10)):
            assert roc["pod"][number] == pytest.approx((share >= limit)[event].mean())
            assert roc["pofd"][number] == pytest.approx((share >= limit)[~event].mean())
        assert found["overall"]["frequency"][place] == pytest.approx(event.mean())
        assert sum(found["overall"]["reliability"][place]["pixels"]) == seen.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_spectra_by_hand(shape: tuple[int, int]) -> None:
    """A slow Fourier transform of each frame, and rings by a loop."""
    data = windows(shape, count=2)
    found = diagrams(data, 1)["overall"]["spectrum"]
    height, width = shape
    rows, columns = np.arange(height), np.arange(width)
    for name, frames in (("observation", 0.25 * data.frames[:, 2:, 0]), ("forecast", forecasts(data, 1)[0])):
        power = np.zeros(shape)
        left = np.exp(-2j * np.pi * np.outer(rows, rows) / height)
        right = np.exp(-2j * np.pi * np.outer(columns, columns) / width)
        for frame in frames.reshape(-1, *shape):
            power += np.abs(left @ frame @ right) ** 2 / frame.size / 4
        rings: dict[int, list[float]] = {}
        for y, x in np.ndindex(shape):
            k, m = (y - height if y > (height - 1) // 2 else y), (x - width if x > (width - 1) // 2 else x)
            rings.setdefault(round(float(np.hypot(k, m))), []).append(power[y, x])
        expected = [np.mean(rings[ring]) for ring in range(1, (max(shape) + 1) // 2)]
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)
    wavelengths = diagrams(data, 1)["wavelengths"]
    assert wavelengths[0] == max(shape) and len(wavelengths) == len(found["forecast"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("members", [1, 7])
def test_they_are_those_of_pysteps(shape: tuple[int, int], members: int) -> None:
    scores = pytest.importorskip("pysteps.verification.probscores", reason="the extra pysteps isn't installed")
    spatial = pytest.importorskip("pysteps.verification.spatialscores")
    spectral = pytest.importorskip("pysteps.utils.spectral")
    data = windows(shape)
    found, dbz = diagrams(data, members), forecasts(data, members)
    truth = 0.25 * data.frames[:, 2:, 0].astype(np.float64)
    here, there = found["overall"], truth
    mean = dbz.mean(0).clip(0, 63.5)
    for place, threshold in enumerate(THRESHOLDS):
        share = shares(dbz, np.ones(there.shape, dtype=bool), threshold)
        diagram = scores.reldiag_init(threshold)
        scores.reldiag_accum(diagram, share.ravel(), there.ravel())
        with np.errstate(invalid="ignore"):
            expected = scores.reldiag_compute(diagram)
        for key, values in zip(("forecast", "observed"), expected, strict=True):
            ours = np.array(here["reliability"][place][key], dtype=np.float64)
            np.testing.assert_allclose(ours, values, rtol=1e-9)
        pofd, pod, area = scores.ROC_curve(share.ravel(), there.ravel(), threshold, compute_area=True)
        roc = here["roc"][place]
        np.testing.assert_allclose(roc["pofd"], pofd)
        np.testing.assert_allclose(roc["pod"], pod)
        assert roc["area"] == pytest.approx(float(area))
        for number, side in enumerate(found["scales"]):
            total = spatial.fss_init(threshold, side)
            for predicted, true in zip(mean.reshape(-1, *shape), there.reshape(-1, *shape), strict=True):
                spatial.fss_accum(total, np.where(np.abs(predicted - threshold) < 1e-6, threshold, predicted), true)
            assert here["fss"][place][number] == pytest.approx(float(spatial.fss_compute(total)), rel=1e-6)
    for key, frames in (("forecast", mean), ("observation", there)):
        spectra = [spectral.rapsd(frame, fft_method=np.fft) for frame in frames.reshape(-1, *shape)]
        np.testing.assert_allclose(here["spectrum"][key], np.mean(spectra, 0)[1:], rtol=1e-5)


def test_any_ranks_give_the_same_diagrams() -> None:
    """Batches of two ranks, merged in either order: the same bits."""
    whole = diagrams(windows((12, 12)), 1, batch=2)
    parts = [
        evaluate(Persistence(), windows((12, 12)), thresholds=THRESHOLDS, diagrams=True, batch=2) for _ in range(2)
    ]
    for keep, part in enumerate(parts):
        assert part.diagrams is not None
        part.diagrams.sums = {number: sums for number, sums in part.diagrams.sums.items() if number % 2 == keep}
    for first, second in (parts, parts[::-1]):
        merged = evaluate(Persistence(), windows((12, 12)), thresholds=THRESHOLDS, diagrams=True, batch=2).diagrams
        assert merged is not None and first.diagrams is not None and second.diagrams is not None
        merged.sums = dict(second.diagrams.sums)
        merged.merge(first.diagrams)
        assert json.loads(json.dumps(merged.compute())) == whole


def test_excluded_pixels_are_not_in_the_diagrams() -> None:
    found = diagrams(windows((12, 12)), 1, exclude_inflow=True)
    table = evaluate(Persistence(), windows((12, 12)), thresholds=THRESHOLDS, exclude_inflow=True)
    left_out = table.compute().announced["inflow_pixels"]
    assert isinstance(left_out, int) and left_out > 0
    for reliability in found["overall"]["reliability"]:
        assert sum(reliability["pixels"]) == 5 * 2 * 144 - left_out


def test_what_has_no_diagrams() -> None:
    assert evaluate(Blur(), windows((12, 12)), diagrams=True).diagrams is None  # no thresholds
    assert evaluate(Blur(), windows((12, 12)), thresholds=THRESHOLDS).diagrams is None  # not asked for
    for select in ("mean", "best"):  # the best is of the finite ones, the probability of all
        ensemble = Ensemble(3, select)
        broken = evaluate(Dice(broken=1), windows((12, 12)), thresholds=THRESHOLDS, diagrams=True, ensemble=ensemble)
        assert broken.diagrams is not None and broken.diagrams.compute() is None
    dry = ListedWindows(np.zeros((2, 4, 1, 8, 8), dtype=np.uint8), DBZ)
    found = diagrams(dry, 1)["overall"]
    assert found["roc"][0]["area"] is None and found["fss"][0] == [None] * 3 and found["frequency"] == [0.0, 0.0]
    assert torch.tensor(found["spectrum"]["forecast"]).abs().max() == 0


class Refused(TorchDispatchMode):
    """Raise for what `torch.use_deterministic_algorithms` refuses on a GPU: running sums of floats, weighted counts."""

    def __torch_dispatch__(self, operator: Any, types: Any, inputs: tuple[Any, ...] = (), options: Any = None) -> Any:
        if operator.overloadpacket is torch.ops.aten.cumsum:
            assert not ((options or {}).get("dtype") or inputs[0].dtype).is_floating_point
        if operator.overloadpacket is torch.ops.aten.bincount:
            assert len(inputs) < 2 or inputs[1] is None
        return operator(*inputs, **(options or {}))


@pytest.mark.parametrize("members", [1, 3])
def test_scores_and_diagrams_are_computed_with_deterministic_operators(members: int) -> None:
    options: dict[str, Any] = {"protocol": load_protocol("sevir"), "thresholds": (), "diagrams": True}
    frames = np.random.default_rng(0).integers(0, 255, (2, 4, 1, 20, 20)).astype(np.uint8)
    data = ListedWindows(frames, SEVIR)
    with Refused():
        table = evaluate(Persistence() if members == 1 else Dice(), data, ensemble=Ensemble(members), **options)
    assert table.diagrams is not None and table.diagrams.compute() is not None
    assert table.compute().overall["fss@16/5"] is not None


def test_probabilities_are_summed_to_the_same_bits_in_any_order() -> None:
    chance = torch.cat([torch.full((1000,), 1 / 3, dtype=torch.float64), torch.full((7,), 1e-9, dtype=torch.float64)])
    happened = torch.arange(1007) % 3 == 0
    order = torch.randperm(1007, generator=torch.Generator().manual_seed(1))
    found, shuffled = _probabilities(chance, happened), _probabilities(chance[order], happened[order])
    assert all(torch.equal(values, shuffled[name]) for name, values in found.items())
    assert float(found["bins"][0, 3]) == pytest.approx(math.fsum(chance[:1000].tolist()), rel=1e-13)
    assert found["bins"][1:, 3].tolist() == [334, 1000] and found["all"].tolist() == [336, 671]
