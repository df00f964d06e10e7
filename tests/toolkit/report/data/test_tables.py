"""Tables of synthetic sweeps: numbers as computed by hand, in CSV, Markdown and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.report import read_csv, score_as
from tests.support.synthetic import noise_scene, write_run
from toolkit.evaluate.ensemble import Ensemble
from toolkit.report.build import build_report
from toolkit.report.data.aggregate import PERSISTENCE


def test_table_numbers_are_the_hand_computed_means(sweep: Path) -> None:
    build_report(sweep, None)
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


def test_markdown_and_page_round_the_numbers_of_the_csv(sweep: Path) -> None:
    page = build_report(sweep, None).read_text()
    markdown = (sweep / "report" / "table.md").read_text()
    rows = {(row["checkpoint"], row["group"], row["mode"], row["metric"]): row for row in read_csv(sweep)}
    row = rows["best", "slots4", "all", "ssim"]
    mean, std = f"{float(row['mean']):.3f}", f"{float(row['std']):.3f}"
    assert f"**{mean} ± {std}**" in markdown
    assert f'<b>{mean}</b><span class="sd">± {std} <span' in page
    single = float(rows["best", "slots1", "all", "ssim"]["mean"])
    assert f"| {single:.3f} ± – |" in markdown


def test_the_seeds_of_each_mean_can_be_seen(sweep: Path) -> None:
    page = build_report(sweep, None).read_text()
    found = [json.loads((sweep / f"slots4-seed{seed}/eval/test-best.json").read_text()) for seed in (1, 2)]
    folded = page[page.index("<summary>Scores of each seed</summary>") :]
    for seed, result in enumerate(found, 1):
        line = folded[folded.index("<th>slots4</th>") :].split("</tr>")[seed - 1]
        assert f"<td>{seed}</td>" in line
        assert (
            f"<td>{result['overall']['mse']:.1f}</td>" in line and f"<td>{result['overall']['ssim']:.3f}</td>" in line
        )
    rows = {(row["checkpoint"], row["group"], row["mode"], row["metric"]): row for row in read_csv(sweep)}
    values = rows["best", "slots4", "1 digits", "far@30"]["seed_values"].split()
    assert values == [f"{seed}:{result['modes']['1 digits']['far@30']}" for seed, result in enumerate(found, 1)]
    assert rows["best", PERSISTENCE, "all", "mse"]["seed_values"] == ""


def test_scores_beyond_the_main_ones_can_be_unfolded(sweep: Path) -> None:
    page = build_report(sweep, None).read_text()
    others = page[page.index("<summary>Other scores</summary>") :].partition("</details>")[0]
    assert all(f"<th>{title}" in others or f">{title}" in others for title in ("POD ≥ 30", "FAR ≥ 30", "HSS ≥ 30"))
    assert "SSIM" not in others


def test_the_score_that_selects_the_best_checkpoint_is_named(sweep: Path) -> None:
    assert "Best-validation checkpoint (by MSE)" in build_report(sweep, None).read_text()
    for file in sweep.glob("slots*/config.yaml"):
        config = yaml.safe_load(file.read_text())
        file.write_text(yaml.safe_dump({**config, "train": {**config["train"], "best_by": "csi@30"}}))
    assert "Best-validation checkpoint (by CSI ≥ 30)" in build_report(sweep, None).read_text()
    assert "## Best-validation checkpoint (by CSI ≥ 30)" in (sweep / "report" / "table.md").read_text()


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
    page = build_report(tmp_path / "s", None).read_text()
    assert "a seed 2, best: 3 frames with a NaN or infinite prediction" in page
    rows = {(row["checkpoint"], row["group"], row["mode"], row["metric"]): row for row in read_csv(tmp_path / "s")}
    assert rows["best", "a", "all", "mse"]["undefined_seeds"] == "2"
    assert rows["best", "a", "all", "mse"]["n"] == "1"
    assert rows["best", "a", "all", "csi@30"]["mean"] == ""
    assert "n/a" in page


def test_ensembles_are_told_and_those_chosen_by_the_truth_are_never_marked(sweep: Path) -> None:
    for seed in (1, 2):
        score_as(sweep, "slots4", seed, Ensemble(100, "best"))
    page = build_report(sweep, None).read_text()
    assert "<th>slots4 (best of 100 by PSNR)</th>" in page
    assert "slots4: Best of 100 members" in page
    assert "| slots4 (best of 100 by PSNR) | 2 |" in (sweep / "report" / "table.md").read_text()
    rows = [row for row in read_csv(sweep) if (row["metric"], row["mode"], row["checkpoint"]) == ("mse", "all", "best")]
    assert {row["group"]: row["best"] for row in rows}["slots4"] == "0"  # it has the least MSE
    assert sum(row["best"] == "1" for row in rows) == 0  # slots1 has one seed, so its lead over persistence is unknown
    assert {row["ensemble"] for row in rows} == {"", "best of 100 by PSNR"}
    for seed in (1, 2):
        score_as(sweep, "slots4", seed, Ensemble(100, "mean"))
    build_report(sweep, None)
    rows = [row for row in read_csv(sweep) if (row["metric"], row["mode"], row["checkpoint"]) == ("mse", "all", "best")]
    assert {row["group"]: row["best"] for row in rows}["slots4"] == "1"
