"""Which engine trains a model, by the config, the device and the model; the reason goes into the log."""

from __future__ import annotations

import torch

from toolkit.config import RunConfig
from toolkit.distributed import World
from toolkit.errors import ConfigError
from toolkit.models.base import SequenceModel
from toolkit.train.deepspeed_engine import DeepSpeedEngine
from toolkit.train.deepspeed_settings import check_precision, share_of
from toolkit.train.engine import Engine, TrainState
from toolkit.train.replicated import ReplicatedEngine


def build_engine(model: SequenceModel, config: RunConfig, world: World, state: TrainState | None) -> Engine:
    """Return an engine at the start of training, or at a state that was saved.

    Raises:
        ConfigError: `train.graph: on` with settings or a model that can't be graphed; a precision that the device
            lacks; a batch that the ranks don't divide.
    """
    cfg = config.train
    check_precision(cfg, world.device)
    reason = why_not_graphed(config, world.device)
    if cfg.graph == "on" and reason is not None:
        raise ConfigError(f"train.graph on: {reason}; or train.graph=off")
    if state is not None:
        model.load_state_dict(state.weights)
    share = share_of(cfg, world)
    graphed = cfg.graph == "on" or (cfg.graph == "auto" and reason is None and world.device.type == "cuda")
    engine: Engine
    if graphed:
        engine = ReplicatedEngine(model, cfg, share, world)
    else:
        engine = DeepSpeedEngine(model, cfg, share, world)
        engine.not_graphed = reason if cfg.graph == "auto" and world.device.type == "cuda" else None
    if state is not None:
        engine.restore(state)
    return engine


def why_not_graphed(config: RunConfig, device: torch.device) -> str | None:
    """Return why a training step can't be recorded as a CUDA graph; None: it can."""
    train = config.train
    if train.zero:
        return (
            f"train.zero {train.zero} reduces gradients by hooks in Python, which a replay doesn't run: set "
            "train.zero=0"
        )
    if train.deepspeed:
        return (
            f"train.deepspeed sets {', '.join(sorted(train.deepspeed))}, and a graphed step has no DeepSpeed: empty it"
        )
    if train.offload_states:
        return "train.offload_states copies to the host within the step: set it to false"
    if train.checkpointing_backend == "deepspeed":
        return "train.checkpointing_backend deepspeed keeps its state on the host: use torch"
    return None
