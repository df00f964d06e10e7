"""The paper's tables: its own arithmetic, sub-models joined by mode, what is missing, what may not be mixed."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from launch.report import main
from launch.sweeps.spec import plan_sweep
from tests.support.synthetic import GREY, Scene, write_result, write_run, write_sweep
from toolkit.errors import ConfigError, ToolkitError
from toolkit.evaluate.ensemble import Ensemble
from toolkit.evaluate.table import STATUS, ScoreTable
from toolkit.report.data.aggregate import PERSISTENCE
from toolkit.report.data.collect import collect
from toolkit.report.paper.numbers import MODES, TABLES, PaperTable
from toolkit.report.paper.tables import FilledTable, fill_tables, paired_p

PAPER = Path(__file__).parents[4] / "configs" / "sweeps" / "paper.yaml"
# Sequences of each mode: as many of each number of digits; 42 to 58 of the radar seasons (see the paper's Table 7).
COUNTS = {"mmnist": (3, 3, 3), "kth": (1, 1), "radar": (42, 58)}


def scene_of(data: str) -> Scene:
    modes = tuple(mode for mode, count in zip(MODES[data], COUNTS[data], strict=True) for _ in range(count))
    frames = np.zeros((len(modes), 4, 1, 8, 8), np.uint8)
    return Scene(frames, modes, context=2, scale=GREY, name=data)


def table_of(data: str, by_mode: Mapping[str, Mapping[str, float]]) -> ScoreTable:
    """Every sequence of a mode scores what is given for it; `csi@30` only as an averaged column here."""
    scene = scene_of(data)
    names = sorted({name for scores in by_mode.values() for name in scores})
    table = ScoreTable("paper", 2, names)
    values = {name: np.array([[by_mode[mode][name]] * 2 for mode in scene.modes]) for name in names}
    values |= {name: np.zeros((len(scene.modes), 2), np.int64) for name in STATUS}
    table.update(range(len(scene.modes)), [f"s{i}" for i in range(len(scene.modes))], scene.modes, values)
    return table


def numbered(number: str) -> PaperTable:
    return next(table for table in TABLES if table.number == number)


def published(number: str, label: str, variant: str) -> dict[str, dict[str, float]]:
    """The paper's numbers of one row by mode and metric."""
    table = numbered(number)
    row = next(row for row in table.rows if row.label == label)
    found: dict[str, dict[str, float]] = {}
    for (column, which), value in table.paper(row).items():
        if which == variant and value is not None:
            found.setdefault(column.mode, {})[column.metric] = value
    return found


def write_paper_runs(root: Path, seeds: tuple[int, ...] = (1,), shift: float = 0.0) -> None:
    """Runs whose scores by mode are those of Tables 1 and 7; seed s is off by shift x s."""
    runs = []
    for number, data in (("1", "mmnist"), ("7", "radar")):
        for row in numbered(number).rows:
            entire, sub = (published(number, row.label, variant) for variant in ("entire", "sub"))
            plans = {f"{data}-{row.model}": {mode: entire[mode] for mode in MODES[data]}}
            # A model of one mode scores badly on the others: those scores must not count.
            for mode in MODES[data]:
                bad = {other: dict.fromkeys(sub[other], 1000.0) for other in MODES[data]}
                plans[f"{data}-{row.model}-only-{mode}"] = {**bad, mode: sub[mode]}
            for group, by_mode in plans.items():
                for seed in seeds:
                    run = write_run(root / f"{group}-seed{seed}", group, seed, scene_of(data), 1.0, scored=False)
                    moved = {
                        mode: {name: value + shift * seed for name, value in scores.items()}
                        for mode, scores in by_mode.items()
                    }
                    write_result(run, "best", scene_of(data), table_of(data, moved))
                    runs.append((run.path.name, group, seed))
    write_sweep(root, "paper", runs)


def filled(root: Path) -> dict[str, FilledTable]:
    return {table.table.number: table for table in fill_tables(collect(root), "best")}


def cells(table: FilledTable) -> list[tuple[str, str, float | None, float | None]]:
    return [
        (f"{row.label}, {column.title}, {variant}", column.metric, cell.mean, cell.paper)
        for (row, column, variant), cell in table.cells.items()
        if row.model  # the baseline has no number in the paper
    ]


def test_the_split_of_the_runs_config_is_shown(tmp_path: Path) -> None:
    write_paper_runs(tmp_path)
    before = cells(filled(tmp_path)["1"])
    for file in list(tmp_path.glob("*/eval/test-best.json")):
        record = json.loads(file.read_text())
        record["overall"] = dict.fromkeys(record["overall"], 1000000.0)
        for other in ("dev-best.json", "train-best.json", "test+openstl-best.json"):
            file.with_name(other).write_text(json.dumps({**record, "split": other.partition("-")[0]}))
    assert cells(filled(tmp_path)["1"]) == before
    for file in list(tmp_path.glob("mmnist-modernn-seed1/eval/test*.json")):
        file.unlink()
    assert "no best score of test" in str(filled(tmp_path)["1"].cells)


def test_the_papers_own_arithmetic(tmp_path: Path) -> None:
    """Table 2 is the plain mean of Table 1's modes; Table 7's overall weighs its seasons 42 to 58."""
    write_paper_runs(tmp_path)
    tables = filled(tmp_path)
    for name, metric, ours, paper in cells(tables["1"]):
        assert ours == pytest.approx(paper), (name, metric)
    known = [cell for cell in cells(tables["2"]) if cell[1] in ("ssim", "mse") and cell[2] is not None]
    assert len(known) == 6
    for name, metric, ours, paper in known:
        assert ours == pytest.approx(paper, abs=0.0006 if metric == "ssim" else 0.06), name
    assert len(cells(tables["7"])) == 60
    for name, metric, ours, paper in cells(tables["7"]):
        assert ours == pytest.approx(paper, abs=0.0011 if metric == "csi@30" else 0.16), name


def test_better_and_worse_are_the_papers_colours(tmp_path: Path) -> None:
    write_paper_runs(tmp_path)
    table = filled(tmp_path)["1"]
    rows = {row.label: [table.change(row, column) for column in table.table.columns] for row in table.table.rows}
    assert rows["ModeRNN"] == ["better"] * 6
    assert rows["ConvLSTM"] == ["worse"] * 6
    assert rows["RIM"] == ["worse", "worse", "better", "better", "worse", "worse"]


def test_seeds_are_aggregated_missing_ones_named_and_differences_tested(tmp_path: Path) -> None:
    write_paper_runs(tmp_path, seeds=(1, 2, 3), shift=0.5)
    failed = tmp_path / "mmnist-rim-seed2"
    (failed / "DONE").unlink()
    (failed / "FAILED").write_text("killed by SIGKILL\n")
    table = filled(tmp_path)["1"]
    mse = next(column for column in table.table.columns if column.metric == "mse" and column.mode == "1-digit")
    convlstm, rim, *_ = table.table.rows
    cell = table.cells[convlstm, mse, "entire"]
    assert (cell.mean, cell.std) == (pytest.approx(33.4 + 1.0), pytest.approx(0.5))
    half = table.cells[rim, mse, "entire"]
    assert sorted(half.values) == [1, 3]
    assert half.missing == {
        2: "mmnist-rim-seed2: failed at step 200 of 200: killed by SIGKILL; its scores are excluded"
    }
    random = np.random.default_rng(0)
    first, second = (dict(enumerate(random.normal(size=5))) for _ in range(2))
    expected = stats.ttest_rel(list(first.values()), list(second.values())).pvalue
    assert paired_p(first, second) == pytest.approx(expected)
    assert paired_p({1: 1.0, 2: 2.0}, {1: 1.5, 2: 2.0}) is None
    assert paired_p({1: 1.0, 2: 2.0, 3: 0.0}, {1: 2.0, 2: 3.0, 3: 1.0}) is None  # no spread: not a test


def test_another_scoring_takes_no_part(tmp_path: Path) -> None:
    """LPIPS of one mode alone leaves the numbers of all modes; another protocol is no score of the run's own."""
    write_paper_runs(tmp_path)
    before = fill_tables(collect(tmp_path), "best")
    folder = tmp_path / "radar-modernn-only-mar-may-seed1" / "eval"
    record = json.loads((folder / "test-best.json").read_text())
    table = ScoreTable.load(folder / "test-best.table.npz")
    longer = ScoreTable("paper", 2, [*table.given, "lpips"])
    columns = {**table.arrays(), "lpips": np.ones((len(table), 2))}
    index, keys, modes = (columns.pop(name).tolist() for name in ("index", "key", "mode"))
    longer.update(index, keys, modes, columns)
    longer.save(folder / "test+lpips-best.table.npz")
    record |= {"overall": {**record["overall"], "lpips": 1.0}, "leads": {**record["leads"], "lpips": [1.0, 1.0]}}
    (folder / "test+lpips-best.json").write_text(json.dumps(record))
    other = tmp_path / "radar-convlstm-seed1" / "eval"
    (other / "test-best.json").rename(other / "test+openstl-best.json")
    after = fill_tables(collect(tmp_path), "best")
    place = next(number for number, filled in enumerate(after) if filled.table.number == "7")
    (ours, theirs), (mse_before, _) = (
        [filled.cells[row, filled.table.columns[-1], "sub" if row.model == "modernn" else "entire"]
         for row in filled.table.rows if row.model in ("modernn", "convlstm")][::-1]
        for filled in (after[place], before[place])
    )  # fmt: skip
    assert ours.values == mse_before.values and ours.values
    assert theirs.missing == {1: "radar-convlstm-seed1: no best score of test"}


def test_results_of_two_protocols_never_share_a_column(tmp_path: Path) -> None:
    write_paper_runs(tmp_path)
    run = write_run(tmp_path / "mmnist-mim-seed1", "mmnist-mim", 1, scene_of("mmnist"), 1.0, scored=False)
    table = table_of("mmnist", {mode: {"mse": 1.0, "ssim": 1.0} for mode in MODES["mmnist"]})
    write_result(run, "best", scene_of("mmnist"), table, protocol={"name": "other", "clamp": False})
    record = tmp_path / "sweep.yaml"
    record.write_text(
        record.read_text() + "- {dir: mmnist-mim-seed1, name: mmnist-mim-seed1, group: mmnist-mim, seed: 1}\n"
    )
    with pytest.raises(ToolkitError, match=r"mmnist-mim-seed1 and .* are not comparable"):
        filled(tmp_path)


def test_the_command_writes_all_four_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_paper_runs(tmp_path, seeds=(1, 2))
    for file in tmp_path.glob("*/eval/*.json"):
        record = json.loads(file.read_text())
        record["persistence"]["overall"]["mse"] = 99.5
        if "mmnist-rim-seed" in str(file):
            record["ensemble"] = Ensemble(10, "best").described()
        file.write_text(json.dumps(record))
    assert main(["--paper", str(tmp_path)]) == 0
    out = tmp_path / "report" / "paper"
    assert capsys.readouterr().out.strip() == str(out / "index.html")
    page = (out / "index.html").read_text()
    assert '44.67<br><span class="soft">± 0.00 (2)</span><br><span class="soft">[44.7]</span>' in page
    assert "mmnist-predrnn" not in page
    markdown = (out / "tables.md").read_text()
    assert "| ModeRNN | 0.946 ± 0.000 (2) [0.946] | 0.951 ± 0.000 (2)▲ [0.951] |" in markdown
    assert markdown.count("RIM: best of 10 by PSNR") == 2  # Tables 1 and 2
    assert markdown.count(f"| {PERSISTENCE} |") == 7
    assert f"| {PERSISTENCE} | 99.50 |" in markdown
    assert "| SVG (best of 100) | – [27.73] | – [0.196] | – | – |" in markdown
    assert r"44.67 $\pm$ 0.00 (2) [44.7]" in (out / "tables.tex").read_text()
    lines = list(csv.DictReader(io.StringIO((out / "tables.csv").read_text())))
    expected = sum(len(row.numbers) for table in TABLES for row in (*table.rows, table.rows[0]))  # and the baseline
    assert len(lines) == expected
    found = next(line for line in lines if (line["table"], line["row"], line["metric"]) == ("2", "ModeRNN", "mse"))
    assert (float(found["mean"]), found["n"], found["paper"]) == (pytest.approx(44.667, abs=1e-3), "2", "44.7")


def test_small_errors_have_more_decimals_than_the_papers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors of 16 x 16 frames, which one decimal would round together; four digits of the largest, persistence's."""
    write_paper_runs(tmp_path)
    for file in tmp_path.glob("*/eval/*.json"):
        record = json.loads(file.read_text())
        record["overall"]["mse"] = 2.8149 if "mmnist-convlstm" in str(file) else 2.7751
        record["persistence"]["overall"]["mse"] = 7.574
        file.write_text(json.dumps(record))
    assert main(["--paper", str(tmp_path)]) == 0
    (row,) = re.findall(r"^\| ConvLSTM \|[^|]*\| 2.*$", (tmp_path / "report/paper/tables.md").read_text(), re.MULTILINE)
    assert row.split(" | ")[2] == "2.815 (1) [78.7]"


def test_a_folder_of_other_runs_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "modernn", 1, scene_of("kth"), 1.0)
    with pytest.raises(ConfigError, match="none of 1 run is"):
        main(["--paper", str(tmp_path)])


def test_every_run_of_the_papers_sweep_has_a_place_in_a_table() -> None:
    planned = {run.group for run in plan_sweep(PAPER).runs}
    needed = set()
    for table in TABLES:
        for row in table.rows:
            for (column, variant), value in table.paper(row).items():
                modes = MODES[column.data] if column.mode == "" else (column.mode,)
                names = [f"{column.data}-{row.model}"]
                names = names if variant == "entire" else [f"{names[0]}-only-{mode}" for mode in modes]
                needed |= set(names) if value is not None else set()
    assert needed == planned


@pytest.mark.parametrize("name", ["converged.yaml", "paper-small.yaml"])
def test_smaller_sweeps_have_the_same_names(name: str) -> None:
    """Those whose comments say that `report.py --paper` makes tables of them."""
    known = {run.group for run in plan_sweep(PAPER).runs}
    found = {run.group for run in plan_sweep(PAPER.with_name(name)).runs}
    assert found and found <= known
