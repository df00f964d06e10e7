"""A tiny real store and config, and a way to train on several real ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
Train = Callable[[Sequence[dict[str, object]], int], "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16x16 sequences of 8 frames, made by the real command."""
    path = tmp_path_factory.mktemp("stores") / "tiny"
    command = [sys.executable, "-m", "shards", "convert", "moving-mnist", str(path)]
    options = ["--train", "7", "--val", "2", "--test", "3", "--modes", "1,2", "--size", "16", "--length", "8"]
    subprocess.run([*command, *options], check=True, cwd=ROOT, capture_output=True)
    return path


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


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def train_on(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """train_on(jobs, ranks): run tests/toolkit/train/ranks.py; jobs as it describes."""

    def run(jobs: Sequence[dict[str, object]], ranks: int) -> subprocess.CompletedProcess[str]:
        file = tmp_path_factory.mktemp("jobs") / "jobs.json"
        file.write_text(json.dumps(jobs))
        done = torchrun(ranks, "ranks.py", file)
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    return run


def torchrun(ranks: int, script: str, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder on so many ranks."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*start, str(Path(__file__).parent / script), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=timeout)
