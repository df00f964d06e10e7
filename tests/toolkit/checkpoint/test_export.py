"""Exports: the same bits from a folder that needs nothing else, a card whose lines run, and nothing overwritten."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import toolkit
from launch.evaluate import main as evaluate
from launch.export import main
from tests.support.models import SMALL, needing_extras
from tests.support.runs import write_run
from toolkit.atomic import FileWriteError
from toolkit.checkpoint.export import CARD, WEIGHTS, load_exported
from toolkit.checkpoint.source import CONFIG
from toolkit.checkpoint.weights import load_model
from toolkit.config import make_config
from toolkit.config.recipe import InitialisationConfig
from toolkit.errors import CheckpointError, ConfigError
from toolkit.forecast.trained import load_trained
from toolkit.models.base import SequenceModel
from toolkit.models.registry import MODELS
from toolkit.rundir import RunDir

CONTEXT, HORIZON = 4, 4


@pytest.fixture
def make_run(tiny_store: Path, tmp_path: Path) -> Callable[..., RunDir]:
    """A run of a model at a tiny size, with checkpoints of random weights."""

    def make(name: str = "convlstm", steps: tuple[int, ...] = (3,)) -> RunDir:
        tree = {
            "name": f"tiny-{name}",
            "model": {"name": name, **SMALL.get(name, {})},
            "data": {"store": str(tiny_store), "context": CONTEXT, "horizon": HORIZON},
            "eval": {"show": 0, "thresholds": [0.5]},
        }
        return write_run(tmp_path / "run", tree, *steps)

    return make


def forecast(model: SequenceModel) -> torch.Tensor:
    frames = torch.rand(2, CONTEXT, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return model.predict(frames, HORIZON + 1, samples=2, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", needing_extras(MODELS))
def test_every_model_comes_back_bit_for_bit_without_run_and_store(
    name: str,
    make_run: Callable[..., RunDir],
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make_run(name)
    expected = forecast(load_model(run, "last", torch.device("cpu"))[0])
    assert torch.equal(forecast(toolkit.load(run.path)), expected)
    assert main(["--run", str(run.path), "--out", str(tmp_path / "out" / name)]) == 0
    shutil.rmtree(run.path)
    folder = tmp_path / "elsewhere"
    (tmp_path / "out" / name).rename(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted((WEIGHTS, CONFIG, CARD))
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # others may read all or none of it
    assert not any(str(part) in (folder / CONFIG).read_text() for part in (tiny_store, tmp_path))
    monkeypatch.setattr("shards.open_store", None)  # no store is asked
    model = toolkit.load(folder)
    assert not model.training
    assert torch.equal(forecast(model), expected)


def test_the_lines_of_the_card_run(
    make_run: Callable[..., RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["--run", str(make_run().path), "--out", str(tmp_path / "model")])
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "model" / CARD).read_text(), re.S)
    assert len(code.splitlines()) == 5
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.Tensor] = {}
    exec(code.replace("FOLDER", "model"), names)
    assert names["forecast"].shape == (1, HORIZON, 1, 16, 16)


def test_the_card_says_what_it_is_and_where_scores_are_from(
    make_run: Callable[..., RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = make_run(steps=(3, 6)), tmp_path / "model"
    main(["--run", str(run.path), "--out", str(folder), "--which", "3"])
    card = (folder / CARD).read_text()
    config = run.config()
    assert "These weights are not scored" in card
    for text in ("Shi et al., NeurIPS 2015", "trained for 3 optimizer steps", config.hash8(), "licence of the data: "):
        assert text in card
    commit = json.loads((run.path / "env.json").read_text())["git"].get("commit", "not from a git checkout")
    assert commit in card
    parameters = sum(p.numel() for p in load_exported(folder).parameters())
    assert f"- parameters: {parameters:,}" in card
    evaluate(["--run", str(run.path), "--which", "last"])
    main(["--run", str(run.path), "--out", str(folder), "--which", "3"])
    assert (folder / CARD).read_text() == card  # the scores are those of step 6
    main(["--run", str(run.path), "--out", str(tmp_path / "six"), "--which", "last"])
    card = (tmp_path / "six" / CARD).read_text()
    result = json.loads((run.eval / "test-last.json").read_text())
    for scores in (result["overall"], result["persistence"]["overall"], *result["modes"].values()):
        assert f"| {scores['mse']:.5g} | {scores['mae']:.5g} |" in card
    for text in ("`run/eval/test-last.json`", "protocol `paper`", result["protocol"]["text"][1], "csi@0.5"):
        assert text in card
    capsys.readouterr()
    evaluate(["--run", str(run.path), "--which", "last", "--split", "val", "--limit", "1"])
    main(["--run", str(run.path), "--out", str(tmp_path / "six"), "--which", "last"])
    assert "its README.md is brought up to date" in capsys.readouterr().out
    assert "(only the first 1)" in (tmp_path / "six" / CARD).read_text()


def test_an_export_names_its_recipe_and_no_source_of_weights(tiny_store: Path, tmp_path: Path) -> None:
    """Else its config would look for a folder of the machine that trained."""
    train = {
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "schedule": {"kind": "cosine"},
        "loss": {"kind": "l1"},
        "init_from": {"path": "/machine/runs/first", "checkpoint": "last", "freeze": ["cells.0.*"]},
    }
    data = {"store": str(tiny_store), "context": CONTEXT, "horizon": HORIZON}
    tree = {"model": {"name": "convlstm", **SMALL["convlstm"]}, "data": data, "train": train}
    run = write_run(tmp_path / "run", tree, 3)
    main(["--run", str(run.path), "--out", str(tmp_path / "model")])
    text = (tmp_path / "model" / CONFIG).read_text()
    assert "/machine" not in text and str(tmp_path) not in text
    config = make_config(json.loads(text)["config"], CONFIG)
    assert config.train.init_from == InitialisationConfig(freeze=("cells.0.*",))
    assert config.train.optimizer == "adamw"
    card = (tmp_path / "model" / CARD).read_text()
    assert "AdamW 0.0003, cosine schedule, weight decay 0.01, loss l1, initial weights of first, fp32" in card
    assert "/machine" not in card


def test_nothing_is_overwritten(
    make_run: Callable[..., RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = make_run(steps=(3, 6)), tmp_path / "model"
    main(["--run", str(run.path), "--out", str(folder)])
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    main(["--run", str(run.path), "--out", str(folder)])  # best is last here: the same weights
    assert "already exported; nothing to do" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"holds another export \(run \w+ at step 6, this one is \w+ at step 3"):
        main(["--run", str(run.path), "--out", str(folder), "--which", "3"])
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    (tmp_path / "thesis").mkdir()
    with pytest.raises(ConfigError, match="exists and is not an exported model: choose another folder"):
        main(["--run", str(run.path), "--out", str(tmp_path / "thesis")])
    (tmp_path / "file").write_text("")
    with pytest.raises(FileWriteError, match=r"not written: File exists.*choose another place"):
        main(["--run", str(run.path), "--out", str(tmp_path / "file" / "model")])
    with pytest.raises(CheckpointError, match="no such checkpoint; there are: 3, 6"):
        main(["--run", str(run.path), "--out", str(tmp_path / "new"), "--which", "5"])
    with pytest.raises(SystemExit):
        main(["--run", str(run.path), "--out", str(tmp_path / "new"), "--which", "worst"])
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp") or path.name == "new"]


def test_damage_is_named(make_run: Callable[..., RunDir], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    main(["--run", str(make_run().path), "--out", str(folder)])
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def damaged(name: str, data: bytes | None) -> None:
        for file, content in whole.items():
            (folder / file).write_bytes(content)
        if data is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(data)

    record = json.loads(whole[CONFIG])
    flipped = bytearray(whole[WEIGHTS])
    flipped[-3] ^= 1
    cases = [
        (WEIGHTS, None, "is missing"),
        (WEIGHTS, whole[WEIGHTS][:40], "damaged"),
        (WEIGHTS, bytes(flipped), "differs from its SHA-256 in config.json"),
        (CONFIG, None, "no exported model"),
        (CONFIG, b"{}", "not of an exported model"),
        (CONFIG, json.dumps({**record, "version": 9}).encode(), "written in version 9, this toolkit reads 1"),
        (CONFIG, json.dumps({**record, "frames": None}).encode(), "damaged"),
        (
            CONFIG,
            json.dumps({**record, "frames": {**record["frames"], "channels": 10**40}}).encode(),
            "channels should",
        ),
        (CONFIG, json.dumps({**record, "frames": {**record["frames"], "height": "8"}}).encode(), "height should"),
    ]
    for name, data, message in cases:
        damaged(name, data)
        with pytest.raises(CheckpointError, match=message):
            toolkit.load(folder)
    damaged(CONFIG, json.dumps({**record, "scale": {**record["scale"], "gain": float("inf")}}).encode())
    with pytest.raises(CheckpointError, match=r"damaged \(scale: gain should"):
        load_trained(folder, "best", torch.device("cpu"))
    damaged(CONFIG, json.dumps({**record, "config": {"model": {"name": "later"}}}).encode())
    with pytest.raises(ConfigError, match=r"config\.json \(of toolkit .*1 fault"):
        toolkit.load(folder)
