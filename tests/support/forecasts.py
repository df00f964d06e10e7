"""A small radar archive, and runs of models that forecast it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from shards.cli import main as shards
from tests.support.archives import write_radar
from tests.support.runs import write_run
from toolkit.config import make_config

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
        path = folder / f"{name}-{make_config(tree, 'test').hash8()}"
        if not path.exists():
            write_run(path, tree, 5)
        return path

    return make
