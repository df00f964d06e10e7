"""Run under torchrun by the tests: gradient norms under DeepSpeed at several ZeRO stages, deferred and not.

    torchrun --nproc_per_node 2 tests/toolkit/train/deferred_ranks.py OUT.json

OUT.json: {stage: [norms of the averaged gradient at each step of plain training, of deferred training]}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from shards.manifest import FrameSpec
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.distributed.world import World, init_world
from toolkit.models.base import Sampling
from toolkit.train.build import build_engine
from toolkit.train.deepspeed_engine import DeepSpeedEngine
from toolkit.train.deferred import DeferredGradients

STEPS = 4


def norms(stage: int, deferred: bool, world: World) -> list[float]:
    model = {"name": "convlstm", "layers": 2, "hidden": 8}
    train = {"zero": stage, "batch": 4, "defer_weight_gradients": "on" if deferred else "off"}
    config = make_config({"model": model, "train": train}, "test")
    torch.manual_seed(0)
    engine = build_engine(untrained_model(config, FrameSpec(1, 16, 16)), config, world, None)
    assert isinstance(engine, DeepSpeedEngine)
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(STEPS):
        frames = torch.rand(4, 8, 1, 16, 16, generator=generator).tensor_split(world.world_size)[world.rank]
        with engine.deferred:
            engine.wrapped.backward(engine.wrapped(frames, 4, Sampling()).losses["data"])
        squares = torch.stack([part.double().square().sum() for part in engine.held_gradients()]).sum()
        found.append(float(world.sum(squares / (1 if engine.partitioned else world.world_size)).sqrt()))
        engine.wrapped.step()
    if deferred:
        assert isinstance(engine.deferred, DeferredGradients)
        assert engine.deferred.peak_bytes > 0
    return found


def main() -> None:
    world = init_world(group=True)
    seen = {stage: [norms(stage, deferred, world) for deferred in (False, True)] for stage in (0, 1, 2)}
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(seen))
    world.close()


if __name__ == "__main__":
    main()
