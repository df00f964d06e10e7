"""The planner against reality: predicted and measured peak memory of real training steps, each in a fresh process.

    python benchmarks/plan.py                  all cases on this machine, into benchmarks/plan-DATE-MACHINE.{md,json}
    python benchmarks/plan.py --quick          few small cases, printed only
    python benchmarks/plan.py --device cuda    on a GPU

Every case is two optimizer steps through DeepSpeed, as training does them. On a CPU measured is the peak of resident
memory, without the pages of libraries, less a baseline: that of the same process after its imports and one tiny step.
glibc is told to give freed memory back at once (MALLOC_MMAP_THRESHOLD_): without that, resident memory holds what was
freed too, and depends on how the heap broke into pieces. On a GPU it is torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose shards.py is not the package

from benchmarks.report import device, in_child, write_report  # noqa: E402

HEAD = ("model", "size", "precision", "policy", "micro-batch", "predicted MiB", "measured MiB", "predicted / measured")
MODELS = ("modernn", "convlstm", "trajgru")
SIZES = ((64, 1), (64, 4), (128, 1))  # of frames, and micro-batch
POLICIES = ("none", "step", "step+layers", "recursive+layers")
PRECISIONS = ("fp32", "bf16")
TARGET = 0.15


def cases(quick: bool) -> list[dict[str, Any]]:
    """What is measured."""
    if quick:
        return [
            {"model": "modernn", "size": 64, "micro": 1, "policy": policy, "precision": precision}
            for policy, precision in (("none", "fp32"), ("step+layers", "fp32"), ("step", "bf16"))
        ]
    return [
        {"model": model, "size": size, "micro": micro, "policy": policy, "precision": precision}
        for model, (size, micro), policy, precision in itertools.product(MODELS, SIZES, POLICIES, PRECISIONS)
        if model != "trajgru" or policy in ("none", "step")  # a model without a step knows only whether to recompute
    ]


def config_of(case: dict[str, Any]) -> Any:
    from toolkit.config import load_config
    from toolkit.plan.cost import under

    settings = [f"train.precision={case['precision']}", f"train.batch={case['micro']}", "train.graph=off"]
    return under(load_config(ROOT / "configs" / "models" / f"{case['model']}.yaml", settings), case["policy"])


def predict_case(case: dict[str, Any], gpu: bool) -> dict[str, int]:
    """Bytes of one rank, by part, and `total`."""
    from dataclasses import asdict

    from toolkit.plan import cost as costs
    from toolkit.plan.predict import Machine, memory_of

    config = config_of(case)
    area = costs.area_of(config, case["size"], case["size"])
    memory = memory_of(config, costs.get(config, 1), case["policy"], case["micro"], area, Machine(1, 0, gpu))
    return {**asdict(memory), "total": memory.total}


def resident(what: str) -> int:
    """A line of /proc/self/status, in bytes: VmHWM the peak, RssAnon what is no file's, RssFile pages of libraries."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def measure_case(case: dict[str, Any]) -> dict[str, int]:
    """Train two steps in this process."""
    import torch

    from shards.manifest import FrameSpec
    from toolkit.checkpoint.weights import untrained_model
    from toolkit.distributed.world import init_world
    from toolkit.models.base import Noise, Sampling
    from toolkit.train.build import build_engine

    class Keys:
        keys: tuple[str, ...] = ()

    world = init_world(group=True)

    def train(config: Any, size: int, frames: int, steps: int) -> None:
        torch.manual_seed(0)
        model = untrained_model(config, FrameSpec(1, size, size))
        engine = build_engine(model, config, world, None)
        batch, context = config.train.batch, frames // 2

        def loss(_: Any) -> Any:
            codes = torch.zeros(batch, frames, 1, size, size, dtype=torch.uint8, device=world.device)
            teacher = torch.zeros(batch, frames - context - 1, dtype=torch.bool, device=world.device)
            sampling = Sampling(teacher=teacher, noise=Noise(range(batch), world.device))
            rollout = engine.wrapped(codes.float() / 255, context, sampling)
            return torch.stack(list(rollout.losses.values())).sum()

        for _ in range(steps):
            engine.step([Keys()], loss, False)  # type: ignore[list-item]

    tiny = config_of({**case, "micro": 1})
    options = tiny.model.model_dump()
    if "layers" in options:
        small = type(tiny.model).model_validate({**options, "layers": 1, "hidden": 8})
        tiny = tiny.model_copy(update={"model": small})
    train(tiny, 4 * tiny.model.tile, 4, 1)
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        baseline = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        baseline = resident("RssAnon")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    config = config_of(case)
    train(config, case["size"], config.data.context + config.data.horizon, 2)
    if world.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resident("VmHWM") - resident("RssFile")  # libraries' pages only grow, so these are the most there were
    world.close()
    return {"baseline": baseline, "measured": peak - baseline}


def measure_alone(case: dict[str, Any], device: str) -> dict[str, int]:
    """`measure_case` in a process of its own."""
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536"} | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    return dict(in_child([__file__, "--case", json.dumps(case)], str(case), environment))


def cells(row: dict[str, Any]) -> list[str]:
    """A line of the table."""
    mib = 2**20
    ratio = row["predicted"]["total"] / row["measured"]
    case = [row["model"], str(row["size"]), row["precision"], row["policy"], str(row["micro"])]
    sizes = [f"{row['predicted']['total'] / mib:.0f}", f"{row['measured'] / mib:.0f}"]
    return [*case, *sizes, f"{ratio:.3f}" + ("" if abs(ratio - 1) <= TARGET else " (off)")]


def main() -> int:
    """Measure and print; exit code 1 if a case is off by more than the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", metavar="REGEX", default="", help="cases whose JSON matches, printed only")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure_case(json.loads(options.case))))
        return 0
    rows = []
    for case in cases(options.quick):
        if not re.search(options.only, json.dumps(case)):
            continue
        row = {**case, "predicted": predict_case(case, options.device == "cuda"), **measure_alone(case, options.device)}
        rows.append(row)
        print("  ".join(cells(row)), flush=True)
    ratios = [row["predicted"]["total"] / row["measured"] for row in rows]
    within = sum(abs(ratio - 1) <= TARGET for ratio in ratios)
    verdict = f"{within} of {len(rows)} within {TARGET:.0%}; ratios {min(ratios):.3f} to {max(ratios):.3f}"
    print(verdict)
    if not (options.quick or options.only):
        import torch

        title = f"Predicted and measured peak memory, {len(rows)} cases"
        facts = {"torch": torch.__version__, "rows": rows}
        where = device(options.device == "cuda")
        print(write_report("plan", title, HEAD, [cells(row) for row in rows], facts, None, where, [verdict]))
    return 0 if within == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
