"""Run by the tests on several ranks: two optimizer steps of many small engines, one after the other on the same ranks.

    torchrun --nproc_per_node 2 -m tests.toolkit.train.policies TREES.json OUT.json

TREES.json: a list of configs as trees. OUT.json: for each a digest of weights and of Adam's moments, which are sums of
gradients, or the error that the engine raised.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from shards.manifest import FrameSpec
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.data.batches import Batch
from toolkit.distributed.world import World, init_world
from toolkit.models.base import Noise, Sampling
from toolkit.train.build import build_engine

SIZE = FrameSpec(1, 13, 18)  # no multiples of the patch


def batch_of(seed: int, size: int, frames: int) -> Batch:
    drawn = torch.rand(size, frames, 1, SIZE.height, SIZE.width, generator=torch.Generator().manual_seed(seed))
    return Batch(drawn, list(range(size)), [f"{seed}/{index}" for index in range(size)], [])


def digest_of(tree: dict[str, Any], world: World) -> str | None:
    """None on ranks other than 0, which have no whole state."""
    config = make_config(tree, "test")
    context, frames = config.data.context, config.data.context + config.data.horizon
    torch.manual_seed(3)
    engine = build_engine(untrained_model(config, SIZE), config, world, None)

    def loss_of(batch: Batch) -> torch.Tensor:
        size = len(batch.keys)
        chance = torch.Generator().manual_seed(size)
        teacher = torch.rand(size, frames - 1 - context, generator=chance) < 0.5
        rollout = engine.wrapped(batch.frames, context, Sampling(teacher, Noise(range(5, 5 + size))))
        return torch.stack(list(rollout.losses.values())).sum()

    for step in range(2):
        seeds = [100 * step + 10 * world.rank + index for index in range(engine.share.accumulation)]
        engine.step([batch_of(seed, engine.share.micro_batch, frames) for seed in seeds], loss_of, False)
    state = engine.gather()
    engine.wrapped.destroy()
    if state is None:
        return None
    digest = hashlib.sha256()
    for name in sorted(state.weights):
        for tensor in (state.weights[name], *state.moments.get(name, {}).values()):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def main() -> int:
    world = init_world(group=True)
    results = []
    for tree in json.loads(Path(sys.argv[1]).read_text()):
        try:
            results.append(digest_of(tree, world))
        except (AssertionError, RuntimeError) as error:
            results.append(f"{type(error).__name__}: {error}")
        gc.collect()
    if world.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    world.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
