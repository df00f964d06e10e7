"""The costs of the paper's Table 2: parameters, seconds per 1,000 training sequences and peak memory of its six models,
one after the other on one device.

    python benchmarks/table2.py --device cuda             4x64 at 64x64, batch 8, 10 frames in and 10 out
    python benchmarks/table2.py --steps 1 --set model.hidden=8 --set data.context=2 --set data.horizon=2   on a CPU,
                                                          minutes, to see that it works

Every model is the seed 1 of configs/sweeps/paper/table2.yaml and trains in a process of its own: whole optimizer steps
through DeepSpeed as in a run, on noise, the first one not timed. Memory is the peak of the process (CPU: resident,
libraries included; CUDA: allocated). The paper's numbers are of a TITAN RTX. A sweep's own runs fill the same columns
of `launch/report.py --paper`, but several runs at a time on one machine slow each other down. Prints the table and
writes benchmarks/table2-DATE-DEVICE.md and .json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose shards.py is not the package

from benchmarks.report import device, in_child, table, write_report  # noqa: E402
from launch.sweeps.spec import plan_sweep  # noqa: E402
from toolkit.config import make_config  # noqa: E402
from toolkit.report.paper.numbers import COSTS, TABLES  # noqa: E402

SWEEP = ROOT / "configs" / "sweeps" / "paper" / "table2.yaml"
HEAD = ("model", "parameters (M)", "paper", "s per 1,000 sequences", "paper", "memory (GB)", "paper")


def digits(value: float) -> str:
    """`1,294`, `6.35`."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def measure(tree: dict[str, Any], steps: int) -> dict[str, float]:
    """Train in this process; `tree` is a run's config."""
    import torch

    from shards.manifest import FrameSpec
    from toolkit.checkpoint.weights import untrained_model
    from toolkit.distributed.world import init_world
    from toolkit.models.base import Noise, Sampling
    from toolkit.train.build import build_engine
    from toolkit.train.record import peak_memory

    class Keys:
        keys: tuple[str, ...] = ()

    config = make_config({**tree, "train": {**tree.get("train", {}), "graph": "off"}}, "benchmark")
    world = init_world(config.train, group=True)
    torch.manual_seed(config.seed)
    model = untrained_model(config, FrameSpec(1, 64, 64))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    engine = build_engine(model, config, world, None)
    batch, data = config.train.batch, config.data
    frames = torch.rand(batch, data.context + data.horizon, 1, 64, 64, device=world.device)
    teacher = torch.zeros(batch, data.horizon - 1, dtype=torch.bool, device=world.device)

    def loss(_: Any) -> Any:
        rollout = engine.wrapped(
            frames, data.context, Sampling(teacher=teacher, noise=Noise(range(batch), world.device))
        )
        return torch.stack(list(rollout.losses.values())).sum()

    def train(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            engine.step([Keys()], loss, False)  # type: ignore[list-item]
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    train(1)
    seconds = train(steps)
    world.close()
    return {"parameters": parameters / 1e6, "seconds": 1000 * seconds / (steps * batch), "memory": peak_memory() / 1e9}


def measure_alone(tree: dict[str, Any], steps: int, kind: str) -> dict[str, float]:
    """The same in a fresh process: a peak is of a process."""
    environment = {"CUDA_VISIBLE_DEVICES": ""} if kind == "cpu" else {}
    arguments = [__file__, "--steps", str(steps), "--config", json.dumps(tree)]
    return dict(in_child(arguments, tree["name"], environment))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=5, help="timed optimizer steps (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config value")
    parser.add_argument("--out", type=Path, help="folder of the report (default: benchmarks)")
    parser.add_argument("--config", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.config:
        print(json.dumps(measure(json.loads(options.config), options.steps)))
        return
    paper = next(one for one in TABLES if one.number == "2")
    published = {f"mmnist-{row.model}": dict(zip(paper.columns, row.numbers, strict=True)) for row in paper.rows}
    facts, rows = {}, []
    for run in plan_sweep(SWEEP, options.set).runs:
        if run.seed != 1:
            continue
        found = facts[run.group] = measure_alone(run.config.model_dump(mode="json"), options.steps, options.device)
        theirs = {column.metric: value for column, value in published[run.group].items()}
        pairs = [text for cost in COSTS for text in (digits(found[cost]), f"{theirs[cost]:g}")]
        rows.append([run.group.removeprefix("mmnist-"), *pairs])
        print(table(HEAD, rows[-1:]).splitlines()[-1], flush=True)
    where = device(accelerator=options.device == "cuda")
    title = "Costs of Table 2's models"
    print(write_report("table2", title, HEAD, rows, {"models": facts}, options.out, where))


if __name__ == "__main__":
    main()
