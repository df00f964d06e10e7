"""Configs that people know by name: each is planned, and resolved as `train.py --dry-run` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.sweeps.spec import plan_sweep
from launch.train import main
from tests.support.process import ROOT
from toolkit.config import RunConfig, load_config
from toolkit.train.sampling import context_rate, teacher_rate
from toolkit.train.schedule import learning_rate

TRAIN = ROOT / "configs" / "train"
MODELS = ROOT / "configs" / "models"


def combined(folder: Path, *files: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(f"base: [{', '.join(map(str, files))}]\n")
    return path


def facts(config: RunConfig) -> tuple[object, ...]:
    train = config.train
    return (
        train.optimizer,
        train.lr,
        train.batch,
        train.steps,
        train.loss.kind,
        train.schedule.kind,
        train.sampling.kind,
    )


RECIPES = {
    "openstl": (("adam", 1e-3, 16, 125_000, "l2", "one_cycle", "linear"), "simvp-published", "openstl"),
    "predrnn-v2": (("adam", 1e-4, 8, 80_000, "l2", "constant", "reverse"), "predrnn-v2", "predrnn"),
    "radar-balanced": (("adam", 1e-4, 4, 100_000, "balanced", "cosine", "linear"), "trajgru", "paper"),
    "paper": (("adam", 3e-4, 8, 80_000, "l2", "constant", "linear"), "modernn", "paper"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_planned_and_resolved(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, model, protocol = RECIPES[name]
    monkeypatch.chdir(tmp_path)
    path = combined(tmp_path, MODELS / f"{model}.yaml", TRAIN / f"{name}.yaml")
    config = load_config(path)
    assert facts(config) == expected
    assert config.eval.protocol == protocol
    (tmp_path / "sweep.yaml").write_text("base: run.yaml\nseeds: 3\n")
    assert len(plan_sweep(tmp_path / "sweep.yaml").runs) == 3
    assert main(["--config", str(path), "--dry-run", "--set", "model.patch=4" if model == "modernn" else "seed=1"]) == 0
    shown = capsys.readouterr().out
    assert f"loss {expected[4]}" in shown
    assert f"{protocol}, split test: checked" in shown


def test_openstl_reaches_its_rate_after_three_tenths() -> None:
    train = load_config(TRAIN / "openstl.yaml").train
    assert learning_rate(int(0.3 * train.steps) - 1, train) == pytest.approx(1e-3)
    assert learning_rate(0, train) == pytest.approx(1e-3 / 25)
    assert learning_rate(train.steps - 1, train) == pytest.approx(1e-3 / 25 / 1e4)


def test_predrnn_v2_samples_in_reverse_as_published() -> None:
    sampling = load_config(TRAIN / "predrnn-v2.yaml").train.sampling
    assert (context_rate(0, sampling), teacher_rate(0, sampling)) == (0.5, 0.5)
    assert teacher_rate(37_500, sampling) == pytest.approx(0.25)
    assert (context_rate(50_000, sampling), teacher_rate(50_000, sampling)) == (1.0, 0.0)
