"""Start a model from another run's weights (`train.init_from`), and keep some of its parameters as they are."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shards import ShardError, open_store
from shards.manifest import FrameSpec
from toolkit.checkpoint.export import read_export
from toolkit.checkpoint.source import is_export
from toolkit.checkpoint.weights import read_weights, store_of_run, untrained_model
from toolkit.config import RunConfig
from toolkit.config.channels import input_frames
from toolkit.config.paths import expanded
from toolkit.config.recipe import InitialisationConfig
from toolkit.distributed.world import World
from toolkit.errors import ConfigError
from toolkit.models.base import SequenceModel
from toolkit.rundir import RunDir
from toolkit.wording import count, some

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Weights of a run's checkpoint or of an export, what they are, and the channels that their model reads.

    `channels` is empty where they have no names, or the run's store is gone.
    """

    weights: dict[str, Tensor]
    origin: str
    channels: tuple[str, ...]


@dataclass(frozen=True)
class Matched:
    """Names of weights, in order: taken from a source, kept as initialised, unknown to the model."""

    total: int  # tensors of the model
    taken: list[str]
    kept: list[str]  # parameters of the model that keep their own initialisation
    unknown: list[str]  # of the source, that the model lacks


def check_initialisation(config: RunConfig, shape: FrameSpec) -> None:
    """Check `train.init_from` of a training that is not started yet, without memory for its model.

    Args:
        shape: frames of the store.

    Raises:
        ConfigError, CheckpointError: as `initialise`, `freeze` and `untrained_model`.
    """
    with torch.device("meta"):
        model = untrained_model(config, shape)
    if config.train.init_from.path:
        _match(model, _read(config.train.init_from), config.train.init_from)
    freeze(model, config.train.init_from)


def initialise(model: SequenceModel, config: InitialisationConfig, world: World) -> None:
    """Copy weights into a model that is not trained yet, and log what was taken over and what was not. Collective.

    Rank 0 reads them for all ranks: the source may be a run that is still training, whose best checkpoint changes.

    Raises:
        ConfigError: `strict`, and a parameter is absent from the source, has another shape there, or the source has
            one that the model lacks; a pattern of `leave_out` that names nothing; a source that shares no parameter.
        CheckpointError: the source can't be read.
    """
    source = world.run_on_rank_zero(lambda: _read(config))
    own = model.state_dict()
    matched = _match(model, source, config)
    with torch.no_grad():
        for name in matched.taken:
            own[name].copy_(source.weights[name])
    logger.info(
        "initialised %s of %s from %s", f"{len(matched.taken):,}", count(matched.total, "tensor"), source.origin
    )
    for names, what in (
        (matched.kept, "keep their own initialisation"),
        (matched.unknown, "of the source are not used"),
    ):
        if names:
            logger.info("%s %s: %s", count(len(names), "tensor"), what, some(names))
    here = model.frame_spec.names if model.frame_spec else ()
    if here and source.channels and here != source.channels:
        logger.warning(
            "train.init_from: %s reads the channels %s and this run reads %s: weights go by position, not by name",
            *(source.origin, ", ".join(source.channels), ", ".join(here)),
        )


def _match(model: nn.Module, read: Source, config: InitialisationConfig) -> Matched:
    """Return what is taken over; raises ConfigError as `initialise`."""
    own, origin = model.state_dict(), read.origin
    built = {name for name, value in own.items() if not torch.is_floating_point(value)}  # tables of indices, counters
    own, source = ({name: tree[name] for name in tree if name not in built} for tree in (own, read.weights))
    left_out = matching(config.leave_out, [*own, *source], "train.init_from.leave_out")
    shaped = {name for name in own if name in source and source[name].shape == own[name].shape}
    taken = sorted(shaped - left_out)
    reshaped = sorted(set(own) & set(source) - shaped - left_out)
    absent, unknown = sorted(set(own) - set(source) - left_out), sorted(set(source) - set(own) - left_out)
    faults = [
        f"{count(len(names), 'parameter')} {what}: {some([_shapes(name, own, source) for name in names], 4)}"
        for names, what in (
            (reshaped, "of another shape"),
            (absent, "absent from it"),
            (unknown, "that this model lacks"),
        )
        if names
    ]
    if not taken and not faults:
        raise ConfigError(
            f"train.init_from.leave_out {list(config.leave_out)}: everything is left out, and nothing taken over from "
            f"{origin}: name fewer parameters, or leave train.init_from.path out"
        )
    if not taken or (config.strict and faults):
        loose = (
            "Name them in train.init_from.leave_out, or set train.init_from.strict=false to keep their initialisation"
        )
        other = "No parameter is taken over: name a run of the same model, with the same options"
        raise ConfigError(
            f"train.init_from: {origin} does not fit this model: {'; '.join(faults)}. {loose if taken else other}"
        )
    return Matched(len(own), taken, sorted((set(own) & left_out) | set(reshaped) | set(absent)), unknown)


def freeze(model: nn.Module, config: InitialisationConfig) -> list[str]:
    """Exclude the parameters from training that `freeze` names, and return them; those a model keeps fixed stay so.

    Raises:
        ConfigError: a pattern that names no parameter, or nothing is left to train.
    """
    named = dict(model.named_parameters())
    frozen = sorted(matching(config.freeze, named, "train.init_from.freeze"))
    for name in frozen:
        named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        names = f"train.init_from.freeze {list(config.freeze)} names every parameter that is trained"
        raise ConfigError(f"{names if frozen else 'the model keeps all its parameters fixed'}: none is left to train")
    return frozen


def matching(patterns: Sequence[str], names: Iterable[str], key: str) -> set[str]:
    """Return the names that a pattern of fnmatch names.

    Raises:
        ConfigError: a pattern names none.
    """
    known, found = sorted(set(names)), set()
    for pattern in patterns:
        here = fnmatch.filter(known, pattern)
        if not here:
            raise ConfigError(f"{key}: {pattern!r} matches no parameter; there are {some(known, 8)}")
        found |= set(here)
    return found


def _read(config: InitialisationConfig) -> Source:
    path = Path(expanded(config.path))
    if is_export(path):
        model, *_ = read_export(path)
        return Source(model.state_dict(), f"the export {path}", model.frame_spec.names if model.frame_spec else ())
    run = RunDir(path)
    channels: tuple[str, ...] = ()
    weights, step = read_weights(run, config.checkpoint)
    with contextlib.suppress(ShardError, ConfigError):
        made = run.config()
        channels = input_frames(made.data, open_store(store_of_run(run, made)).manifest.frames).names
    return Source(weights, f"{path} ({config.checkpoint}, step {step:,})", channels)


def _shapes(name: str, own: dict[str, Tensor], source: dict[str, Tensor]) -> str:
    shapes = [list(tree[name].shape) for tree in (own, source) if name in tree]
    return f"{name} {' here, '.join(map(str, shapes))}" + " there" * (len(shapes) == 2)
