"""A-distance and the collapse score on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.analysis.distance import a_distance, collapse, embed
from toolkit.errors import ToolkitError


def cloud(seed: int, rows: int, centre: float = 0.0, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)) + centre


def test_one_distribution_is_0_and_separable_ones_are_2() -> None:
    same = a_distance(cloud(0, 4000), cloud(1, 4000))
    assert abs(same.value) < 0.1
    apart = a_distance(cloud(0, 60), cloud(1, 90, centre=8.0))
    assert apart.value == 2.0 and apart.std == 0.0 and apart.rows == 60
    assert same.value < a_distance(cloud(0, 400), cloud(1, 400, centre=0.5)).value < 2.0


def test_a_shift_between_pairs_is_seen_and_noise_of_pairs_is_not() -> None:
    truth = 5 * cloud(0, 200)
    assert a_distance(truth, truth, paired=True).value <= 0.0  # the very same rows: nothing to learn
    assert a_distance(truth, truth + 30.0, paired=True).value == 2.0


def test_equal_however_scaled_and_under_the_same_seed() -> None:
    first, second = cloud(0, 50), cloud(1, 50, centre=0.7)
    assert a_distance(first, second) == a_distance(first, second)
    assert a_distance(1e6 * first, 1e6 * second).value == pytest.approx(a_distance(first, second).value, abs=0.05)


@pytest.mark.parametrize(
    ("first", "second", "paired", "fault"),
    [
        (cloud(0, 7), cloud(0, 90), False, r"at least 8 sequences.*\(7, 6\) and \(90, 6\)"),
        (cloud(0, 9), cloud(0, 9, width=5), False, r"must be \[n, d\] and \[m, d\]"),
        (cloud(0, 9), cloud(0, 10), True, "as many rows"),
        (np.full((9, 2), np.nan), np.zeros((9, 2)), False, "NaN or infinite"),
    ],
)
def test_what_it_cannot_measure(first: np.ndarray, second: np.ndarray, paired: bool, fault: str) -> None:
    with pytest.raises(ToolkitError, match=fault):
        a_distance(first, second, paired=paired)


def test_collapse_orders_forced_collapse_above_health() -> None:
    """Three modes: apart under both inputs; falling together and away from the truth; only one of them lost."""
    truth = {mode: cloud(i, 80, centre=6.0 * i) for i, mode in enumerate("abc")}
    healthy = collapse(truth, {mode: features + 0.01 * cloud(9, 80) for mode, features in truth.items()})
    forced = collapse(truth, {mode: cloud(20 + i, 80, centre=-9.0) for i, mode in enumerate("abc")})
    half = collapse(truth, {**truth, "c": cloud(30, 80)})  # c falls onto a
    for mode in "abc":
        assert healthy[mode].score < 0.1 and forced[mode].score > 0.9, mode
    assert healthy["c"].score < half["c"].score < forced["c"].score
    assert half["c"].score > half["a"].score > half["b"].score
    with pytest.raises(ToolkitError, match="at least two modes"):
        collapse({"a": truth["a"]}, {"a": truth["a"]})


def test_tsne_keeps_clusters_apart_and_is_reproducible() -> None:
    features = np.concatenate([cloud(0, 30), cloud(1, 30, centre=9.0)])
    placed = embed(features)
    assert placed.shape == (60, 2)
    gap = np.linalg.norm(placed[:30].mean(0) - placed[30:].mean(0))
    assert gap > 2 * max(placed[:30].std(), placed[30:].std())
    assert np.array_equal(placed, embed(features))
    with pytest.raises(ToolkitError, match="5 rows are too few"):
        embed(features[:5])
