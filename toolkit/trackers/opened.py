"""Open the trackers of a run: for its training, and for its scores."""

from __future__ import annotations

import logging
from collections.abc import Callable

from toolkit.errors import ToolkitError
from toolkit.rundir import RunDir
from toolkit.trackers.background import Background, Connect
from toolkit.trackers.base import Scored, Tracker, without_secrets
from toolkit.trackers.event_files import TensorBoard
from toolkit.wording import first_line

logger = logging.getLogger(__name__)


def _wandb() -> Connect:
    from toolkit.trackers.weights_and_biases import WeightsAndBiases

    return WeightsAndBiases


def _mlflow() -> Connect:
    from toolkit.trackers.mlflow_runs import MLflow

    return MLflow


SERVICES: dict[str, Callable[[], Connect]] = {"wandb": _wandb, "mlflow": _mlflow}


def open_trackers(run: RunDir, step: int | None) -> list[Tracker]:
    """Return the trackers that a run's config names; one that can't be used here is logged and left out.

    Args:
        step: that the training starts from; None: there is none, scores are logged.
    """
    config = run.config()
    trackers: list[Tracker] = []
    for name in dict.fromkeys(config.train.trackers):
        if name == "tensorboard":
            trackers.append(TensorBoard(run, step))
            continue
        try:  # imported here, not in the service's thread: readers may be forked meanwhile
            connect = SERVICES[name]()
        except Exception as error:  # absent, or an installation that is broken in any way
            logger.warning("%s is left out: %s: %s", name, type(error).__name__, without_secrets(first_line(error)))
        else:
            trackers.append(Background(name, run, connect))
    for tracker in trackers:
        tracker.config(config)
    return trackers


def log_scores(run: RunDir) -> None:
    """Log the scores in eval/ that the run's trackers don't have yet, once it is trained. Rank 0 only.

    A result that can't be used is logged as a warning and left out.
    """
    if not run.done:
        logger.info("%s: still in training; its trackers get the scores by an evaluation after it", run.path)
        return
    trackers = open_trackers(run, None)
    for path in run.scores().values():
        try:
            scored = Scored.read(path)
        except ToolkitError as error:
            logger.warning("scores not logged to %s: %s", ", ".join(run.config().train.trackers), error)
            continue
        for tracker in trackers:
            tracker.scores(scored)
    for tracker in trackers:
        tracker.close("finished")
