"""A tiny config, and a way to train on several real ranks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support.process_pool import forked_ranks

if TYPE_CHECKING:
    from tests.support.training import Train  # imports torch


@pytest.fixture(scope="session")
def tiny_config(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ModeRNN at a size that trains in a blink."""
    tree = {
        "model": {"name": "modernn", "layers": 2, "hidden": 8, "slots": 2, "patch": 4},
        "data": {"store": str(tiny_store), "context": 4, "horizon": 4},
        "train": {
            "steps": 6,
            "batch": 4,
            "lr": 3e-3,
            "clip": 0.005,  # below the gradient norms here, so that clipping is really compared
            "sampling": {"slope": 0.1, "stop": 8},
            "validate_every": 3,
            "checkpoint": {"every": 2},
            "log_every": 1,
            "images": 1,
        },
    }
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="session")
def train_on(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """train_on(jobs, ranks): run tests/toolkit/train/ranks.py; jobs as it describes."""

    def run(jobs: Sequence[dict[str, object]], ranks: int) -> subprocess.CompletedProcess[str]:
        file = tmp_path_factory.mktemp("jobs") / "jobs.json"
        file.write_text(json.dumps(jobs))
        done = forked_ranks(ranks, "tests.toolkit.train.ranks", file)
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    return run
