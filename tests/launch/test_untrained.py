"""Models without parameters go through the same doors: sweep, job, evaluation, status, report."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch import status
from launch.sweeps.spec import plan_sweep
from tests.support.process import PATIENCE_S, ROOT, one_thread
from toolkit.config import make_config
from toolkit.report.build import build_report
from toolkit.rundir import RunDir

SWEEP = """\
base: base.yaml
seeds: [1, 2]
list:
  - {{model: {{name: optical_flow, sigma: 2.0}}}}
set: {{data.store: {store}}}
"""


def test_neither_seed_nor_training_makes_it_another_run() -> None:
    def hash8(name: str, **sections: object) -> str:
        return make_config({"model": {"name": name}, **sections}, "test").hash8()

    changes: list[dict[str, object]] = [{"seed": 3}, {"train": {"lr": 0.1}}]
    for change in changes:
        assert hash8("persistence") == hash8("persistence", **change)
        assert hash8("convlstm") != hash8("convlstm", **change)
    assert hash8("persistence") != hash8("persistence", eval={"split": "val"})


def test_a_sweep_of_a_floor_is_scored_without_training(
    tiny_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "base.yaml").write_text("data: {context: 4, horizon: 4}\ntrain: {steps: 7}\n")
    (tmp_path / "floors.yaml").write_text(SWEEP.format(store=tiny_store))
    plan = plan_sweep(tmp_path / "floors.yaml")
    assert (len(plan.runs), plan.duplicates) == (1, 1)
    command = ["launch/sweep.py", str(tmp_path / "floors.yaml"), "--runs", str(tmp_path), "--cluster", "debug"]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "evaluate: no training" in done.stdout
    root = tmp_path / "floors"
    run = RunDir(root / plan.runs[0].folder)
    assert run.done
    assert not run.checkpoints.exists()
    best, last = (json.loads((run.eval / f"test-{which}.json").read_text()) for which in ("best", "last"))
    assert (best["step"], best["parameters"]) == (0, 0)
    assert best["overall"] == last["overall"] != best["persistence"]["overall"]
    assert status.main([str(root)]) == 0
    table = capsys.readouterr().out
    assert table.count("no training") == 1
    assert "1 run: 1 done" in table
    page = build_report(root, None).read_text()
    assert page.count("0 (no training)") == 4  # of two checkpoints: scores and costs
    assert "| 0 (no training) |" in (root / "report" / "table.md").read_text()
    with open(root / "report" / "table.csv", newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if row["parameters"] == "0" and row["n"] and is_headline(row))
    assert (row["group"], row["n"], row["planned"]) == ("optical_flow", "1", "1")


def is_headline(row: dict[str, str]) -> bool:
    return (row["checkpoint"], row["mode"], row["metric"]) == ("best", "all", "mse")
