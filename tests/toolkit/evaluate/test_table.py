"""Scores come out the same however samples were spread, are counted once, and nothing undefined passes in silence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import ToolkitError
from toolkit.evaluate.table import STATUS, ScoreTable, event_scores

HORIZON = 3
EVENTS = ("hits@30", "misses@30", "false_alarms@30", "correct_negatives@30")


def empty() -> ScoreTable:
    return ScoreTable("paper", HORIZON, ("mse", "psnr"), (30,))


def columns(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {name: random.lognormal(3, 4, (count, HORIZON)) for name in ("mse", "psnr")}
    found |= {name: np.zeros((count, HORIZON), np.int64) for name in STATUS}
    return found | {name: random.integers(0, 50, (count, HORIZON)) for name in EVENTS}


def filled(count: int, members: list[int] | None = None) -> ScoreTable:
    """A table with `members` of the same `count` samples."""
    chosen = list(range(count)) if members is None else members
    table = empty()
    values = {name: column[chosen] for name, column in columns(count).items()}
    table.update(chosen, [f"k{i}" for i in chosen], ["ab"[i % 2] for i in chosen], values)
    return table


@given(parts=st.lists(st.integers(0, 4), min_size=1, max_size=40), order=st.randoms())
@settings(max_examples=60)
def test_any_partition_merges_to_identical_bits(parts: list[int], order: object) -> None:
    count = len(parts)
    whole = filled(count).compute()
    shares = [[i for i, part in enumerate(parts) if part == rank] for rank in range(5)]
    for share in shares:
        order.shuffle(share)  # type: ignore[attr-defined]
    order.shuffle(shares)  # type: ignore[attr-defined]
    merged = filled(count, shares[0])
    for share in shares[1:]:
        merged.merge(filled(count, share))
    assert json.dumps(merged.compute().as_dict()) == json.dumps(whole.as_dict())  # repr of a float is its bits


def test_compute_equals_hand_computed_means() -> None:
    values = columns(4)
    scores = filled(4).compute()
    assert scores.n == 4
    assert scores.mode_counts == {"a": 2, "b": 2}
    assert scores.overall["mse"] == math.fsum(values["mse"].ravel()) / 12
    assert scores.modes["b"]["psnr"] == math.fsum(values["psnr"][[1, 3]].ravel()) / 6
    assert scores.leads["mse"][2] == pytest.approx(values["mse"][:, 2].mean(), rel=1e-15)
    assert scores.mode_leads["a"]["mse"][0] == pytest.approx(values["mse"][[0, 2], 0].mean(), rel=1e-15)
    hits, misses, alarms, _ = (int(values[name].sum()) for name in EVENTS)
    assert scores.overall["csi@30"] == hits / (hits + misses + alarms)
    assert scores.overall["events@30"] == hits + misses


def test_event_scores_by_hand_and_without_events() -> None:
    # 6 hits, 2 misses, 4 false alarms, 8 correct negatives of 20: 14 right, 10 of them expected by chance.
    chance = (8 * 10 + 12 * 10) / 20
    expected = {"csi": 0.5, "pod": 0.75, "far": 0.4, "bias": 1.25, "hss": (14 - chance) / (20 - chance)}
    assert event_scores(6, 2, 4, 8) == {**expected, "events": 8, "forecasts": 10}
    nothing = event_scores(0, 0, 0, 9)
    empty = dict.fromkeys(("csi", "pod", "far", "bias", "hss"))
    assert nothing == {**empty, "events": 0, "forecasts": 0}
    assert event_scores(0, 0, 3, 0) == {**empty, "csi": 0.0, "far": 1.0, "hss": 0.0, "events": 0, "forecasts": 3}


def test_squares_neighbourhoods_and_the_mean_over_thresholds() -> None:
    table = ScoreTable("sevir", 1, (), (10, 20), pools=(1, 4), fss_windows=(3,))
    values = {name: np.zeros((2, 1), np.int64) for name in table.counted}
    values |= {name: np.zeros((2, 1)) for name in table.averaged}
    for key, counts in {"@10": (1, 1, 0), "@10/4": (3, 0, 1), "@20": (1, 0, 3), "@20/4": (1, 1, 2)}.items():
        for name, count in zip(("hits", "misses", "false_alarms"), counts, strict=True):
            values[name + key][:] = count
    values["fss_error@10/3"][:] = [[0.1], [0.3]]
    values["fss_reference@10/3"][:] = [[0.4], [0.6]]
    table.update([0, 1], ["a", "b"], [None, None], values)
    scores = table.compute().overall
    assert (scores["csi@10"], scores["csi@20"], scores["mean_csi"]) == (0.5, 0.25, 0.375)
    assert (scores["csi@10/4"], scores["csi@20/4"], scores["mean_csi/4"]) == (0.75, 0.25, 0.5)
    assert scores["fss@10/3"] == pytest.approx(1 - 0.4 / 1.0)
    assert scores["fss@20/3"] is None  # no event, neither forecast nor observed


def test_a_sample_counts_once() -> None:
    table = filled(5, [0, 1])
    with pytest.raises(ToolkitError, match=r"sample 1 \(k1\) is counted twice"):
        table.update([1], ["k1"], [None], {name: column[:1] for name, column in columns(5).items()})
    with pytest.raises(ToolkitError, match=r"1 sample counted twice, first 1 \(k1\)"):
        table.merge(filled(5, [1, 2]))


def test_tables_of_another_kind_do_not_merge() -> None:
    with pytest.raises(ToolkitError, match="openstl"):
        empty().merge(ScoreTable("openstl", HORIZON, ("mse", "psnr"), (30,)))
    with pytest.raises(ToolkitError, match="expected the columns"):
        empty().update([0], ["k"], [None], {"mse": np.zeros((1, HORIZON))})
    short = {name: column[:, :2] for name, column in columns(1).items()}
    with pytest.raises(ToolkitError, match=r"has shape \(1, 2\), expected \(1, 3\)"):
        empty().update([0], ["k"], [None], short)


def test_a_prediction_that_is_not_finite_makes_its_groups_undefined_and_is_counted() -> None:
    values = columns(4)
    values["mse"][1, 2] = math.nan
    values["nonfinite_frames"][1, 2] = 1
    table = empty()
    table.update(range(4), list("wxyz"), ["a", "b", "a", None], values)
    scores = table.compute()
    assert scores.overall["mse"] is None
    assert scores.overall["psnr"] is None
    assert scores.overall["csi@30"] is None
    assert scores.modes["b"]["mse"] is None
    assert scores.modes["a"]["mse"] is not None
    assert [value is None for value in scores.leads["mse"]] == [False, False, True]
    assert scores.announced["nonfinite_frames"] == 1
    json.dumps(scores.as_dict(), allow_nan=False)


def test_a_frame_without_value_is_left_out_and_counted() -> None:
    values = columns(2)
    values["psnr"][0, 1] = math.nan
    table = empty()
    table.update([0, 1], ["x", "y"], [None, None], values)
    scores = table.compute()
    assert scores.leads["psnr"][1] == values["psnr"][1, 1]
    assert scores.announced["frames_without_value"] == {"mse": 0, "psnr": 1}
    assert scores.modes == {}


def test_save_and_load_without_pickles(tmp_path: Path) -> None:
    table = filled(5)
    table.save(tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as stored:
        assert stored["mode"].tolist() == ["a", "b", "a", "b", "a"]
    loaded = ScoreTable.load(tmp_path / "t.npz")
    assert loaded.compute() == table.compute()
    assert [path.name for path in tmp_path.iterdir()] == ["t.npz"]
    (tmp_path / "bad.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ToolkitError, match="not a table of scores"):
        ScoreTable.load(tmp_path / "bad.npz")


def test_the_first_samples_of_each_mode() -> None:
    assert filled(7).first_of_modes(2) == [0, 2, 1, 3]
