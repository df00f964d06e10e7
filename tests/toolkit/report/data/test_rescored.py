"""Runs that were scored in several ways: what stands in one table, what in several, and how they are told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.report import read_csv
from toolkit.errors import ToolkitError
from toolkit.evaluate.ensemble import Ensemble
from toolkit.report.build import build_report
from toolkit.report.data.aggregate import Board, GroupScores, make_boards
from toolkit.report.data.collect import collect
from toolkit.report.data.costs import cost_table
from toolkit.report.data.tables import board_titles, mode_table, score_table
from toolkit.report.html.figures import row_looks


def rescore(
    sweep: Path, group: str, name: str, which: str = "best", seeds: tuple[int, ...] = (1, 2), **changes: Any
) -> None:
    """Leave another scoring of runs: their own with `changes`, and scores named `extra` added."""
    extra = changes.pop("extra", {})
    for seed in seeds:
        folder = sweep / f"{group}-seed{seed}" / "eval"
        own = "last" if which == "last" else "best"
        record = {**json.loads((folder / f"test-{own}.json").read_text()), "which": which, **changes}
        for score, value in extra.items():
            record["overall"][score] = value + seed
            record["leads"][score] = [value + seed] * record["horizon"]
        (folder / f"{name}-{which}.json").write_text(json.dumps(record))
        for suffix in ("table.npz", "samples.npz"):
            if (name, which) != ("test", own):
                shutil.copy(folder / f"test-{own}.{suffix}", folder / f"{name}-{which}.{suffix}")


def boards_of(sweep: Path) -> list[Board]:
    return make_boards(collect(sweep))


def rows_of(board: Board, which: str, group: str = "slots4") -> dict[str, GroupScores]:
    return {row.label: row for row in board.rows_at(which) if row.group == group}


def test_lpips_that_was_computed_later_is_in_the_table(sweep: Path) -> None:
    rescore(sweep, "slots4", "test+lpips", seeds=(2,), extra={"lpips": 0.1})
    (board,) = boards_of(sweep)
    row = rows_of(board, "best")["slots4"]
    assert (row.seeds, row.cells["lpips", ""].values) == ((1, 2), {2: 2.1})
    shown = next(line for line in score_table(board, ("best",)).rows if line.cells[0] == "slots4")
    assert str(shown.cells[-1]) == "2.100 ± – (1 of 2)"
    rescore(sweep, "slots4", "test+lpips", extra={"lpips": 0.1})
    (board,) = boards_of(sweep)
    assert rows_of(board, "best")["slots4"].cells["lpips", ""].mean == pytest.approx(1.6)


def test_lpips_that_was_computed_later_takes_no_model_and_no_first_place(sweep: Path) -> None:
    """The run's own scores stay so: what hasn't been scored stays listed, and their table the first, with its costs."""
    before = make_boards(collect(sweep))[0]
    for group, seeds in (("slots4", (1, 2)), ("slots1", (1,))):
        rescore(sweep, group, "test+openstl", seeds=seeds, protocol={"name": "openstl"})
        for which in ("best", "last"):
            rescore(sweep, group, "test+lpips", which, seeds=seeds, extra={"lpips": 0.1}, seconds=900.0)
    found = collect(sweep)
    boards = make_boards(found)
    assert [board.facts["protocol"]["name"] for board in boards] == ["paper", "openstl"]
    for which in ("best", "last"):
        assert [row.label for row in boards[0].rows_at(which)] == [row.label for row in before.rows_at(which)]
        assert rows_of(boards[0], which)["slots4"].cells["lpips", ""].mean == pytest.approx(1.6)
    assert boards[0].first_scored == before.first_scored
    costs = {str(row.cells[0]): row.cells[-1] for row in cost_table(found).rows}
    assert (costs["slots4"], costs["convlstm"]) == ("0.75", "–")


def test_a_result_of_another_step_adds_no_metric(sweep: Path, caplog: pytest.LogCaptureFixture) -> None:
    rescore(sweep, "slots4", "test+lpips", extra={"lpips": 0.1}, step=170)
    with caplog.at_level("INFO"):
        (board,) = boards_of(sweep)
    assert "lpips" not in {metric.key for metric in board.metrics}
    assert "not in the tables" in caplog.text and "test+lpips-best.json" in caplog.text


def test_an_ensemble_that_was_scored_later_has_a_row_and_a_style_of_its_own(sweep: Path) -> None:
    rescore(sweep, "slots4", "test+best-of-9", ensemble=Ensemble(9, "best").described())
    (board,) = boards_of(sweep)
    rows = rows_of(board, "best")
    assert list(rows) == ["slots4", "slots4 (best of 9 by PSNR)"]
    assert [(row.seeds, row.missing) for row in rows.values()] == [((1, 2), {})] * 2
    assert list(rows_of(board, "last")) == ["slots4"]
    first = mode_table(board, board.metrics[0]).rows
    assert [row.cells[0] for row in first][:2] == ["slots4", "slots4 (best of 9 by PSNR)"]
    assert str(first[1].cells[-1]) == "–" and first[-1].kind == "baseline"
    looks = row_looks(board.rows_at("best"), ["slots4", "slots1", "convlstm"])
    one, other = (looks[label] for label in rows)
    assert one.colour == other.colour and (one.dashes, one.marker) != (other.dashes, other.marker)
    assert len({(look.colour, str(look.dashes)) for look in looks.values()}) == len(looks)
    page = build_report(sweep, None).read_text()
    assert page.count(">slots4 (best of 9 by PSNR)<") > 2  # tables and frames


def test_scores_of_two_event_rules_are_not_averaged(sweep: Path) -> None:
    rescore(sweep, "slots4", "test", seeds=(1,), event_rule=2)
    boards = boards_of(sweep)
    assert len(boards) == 2
    assert [title.rpartition(", ")[2] for title in board_titles(boards)] == ["event rule 1", "event rule 2"]
    build_report(sweep, None)
    rows = [row for row in read_csv(sweep) if (row["group"], row["metric"], row["mode"]) == ("slots4", "mse", "all")]
    assert {(row["event_rule"], row["n"]) for row in rows if row["checkpoint"] == "best"} == {("", "1"), ("2", "1")}


def test_an_rmse_that_was_not_stored_is_made_of_the_mse(sweep: Path) -> None:
    file = sweep / "slots4-seed2" / "eval" / "test-best.json"
    record = json.loads(file.read_text())
    for scores in (record["overall"], record["leads"], *record["modes"].values()):
        del scores["rmse"]
    file.write_text(json.dumps(record))
    (board,) = boards_of(sweep)
    row = rows_of(board, "best")["slots4"]
    assert row.cells["rmse", ""].values[2] == record["overall"]["mse"] ** 0.5
    assert row.leads["rmse"][0].values[2] == record["leads"]["mse"][0] ** 0.5
    assert set(row.cells["rmse", "1 digits"].values) == {1, 2}


def test_tables_beside_each_other_have_different_titles(sweep: Path) -> None:
    store = {"path": "stores/other", "name": "moving-mnist", "digest": "cd" * 32}
    rescore(sweep, "slots4", "test+store-other-1", store=store)
    rescore(sweep, "slots4", "test+at-30,35", thresholds=[30, 35])
    rescore(sweep, "slots4", "test+at-30,35.0000001", thresholds=[30, 35.0000001])
    rescore(sweep, "slots4", "test+context-2", context=2)
    rescore(sweep, "slots4", "test+first-3", limit=3, n=3)
    boards = boards_of(sweep)
    titles = board_titles(boards)
    assert len(set(titles)) == len(boards) == 6
    assert titles[0].startswith("paper, moving-mnist test, ")
    for words in (
        "store cdcdcdcdcdcd",
        "thresholds 30 35,",
        "thresholds 30 35.0000001,",
        "2 → 3 frames",
        "the first 3",
    ):
        assert sum(words in title for title in titles) == 1
    page = build_report(sweep, None).read_text()
    markdown = (sweep / "report" / "table.md").read_text()
    for title in titles:
        assert f"Scores: {title}" in page and f"## Best-validation checkpoint (by MSE) ({title})" in markdown
    found = {tuple(row[name] for name in ("context", "thresholds", "limit", "store_path")) for row in read_csv(sweep)}
    assert len(found) == 6


def test_a_scoring_of_one_checkpoint_has_no_empty_rows(sweep: Path) -> None:
    rescore(sweep, "slots4", "test+openstl", protocol={"name": "openstl"})
    own, other = boards_of(sweep)
    assert (own.checkpoints, other.checkpoints) == (["best", "last"], ["best"])
    assert [row.group for row in other.rows if not row.baseline] == ["slots4"]


def test_groups_without_a_moving_average_have_no_rows_of_it(sweep: Path) -> None:
    rescore(sweep, "slots4", "test", "ema")
    (board,) = boards_of(sweep)
    assert [row.group for row in board.rows_at("ema") if not row.baseline] == ["slots4"]
    table = mode_table(board, board.metrics[0])
    assert [row.cells[0] for row in table.rows][:3] == ["slots4", "slots1", "convlstm"]
    assert all(len(row.cells) == len(table.header) for row in table.rows)
    build_report(sweep, None)
    assert {row["group"] for row in read_csv(sweep) if row["checkpoint"] == "ema"} == {
        "slots4", "persistence (baseline)"
    }  # fmt: skip


def test_the_advice_for_a_result_of_an_old_version_helps(sweep: Path) -> None:
    rescore(sweep, "slots4", "test+openstl", version=99)
    with pytest.raises(ToolkitError, match=r"test\+openstl-best.json: written in version 99, .*; delete it") as caught:
        collect(sweep)
    assert "--force" not in str(caught.value)
