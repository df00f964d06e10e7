"""Which engine trains a model, by the config, the device and the model; the reason goes into the log."""

from __future__ import annotations

from toolkit.checkpoint.checkpoint import TrainState
from toolkit.config import RunConfig
from toolkit.distributed.world import World
from toolkit.errors import ConfigError
from toolkit.models.base import SequenceModel
from toolkit.train.deepspeed_engine import DeepSpeedEngine
from toolkit.train.deepspeed_settings import check_precision, share_of
from toolkit.train.engine import Engine
from toolkit.train.replicated import ReplicatedEngine
from toolkit.wording import some


def build_engine(model: SequenceModel, config: RunConfig, world: World, state: TrainState | None) -> Engine:
    """Return an engine at the start of training, or at a state that was saved.

    Raises:
        ConfigError: `train.graph: on` with settings or a model that can't be graphed; a precision that the device
            lacks; a batch that the ranks don't divide; parameters that aren't trained, under ZeRO-3.
    """
    cfg = config.train
    check_precision(cfg, world.device)
    reason = cfg.why_not_graphed()
    on_gpu = world.device.type == "cuda"
    if cfg.graph == "on" and reason is not None:
        raise ConfigError(f"train.graph on: {reason}; or train.graph=off")
    if state is not None:
        model.load_state_dict(state.weights)
    fixed = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if cfg.zero == 3 and fixed:
        raise ConfigError(
            f"train.zero 3 partitions every parameter and can't be used with a model that keeps {some(fixed)} fixed: "
            "set train.zero to 0, 1 or 2"
        )
    share = share_of(cfg, world)
    engine: Engine
    if cfg.is_graphed(on_gpu):
        engine = ReplicatedEngine(model, cfg, share, world)
    else:
        engine = DeepSpeedEngine(model, cfg, share, world)
        engine.not_graphed = reason if cfg.graph == "auto" and on_gpu else None
    if state is not None:
        engine.restore(state)
    return engine
