"""Recipes (optimizers, schedules, weight decay, averages, losses) equal plain PyTorch in both engines, and resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.support.training import Train, cut_back, logged, plain_training, weights_of
from toolkit.config import load_config

STEPS = 6
SHORT = ["model.layers=1", "data.context=2", "data.horizon=2", f"train.steps={STEPS}", "train.lr=1e-3", "train.ema=0.8"]
SHORT += [f"train.validate_every={STEPS}", "train.checkpoint.every=3", "train.checkpoint.keep_last=3"]
GRAPH = "train.graph=on"
COSINE = "train.schedule={kind: cosine, warmup: 2, final: 0.1}"
ADAMW = ["train.optimizer=adamw", "train.weight_decay=0.1", COSINE]
SGD = ["train.optimizer=sgd", "train.lr=0.5", "train.weight_decay=0.01", "train.schedule={kind: step, every: 2}"]
PLAIN_SGD = ["train.optimizer=sgd", "train.momentum=0", "train.lr=0.5", "train.weight_decay=0.01"]
ONE_CYCLE = ["train.schedule.kind=one_cycle", "train.loss.kind=l1+l2"]
HUBER = ["train.loss={kind: huber, lead_times: [1, 3]}", "train.sampling={kind: reverse, reverse_start: 1, stop: 4}"]
STAGE3 = ["train.zero=3", "train.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"]
RECIPES = [
    ADAMW,
    [*ADAMW, GRAPH],
    [*ADAMW, "train.zero=1"],
    [*ADAMW, "train.zero=2", "train.offload_optimizer=true"],
    [*ADAMW, *STAGE3],
    SGD,
    [*SGD, GRAPH],
    [*SGD, "train.zero=2"],
    PLAIN_SGD,
    [*PLAIN_SGD, GRAPH],
    [*PLAIN_SGD, "train.zero=2"],
    [*PLAIN_SGD, *STAGE3],
    [*PLAIN_SGD, "train.schedule.kind=one_cycle", GRAPH, "train.precision=bf16"],
    ONE_CYCLE,
    [*HUBER, GRAPH],
    [*ADAMW, GRAPH, "train.precision=bf16"],
    [*ADAMW, "train.zero=2", "train.precision=bf16"],
    [*SGD, GRAPH, "train.precision=bf16"],
]


def names(settings: list[str]) -> str:
    return " ".join(settings)


@pytest.fixture(scope="module")
def trained(tiny_config: Path, train_on: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run directories of every recipe, trained on 2 ranks to the end."""
    folder = tmp_path_factory.mktemp("recipes")
    jobs = [
        {"config": str(tiny_config), "set": [*SHORT, *settings], "run": str(folder / f"run{number}")}
        for number, settings in enumerate(RECIPES)
    ]
    train_on(jobs, 2)
    return {names(settings): Path(str(job["run"])) for settings, job in zip(RECIPES, jobs, strict=True)}


@pytest.mark.parametrize("settings", RECIPES, ids=names)
def test_a_recipe_equals_plain_pytorch(tiny_config: Path, trained: dict[str, Path], settings: list[str]) -> None:
    """Losses of every step, and weights and their moving average after the last."""
    bf16 = "train.precision=bf16" in settings
    plain = plain_training(load_config(tiny_config, [*SHORT, *settings]), bf16=bf16)
    run = trained[names(settings)]
    assert logged(run) == pytest.approx(plain.losses, rel=5e-3 if bf16 else 2e-6)
    for file, expected in (("weights.pt", plain.weights), ("average.pt", plain.average)):
        found = weights_of(run, STEPS, file)
        assert list(found) == list(expected)
        for name, value in found.items():
            # In bf16 masters start from rounded weights: 8 bits.
            rtol, atol = (2**-8, 5e-3) if bf16 else (0, 2e-6)
            assert torch.allclose(value, expected[name], rtol=rtol, atol=atol), (file, name)
    assert any(not torch.equal(plain.weights[name], plain.average[name]) for name in plain.weights)


def test_a_resumed_recipe_is_the_uninterrupted_one_to_the_last_bit(
    tiny_config: Path, train_on: Train, trained: dict[str, Path], tmp_path: Path
) -> None:
    """From the checkpoint of step 3, on 2 ranks: weights, moments, average and the rates' schedule."""
    jobs, kept = [], {}
    for number, settings in enumerate(RECIPES):
        run = tmp_path / f"run{number}"
        shutil.copytree(trained[names(settings)], run)
        kept[names(settings)] = run
        cut_back(run, 3)
        jobs.append({"config": str(tiny_config), "set": [*SHORT, *settings], "run": str(run)})
    train_on(jobs, 2)
    for recipe, run in kept.items():
        assert logged(run) == logged(trained[recipe]), recipe
        for file in ("weights.pt", "average.pt"):
            before, after = weights_of(trained[recipe], STEPS, file), weights_of(run, STEPS, file)
            assert all(torch.equal(before[name], after[name]) for name in before), (recipe, file)
