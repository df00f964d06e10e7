"""What ZeRO saves: bytes that each of 2 ranks holds at every stage, beside the time of a step.

    python benchmarks/zero.py                          ModeRNN 4x64 (the paper's) and 4x192: a quarter of an hour
    python benchmarks/zero.py --sizes 64 --steps 2 --frames 4      two minutes, to see that it works
    python benchmarks/zero.py --precision bf16 --checkpointing none

Counted are the bytes of the tensors that a rank really holds after a backward pass and before the update, where all
of them are alive: weights (with fp32 masters, where they are separate), gradients, Adam's moments. `rest` is the
process's greatest resident memory less what it held before there was a model, less those: activations first of all,
and DeepSpeed's buffers. Every figure is the larger of the two ranks'; each line is two fresh processes. `3, all` is
stage 3 with every parameter divided; by default DeepSpeed keeps those of less than 100,000 numbers whole.

Writes benchmarks/zero-DATE-DEVICE.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this folder has a shards.py too

from benchmarks.report import in_child, table, write_report  # noqa: E402

RANKS = 2
ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
STAGES: dict[str, dict[str, Any]] = {
    "0": {"zero": 0},
    "1": {"zero": 1},
    "2": {"zero": 2},
    "3": {"zero": 3},
    "3, all": {"zero": 3, "deepspeed": ALL},
}
HEAD = ["model", "ZeRO", "weights", "gradients", "moments", "sum", "x of 0", "rest", "greatest RSS", "s/step", "x of 0"]


def peak() -> int:
    """Greatest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def worker(options: argparse.Namespace) -> None:
    """One rank: a few steps of training on random frames; prints what it held."""
    import torch

    from shards.manifest import FrameSpec
    from toolkit.checkpoint.weights import untrained_model
    from toolkit.config import make_config
    from toolkit.distributed.world import init_world
    from toolkit.models.base import Noise, Sampling
    from toolkit.train.build import build_engine

    world = init_world(group=True)
    tree = {
        "model": {"name": "modernn", "hidden": options.hidden, "layers": options.layers, "patch": options.patch},
        "train": {
            "batch": RANKS * options.batch,
            "precision": options.precision,
            "activation_checkpointing": {"policy": options.checkpointing},
            "graph": "off",
            **STAGES[options.stage],
        },
    }
    config = make_config(tree, "benchmark")
    torch.manual_seed(0)
    before = peak()
    engine = build_engine(untrained_model(config, FrameSpec(1, options.size, options.size)), config, world, None)
    frames = torch.rand(options.batch, options.frames, 1, options.size, options.size)
    times = []
    held: dict[str, int] = {}
    for step in range(options.steps):
        began = time.perf_counter()
        noise = Noise(range(options.batch))
        rollout = engine.wrapped(frames, options.frames // 2, Sampling(noise=noise))
        engine.wrapped.backward(torch.stack(list(rollout.losses.values())).sum())
        del rollout
        counting = time.perf_counter()
        if step == options.steps - 1:  # the moments exist from the first update on
            held = count(engine)
        began += time.perf_counter() - counting
        engine.wrapped.step()
        times.append(time.perf_counter() - began)
    facts = {**held, "before": before, "peak": peak(), "parameters": engine.parameter_count}
    facts["seconds"] = statistics.median(times[1:] or times)
    gathered: list[Any] = [None] * world.world_size
    torch.distributed.all_gather_object(gathered, facts)
    if world.is_main:
        print(json.dumps(gathered))
    world.close()


def count(engine: Any) -> dict[str, int]:
    """Bytes of weights, gradients and moments that this rank holds; every storage is counted once."""
    from torch import Tensor

    seen: set[int] = set()

    def size(tensors: Iterable[Tensor | None]) -> int:
        total = 0
        for tensor in tensors:
            storage = None if tensor is None else tensor.untyped_storage()
            if storage is not None and storage.nbytes() and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        return total

    parameters = list(engine.wrapped.module.parameters())
    masters = engine.masters() if engine.partitioned else []
    inner = engine.optimizer.optimizer if engine.partitioned else engine.optimizer
    # Moments are divided or not, weights too: what a parameter shows, its part (ZeRO-3), the fp32 masters.
    weights = size([p.data for p in parameters] + [getattr(p, "ds_tensor", None) for p in parameters] + masters)
    moments = size(value for state in inner.state.values() for key, value in state.items() if key != "step")
    gradients = size([p.grad for p in parameters] + [m.grad for m in masters] + engine.held_gradients())
    return {"weights": weights, "gradients": gradients, "moments": moments}


def run(options: argparse.Namespace, hidden: int, stage: str) -> dict[str, Any]:
    """The worst of two ranks, from fresh processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
    passed = ["layers", "patch", "size", "frames", "batch", "steps", "precision", "checkpointing"]
    arguments = [f"--{name}={getattr(options, name)}" for name in passed]
    command = [*torchrun, __file__, f"--hidden={hidden}", f"--stage={stage}", *arguments]
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    ranks = in_child(command, f"hidden {hidden}, ZeRO {stage}", environment)
    return {key: max(rank[key] for rank in ranks) for key in ranks[0]}


def row(options: argparse.Namespace, hidden: int, stage: str, found: dict[str, Any], zero: dict[str, Any]) -> list[str]:
    """A line of the table; memory in MB, the greatest RSS in GB."""
    total, first = (sum(r[key] for key in ("weights", "gradients", "moments")) for r in (found, zero))
    rest = found["peak"] - found["before"] - total
    name = f"ModeRNN {options.layers}x{hidden}, {found['parameters'] / 1e6:.1f} M"
    held = [f"{found[key] / 1e6:.0f}" for key in ("weights", "gradients", "moments")]
    memory = [*held, f"{total / 1e6:.0f}", f"{total / first:.2f}", f"{rest / 1e6:.0f}", f"{found['peak'] / 1e9:.2f} GB"]
    return [name, stage, *memory, f"{found['seconds']:.2f}", f"{found['seconds'] / zero['seconds']:.2f}"]


def main() -> int:
    """Measure every size and stage, or be one rank of such a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="64,192", help="widths of ModeRNN (default 64,192)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--checkpointing", choices=("none", "step", "segment", "recursive"), default="step")
    for name, default in (("layers", 4), ("patch", 4), ("size", 64), ("frames", 10), ("batch", 1), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default {default})")
    parser.add_argument("--out", type=Path, help="where to write the report (default: beside this file)")
    parser.add_argument("--hidden", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        worker(options)
        return 0
    rows, records = [], []
    for hidden in map(int, options.sizes.split(",")):
        zero: dict[str, Any] = {}
        for stage in STAGES:
            found = run(options, hidden, stage)
            zero = zero or found
            records.append({"hidden": hidden, "stage": stage, **found})
            rows.append(row(options, hidden, stage, found, zero))
            print(table(HEAD, rows[-1:]).splitlines()[-1], flush=True)
    title = (
        f"ZeRO on {RANKS} ranks, MB of each; {options.precision}, {options.batch} sequences of {options.frames} frames "
        f"{options.size}x{options.size} a rank, checkpointing {options.checkpointing}"
    )
    print(f"\nwritten: {write_report('zero', title, HEAD, rows, {'rows': records}, options.out)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
