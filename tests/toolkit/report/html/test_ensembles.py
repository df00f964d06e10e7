"""Ensembles in tables and figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.manifest import Scale
from tests.support.report import read_csv
from tests.support.synthetic import noise_scene, write_result
from toolkit.evaluate.ensemble import Ensemble
from toolkit.evaluate.probabilistic import Members
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.table import ScoreTable
from toolkit.report.build import build_report
from toolkit.report.data.aggregate import PERSISTENCE, make_boards
from toolkit.report.data.collect import collect
from toolkit.report.html.ensembles import _frequencies
from toolkit.rundir import RunDir


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
    page = build_report(sweep, None).read_text()
    assert '<h2 id="ensembles">Ensembles</h2>' in page
    assert "rank of the observation among 40 members" in page
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
