"""The windows of a training, and what it needs of its config and store, checked before it is submitted or started.

Does not import torch: a sweep checks its runs on the login node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from shards import Scale, Store, open_store
from shards.manifest import FrameSpec
from toolkit.checkpoint.source import is_export
from toolkit.config import RunConfig
from toolkit.config.recipe import LossConfig, SamplingConfig, ScheduleConfig
from toolkit.config.sections import TrainConfig
from toolkit.data.windows import WindowSet, store_of
from toolkit.errors import ConfigError
from toolkit.evaluate.selection import check_best_by
from toolkit.models.choice import ChannelChoice
from toolkit.models.plugins import UnloadedModel
from toolkit.models.registry import Options, SimVPOptions, StepOptions, SVGOptions, TrajGRUOptions
from toolkit.wording import count

RATES = ("mm/h", "mm h-1", "kg m-2 h-1")

# What each choice of a section reads; other keys of the section have no effect under it.
READ: dict[type[Options], dict[str, tuple[str, ...]]] = {
    ScheduleConfig: {
        "constant": ("warmup",),
        "cosine": ("warmup", "final"),
        "polynomial": ("warmup", "final", "power"),
        "step": ("warmup", "every", "factor"),
        "one_cycle": ("rise", "start_divisor", "final_divisor"),
    },
    LossConfig: {
        **dict.fromkeys(("l2", "l1", "l1+l2"), ("lead_times",)),
        "huber": ("lead_times", "huber_delta"),
        **dict.fromkeys(("balanced", "balanced_mse", "balanced_mae"), ("lead_times", "thresholds", "weights", "zr")),
    },
    SamplingConfig: {
        "linear": ("start", "slope", "stop"),
        **dict.fromkeys(("exponential", "sigmoid"), ("scale", "stop")),
        "reverse": ("scale", "reverse_start", "stop"),
    },
}


@dataclass(frozen=True)
class Data:
    """The windows that a run trains and validates on; without a validation split `val` is None."""

    store: Store
    train: WindowSet
    val: WindowSet | None


def open_data(config: RunConfig) -> Data:
    """Open the store of a config and cut its windows.

    Raises:
        ShardError: the store can't be read.
        ConfigError: no such training split, or a split without a window of context + horizon frames.
    """
    data = config.data
    # Under `skip` a shard that is cut or absent costs its own samples, not the whole split.
    store = open_store(store_of(config), faults="reading" if data.on_error == "skip" else "opening")
    length = data.context + data.horizon
    train = WindowSet(store, data.train_split, length, data.train_stride, data.modes, data)
    val = None
    if data.val_split in store.splits:
        try:
            val = WindowSet(store, data.val_split, length, data.eval_stride, data.modes, data)
        except ConfigError as error:
            raise ConfigError(f"{error}, or train without a validation: data.val_split=none") from None
    return Data(store, train, val)


def check_training(config: RunConfig, data: Data) -> None:
    """Check what a training needs of its store.

    Raises:
        ConfigError: a patience without a validation split; a static channel that changes in time; a model that does not
            fit context or frames; a step that can't be compiled or graphed as asked; what `check_best_by`,
            `rain_levels` and `check_lead_times` name.
    """
    if config.train.patience is not None and data.val is None:
        raise ConfigError(
            f"train.patience {config.train.patience} counts validations, and {config.data.store} has no split "
            f"{config.data.val_split!r}: set data.val_split, or leave train.patience out"
        )
    _check_execution(config)
    _check_model(config, data.train.frames)
    _check_static(data.train)
    check_best_by(config)
    check_lead_times(config.train.loss, config.data.horizon)
    rain_levels(config.train.loss, data.store.manifest.scale)


def _check_execution(config: RunConfig) -> None:
    """Check that the model's step can be compiled and graphed as `train` says."""
    train, model = config.train, config.model
    if reason := train.why_not_compiled(model.name, isinstance(model, StepOptions | UnloadedModel)):
        raise ConfigError(reason)
    if train.graph == "on" and (reason := train.why_not_graphed()):
        raise ConfigError(f"train.graph on: {reason}; or train.graph=off")


def _check_model(config: RunConfig, frames: FrameSpec) -> None:
    """Check options that a model compares with its input."""
    model, context, side = config.model, config.data.context, max(frames.height, frames.width)
    if isinstance(model, SimVPOptions) and model.frames > context:
        raise ConfigError(
            f"model.frames {model.frames} is more than the {count(context, 'frame')} of data.context: set "
            f"model.frames={context}, or raise data.context"
        )
    if isinstance(model, SVGOptions) and model.size < side:
        raise ConfigError(
            f"model.size {model.size} is smaller than frames of {frames.height}x{frames.width}: set "
            f"model.size={1 << (side - 1).bit_length()}, or convert the archive at a smaller size"
        )


def _check_static(windows: WindowSet) -> None:
    """Check that the static channels of the first window do not change in time."""
    choice = windows.channels
    if choice is None or not choice.static:
        return
    window = windows[0]
    for place in choice.static:
        changing = int((window.frames[:, place] != window.frames[:1, place]).sum())
        if changing:
            raise ConfigError(
                f"data.static: {choice.names[place]} changes in time, in {changing:,} pixels of window {window.key} of "
                f"{windows.store.path}: leave it out of data.static"
            )


def check_lead_times(loss: LossConfig, horizon: int) -> None:
    """Check that there is one weight for each predicted frame of the horizon.

    Raises:
        ConfigError: with both numbers.
    """
    if loss.lead_times is not None and len(loss.lead_times) != horizon:
        raise ConfigError(
            f"train.loss.lead_times has {len(loss.lead_times)} weights and data.horizon is {horizon}: give one weight "
            "for each predicted frame"
        )


def rain_levels(loss: LossConfig, scale: Scale) -> tuple[float, ...]:
    """Return where the weight of a balanced loss changes, in the models' unit: just below the first code of each range.

    Empty for other losses.

    Raises:
        ConfigError: the store's unit is neither a rain rate nor dBZ; its values fall as its codes rise.
    """
    if not loss.kind.startswith("balanced"):
        return ()
    unit = scale.physical_unit
    if unit == "dBZ":
        a, b = loss.zr
        thresholds = [10.0 * math.log10(a * rate**b) for rate in loss.thresholds]
    elif unit in RATES:
        thresholds = list(loss.thresholds)
    else:
        raise ConfigError(
            f"train.loss.kind {loss.kind} weights errors by rain rate, and this store holds {scale.quantity} in "
            f"{unit}: use a store in mm/h or dBZ, or another train.loss.kind"
        )
    values = scale.to_physical(np.arange(scale.max_code + 1, dtype=np.min_scalar_type(scale.max_code)))
    if (np.diff(values) < 0).any():
        raise ConfigError(
            f"train.loss.kind {loss.kind}: this store's values fall as its codes rise: convert the archive with a gain "
            "above 0"
        )
    return tuple((float(np.searchsorted(values, value)) - 0.5) / scale.max_code for value in thresholds)


def keys_without_effect(
    config: RunConfig, scale: Scale | None = None, choice: ChannelChoice | None = None
) -> list[str]:
    """Return the keys of `train`, and `data.beyond`, that were set and have no effect, with the reason.

    Args:
        scale: of the store; None: not at hand, and what depends on it is not looked at.
        choice: the channels of the run.
    """
    train, model = config.train, config.model
    given = train.model_dump(exclude_defaults=True)
    found = []
    for name, section in (("schedule", train.schedule), ("loss", train.loss), ("sampling", train.sampling)):
        read = (*READ[type(section)][section.kind], "kind")
        found += [
            f"train.{name}.{key} (train.{name}.kind is {section.kind})"
            for key in given.get(name, ())
            if key not in read
        ]
    if train.loss.kind.startswith("balanced") and "zr" in given["loss"] and scale and scale.physical_unit in RATES:
        found.append(f"train.loss.zr (the store is in {scale.physical_unit})")
    if "sampling" in given and isinstance(model, SVGOptions | TrajGRUOptions | SimVPOptions):
        found.append(f"train.sampling ({model.name} has no inputs that scheduled sampling could replace)")
    if "loss_frames" in given and isinstance(model, TrajGRUOptions | SimVPOptions):
        found.append(f"train.loss_frames ({model.name} predicts the horizon alone)")
    found += [*_of_schedule(train), *_of_channels(config, choice), *_of_optimizer(train, given)]
    return found + _of_source(train, given)


def _of_channels(config: RunConfig, choice: ChannelChoice | None) -> list[str]:
    if config.data.beyond == type(config.data).model_fields["beyond"].default:
        return []
    if choice is None or not set(choice.only_inputs) - set(choice.static):
        return ["data.beyond (every input is a target or static)"]
    if isinstance(config.model, TrajGRUOptions):
        return [f"data.beyond ({config.model.name} reads nothing after the context)"]
    return []


def _of_schedule(train: TrainConfig) -> list[str]:
    """Return the part of a schedule that begins only after the last step."""
    schedule, steps = train.schedule, f"train.steps is {train.steps:,}"
    if schedule.warmup >= train.steps:
        return [f"train.schedule.kind (warm-up takes {schedule.warmup:,} steps and {steps}: train.lr is never reached)"]
    first = schedule.warmup + schedule.every
    if schedule.kind == "step" and first >= train.steps:
        return [f"train.schedule.factor (the first drop is after {count(first, 'step')} and {steps})"]
    return []


def _of_optimizer(train: TrainConfig, given: dict[str, object]) -> list[str]:
    used, other = ("momentum", "betas") if train.optimizer == "sgd" else ("betas", "momentum")
    found = [f"train.{other} (train.optimizer is {train.optimizer})"] if other in given else []
    first = train.momentum if used == "momentum" else train.betas[0]
    default = TrainConfig.model_fields[used].default
    if train.schedule.kind == "one_cycle" and first and first != (default if used == "momentum" else default[0]):
        which = "train.momentum" if used == "momentum" else "train.betas[0]"
        found.append(f"{which} (train.schedule.kind is one_cycle, which varies it)")
    return found


def _of_source(train: TrainConfig, given: dict[str, object]) -> list[str]:
    keys = train.init_from.model_dump(exclude_defaults=True)
    if not train.init_from.path:
        return [f"train.init_from.{key} (train.init_from.path is empty)" for key in keys if key != "freeze"]
    if "checkpoint" in keys and is_export(train.init_from.path):
        return ["train.init_from.checkpoint (train.init_from.path is an export)"]
    return []
