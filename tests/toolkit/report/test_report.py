"""The report of synthetic sweeps: numbers as computed by hand, gaps named, one file that needs nothing else."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.report import main
from shards.manifest import Scale
from tests.toolkit.report.synthetic import DBZ, noise_scene, write_result, write_run, write_scores, write_sweep
from toolkit.errors import ConfigError, ToolkitError
from toolkit.evaluate.ensemble import Ensemble
from toolkit.evaluate.probabilistic import Members
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.table import ScoreTable
from toolkit.report.build import build_report
from toolkit.report.data.aggregate import PERSISTENCE, make_boards, mean_and_std
from toolkit.report.data.collect import collect
from toolkit.report.html.ensembles import _frequencies
from toolkit.rundir import RunDir

ROOT = Path(__file__).parents[3]
FAILURE = "NonFiniteError: the loss is <NaN> & more"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three groups: `slots4` whole; `slots1` with a failed seed; `convlstm` with a missing and an unevaluated one."""
    root, scene = tmp_path / "demo", noise_scene(thresholds=(30.0,))
    other = {"name": "convlstm"}
    for seed in (1, 2):
        write_run(root / f"slots4-seed{seed}", "slots4", seed, scene, 1.5)
    write_run(root / "slots1-seed1", "slots1", 1, scene, 1.0, model={"name": "modernn", "slots": 1})
    write_run(root / "slots1-seed2", "slots1", 2, scene, 1.0, ending=FAILURE, model={"name": "modernn", "slots": 1})
    write_run(root / "convlstm-seed1", "convlstm", 1, scene, 0.8, scored=False, model=other)
    plan = [(f"{group}-seed{seed}", group, seed) for group in ("slots4", "slots1", "convlstm") for seed in (1, 2)]
    write_sweep(root, "demo", plan)
    return root


def read_csv(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((root / "report" / "table.csv").read_text())))


def quiet(_: str) -> None:
    """Takes the report's lines."""


def test_table_numbers_are_the_hand_computed_means(sweep: Path) -> None:
    build_report(sweep, None, quiet)
    rows = {(row["checkpoint"], row["group"], row["mode"], row["metric"]): row for row in read_csv(sweep)}
    for which in ("best", "last"):
        results = [json.loads((sweep / f"slots4-seed{s}" / "eval" / f"test-{which}.json").read_text()) for s in (1, 2)]
        for metric in ("mse", "ssim", "psnr", "csi@30", "far@30"):
            for mode in ("all", "1 digits", "2 digits"):
                values = [(r["overall"] if mode == "all" else r["modes"][mode])[metric] for r in results]
                row = rows[which, "slots4", mode, metric]
                assert float(row["mean"]) == pytest.approx(np.mean(values), rel=1e-14)
                assert float(row["std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-9)
                assert (row["n"], row["planned"], row["missing_seeds"]) == ("2", "2", "")
    alone = rows["best", "slots1", "all", "mse"]
    assert (alone["std"], alone["n"], alone["planned"], alone["missing_seeds"]) == ("", "1", "2", "2")
    assert rows["best", "convlstm", "all", "mse"]["mean"] == ""
    persistence = rows["best", PERSISTENCE, "all", "mse"]
    assert (
        float(persistence["mean"])
        == json.loads((sweep / "slots4-seed1/eval/test-best.json").read_text())["persistence"]["overall"]["mse"]
    )


def test_mean_and_sample_deviation() -> None:
    assert mean_and_std([]) == (None, None)
    assert mean_and_std([3.0]) == (3.0, None)
    assert mean_and_std([1.0, 2.0, 4.0]) == (pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)))


def test_markdown_and_page_round_the_numbers_of_the_csv(sweep: Path) -> None:
    page = build_report(sweep, None, quiet).read_text()
    markdown = (sweep / "report" / "table.md").read_text()
    rows = {(row["checkpoint"], row["group"], row["mode"], row["metric"]): row for row in read_csv(sweep)}
    row = rows["best", "slots4", "all", "ssim"]
    mean, std = f"{float(row['mean']):.3f}", f"{float(row['std']):.3f}"
    assert f"**{mean} ± {std}**" in markdown
    assert f'<b>{mean}</b><span class="sd">± {std} <span' in page
    single = float(rows["best", "slots1", "all", "ssim"]["mean"])
    assert f"| {single:.3f} ± – |" in markdown


def score_as(sweep: Path, group: str, seed: int, ensemble: Ensemble) -> None:
    for file in (sweep / f"{group}-seed{seed}" / "eval").glob("*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "ensemble": ensemble.described()}))


def test_ensembles_are_told_and_those_chosen_by_the_truth_are_never_marked(sweep: Path) -> None:
    for seed in (1, 2):
        score_as(sweep, "slots4", seed, Ensemble(100, "best"))
    page = build_report(sweep, None, quiet).read_text()
    assert "<th>slots4 (best of 100 by PSNR)</th>" in page
    assert "slots4: Best of 100 forecasts: each sequence is scored by the one whose PSNR" in page
    assert "| slots4 (best of 100 by PSNR) | 2 |" in (sweep / "report" / "table.md").read_text()
    rows = [row for row in read_csv(sweep) if (row["metric"], row["mode"], row["checkpoint"]) == ("mse", "all", "best")]
    assert {row["group"]: row["best"] for row in rows}["slots4"] == "0"  # it has the least MSE
    assert sum(row["best"] == "1" for row in rows) == 1
    assert {row["ensemble"] for row in rows} == {"", "best of 100 by PSNR"}
    for seed in (1, 2):
        score_as(sweep, "slots4", seed, Ensemble(100, "mean"))
    build_report(sweep, None, quiet)
    rows = [row for row in read_csv(sweep) if (row["metric"], row["mode"], row["checkpoint"]) == ("mse", "all", "best")]
    assert {row["group"]: row["best"] for row in rows}["slots4"] == "1"


def test_seeds_scored_by_different_rules_are_not_averaged(sweep: Path) -> None:
    score_as(sweep, "slots4", 1, Ensemble(100, "best"))
    (board,) = make_boards(collect(sweep))
    row = next(row for row in board.rows if row.group == "slots4")
    assert (row.seeds, row.missing) == ((1,), {2: "scored as one forecast"})


def test_the_best_of_each_column_is_marked(sweep: Path) -> None:
    build_report(sweep, None, quiet)
    for row in read_csv(sweep):
        assert row["best"] == str(int(row["group"] == "slots4")), row


def test_missing_and_failed_seeds_are_named_with_their_reason(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(sweep)]) == 0
    said, page = capsys.readouterr(), (sweep / "report" / "index.html").read_text()
    assert "<b>slots1-seed2</b>: failed at step 100 of 200: NonFiniteError: the loss is &lt;NaN&gt; &amp; more" in page
    assert "<b>convlstm-seed2</b>: no run directory convlstm-seed2" in page
    assert "<b>convlstm-seed1</b>: trained, not evaluated (run launch/evaluate.py --run" in page
    assert "its scores are left out" in said.err
    assert said.out.strip().splitlines()[-1] == str((sweep / "report" / "index.html").resolve())


class Links(HTMLParser):
    """All attributes that could load something, and whether tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.sources += [
            value or "" for name, value in attrs if name in ("src", "srcset", "poster", "data", "background")
        ]
        if tag == "a":
            self.anchors.append(found["href"] or "")
        elif "href" in found:
            self.sources.append(found["href"] or "")
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(sweep: Path) -> None:
    page = build_report(sweep, None, quiet).read_text()
    links = Links()
    links.feed(page)
    assert links.open == []
    assert links.sources
    assert all(source.startswith("data:image/") for source in links.sources)
    assert all(anchor.startswith("#") and anchor[1:] in links.ids for anchor in links.anchors)
    assert len(set(links.ids)) == len(links.ids)
    assert "<script" not in page
    assert "@import" not in page
    assert "url(http" not in page


def test_the_page_shows_protocol_frames_and_curves(sweep: Path) -> None:
    page = build_report(sweep, None, quiet).read_text()
    assert "sum over the pixels and channels of a frame" in page
    assert "MSE ↓" in page
    assert "CSI ≥ 30 ↑" in page
    assert page.count("data:image/svg+xml") == 2
    shown = len(re.findall(r"data:image/png", page))
    # 2 sequences of 2 modes: context, truth and two models, 3 frames each; of one of each mode the differences
    assert shown == 2 * 2 * (3 + 3 * 3) + 2 * 2 * 3
    assert page.count("data:image/gif") == page.count("<summary>Animation</summary>") == 2
    assert "seed 1, best · MSE" in page


def test_nothing_changed_nothing_done(sweep: Path) -> None:
    said: list[str] = []
    page = build_report(sweep, None, said.append)
    written = page.stat().st_mtime_ns
    build_report(sweep, None, said.append)
    assert said[-1] == "the report is up to date; nothing to do"
    assert page.stat().st_mtime_ns == written
    scene = noise_scene(thresholds=(30.0,))
    write_run(sweep / "convlstm-seed2", "convlstm", 2, scene, 0.8, model={"name": "convlstm"})
    build_report(sweep, None, said.append)
    assert page.stat().st_mtime_ns > written
    (sweep / "report" / "table.csv").unlink()
    build_report(sweep, None, said.append)
    assert (sweep / "report" / "table.csv").exists()


def test_a_single_run_and_a_folder_without_a_record(sweep: Path) -> None:
    page = build_report(sweep / "slots4-seed1", None, quiet).read_text()
    assert "1 model, 1 seed: 1 of 1 run finished and scored" in page
    (sweep / "sweep.yaml").unlink()
    found = collect(sweep)
    assert found.groups == ["convlstm", "modernn slots 1", "modernn slots default"]
    assert [run.seed for run in found.runs] == [1, 1, 2, 1, 2]


def test_runs_beside_the_plan_are_mentioned(sweep: Path) -> None:
    write_run(sweep / "stray", "stray", 7, noise_scene(), 1.0)
    said: list[str] = []
    page = build_report(sweep, None, said.append).read_text()
    assert "1 run directory here, outside the sweep's plan" in page
    assert any("1 run directory outside the sweep's plan" in line for line in said)
    assert "stray" not in (sweep / "report" / "table.csv").read_text()


def test_a_sweep_without_any_score_still_has_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "s" / "a-seed1", "a", 1, noise_scene(), 1.0, ending="running", scored=False)
    write_sweep(tmp_path / "s", "early", [("a-seed1", "a", 1)])
    page = build_report(tmp_path / "s", None, quiet).read_text()
    assert "No finished run is scored yet" in page
    assert "running at step 100 of 200" in page
    assert "data:image/svg+xml" in page  # the losses so far


def test_numbers_of_two_protocols_never_share_a_column(sweep: Path) -> None:
    write_run(
        sweep / "convlstm-seed2", "convlstm", 2, noise_scene(thresholds=(30.0,)), 0.8,
        model={"name": "convlstm"}, protocol={"name": "openstl", "clamp": False},
    )  # fmt: skip
    page = build_report(sweep, None, quiet).read_text()
    assert "These results are not comparable" in page
    boards = make_boards(collect(sweep))
    assert [board.facts["protocol"]["name"] for board in boards] == ["paper", "openstl"]
    scored = [{row.group for row in board.rows if row.seeds} for board in boards]
    assert scored == [{"slots4", "slots1"}, {"convlstm"}]


def test_radar_has_its_scale_and_its_clock(tmp_path: Path) -> None:
    scene = noise_scene(size=100, scale=DBZ, thresholds=(30.0,), step_seconds=300.0)
    write_run(tmp_path / "r" / "a-seed1", "a", 1, scene, 1.0)
    page = build_report(tmp_path / "r", None, quiet).read_text()
    assert 'aria-label="dBZ scale"' in page
    assert "no data" in page
    assert "+15 min<br>00:10" in page  # the sixth frame of 5 minutes from 23:45
    assert "begins 2015-05-15 23:45:00 UTC" in page
    assert "error (forecast − observation) dBZ" in page
    assert "CSI ≥ 30 dBZ" in page


def test_undefined_scores_are_said_not_hidden(tmp_path: Path) -> None:
    scene = noise_scene(thresholds=(30.0,))
    for seed in (1, 2):
        run = write_run(tmp_path / "s" / f"a-seed{seed}", "a", seed, scene, 1.0)
        for which in ("best", "last"):
            file = run.eval / f"test-{which}.json"
            record = json.loads(file.read_text())
            if seed == 2:
                record["overall"]["mse"] = None
                record["announced"]["nonfinite_frames"] = 3
            record["overall"]["csi@30"] = None
            file.write_text(json.dumps(record))
    page = build_report(tmp_path / "s", None, quiet).read_text()
    assert "modernn seed 2, best: 3 frames with a NaN or infinite prediction" in page
    rows = {(row["checkpoint"], row["group"], row["mode"], row["metric"]): row for row in read_csv(tmp_path / "s")}
    assert rows["best", "modernn", "all", "mse"]["undefined_seeds"] == "2"
    assert rows["best", "modernn", "all", "mse"]["n"] == "1"
    assert rows["best", "modernn", "all", "csi@30"]["mean"] == ""
    assert "n/a" in page


def test_faults_of_use_are_named(tmp_path: Path, sweep: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        build_report(tmp_path / "nowhere", None, quiet)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no sweep\.yaml and no run directory"):
        build_report(tmp_path / "empty", None, quiet)
    file = sweep / "slots4-seed1" / "eval" / "test-best.json"
    whole = file.read_text()
    file.write_text(whole[:100])
    with pytest.raises(ToolkitError, match=r"test-best\.json: can't be read"):
        build_report(sweep, None, quiet)
    file.write_text(json.dumps({**json.loads(whole), "version": 99}))
    with pytest.raises(ToolkitError, match="version 99"):
        build_report(sweep, None, quiet)
    file.write_text(whole)
    (sweep / "slots4-seed1" / "eval" / "test-best.samples.npz").write_bytes(b"PK")
    with pytest.raises(ToolkitError, match="not a file of sample frames"):
        build_report(sweep, None, quiet)
    (sweep / "sweep.yaml").write_text("runs: 7")
    with pytest.raises(ConfigError, match="not a sweep's record"):
        build_report(sweep, None, quiet)


def test_a_last_score_may_be_missing_alone(tmp_path: Path) -> None:
    scene = noise_scene()
    run = write_run(tmp_path / "s" / "a-seed1", "a", 1, scene, 1.0, scored=False)
    write_scores(run, "best", scene, 1.0, np.random.default_rng(0), {}, None)
    page = build_report(tmp_path / "s", None, quiet).read_text()
    assert "seed 1 is missing, no last score under this protocol, data and split (last)" in page


def test_the_report_runs_without_torch(sweep: Path) -> None:
    program = (
        "import sys\n"
        "from launch.report import main\n"
        f"code = main([{str(sweep)!r}])\n"
        "heavy = {'torch', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(code or (f'imported {heavy}' if heavy else 0))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)


def write_ensemble(sweep: Path, group: str, seed: int, members: int) -> None:
    """Scores of an ensemble over what `write_run` left: draws of the truth's own distribution, a little too sure."""
    scene, run = noise_scene(thresholds=(30.0,)), RunDir(sweep / f"{group}-seed{seed}")
    codes = torch.from_numpy(scene.frames[:, scene.context :])
    protocol = load_protocol("paper")
    ensemble = Members(members, codes, Scale("x", "1", 0.0, 1 / 255), protocol, seed)
    for number in range(members):
        generator = torch.Generator().manual_seed(100 * seed + number)
        ensemble.add((torch.rand(codes.shape, generator=generator) - 0.5) * 0.7 + 0.5)
    table = ScoreTable("paper", codes.shape[1], ("mse", "mae", "psnr", "ssim"), scene.thresholds, members=members)
    old = ScoreTable.load(run.eval / "test-best.table.npz").arrays()
    values = {name: old[name] for name in old if name not in ("index", "key", "mode")} | ensemble.scores()
    table.update(range(len(codes)), old["key"].tolist(), old["mode"].tolist(), values)
    file = run.eval / "test-best.json"
    write_result(run, "best", scene, table, json.loads(file.read_text())["persistence"])
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "ensemble": Ensemble(members, "mean").described()}))


def test_ensembles_have_their_scores_and_figures_and_single_forecasts_a_crps(sweep: Path) -> None:
    for seed in (1, 2):
        write_ensemble(sweep, "slots4", seed, 40)
    page = build_report(sweep, None, quiet).read_text()
    assert '<h2 id="ensembles">Ensembles</h2>' in page
    assert "rank of the observation among 40 members, sum over seeds" in page
    assert page.count("data:image/svg+xml") == 4  # losses, lead times, spread, ranks
    rows = {
        (row["group"], row["metric"]): row
        for row in read_csv(sweep)
        if (row["mode"], row["checkpoint"]) == ("all", "best")
    }
    assert float(rows["slots4", "spread_skill"]["mean"]) < 1
    assert rows["slots1", "spread_skill"]["mean"] == rows["slots1", "crps_fair"]["mean"] == ""
    assert rows["slots1", "crps"]["mean"] == rows["slots1", "mae"]["mean"] != ""
    assert rows[PERSISTENCE, "crps"]["mean"] == rows[PERSISTENCE, "mae"]["mean"]
    (board,) = make_boards(collect(sweep))
    (shown,) = (row for row in board.rows_at("best") if row.group == "slots4")
    assert [cell.mean is not None for cell in shown.leads["spread"]] == [True] * 3
    counts = [result.data["ranks"]["overall"] for result in board.results.values() if result.data.get("ranks")]
    bars = _frequencies(counts)
    assert bars is not None and len(bars) == 21
    assert bars[0] > 1.5 and bars[-1] > 1.5  # under-dispersive: the observation lies outside
    assert _frequencies([[3] * 41]) == pytest.approx(np.ones(21))
    assert _frequencies([[3] * 41, None]) is None
