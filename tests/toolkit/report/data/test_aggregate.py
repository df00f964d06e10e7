"""Seeds aggregated; what may not be averaged or compared is kept apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.report import read_csv, score_as
from tests.support.synthetic import noise_scene, write_run, write_scores
from toolkit.evaluate.ensemble import Ensemble
from toolkit.report.build import build_report
from toolkit.report.data.aggregate import make_boards, mean_and_std
from toolkit.report.data.collect import collect


def test_mean_and_sample_deviation() -> None:
    assert mean_and_std([]) == (None, None)
    assert mean_and_std([3.0]) == (3.0, None)
    assert mean_and_std([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)))


def test_seeds_scored_by_different_rules_are_not_averaged(sweep: Path) -> None:
    score_as(sweep, "slots4", 1, Ensemble(100, "best"))
    (board,) = make_boards(collect(sweep))
    row = next(row for row in board.rows if row.group == "slots4")
    assert (row.seeds, row.missing) == ((1,), {2: "scored as one forecast"})


def test_numbers_of_two_protocols_never_share_a_column(sweep: Path) -> None:
    write_run(
        sweep / "convlstm-seed2", "convlstm", 2, noise_scene(thresholds=(30.0,)), 0.8,
        model={"name": "convlstm"}, protocol={"name": "openstl", "clamp": False},
    )  # fmt: skip
    page = build_report(sweep, None).read_text()
    assert "not comparable" in page
    boards = make_boards(collect(sweep))
    assert [board.facts["protocol"]["name"] for board in boards] == ["paper", "openstl"]
    scored = [{row.group for row in board.rows if row.seeds} for board in boards]
    assert scored == [{"slots4", "slots1"}, {"convlstm"}]


def test_the_best_of_each_column_is_marked(sweep: Path) -> None:
    build_report(sweep, None)
    for row in read_csv(sweep):
        assert row["best"] == str(int(row["group"] == "slots4")), row


def test_a_last_score_may_be_missing_alone(tmp_path: Path) -> None:
    scene = noise_scene()
    run = write_run(tmp_path / "s" / "a-seed1", "a", 1, scene, 1.0, scored=False)
    write_scores(run, "best", scene, 1.0, np.random.default_rng(0), {}, None)
    page = build_report(tmp_path / "s", None).read_text()
    assert "seed 1 is missing, no last score" in page
