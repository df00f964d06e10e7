"""Validation while a run trains: scores of held-out windows, cut short when a rank is asked to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from shards import ShardError
from toolkit.config import RunConfig
from toolkit.distributed.world import World
from toolkit.errors import NonFiniteError, StoppedError, ToolkitError
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.run import Windows, evaluate_model, predict
from toolkit.evaluate.table import NONFINITE
from toolkit.models.base import SequenceModel
from toolkit.signals import StopRequest
from toolkit.trackers.base import Picture
from toolkit.trackers.picture import draw_forecast
from toolkit.train.feed import STOP
from toolkit.train.watchdog import Watchdog

logger = logging.getLogger(__name__)


def score(
    model: SequenceModel,
    windows: Windows,
    config: RunConfig,
    world: World,
    step: int,
    stop: StopRequest,
    watchdog: Watchdog,
) -> dict[str, float] | None:
    """Return scores of the run's protocol over the validation windows, on every rank (collective).

    Empty where not one pixel of the windows was observed. None on every rank when any was asked to stop before all
    windows were scored: that is looked at after each batch, because a whole validation may take longer than a scheduler
    waits.

    Raises:
        NonFiniteError: predictions are NaN or infinite.
    """
    try:
        table = evaluate_model(
            model,
            windows,
            context=config.data.context,
            horizon=config.data.horizon,
            protocol=load_protocol(config.eval.protocol),
            thresholds=config.eval.thresholds,
            batch=config.eval.batch,
            device=world.device,
            rank=world.rank,
            world=world.world_size,
            limit=config.train.validate_samples,
            progress=_until_stopped(world, step, stop, watchdog),
        )
    except (ShardError, ToolkitError) as error:
        # On every rank: either ours, or what `evaluate_model` tells those that were through when another one left. The
        # ranks agree on what it was, for a stop may come while one of them fails.
        if world.any(isinstance(error, StoppedError)):
            return None
        raise
    computed = table.compute()
    scores = {name: value for name, value in computed.overall.items() if value is not None}
    if "mse" not in scores and not computed.announced[NONFINITE]:
        if world.is_main:
            logger.warning("step %d: nothing observed in any of the validation windows, so there is no score", step)
        return {}
    if "mse" not in scores:
        raise NonFiniteError(f"step {step}: predictions of validation windows are not finite. Lower train.lr")
    by = config.train.best_by
    if by not in scores and world.is_main:
        logger.warning("step %d: train.best_by %s is undefined in this validation, which can't be the best", step, by)
    return scores


def _until_stopped(world: World, step: int, stop: StopRequest, watchdog: Watchdog) -> Callable[[int, int], None]:
    """Notify the watchdog after each batch, and raise StoppedError once any rank was asked to stop."""

    def progress(done: int, share: int) -> None:
        watchdog.pulse()
        if stop:
            world.set_flag(STOP)
        if stop or world.is_flag_set(STOP):
            raise StoppedError("validation was cut short")
        if done == share:
            watchdog.at(step, "end of validation")

    return progress


def pictures(
    config: RunConfig, windows: Windows, model: SequenceModel, world: World, step_seconds: float | None
) -> Iterator[Picture]:
    """Draw forecasts of the first validation windows below the observations."""
    context, horizon, scale = config.data.context, config.data.horizon, windows.scale
    for index in range(min(config.train.images, len(windows)) if config.train.trackers else 0):
        window = windows[index]
        given = torch.from_numpy(window.frames[None, :context]).to(world.device)
        units = predict(model, given, horizon, scale)[0].clamp(0, 1)
        forecast = torch.round(units * scale.max_code).cpu().numpy().astype(window.frames.dtype)
        yield draw_forecast(window.observations, forecast, scale, step_seconds)
