"""The model of a run: untrained, by its config; trained, with the weights of one of its checkpoints."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from shards import open_store
from shards.manifest import FrameSpec
from toolkit.checkpoint.checkpoint import AVERAGE, check_store, fault_of, hold, name_of, newest, pointed, steps_in
from toolkit.config import RunConfig
from toolkit.config.channels import choose_channels, input_frames
from toolkit.errors import CheckpointError, ConfigError, StoreReplacedError
from toolkit.models.base import SequenceModel, build_model
from toolkit.models.plugins import entry_of
from toolkit.rundir import CHECKPOINTS as NAMES
from toolkit.rundir import RunDir
from toolkit.rundir.status import read_status
from toolkit.shipped import command
from toolkit.unroll import Checkpointing

logger = logging.getLogger(__name__)


def untrained_model(config: RunConfig, shape: FrameSpec) -> SequenceModel:
    """Return the untrained model of a run's config; draws from torch's global generator.

    Args:
        shape: frames of the store, of which the model reads the channels that the config chooses.

    Raises:
        ConfigError: as `choose_channels` and `build_model`.
    """
    train = config.train
    asked = train.activation_checkpointing
    checkpointing = Checkpointing(asked.policy, asked.per_layer, asked.offload, asked.backend)
    choice, read = choose_channels(config.data, shape, "the store"), input_frames(config.data, shape)
    return build_model(config.model, read, checkpointing, train.loss_frames, config.data.horizon, choice)


def store_of_run(run: RunDir, config: RunConfig) -> str:
    """Return where the store of a run is: a relative `data.store` is looked up in the working directory, then in the
    one that the run was created in.

    Raises:
        ConfigError: neither exists; both are named.
    """
    store = config.data.store or ""
    if not store or "://" in store or Path(store).is_absolute() or Path(store).exists():
        return store
    made = Path(str(run.read_env().get("cwd", run.path.absolute().parent)), store)
    if made.exists():
        return str(made)
    raise ConfigError(
        f"{run.path}: data.store is {store}, a relative path: neither {Path(store).absolute()} nor {made} (the working "
        f"directory that the run was created in) exists: change to the folder that holds {store}"
    )


def load_model(
    run: RunDir, which: str, device: torch.device, store: Literal["same", "any"] = "same"
) -> tuple[SequenceModel, int]:
    """Return a trained model in evaluation mode, in fp32, and the step of its weights (0 if there are none).

    Args:
        which: `last`, `best` (the best validation score; without validation the last), `ema` (the moving average of
            the weights at the last step) or a step number.
        store: `same`: refuse a checkpoint that was trained on another store than the run's present one; `any`: log it.

    Raises:
        CheckpointError: no such checkpoint, a damaged one (the newest whole one is named), or one that can't be read.
        StoreReplacedError: see `store`.
    """
    config = run.config()
    if not entry_of(config.model).trained:
        if which not in (*NAMES, "0"):
            raise CheckpointError(f"{run.path}: {config.model.name} is not trained: there is no step {which}, only 0")
        return untrained_model(config, open_store(store_of_run(run, config)).manifest.frames).to(device).eval(), 0
    weights, step = read_weights(run, which)
    there = open_store(store_of_run(run, config))
    try:
        with hold(run.checkpoints, step) as held:
            check_store(held.record()["store"], there, held.path)
    except StoreReplacedError as error:
        if store == "same":
            raise
        logger.warning("%s", error)
    model = untrained_model(config, there.manifest.frames)
    fill(model, weights, run.checkpoints / name_of(step))
    return model.to(device).eval(), step


def fill(model: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    """Copy weights into a model, all of them. Raises CheckpointError where names or shapes are not the model's."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{where}: the weights don't fit the config ({error}); make it again") from None


def read_weights(run: RunDir, which: str) -> tuple[dict[str, Tensor], int]:
    """Return the weights of a run's checkpoint, and its step.

    Args:
        which: as in `load_model`.

    Raises:
        CheckpointError: as `load_model`; `ema` of a run without `train.ema`.
    """
    step = _step_of(run, which)
    given = which not in NAMES
    fault = None if given and step not in steps_in(run.checkpoints) else fault_of(run.checkpoints, step)
    if fault is not None:
        whole = newest(run.checkpoints)
        rescue = "there is no whole one: train again"
        if whole is not None:
            rescue = f"the newest whole one is {name_of(whole)}: delete {run.path / 'DONE'} if it is there and train on"
        raise CheckpointError(
            f"{run.checkpoints / name_of(step)} (asked for: {which}): {fault}; {rescue}: "
            + command("train", "--run", run.path)
        )
    with hold(run.checkpoints, step) as held:
        if which == "ema" and not held.has(AVERAGE):
            raise CheckpointError(
                f"{held.path}: holds no moving average of the weights: set train.ema for the training"
            )
        return held.tensors(AVERAGE if which == "ema" else "weights.pt"), step


def _step_of(run: RunDir, which: str) -> int:
    """Return the step of `last`, `best` or a number. A pointer to a missing checkpoint is reported and not followed."""
    folder = run.checkpoints
    if which not in NAMES:
        return int(which)
    best = pointed(folder, "best")
    if which == "best" and (folder / "best").exists():
        if best is None:
            raise CheckpointError(
                f"{folder / 'best'}: names no checkpoint; write into it the one whose validation score in "
                f"{run.metrics_file} is best, of: {', '.join(map(name_of, steps_in(folder))) or 'none at all'}"
            )
        return best
    latest, there = pointed(folder, "latest"), steps_in(folder)
    if latest is None and not there:
        if read_status(run).live:
            raise ConfigError(f"{folder}: no checkpoint yet, training is still running: wait for the first one")
        raise ConfigError(f"{folder}: no checkpoint; train first: {command('train', '--run', run.path)}")
    last = max([*there, *([latest] if latest is not None else [])])
    if latest != last:
        logger.warning("%s does not name the newest checkpoint; taking %s", folder / "latest", name_of(last))
    return last
