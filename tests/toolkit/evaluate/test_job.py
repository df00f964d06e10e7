"""launch/evaluate.py on a real run directory: a real store, a checkpoint, result files, nothing done twice."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import toolkit
from launch.evaluate import main
from launch.export import main as export_main
from launch.train import main as train_main
from tests.support.process import PATIENCE_S
from tests.support.runs import write_run
from toolkit.atomic import FileWriteError
from toolkit.checkpoint.weights import read_weights
from toolkit.errors import ConfigError
from toolkit.evaluate import job
from toolkit.evaluate.scoring import EVENT_RULE
from toolkit.evaluate.table import ScoreTable
from toolkit.report.data.aggregate import make_boards
from toolkit.report.data.collect import Sweep, collect
from toolkit.report.data.tables import to_markdown
from toolkit.report.html.page import report_page
from toolkit.rundir import RunDir
from toolkit.rundir.status import missing_scores

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


def test_scores_stay_where_the_cost_can_not_be_counted(
    make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model from a file may raise anything on tensors without values."""

    def refuse(*_: object) -> int:
        raise AttributeError("no attribute\nsecond line")

    monkeypatch.setattr(job, "count_macs", refuse)
    run = make_run(5)
    assert main(["--run", str(run.path), "--which", "last"]) == 0
    result = json.loads((run.eval / "test-last.json").read_text())
    assert result["macs"] is None and result["macs_not_counted"] == "AttributeError: no attribute"
    assert result["overall"]["mse"] > 0
    assert "multiply-accumulates are not counted: AttributeError: no attribute" in capsys.readouterr().err


def test_a_limit_or_another_split_is_another_result(make_run: Callable[..., RunDir]) -> None:
    run = make_run(5)
    main(["--run", str(run.path), "--which", "last", "--limit", "1"])
    assert json.loads((run.eval / "test+first-1-last.json").read_text())["n"] == 1
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

    def evaluated(*arguments: str, name: str = "test") -> dict[str, object]:
        main([*command, *arguments])
        return json.loads((run.eval / f"{name}-last.json").read_text())

    single = evaluated()
    assert single["ensemble"] is None
    best = evaluated("--ensemble-size", "3", "--select", "best", name="test+best-of-3")
    assert "ensemble size 3" in capsys.readouterr().err
    assert {key: best["ensemble"][key] for key in ("samples", "select", "by")} == {
        "samples": 3, "select": "best", "by": "psnr",
    }  # fmt: skip
    assert "PSNR, averaged over lead times, is best" in best["ensemble"]["text"]
    assert best["overall"]["psnr"] > single["overall"]["psnr"]
    assert best["protocol"]["best_by"] == "psnr"
    assert evaluated("--ensemble-size", "3", "--select", "best", name="test+best-of-3") == best
    assert "already evaluated" in capsys.readouterr().err
    assert evaluated("--ensemble-size", "3", name="test+mean-of-3")["ensemble"]["select"] == "mean"
    assert evaluated()["overall"] == single["overall"]


def test_a_model_without_chance_makes_one_forecast(make_run: Callable[..., RunDir]) -> None:
    run = make_run(5, samples=4, select="best")
    main(["--run", str(run.path), "--which", "last"])
    assert json.loads((run.eval / "test-last.json").read_text())["ensemble"] is None


def test_a_run_is_scored_in_several_ways_beside_each_other(make_run: Callable[..., RunDir], tmp_path: Path) -> None:
    run = make_run(5)
    command = ["--run", str(run.path), "--which", "last"]
    main(command)
    own = (run.eval / "test-last.json").read_bytes()
    config, state = run.config_file.read_bytes(), run.config().hash8()
    main([*command, "--protocol", "openstl", "--thresholds", "0.3", "0.6"])
    main([*command, "--horizon", "5", "--split", "val"])
    names = {path.name for path in run.eval.glob("*.json")}
    assert names == {"test-last.json", "test+openstl+at-0.3,0.6-last.json", "val+horizon-5-last.json"}
    assert (run.eval / "test-last.json").read_bytes() == own
    assert (run.config_file.read_bytes(), run.config().hash8()) == (config, state)
    openstl, longer = (json.loads((run.eval / name).read_text()) for name in sorted(names - {"test-last.json"}))
    assert (openstl["protocol"]["name"], openstl["thresholds"]) == ("openstl", [0.3, 0.6])
    assert openstl["overall"]["rmse"] == openstl["overall"]["mse"] ** 0.5
    assert openstl["overall"]["snr"] is not None
    assert (longer["horizon"], len(longer["leads"]["mse"]), longer["split"]) == (5, 5, "val")
    # Another store, of larger frames than it was trained on: a file as the original test set is published.
    np.save(tmp_path / "mnist_test_seq.npy", np.random.default_rng(0).integers(0, 255, (20, 30, 24, 24), np.uint8))
    other = tmp_path / "canonical"
    convert = ["shards", "convert", "moving-mnist-file", str(tmp_path / "mnist_test_seq.npy"), str(other)]
    subprocess.run([sys.executable, "-m", *convert], check=True, cwd=ROOT, capture_output=True)
    main([*command, "--store", str(other), "--context", "10", "--horizon", "10"])
    (written,) = run.eval.glob("test+store-canonical-*+context-10+horizon-10-last.json")
    result = json.loads(written.read_text())
    assert (result["n"], result["frames"], result["store"]["name"]) == (30, [1, 24, 24], "moving-mnist-file")
    # All of them have their own table in a report; the status knows the run by its own scoring.
    boards = make_boards(collect_run(run))
    assert sorted((b.facts["store"]["name"], b.facts["protocol"]["name"], b.facts["horizon"]) for b in boards) == [
        ("mixed-moving-mnist", "openstl", 3),
        ("mixed-moving-mnist", "paper", 3),
        ("mixed-moving-mnist", "paper", 5),
        ("moving-mnist-file", "paper", 10),
    ]


def test_another_store_is_named_from_another_folder_than_the_run_was_made_in(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_store.parent)
    tree = {
        "model": {"name": "convlstm", "layers": 1, "hidden": 4, "kernel": 3},
        "data": {"store": tiny_store.name, "context": 3, "horizon": 3},
        "eval": {"batch": 2, "show": 0},
    }
    run = write_run(tmp_path / "run", tree, 5)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other").symlink_to(tiny_store)
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(["--run", str(run.path), "--which", "last", "--store", "other"])
    (written,) = run.eval.glob("test+store-other-*-last.json")
    assert json.loads(written.read_text())["store"]["path"] == str(tmp_path / "elsewhere" / "other")
    main(["--run", str(run.path), "--which", "last"])
    own = run.eval / "test-last.json"
    before = own.stat().st_mtime_ns
    monkeypatch.chdir(tiny_store.parent)
    main(["--run", str(run.path), "--which", "last"])
    assert own.stat().st_mtime_ns == before


def test_events_of_an_old_rule_are_scored_again(make_run: Callable[..., RunDir]) -> None:
    run = make_run(5)
    command = ["--run", str(run.path), "--which", "last"]
    main(command)
    file = run.eval / "test-last.json"
    record = json.loads(file.read_text())
    assert record.pop("event_rule") == EVENT_RULE
    file.write_text(json.dumps(record))  # as it was before the rule
    main(command)
    assert json.loads(file.read_text())["event_rule"] == EVENT_RULE
    main([*command, "--thresholds"])
    assert json.loads((run.eval / "test+at-none-last.json").read_text())["event_rule"] is None


def collect_run(run: RunDir) -> Sweep:
    run.mark_done()
    return collect(run.path)


def test_a_moving_average_is_scored_beside_the_others(tiny_store: Path, tmp_path: Path) -> None:
    tree = {
        "model": {"name": "convlstm", "layers": 1, "hidden": 4, "kernel": 3},
        "data": {"store": str(tiny_store), "context": 3, "horizon": 3},
        "eval": {"batch": 2, "show": 0},
        "train": {"steps": 2, "batch": 2, "ema": 0.5, "device": "cpu", "validate_every": 2, "images": 0},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    assert train_main(["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]) == 0
    run = RunDir(tmp_path / "run")
    assert run.scored_checkpoints == ("best", "last", "ema")
    assert missing_scores(run, "test") == ["test-best", "test-last", "test-ema"]
    main(["--run", str(run.path)])
    scores = {which: json.loads((run.eval / f"test-{which}.json").read_text()) for which in ("best", "last", "ema")}
    assert scores["ema"]["overall"]["mse"] != scores["last"]["overall"]["mse"]
    assert scores["ema"]["step"] == scores["last"]["step"] == 2
    assert missing_scores(run, "test") == []
    (board,) = make_boards(collect(run.path))
    assert board.checkpoints == ["best", "last", "ema"]
    assert "Moving average (EMA)" in to_markdown("run", [board])
    assert export_main([str(run.path), "--out", str(tmp_path / "model"), "--which", "ema"]) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "eval/test-ema.json" in card
    assert "moving average of the weights" in card
    exported = toolkit.load(tmp_path / "model").state_dict()
    average, _ = read_weights(run, "ema")
    assert all(torch.equal(exported[name], average[name]) for name in average)


def test_a_run_without_a_moving_average_has_none(make_run: Callable[..., RunDir]) -> None:
    run = make_run(5)
    assert run.scored_checkpoints == ("best", "last")
    with pytest.raises(ConfigError, match=r"ema: for runs with train\.ema"):
        main(["--run", str(run.path), "--which", "ema"])


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


def test_where_results_can_not_be_written_nothing_is_scored(
    make_run: Callable[..., RunDir], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(4, best=4)

    def refuse(dir: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(dir / "x"))

    monkeypatch.setattr("toolkit.atomic.tempfile.TemporaryFile", refuse)  # root may write everywhere
    monkeypatch.setattr(job.Evaluation, "_score", None)  # would be a TypeError
    with pytest.raises(FileWriteError, match=f"{run.eval}: not written: Permission denied"):
        main(["--run", str(run.path)])


def test_two_ranks_write_what_one_writes(make_run: Callable[..., RunDir]) -> None:
    run = make_run(5)
    main(["--run", str(run.path), "--which", "last"])
    alone = json.loads((run.eval / "test-last.json").read_text())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
    arguments = ["launch/evaluate.py", "--run", str(run.path), "--which", "last", "--force"]
    subprocess.run([*command, *arguments], check=True, cwd=ROOT, capture_output=True, timeout=PATIENCE_S)
    together = json.loads((run.eval / "test-last.json").read_text())
    assert (alone.pop("world_size"), together.pop("world_size")) == (1, 2)
    del alone["seconds"], together["seconds"]
    assert alone == together


def test_without_inflow_is_another_result(make_run: Callable[..., RunDir]) -> None:
    run = make_run(4)
    assert main(["--run", str(run.path), "--which", "best"]) == 0
    assert main(["--run", str(run.path), "--which", "best", "--exclude-inflow"]) == 0
    every, inside = (json.loads((run.eval / f"{name}-best.json").read_text()) for name in ("test", "test+no-inflow"))
    assert "exclude_inflow" not in every and inside["exclude_inflow"] is True
    assert "inflow_pixels" not in every["announced"] and inside["announced"]["inflow_pixels"] > 0
    assert inside["announced"]["inflow_pixels"] == inside["persistence"]["announced"]["inflow_pixels"]
    assert every["overall"]["mse"] != inside["overall"]["mse"]
    boards = make_boards(collect_run(run))
    assert len(boards) == 2
    page = report_page(collect_run(run), boards, "now")
    assert page.count("are not scored: those that the optical flow") == 1 and "inflow pixels excluded" in page
