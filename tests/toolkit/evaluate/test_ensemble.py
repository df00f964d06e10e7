"""Ensembles: the rule against a plain reference, N = 1 as if there were none, and never worse for more members."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.scoring import DBZ, PAPER, Dice, evaluate, members_of, noise_windows
from toolkit.evaluate.ensemble import BestMember, Ensemble, cost_of
from toolkit.evaluate.run import sample_frames
from toolkit.evaluate.scoring import score_batch
from toolkit.evaluate.table import ScoreTable

N = 4


def column(table: ScoreTable, name: str) -> np.ndarray:
    return table.arrays()[name]


def test_one_member_is_what_is_scored_without_an_ensemble() -> None:
    plain = evaluate(Dice(), noise_windows(5)).arrays()
    for select in ("mean", "best"):
        one = evaluate(Dice(), noise_windows(5), ensemble=Ensemble(1, select)).arrays()
        assert all(np.array_equal(plain[name], one[name], equal_nan=plain[name].dtype.kind == "f") for name in plain)
    first = members_of(noise_windows(5), 3, 1)
    truth = torch.from_numpy(noise_windows(5).frames[:3, 2:])
    expected = score_batch(first[0][0], truth, noise_windows(5).scale, PAPER, ())
    np.testing.assert_array_equal(plain["mse"][:3], expected["mse"])


@pytest.mark.parametrize("metric", ["mse", "mae", "psnr", "ssim"])
def test_best_is_the_best_member_of_every_sequence(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol, windows = dataclasses.replace(PAPER, best_by=metric), noise_windows(5)
    table = evaluate(Dice(), windows, protocol=protocol, ensemble=Ensemble(N, "best", metric)).arrays()
    sign = 1 if metric in ("mse", "mae") else -1
    for number, members in enumerate(members_of(windows, 3, N)):
        rows = slice(3 * number, 3 * number + 3)
        truth = torch.from_numpy(windows.frames[rows, 2:])
        scores = [score_batch(member, truth, windows.scale, protocol, ()) for member in members]
        chosen = np.argmin([sign * score[metric].mean(1) for score in scores], axis=0)
        assert len(set(chosen)) > 1 or number  # the choice is by sequence
        for name in ("mse", "mae", "psnr", "ssim"):  # all of them are the chosen member's
            expected = [scores[member][name][row] for row, member in enumerate(chosen)]
            np.testing.assert_array_equal(table[name][rows], np.stack(expected))


def test_the_mean_is_the_mean_of_the_members() -> None:
    windows = noise_windows(3)
    table = evaluate(Dice(), windows, ensemble=Ensemble(N, "mean")).arrays()
    mean = torch.stack(members_of(windows, 3, N)[0]).double().mean(0).float()
    expected = score_batch(mean, torch.from_numpy(windows.frames[:, 2:]), windows.scale, PAPER, ())
    np.testing.assert_allclose(table["mse"], expected["mse"], rtol=1e-6)


def test_more_members_are_never_worse_in_the_selecting_metric() -> None:
    windows = noise_windows(7)
    means = [column(evaluate(Dice(), windows, ensemble=Ensemble(n, "best")), "psnr").mean(1) for n in (1, 2, 5, 9)]
    for fewer, more in pairwise(means):
        assert (more >= fewer).all()
    assert (means[-1] > means[0]).any()


@given(costs=st.lists(st.lists(st.sampled_from([1.0, 2.0, 3.0, torch.inf]), min_size=3, max_size=3), min_size=1))
def test_the_first_of_equals_is_kept(costs: list[list[float]]) -> None:
    best = BestMember()
    for place, cost in enumerate(costs):
        best.add(torch.full((3, 1), float(place)), torch.tensor(cost, dtype=torch.float64))
    assert best.result()[:, 0].tolist() == np.argmin(np.array(costs), axis=0).tolist()


def test_what_has_no_value_does_not_choose() -> None:
    scores = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan], [1.0, torch.nan]])
    nonfinite = torch.tensor([[False, False], [False, False], [False, True]])
    assert cost_of(scores, nonfinite, "mse").tolist() == [1.0, torch.inf, torch.inf]
    assert cost_of(scores, nonfinite, "psnr").tolist() == [-1.0, torch.inf, torch.inf]
    windows = noise_windows(3, scale=DBZ)
    windows.frames[:, 3] = DBZ.missing_code  # one lead time is observed nowhere
    alone = column(evaluate(Dice(), windows), "psnr")
    best = column(evaluate(Dice(), windows, ensemble=Ensemble(N, "best")), "psnr")
    assert (best[:, 0] > alone[:, 0]).any()
    assert np.isnan(best[:, 1]).all()


def test_a_member_that_is_not_finite_is_never_the_best_one() -> None:
    windows = noise_windows(3)
    table = evaluate(Dice(broken=1), windows, ensemble=Ensemble(N, "best"))
    assert table.compute().announced["nonfinite_frames"] == 0
    np.testing.assert_array_equal(column(table, "mse"), column(evaluate(Dice(), windows), "mse"))
    broken = evaluate(Dice(broken=1), windows, ensemble=Ensemble(N, "mean"))  # a mean hides nothing
    assert broken.compute().announced["nonfinite_frames"] == 3


@pytest.mark.parametrize("ensemble", [Ensemble(), Ensemble(3, "best"), Ensemble(3, "mean")])
def test_the_frames_shown_are_those_that_were_scored(ensemble: Ensemble) -> None:
    windows = noise_windows(8)
    table = evaluate(Dice(), windows, ensemble=ensemble)
    found = sample_frames(
        Dice(), windows, table, context=2, horizon=2, protocol=PAPER, batch=3, show=2, device="cpu", ensemble=ensemble
    )
    assert found["index"].tolist() == [0, 2, 1, 3]
    errors = ((found["prediction"] / 255.0 - found["truth"] / 255.0) ** 2).sum((2, 3, 4)).mean(1)
    np.testing.assert_allclose(errors, found["mse"], rtol=0.02)  # codes are rounded
