"""Scores of whole ensembles: against formulas of another shape, on cases whose answer is known, in any memory."""

from __future__ import annotations

import json
import math
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shards.manifest import Scale
from tests.support.scoring import DBZ, GREY, PAPER, Dice, ListedWindows, evaluate, members_of, noise_windows
from toolkit.errors import ToolkitError
from toolkit.evaluate import probabilistic
from toolkit.evaluate.ensemble import Ensemble
from toolkit.evaluate.probabilistic import Members, crps, rank_counts, spread_and_error
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.table import ScoreTable

N = 4


def integral(members: np.ndarray, truth: float) -> float:
    """CRPS as the integral of (F(x) - [x >= y])^2, F the members' distribution function: between two neighbours among
    members and truth both are constant.
    """
    edges = np.sort(np.append(members.astype(np.float64), truth))
    return math.fsum(
        (np.mean(members <= low) - float(truth <= low)) ** 2 * (high - low) for low, high in pairwise(edges)
    )


@given(
    members=st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0]) | st.floats(-1, 2, width=32), min_size=2, max_size=9),
    truth=st.sampled_from([0.0, 0.25, 1.0]) | st.floats(0, 1, width=32),
)
@settings(max_examples=60)
def test_crps_is_the_integral_over_the_distribution_function(members: list[float], truth: float) -> None:
    values = np.array(members, np.float32)
    standard, fair = (float(score) for score in crps(torch.from_numpy(values), torch.tensor(truth)))
    assert standard == pytest.approx(integral(values, np.float32(truth)), rel=1e-5, abs=1e-12)
    pairs = np.abs(values[:, None].astype(float) - values[None]).sum()
    count = len(values)
    expected = np.abs(values.astype(float) - np.float32(truth)).mean() - pairs / (2 * count * (count - 1))
    assert fair == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_crps_of_a_normal_distribution_is_its_closed_form_and_only_the_fair_one_ignores_n() -> None:
    random = np.random.default_rng(0)
    sharp = 2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)  # truth at the mean
    found = {}
    for count in (2, 50):
        members = torch.from_numpy(random.normal(size=(count, 40_000)).astype(np.float32))
        standard, fair = crps(members, torch.zeros(40_000))
        found[count] = float(standard.mean())
        assert float(fair.mean()) == pytest.approx(sharp, abs=0.01), count
    assert found[2] > sharp + 0.2
    assert found[50] == pytest.approx(sharp, abs=0.02)


def test_an_ensemble_of_draws_like_the_truth_is_reliable() -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(6, 200_000)).astype(np.float32)
    members, truth = torch.from_numpy(values[:5]), torch.from_numpy(values[5])
    variance, error = spread_and_error(members, truth)
    np.testing.assert_allclose(variance, np.var(values[:5].astype(float), axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(error, (values[:5].astype(float).mean(0) - values[5]) ** 2, rtol=1e-6, atol=1e-12)
    assert math.sqrt(6 / 5 * float(variance.mean()) / float(error.mean())) == pytest.approx(1, abs=0.01)
    counts = rank_counts(members[:, None], truth[None], torch.zeros(1, 200_000, dtype=torch.float64))[0]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    narrow = rank_counts(0.3 * members[:, None], truth[None], torch.zeros(1, 200_000, dtype=torch.float64))[0]
    assert narrow[0] > 2 * narrow[2] and narrow[5] > 2 * narrow[3]  # too sure: truth lies outside


def test_ranks_by_hand() -> None:
    members = torch.tensor([[[0.0, 2.0, 1.0, 0.0]], [[3.0, 2.0, 1.0, 0.0]], [[1.0, 2.0, 1.0, 9.0]]])
    truth = torch.tensor([[2.0, 2.0, 2.0, 0.0]])  # two below; three ties; all below; two ties and one above
    low, high = torch.zeros(1, 4, dtype=torch.float64), torch.full((1, 4), 1 - 1e-9, dtype=torch.float64)
    assert rank_counts(members, truth, low).tolist() == [[2, 0, 1, 1]]
    assert rank_counts(members, truth, high).tolist() == [[0, 0, 2, 2]]
    mask = torch.tensor([[True, False, True, True]])
    assert rank_counts(members, truth, high, mask).tolist() == [[0, 0, 2, 1]]


class Draws:
    """Forecasts that are draws of the windows' own noise, whole codes."""

    def __init__(self, zeros: float = 0.0) -> None:
        self.zeros = zeros

    def predict(
        self, context: torch.Tensor, horizon: int, samples: int = 1, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        shape = (1, len(context), horizon, *context.shape[2:])
        levels = torch.randint(0, 255, shape, generator=generator)
        return (levels * (torch.rand(shape, generator=generator) >= self.zeros)).float() / 255


def test_where_most_is_zero_ties_leave_a_reliable_ensemble_flat() -> None:
    random = np.random.default_rng(2)
    frames = random.integers(0, 255, (40, 4, 1, 12, 12), dtype=np.uint8)
    frames *= random.random(frames.shape) >= 0.9
    table = evaluate(Draws(zeros=0.9), ListedWindows(frames, GREY), ensemble=Ensemble(9))
    ranks = table.compute().ranks
    assert ranks is not None
    assert sum(ranks["overall"]) == 40 * 2 * 144
    assert stats.chisquare(ranks["overall"]).pvalue > 1e-3
    assert ranks == evaluate(Draws(zeros=0.9), ListedWindows(frames, GREY), ensemble=Ensemble(9)).compute().ranks
    np.testing.assert_array_equal(np.sum(ranks["leads"], 0), ranks["overall"])
    np.testing.assert_array_equal(np.sum(list(ranks["modes"].values()), 0), ranks["overall"])
    np.testing.assert_array_equal(np.sum(ranks["mode_leads"]["b"], 0), ranks["modes"]["b"])


@pytest.mark.parametrize("name", ["paper", "sevir", "openstl"])
def test_the_columns_of_a_run_are_those_of_its_members(name: str) -> None:
    """Missing pixels, two batches of unequal size, a sum or a mean over pixels, clamped or not."""
    scale = Scale("vertically integrated liquid", "1", 0.0, 1.0, max_code=254, missing_code=255)
    protocol, windows = load_protocol(name), noise_windows(5, scale=scale)
    windows.frames[:, 2:, :, :4] = scale.missing_code
    table = evaluate(Dice(), windows, protocol=protocol, ensemble=Ensemble(N))
    found, seen = table.arrays(), windows.frames[0, 2] != scale.missing_code
    factor = 144 / (144 - 48) if protocol.error_reduction == "sum" else 1 / (144 - 48)
    rows = [(number, row) for number in range(2) for row in range(3 if number == 0 else 2)]
    made = members_of(windows, 3, N)
    for place, (number, row) in enumerate(rows):
        for lead in range(2):
            members = np.stack([member[row, lead].double().numpy() for member in made[number]])[:, seen]
            if protocol.clamp:
                members = members.clip(0, 1)
            truth = windows.frames[place, 2 + lead][seen] / 254.0
            scores = [integral(members[:, pixel], truth[pixel]) for pixel in range(len(truth))]
            assert found["crps"][place, lead] == pytest.approx(factor * math.fsum(scores), rel=1e-5)
            assert found["ensemble_error"][place, lead] == pytest.approx(
                ((members.mean(0) - truth) ** 2).mean(), rel=1e-5
            )
            assert found["ensemble_variance"][place, lead] == pytest.approx(members.var(0, ddof=1).mean(), rel=1e-5)
            assert found["ranks"][place, lead].sum() == len(truth)
    scores = table.compute().overall
    ratio = math.sqrt((N + 1) / N * found["ensemble_variance"].mean() / found["ensemble_error"].mean())
    assert scores["spread_skill"] == pytest.approx(ratio, rel=1e-12)
    assert scores["crps"] == pytest.approx(found["crps"].mean(), rel=1e-12)
    assert scores["crps_fair"] < scores["crps"]
    assert scores["rmse_of_mean"] == pytest.approx(math.sqrt(found["ensemble_error"].mean()), rel=1e-12)


def test_small_blocks_and_a_file_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = noise_windows(5)
    expected = evaluate(Dice(), windows, ensemble=Ensemble(N)).arrays()
    monkeypatch.setattr(probabilistic, "BLOCK", 3 * N * 144)
    monkeypatch.setattr(probabilistic, "HOST_BYTES", 1000)
    found = evaluate(Dice(), windows, ensemble=Ensemble(N)).arrays()
    for name in ("crps", "crps_fair", "ensemble_variance", "ensemble_error"):
        np.testing.assert_array_equal(found[name], expected[name])

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        ToolkitError, match=r"eval\.ensemble_size 4: .*\(No space left on device\).*TMPDIR.*eval\.batch"
    ):
        evaluate(Dice(), windows, ensemble=Ensemble(N))


def test_a_member_that_is_not_finite_is_announced() -> None:
    table = evaluate(Dice(broken=1), noise_windows(3), ensemble=Ensemble(N, "best"))
    scores = table.compute()
    assert scores.announced["nonfinite_members"] == 3 * (N - 1)  # the second lead time of all sequences
    assert scores.overall["mse"] is not None  # the best member is whole
    for name in ("crps", "crps_fair", "spread", "rmse_of_mean", "spread_skill"):
        assert scores.overall[name] is None
        assert [value is None for value in scores.leads[name]] == [False, True]
    assert scores.ranks is not None
    assert scores.ranks["overall"] is None
    assert [found is None for found in scores.ranks["leads"]] == [False, True]
    json.dumps(scores.as_dict(), allow_nan=False)


def test_nothing_observed_and_nothing_wrong() -> None:
    windows = noise_windows(2, scale=DBZ)
    windows.frames[:, 3] = DBZ.missing_code  # one lead time is observed nowhere
    scores = evaluate(Dice(), windows, ensemble=Ensemble(N)).compute()
    assert scores.announced["frames_without_value"]["crps"] == 2
    assert scores.leads["crps"][0] is not None and scores.leads["crps"][1] is None
    assert scores.ranks is not None and scores.ranks["leads"][1] == [0] * (N + 1)

    class Knowing(Dice):
        def predict(self, context: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return context[:, :1].expand(-1, 2, -1, -1, -1)[None]

    still = noise_windows(2)
    still.frames[:] = still.frames[:, :1]
    exact = evaluate(Knowing(), still, ensemble=Ensemble(N)).compute().overall
    assert (exact["crps"], exact["crps_fair"], exact["spread"], exact["rmse_of_mean"]) == (0.0, 0.0, 0.0, 0.0)
    assert exact["spread_skill"] is None


def test_a_table_of_an_ensemble_is_saved_joined_and_not_mixed(tmp_path: Path) -> None:
    table = evaluate(Dice(), noise_windows(5), ensemble=Ensemble(N))
    table.save(tmp_path / "t.npz")
    loaded = ScoreTable.load(tmp_path / "t.npz")
    assert loaded.compute() == table.compute()
    parts = [loaded.only(mode, loaded.given) for mode in ("a", "b")]
    parts[0].merge(parts[1])
    assert parts[0].compute() == table.compute()
    with pytest.raises(ToolkitError, match="same settings"):
        loaded.merge(evaluate(Dice(), noise_windows(5)))


def test_ten_thousand_frames_in_float32() -> None:
    """The sum over 10,000 frames is the float64 one to 1e-5."""
    random = np.random.default_rng(3)
    codes = random.integers(0, 256, (500, 20, 1, 4, 4), dtype=np.uint8)
    members = Members(3, torch.from_numpy(codes), GREY, PAPER, 0)
    made = random.random((3, *codes.shape), dtype=np.float32)
    for member in made:
        members.add(torch.from_numpy(member))
    exact, truth = made.astype(np.float64), codes / 255.0
    pairs = sum(np.abs(exact[i] - exact[j]) for i in range(3) for j in range(i))
    expected = (np.abs(exact - truth).mean(0) - pairs / 9).sum((2, 3, 4)).mean()
    assert members.scores()["crps"].mean() == pytest.approx(expected, rel=1e-5)
