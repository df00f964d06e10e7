"""Run directories with checkpoints of random weights, as a training would have left them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shards import open_store
from toolkit.checkpoint import commit
from toolkit.checkpoint.checkpoint import Progress, TrainState
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.models.plugins import entry_of
from toolkit.rundir import RunDir


def write_run(path: Path, tree: Mapping[str, Any], *steps: int, best: int | None = None) -> RunDir:
    """Create a run over the store that `tree` names, with one checkpoint per step; `best` is the step of the best one.

    The weights of step N are drawn with seed N. A model that isn't trained gets no checkpoints.
    """
    config = make_config(dict(tree), "test", typed=True)
    run = RunDir.create(path, config)
    for step in steps if entry_of(config.model).trained else ():
        torch.manual_seed(step)
        weights = untrained_model(config, open_store(config.data.store).manifest.frames).state_dict()
        state, digest = TrainState(weights, {}, step), config.hash8(execution=False)
        commit.save(run.checkpoints, state, Progress(step, 8 * step), digest)
    if best is not None:
        commit.point(run.checkpoints, "best", best)
    return run
