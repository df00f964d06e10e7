"""What a training starts from: the windows of its store, the newest whole checkpoint, and the first log lines."""

from __future__ import annotations

import logging
from pathlib import Path

from shards import Store
from toolkit.checkpoint import checkpoint, commit
from toolkit.checkpoint.checkpoint import TrainState
from toolkit.config import RunConfig
from toolkit.data.windows import WindowSet
from toolkit.distributed.device import facts, why_none
from toolkit.distributed.world import World
from toolkit.errors import CheckpointError, ConfigError
from toolkit.evaluate.check import check_scoring
from toolkit.evaluate.perceptual import load_lpips
from toolkit.models.plugins import entry_of
from toolkit.rundir import RunDir
from toolkit.trackers import check_trackers
from toolkit.train.check import Data, check_training, keys_without_effect
from toolkit.train.engine import Engine
from toolkit.wording import computed_on, count

logger = logging.getLogger(__name__)


def check_config(config: RunConfig, data: Data) -> None:
    """Check before training what it and the evaluation after it will need of config, store and machine.

    Other splits that hold no window are logged.

    Raises:
        ConfigError: as `check_training`, `check_scoring` and `check_trackers`; `eval.lpips`, and its weights can't be
            had here.
    """
    check_trackers(config)
    check_scoring(config, data.store)
    if config.eval.lpips:
        load_lpips()
    if entry_of(config.model).trained:
        check_training(config, data)
        if unused := keys_without_effect(config, data.store.manifest.scale, data.train.channels):
            logger.warning("without effect: %s", ", ".join(unused))
    length = config.data.context + config.data.horizon
    for split in data.store.splits:
        if split not in (config.data.train_split, config.data.val_split, config.eval.split):
            try:
                WindowSet(data.store, split, length, config.data.eval_stride)
            except ConfigError as error:
                logger.warning("this run cannot be evaluated on %s: %s", split, error)


def restore(run: RunDir, resume: str, world: World, store: Store) -> tuple[TrainState | None, checkpoint.Progress]:
    """Return the state to start from; rank 0 chooses the checkpoint, so that all ranks use the same one.

    Raises:
        StoreReplacedError: it was trained on another store.
    """
    folder = run.checkpoints
    step = world.run_on_rank_zero(lambda: _choose(folder, resume))
    if step is None:
        return None, checkpoint.Progress(0, 0)
    state, progress = checkpoint.load(folder, step, run.config().hash8(execution=False))
    checkpoint.check_store(progress.store, store, folder / checkpoint.name_of(step))
    if progress.store is None and world.is_main:
        logger.info(
            "the checkpoint of step %d was written by an earlier version and doesn't name its store: not compared", step
        )
    return state, world.run_on_rank_zero(lambda: commit.repair(folder, progress))


def _choose(folder: Path, resume: str) -> int | None:
    """Return the step to resume from; None: from scratch."""
    there = checkpoint.steps_in(folder)
    if resume == "none" and there:
        raise ConfigError(f"{folder}: holds checkpoints: use --resume auto, or delete them to start over")
    commit.tidy(folder)
    if resume not in ("auto", "none"):
        return int(resume)
    found = checkpoint.newest(folder)
    if found is None and there:
        raise CheckpointError(
            f"{folder}: none of the checkpoints of steps {there} is whole (see above). Restore one, or delete them to "
            "start over"
        )
    return found


def log_run_summary(run: RunDir, config: RunConfig, data: Data, engine: Engine, step: int) -> None:
    """Log the model, the data, how the batch is divided and on what it is computed; note the last in env.json."""
    share, cfg, device = engine.share, config.train, engine.world.device
    trained_on = facts(cfg, device)
    run.note_env(trained_on=trained_on)
    total = len(data.val) if data.val else 0
    used = min(total, cfg.validate_samples or total)
    windows = count(used, "validation window") + f" (the first of {total:,})" * (used < total)
    logger.info(
        f"{config.model.name}: {engine.parameter_count:,} parameters, {count(len(data.train), 'training window')}, "
        f"{windows}"
    )
    logger.info(
        f"batch {share.batch} = {count(share.world_size, 'rank')} x "
        f"{count(share.accumulation, 'micro-batch', 'micro-batches')} x {count(share.micro_batch, 'sequence')}, "
        f"{cfg.precision}, {engine.describe()}, activation checkpointing {engine.model.checkpointing}, "
        f"{computed_on(trained_on)}"
    )
    if step:
        logger.info("resuming from step %d", step)
    if device.type == "cpu" and cfg.device == "auto":
        logger.warning("no GPU: %s; training on the CPU", why_none())
    if data.val is None:
        where = config.data.val_split, config.data.store
        logger.warning("no split %r in %s: `best` will be the last checkpoint", *where)
