"""The first line of a report: by how much the best is better, or that the seeds can't tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.support.synthetic import noise_scene, write_run, write_sweep
from toolkit.report.build import build_report
from toolkit.report.data.aggregate import make_boards
from toolkit.report.data.collect import collect
from toolkit.report.data.costs import cost_table
from toolkit.report.data.verdict import answer, few_sequences, paired_interval


def write_scores(
    root: Path, scores: dict[str, list[float] | dict[int, float]], untrained: tuple[str, ...] = ()
) -> None:
    """One run for each group and seed (1, 2, ... of a list), whose best checkpoint has a given overall MSE; persistence
    has 100.
    """
    runs = []
    for group, values in scores.items():
        for seed, value in values.items() if isinstance(values, dict) else enumerate(values, 1):
            run = write_run(root / f"{group}-seed{seed}", group, seed, noise_scene(), 1.0)
            file = run.eval / "test-best.json"
            record = json.loads(file.read_text())
            record["overall"]["mse"], record["persistence"]["overall"]["mse"] = value, 100.0
            record["parameters"] *= group not in untrained
            file.write_text(json.dumps(record))
            runs.append((run.path.name, group, seed))
    write_sweep(root, "demo", runs)


def first_line(root: Path) -> str:
    (board,) = make_boards(collect(root))
    return answer(board, "best")


def test_the_paired_interval_is_students() -> None:
    values = np.array([-1.0, -1.4, -0.7, -1.2])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert paired_interval(list(values)) == pytest.approx(expected)
    assert paired_interval([1.0]) is None and paired_interval([]) is None


def test_a_difference_in_every_seed_is_told_with_its_interval(tmp_path: Path) -> None:
    write_scores(tmp_path, {"a": [50, 60, 70], "b": [51, 61.5, 71.2]})  # the seeds vary more than the models differ
    assert first_line(tmp_path) == (
        "a is better than b: MSE -1.233 (-2.0 %), 95 % interval -1.858 to -0.6082 over 3 seeds, paired."
    )
    page = build_report(tmp_path, None).read_text()
    assert "a is better than b: MSE -1.233" in page.partition("</header>")[0]
    assert "a is better than b: MSE -1.233" in (tmp_path / "report" / "table.md").read_text().splitlines()[2]
    (board,) = make_boards(collect(tmp_path))
    assert not any(row.cells["mse", ""].best for row in board.rows_at("best"))  # the gap is within the spread


def test_what_the_seeds_can_not_tell_is_said(tmp_path: Path) -> None:
    write_scores(tmp_path / "x", {"a": [50, 60, 70], "b": [52, 57, 75]})
    assert first_line(tmp_path / "x").startswith("No significant difference between a and b: MSE -1.333")
    write_scores(tmp_path / "y", {"a": [50], "b": [80]})
    assert first_line(tmp_path / "y").startswith(
        "Too few seeds to compare a and b: MSE -30 (-37.5 %), over 1 seed that both have"
    )
    (board,) = make_boards(collect(tmp_path / "y"))
    assert not any(row.cells["mse", ""].best for row in board.rows_at("best"))


def test_the_baseline_takes_part(tmp_path: Path) -> None:
    write_scores(tmp_path / "x", {"a": [50, 52]})
    assert first_line(tmp_path / "x").startswith("a is better than persistence (baseline): MSE -49 (-49.0 %)")
    write_scores(tmp_path / "y", {"a": [130, 132]})
    assert first_line(tmp_path / "y").startswith("persistence (baseline) is better than a: MSE -31 (-23.7 %)")


def test_a_model_without_training_has_its_score_beside_every_seed(tmp_path: Path) -> None:
    write_scores(tmp_path / "x", {"a": [50, 52, 51], "flow": [70]}, untrained=("flow",))
    assert first_line(tmp_path / "x").startswith("a is better than flow: MSE -19 (-27.1 %), 95 % interval -21.48 to")
    write_scores(tmp_path / "y", {"flow": {7: 70.0}, "a": {1: 90.0, 2: 91.0}}, untrained=("flow",))
    assert first_line(tmp_path / "y").startswith("flow is better than a: MSE -20.5 (-22.7 %), 95 % interval")
    write_scores(tmp_path / "z", {"flow": [70], "steps": [60]}, untrained=("flow", "steps"))
    assert first_line(tmp_path / "z") == "steps is better than flow: MSE -10 (-14.3 %); neither is trained."
    (board,) = make_boards(collect(tmp_path / "z"))
    assert [row.group for row in board.rows_at("best") if row.cells["mse", ""].best] == ["steps"]
    write_scores(tmp_path / "w", {"flow": [100]}, untrained=("flow",))
    assert first_line(tmp_path / "w") == "No difference between flow and persistence (baseline); neither is trained."


def test_models_are_compared_on_the_seeds_that_both_have(tmp_path: Path) -> None:
    """Better on average over its own seeds, worse on every shared one; and without a shared one no number."""
    write_scores(tmp_path / "x", {"a": {1: 1.0, 2: 50.0, 3: 51.0}, "b": {2: 40.0, 3: 41.01}})
    assert first_line(tmp_path / "x") == (
        "b is better than a: MSE -9.995 (-19.8 %), 95 % interval -10.06 to -9.931 over 2 seeds, paired. The means of "
        "the table are over different seeds."
    )
    write_scores(tmp_path / "y", {"a": {1: 1.0}, "b": {2: 40.0, 3: 41.0}})
    assert first_line(tmp_path / "y") == (
        "Too few seeds to compare a and b: they have no seed in common; at least two are needed."
    )


@pytest.mark.parametrize(
    ("first", "second", "marked"),
    [
        ((0.50, 0.54), (1.9, 1.96), []),  # 0.52 = 1 / 1.92 and 1.93 are as far from 1
        ((0.50, 0.51), (2.3, 2.31), ["a"]),
        ((0.9, 1.1), (1.12, 1.13), []),
        ((0.9, 1.1), (0.0, 4.0), []),
    ],
)
def test_of_a_bias_the_spread_is_that_of_its_distance_from_1(
    tmp_path: Path, first: tuple[float, float], second: tuple[float, float], marked: list[str]
) -> None:
    scene = noise_scene(thresholds=(30.0,))
    for group, values in (("a", first), ("b", second)):
        for seed, value in enumerate(values, 1):
            file = write_run(tmp_path / f"{group}-seed{seed}", group, seed, scene, 1.0).eval / "test-best.json"
            record = json.loads(file.read_text())
            record["overall"]["bias@30"], record["persistence"]["overall"]["bias@30"] = value, 9.0
            file.write_text(json.dumps(record))
    write_sweep(tmp_path, "demo", [(f"{group}-seed{seed}", group, seed) for group in "ab" for seed in (1, 2)])
    (board,) = make_boards(collect(tmp_path))
    assert [row.group for row in board.rows_at("best") if row.cells["bias@30", ""].best] == marked


def test_few_sequences_are_warned_of(sweep: Path) -> None:
    (board,) = make_boards(collect(sweep))
    assert few_sequences(board).startswith("Only 4 sequences scored")
    assert "Only 4 sequences scored" in build_report(sweep, None).read_text()
    for file in sweep.glob("*/eval/test-*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "n": 1000}))
    (board,) = make_boards(collect(sweep))
    assert few_sequences(board) == ""


def test_costs_that_could_not_be_counted_are_named_with_the_reason(sweep: Path) -> None:
    for file in sweep.glob("slots4-*/eval/test-*.json"):
        record = {**json.loads(file.read_text()), "macs": None, "macs_not_counted": "ValueError: no <values>"}
        file.write_text(json.dumps(record))
    cells = {str(row.cells[0]): row.cells[2] for row in cost_table(collect(sweep)).rows}
    assert (cells["slots4"], cells["slots1"]) == ("not counted", "–")
    page = build_report(sweep, None).read_text()
    assert page.count("slots4: GMACs are not counted: ValueError: no &lt;values&gt;") == 1


def test_the_costs_of_each_model_are_in_a_table(sweep: Path) -> None:
    (sweep / "slots4-seed1" / "state.json").write_text(json.dumps({"peak_memory": 3 * 2**30}))
    for file in sweep.glob("slots4-*/eval/test-*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "macs": 12_345_678_901}))
    rows = {str(row.cells[0]): row.cells[1:] for row in cost_table(collect(sweep)).rows}
    config = collect(sweep).runs[0]
    assert (config.lr, config.batch) == (3e-4, 8)
    assert rows["slots4"] == ("127,456", "12.3", "0.0003", "8", "0.0426 to 0.0444", "3.00", "0.75")
    assert rows["slots1"][1] == "–"  # a result from before they were counted
    assert rows["convlstm"][0] == rows["convlstm"][-1] == "–"  # not evaluated
    assert "Learning rate" in build_report(sweep, None).read_text()
    (sweep / "convlstm-seed1" / "eval").mkdir()
    for name in ("test+horizon-9-best", "test+at-none-last"):  # other scorings have other costs
        record = json.loads((sweep / "slots4-seed1" / "eval" / "test-best.json").read_text())
        record |= {"macs": 10**12, "seconds": 4000.0, "limit": len(name)}
        for run in ("slots4-seed1", "convlstm-seed1"):
            (sweep / run / "eval" / f"{name}.json").write_text(json.dumps(record))
    again = {str(row.cells[0]): row.cells[1:] for row in cost_table(collect(sweep)).rows}
    assert again["slots4"] == rows["slots4"]
    assert again["convlstm"] == ("127,456", *rows["convlstm"][1:])


def test_results_without_their_costs(sweep: Path) -> None:
    for file in sweep.glob("slots4-*/eval/test-*.json"):
        record = {
            key: value for key, value in json.loads(file.read_text()).items() if key not in ("seconds", "parameters")
        }
        file.write_text(json.dumps(record))
    rows = {str(row.cells[0]): row.cells[1:] for row in cost_table(collect(sweep)).rows}
    assert rows["slots4"][-1] == "–"
    assert build_report(sweep, None).exists()


@pytest.mark.parametrize("step", [None, 300, 10**15], ids=["absent", "minutes", "beyond the calendar"])
def test_results_with_odd_clocks_and_horizons(sweep: Path, step: int | None) -> None:
    for file in sweep.glob("slots4-*/eval/test-*.json"):
        record = json.loads(file.read_text()) | {"step_seconds": step}
        if step is None:
            del record["step_seconds"]
        record["persistence"]["horizon"] = ""
        file.write_text(json.dumps(record))
    assert build_report(sweep, None).exists()
