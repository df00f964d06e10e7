"""A small radar archive, and runs of models that forecast it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from shards import open_store
from shards.cli import main as shards
from shards.recent import Archive, open_archive
from tests.shards.conftest import write_radar
from toolkit.checkpoint import checkpoint, commit
from toolkit.checkpoint.checkpoint import TrainState
from toolkit.config import make_config
from toolkit.forecast.trained import Trained, load_trained
from toolkit.models.base import build_model
from toolkit.models.registry import MODELS
from toolkit.rundir import RunDir

START = datetime(2016, 7, 11, 20, 45)
SVG = {"size": 32, "width": 8, "latent": 8, "z": 2, "rnn": 8}
MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def radar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen composites of 24 x 32 pixels, 5 minutes apart; 3 pixels of each are missing, not always the same."""
    folder = tmp_path_factory.mktemp("radar")
    write_radar(folder, START, 16)
    return folder


@pytest.fixture(scope="session")
def make_run(radar: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """A run directory of a model, 4 -> 3 frames, with random weights at step 5."""
    folder = tmp_path_factory.mktemp("runs")
    store = folder / "store"
    assert shards(["convert", "radar", str(radar), str(store), "--crop", "none"]) == 0

    def make(name: str = "persistence", **model: Any) -> Path:
        tree = {
            "name": f"tiny-{name}",
            "model": {"name": name, **model},
            "data": {"store": str(store), "context": 4, "horizon": 3},
            "eval": {"thresholds": [30]},
        }
        config = make_config(tree, "test")
        path = folder / f"{name}-{config.hash8()}"
        if path.exists():
            return path
        run = RunDir.create(path, config)
        if MODELS[name].trained:
            torch.manual_seed(1)
            weights = build_model(config.model, open_store(store).manifest.frames).state_dict()
            digest = config.hash8(execution=False)
            commit.save(run.checkpoints, TrainState(weights, {}, 5), checkpoint.Progress(5, 40), digest)
        return path

    return make


@pytest.fixture
def persistence(make_run: MakeRun) -> Trained:
    return load_trained(make_run(), "best", torch.device("cpu"))


@pytest.fixture
def archive(radar: Path, persistence: Trained) -> Archive:
    return open_archive(radar, persistence.archive)
