"""Run by the tests on several ranks: single steps of an engine under each of several settings.

    torchrun --nproc_per_node 2 -m tests.toolkit.train.probe CONFIG.yaml SETTINGS.json OUT.json

SETTINGS.json: lists of overrides. OUT.json: what rank 0 saw under each, as `probe` returns it.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from shards.manifest import FrameSpec
from toolkit.checkpoint.checkpoint import TrainState
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import load_config
from toolkit.distributed.world import World, init_world
from toolkit.models.base import Sampling
from toolkit.train.build import build_engine
from toolkit.train.engine import norms_of

STEPS, BROKEN, UNWANTED = 5, 2, 3  # the last rank's gradients are infinite; they are finite and discarded


def digest(state: TrainState | None, world: World) -> str | None:
    """Of weights and moments, which rank 0 alone has."""
    assert (state is not None) == world.is_main
    if state is None:
        return None
    parts = [state.weights, *(state.moments[name] for name in sorted(state.moments))]
    tensors = [part[name].numpy().tobytes() for part in parts for name in sorted(part)]
    return hashlib.sha256(b"".join(tensors)).hexdigest()


def probe(config: str, settings: list[str], world: World) -> dict[str, Any]:
    """{told, used: the gradient's norm before the update and DeepSpeed's own; kept: discarding changed nothing}."""
    made = load_config(config, settings)
    torch.manual_seed(made.seed)
    engine = build_engine(untrained_model(made, FrameSpec(1, 16, 16)), made, world, None)
    generator = torch.Generator().manual_seed(1)
    told, used, kept = [], [], []
    for step in range(STEPS):
        frames = torch.rand(made.train.batch, 8, 1, 16, 16, generator=generator)
        own = frames.tensor_split(world.world_size)[world.rank].split(engine.share.micro_batch)
        unwanted = step in (BROKEN, UNWANTED)
        before = digest(engine.gather(), world) if unwanted else None
        for number, micro in enumerate(own):
            loss = engine.wrapped(micro, 4, Sampling()).losses["data"]
            broken = step == BROKEN and world.rank == world.world_size - 1
            engine.wrapped.backward(loss * (math.inf if broken else 1))
            if number < len(own) - 1:
                engine.wrapped.step()
        norms, copies = norms_of(engine.held_gradients()), 1 if engine.partitioned else world.world_size
        told.append(engine._check(engine._reduce_step_status(torch.zeros(()), norms, copies, False, False)).grad_norm)
        engine.discard_gradients() if unwanted else engine.wrapped.step()
        engine.step_count += 1
        used.append(engine.wrapped.get_global_grad_norm())
        if unwanted:
            kept.append(digest(engine.gather(), world) == before)
    return {"told": told, "used": [value and float(value) for value in used], "kept": kept}


def main() -> None:
    config, settings, out = sys.argv[1:]
    world = init_world(group=True)
    seen = [probe(config, one, world) for one in json.loads(Path(settings).read_text())]
    if world.is_main:
        Path(out).write_text(json.dumps(seen))
    world.close()


if __name__ == "__main__":
    main()
