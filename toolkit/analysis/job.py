"""Analysing a run directory: features, and from them the diagnosis of mode collapse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from toolkit.analysis.diagnose import TooFewModesError, diagnose
from toolkit.analysis.features import write_features
from toolkit.models.registry import StepOptions
from toolkit.rundir import RunDir


def analyse_run(
    run: RunDir,
    which: Sequence[str],
    *,
    split: str | None,
    limit: int,
    batch: int | None,
    device: torch.device,
    say: Callable[[str], None],
) -> list[Path]:
    """Write the features and the diagnosis of checkpoints; the arguments are those of `write_features`.

    Without two modes that have sequences enough there are features only, and `say` is told.

    Returns:
        The files that people start from: the diagnosis, or else the features.
    """
    written = []
    for name in which:
        features = write_features(run, name, split=split, limit=limit, batch=batch, device=device, say=say)
        try:
            written.append(diagnose(features))
        except TooFewModesError as error:
            say(f"no diagnosis of mode collapse: {error}")
            written.append(features)
    return written


def analyse_after_evaluation(run: RunDir, device: torch.device, say: Callable[[str], None]) -> list[Path]:
    """What `eval.analyse` asks for, at the best checkpoint; nothing where the model has no memory to look at."""
    config = run.config()
    if not config.eval.analyse:
        return []
    if not isinstance(config.model, StepOptions):
        say(f"eval.analyse: {config.model.name} has no memory from step to step, so there is nothing to analyse")
        return []
    return analyse_run(run, ("best",), split=None, limit=config.eval.analyse, batch=None, device=device, say=say)
