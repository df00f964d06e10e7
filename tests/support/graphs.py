"""Run in a process of its own by the tests: models trained with `train.graph` on and off, step by step.

    python -m tests.support.graphs CASES.json OUT.json

CASES.json: [{"model": {...}, "train": {...}, "steps": N}, ...]. OUT.json: for each {"on": losses, "off": losses,
"norms": equal gradient norms, "state": equal weights and moments after the last step}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from shards.manifest import FrameSpec, Scale
from toolkit.checkpoint.checkpoint import TrainState
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.config.channels import choose_channels
from toolkit.data.batches import Batch
from toolkit.distributed.world import init_world, leave_group
from toolkit.train.build import build_engine
from toolkit.train.engine import StepResult
from toolkit.train.loss import TrainingLoss

SCALE = Scale("intensity", "1", 0.0, 1 / 255, missing_code=255)
SMALL: dict[str, dict[str, Any]] = {
    "trajgru": {"hidden": [8, 12], "flows": [5, 5], "strides": [4, 2], "stem": 4, "flow_hidden": 8},
    "svg_lp": {"size": 16, "width": 4, "latent": 16, "rnn": 16, "z": 4},
    "simvp": {"frames": 2, "spatial_hidden": 8, "spatial_layers": 2, "hidden": 16, "layers": 2, "mlp_ratio": 2},
    "rim": {"layers": 1, "hidden": 24},
}


def small(name: str) -> dict[str, Any]:
    return {"name": name, **SMALL.get(name, {"layers": 2, "hidden": 8})}


def train(case: dict[str, Any], graph: str) -> tuple[list[StepResult], TrainState]:
    settings = {"batch": 4, "lr": 3e-3, "sampling": {"slope": 0.02}, **case.get("train", {}), "graph": graph}
    if graph == "off":
        settings.pop("defer_weight_gradients", None)
    length = case.get("frames", 6)
    data = {"context": length // 2, "horizon": length - length // 2, **case.get("data", {})}
    config = make_config({"model": case["model"], "data": data, "train": settings}, "case")
    world = init_world(config.train, group=True)
    torch.manual_seed(0)
    size = case.get("size", 16)
    frames = FrameSpec(case.get("channels", 1), size, size)
    choice = choose_channels(config.data, frames, "case")
    engine = build_engine(untrained_model(config, frames), config, world, None)
    targets = None if choice is None else choice.targets
    loss = TrainingLoss(config, SCALE, world.device, engine.forward, targets=targets)
    generator = torch.Generator().manual_seed(1)
    results = []
    for step in range(case["steps"]):
        loss.step, batches = step, []
        for part in range(engine.share.accumulation):
            count = engine.share.micro_batch
            codes = torch.randint(
                0, 256, (count, length, frames.channels, size, size), generator=generator, dtype=torch.uint8
            )
            positions = [step * config.train.batch + part * count + index for index in range(count)]
            batches.append(Batch(codes, positions, [str(position) for position in positions], []))
        results.append(engine.step(batches, loss, False))
    state = engine.gather()
    assert state is not None
    return results, state


def same(one: TrainState, other: TrainState) -> bool:
    pairs = [(one.weights[name], weight) for name, weight in other.weights.items()]
    pairs += [(one.moments[name][key], part) for name, parts in other.moments.items() for key, part in parts.items()]
    return all(torch.equal(a, b) for a, b in pairs)


def main() -> None:
    torch.set_num_threads(1)
    seen = []
    for case in json.loads(Path(sys.argv[1]).read_text()):
        (on, graphed), (off, eager) = train(case, "on"), train(case, "off")
        seen.append(
            {
                "on": [result.loss for result in on],
                "off": [result.loss for result in off],
                "norms": [result.grad_norm for result in on] == [result.grad_norm for result in off],
                "state": same(graphed, eager),
            }
        )
    Path(sys.argv[2]).write_text(json.dumps(seen))
    leave_group()


if __name__ == "__main__":
    main()
