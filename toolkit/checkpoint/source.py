"""The run or export whose weights a training starts from (`train.init_from`). Does not import torch."""

from __future__ import annotations

from pathlib import Path

from toolkit.config.paths import expanded
from toolkit.config.recipe import InitialisationConfig
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir

CONFIG = "config.json"  # of an export


def is_export(path: str | Path) -> bool:
    """Return whether a folder holds an exported model."""
    return (Path(expanded(str(path))) / CONFIG).exists()


def check_source(config: InitialisationConfig) -> None:
    """Check that there is a run with a checkpoint, or an export, to start from, before a run directory is made.

    Whether its weights fit the model needs torch: toolkit/checkpoint/initialise.py.

    Raises:
        ConfigError: there is neither; the moving average of a run that keeps none.
    """
    path = Path(expanded(config.path))
    if config.path and not is_export(path):
        run = RunDir(path)
        try:
            source = run.config()
        except ConfigError as error:
            raise ConfigError(f"train.init_from.path: neither an export ({path / CONFIG}) nor a run: {error}") from None
        if not any(run.checkpoints.glob("step-*")):
            raise ConfigError(
                f"train.init_from.path: {run.checkpoints}: holds no checkpoint: train that run first, or name another"
            )
        if config.checkpoint == "ema" and source.train.ema is None:
            raise ConfigError(
                f"train.init_from.checkpoint ema: {path} holds no moving average of the weights: take best or last, or "
                "train that run with train.ema"
            )
