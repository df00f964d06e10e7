"""Analyse a run directory: record features, and diagnose mode collapse from them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from toolkit.analysis.diagnose import TooFewModesError, diagnose
from toolkit.analysis.features import write_features
from toolkit.checkpoint.checkpoint import steps_in
from toolkit.errors import ConfigError
from toolkit.models.registry import StepOptions
from toolkit.rundir import RunDir

logger = logging.getLogger(__name__)

ALL = "all"


def checkpoints_of(run: RunDir, names: Sequence[str]) -> tuple[str, ...]:
    """Return the checkpoints that `--which` names: best, last, ema, a step number; `all` stands for every step on disk.

    Raises:
        ConfigError: no name, another name, or a step without a checkpoint.
    """
    steps = [str(step) for step in steps_in(run.checkpoints)]
    unknown = sorted({name for name in names if name != ALL} - {*run.scored_checkpoints, *steps})
    if not names or unknown or (ALL in names and not steps):
        raise ConfigError(
            f"--which {','.join(names)}: choose of {', '.join(run.scored_checkpoints)}, {ALL} and the steps of "
            f"{run.checkpoints} ({', '.join(steps) or 'none yet'}), joined by commas. train.checkpoint.keep_every "
            "keeps the checkpoints of every N steps"
        )
    return tuple(dict.fromkeys(found for name in names for found in (steps if name == ALL else [name])))


def analyse_run(
    run: RunDir,
    which: Sequence[str],
    *,
    split: str | None,
    limit: int,
    batch: int | None,
    device: torch.device,
) -> list[Path]:
    """Write the features and the diagnosis of checkpoints; the arguments are those of `write_features`.

    If fewer than two modes have enough sequences, only features are written, and a warning is logged.

    Returns:
        For each checkpoint the file of the diagnosis, or else of the features.
    """
    written = []
    for name in which:
        features = write_features(run, name, split=split, limit=limit, batch=batch, device=device)
        try:
            written.append(diagnose(features))
        except TooFewModesError as error:
            logger.warning("no diagnosis of mode collapse: %s", error)
            written.append(features)
    return written


def analyse_after_evaluation(run: RunDir, device: torch.device) -> list[Path]:
    """Analyse the best checkpoint if `eval.analyse` is set and the model has a recurrent state; return the files."""
    config = run.config()
    if not config.eval.analyse:
        return []
    if not isinstance(config.model, StepOptions):
        logger.warning("eval.analyse: skipped, %s has no recurrent state to analyse", config.model.name)
        return []
    return analyse_run(run, ("best",), split=None, limit=config.eval.analyse, batch=None, device=device)
