"""launch/evaluate.py on a real run directory: a real store, a checkpoint, result files, nothing done twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from launch.evaluate import main
from tests.support.runs import write_run
from toolkit.errors import ConfigError
from toolkit.evaluate.table import ScoreTable
from toolkit.rundir import RunDir

ROOT = Path(__file__).parents[3]


@pytest.fixture
def make_run(tiny_store: Path, tmp_path: Path) -> Callable[..., RunDir]:
    """A run whose checkpoints are of the given steps; `best` names one of them."""

    def make(
        *steps: int, best: int | None = None, model: dict[str, object] | None = None, **eval_options: object
    ) -> RunDir:
        tree = {
            "model": model or {"name": "convlstm", "layers": 1, "hidden": 4, "kernel": 3},
            "data": {"store": str(tiny_store), "context": 3, "horizon": 3},
            "eval": {"batch": 2, "show": 1, "thresholds": [0.5], **eval_options},
        }
        return write_run(tmp_path / "run", tree, *steps, best=best)

    return make


def test_both_checkpoints_are_scored_and_nothing_twice(
    make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(4, 8, best=4)
    assert main(["--run", str(run.path)]) == 0
    assert capsys.readouterr().out.split() == [str(run.eval / f"test-{which}.json") for which in ("best", "last")]
    best, last = (json.loads((run.eval / f"test-{which}.json").read_text()) for which in ("best", "last"))
    assert (best["step"], last["step"]) == (4, 8)
    assert best["overall"]["mse"] != last["overall"]["mse"]
    assert best["persistence"]["leads"]["mse"] == last["persistence"]["leads"]["mse"]
    assert best["protocol"]["name"] == "paper"
    assert len(best["store"]["digest"]) == 64
    table = ScoreTable.load(run.eval / "test-best.table.npz")
    assert table.compute().overall == best["overall"]
    assert len(table) == best["n"]
    with np.load(run.eval / "test-best.samples.npz") as frames:
        assert frames["prediction"].shape == (2, 3, 1, 16, 16)  # one sequence of each mode
    written = (run.eval / "test-best.json").stat().st_mtime_ns
    assert main(["--run", str(run.path)]) == 0
    assert capsys.readouterr().err.count("already evaluated") == 2
    assert main(["--run", str(run.path), "--which", "best", "--force"]) == 0
    assert (run.eval / "test-best.json").stat().st_mtime_ns > written
    assert json.loads((run.eval / "test-best.json").read_text())["overall"] == best["overall"]
    assert run.read_state()["phase"] == "done"


def test_one_step_under_two_names_is_computed_once(
    make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(5, best=5)
    main(["--run", str(run.path)])
    assert "the same step as best; copied" in capsys.readouterr().err
    best, last = (json.loads((run.eval / f"test-{which}.json").read_text()) for which in ("best", "last"))
    assert best.pop("which") == "best"
    assert last.pop("which") == "last"
    assert best == last
    names = sorted(path.name for path in run.eval.iterdir())
    assert names == sorted(f"test-{w}{s}" for w in ("best", "last") for s in (".json", ".samples.npz", ".table.npz"))


def test_a_limit_or_another_split_is_another_result(make_run: Callable[..., RunDir]) -> None:
    run = make_run(5)
    main(["--run", str(run.path), "--which", "last", "--limit", "1"])
    assert json.loads((run.eval / "test-last.json").read_text())["n"] == 1
    main(["--run", str(run.path), "--which", "last"])
    whole = json.loads((run.eval / "test-last.json").read_text())["n"]
    assert whole > 1
    main(["--run", str(run.path), "--which", "last", "--split", "val"])
    assert json.loads((run.eval / "val-last.json").read_text())["split"] == "val"


def test_without_frames_to_show_none_are_kept(make_run: Callable[..., RunDir]) -> None:
    run = make_run(5, show=0)
    main(["--run", str(run.path)])
    assert not list(run.eval.glob("*.samples.npz"))
    assert len(list(run.eval.glob("*.json"))) == 2


SVG = {"name": "svg_lp", "size": 16, "width": 2, "latent": 4, "rnn": 4, "z": 2}


def test_an_ensemble_is_another_result_and_says_its_rule(
    make_run: Callable[..., RunDir], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(5, model=SVG)
    command = ["--run", str(run.path), "--which", "last"]

    def evaluated(*arguments: str) -> dict[str, object]:
        main([*command, *arguments])
        return json.loads((run.eval / "test-last.json").read_text())

    single = evaluated()
    assert single["ensemble"] is None
    best = evaluated("--ensemble-size", "3", "--select", "best")
    assert "ensemble size 3" in capsys.readouterr().err
    assert {key: best["ensemble"][key] for key in ("samples", "select", "by")} == {
        "samples": 3, "select": "best", "by": "psnr",
    }  # fmt: skip
    assert "PSNR, averaged over lead times, is best" in best["ensemble"]["text"]
    assert best["overall"]["psnr"] > single["overall"]["psnr"]
    assert best["protocol"]["best_by"] == "psnr"
    assert evaluated("--ensemble-size", "3", "--select", "best") == best
    assert "already evaluated" in capsys.readouterr().err
    assert evaluated("--ensemble-size", "3")["ensemble"]["select"] == "mean"
    assert evaluated()["overall"] == single["overall"]


def test_a_model_without_chance_makes_one_forecast(make_run: Callable[..., RunDir]) -> None:
    run = make_run(5, samples=4, select="best")
    main(["--run", str(run.path), "--which", "last"])
    assert json.loads((run.eval / "test-last.json").read_text())["ensemble"] is None


def test_faults_of_use_are_named(make_run: Callable[..., RunDir], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        main(["--run", str(tmp_path)])
    run = make_run()
    with pytest.raises(ConfigError, match="train first"):
        main(["--run", str(run.path)])
    with pytest.raises(ConfigError, match="--which worst"):
        main(["--run", str(run.path), "--which", "worst"])
    with pytest.raises(ConfigError, match="no split 'tset'"):
        main(["--run", str(run.path), "--split", "tset"])


def test_two_ranks_write_what_one_writes(make_run: Callable[..., RunDir]) -> None:
    run = make_run(5)
    main(["--run", str(run.path), "--which", "last"])
    alone = json.loads((run.eval / "test-last.json").read_text())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    arguments = ["launch/evaluate.py", "--run", str(run.path), "--which", "last", "--force"]
    subprocess.run([*command, *arguments], check=True, cwd=ROOT, capture_output=True, timeout=120)
    together = json.loads((run.eval / "test-last.json").read_text())
    assert (alone.pop("world_size"), together.pop("world_size")) == (1, 2)
    del alone["seconds"], together["seconds"]
    assert alone == together
