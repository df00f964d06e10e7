"""What saving costs training: written while training waits, and while it goes on, beside no saving at all.

    python benchmarks/checkpoint.py                            ModeRNN 4x64 and 4x192: minutes, 2 GB of disk
    python benchmarks/checkpoint.py --hidden 16 --rounds 2     a minute, to see that it works
    python benchmarks/checkpoint.py --folder /scratch/me       measure that disk; the folder is removed again

A block is a number of optimizer steps; the three kinds of block take turns, and what a save costs is the median
difference to the block without one. Steps are short (`--batch`, `--frames`), so the shares are upper bounds for those
of longer steps. On a CPU the writing thread takes its core time from training; beside a GPU it doesn't. Prints a table
and writes benchmarks/checkpoint-DATE-DEVICE.md and .json.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import device, table, timed, write_report  # noqa: E402
from shards.manifest import FrameSpec  # noqa: E402
from toolkit.checkpoint.checkpoint import Progress  # noqa: E402
from toolkit.checkpoint.saver import Saver  # noqa: E402
from toolkit.checkpoint.weights import untrained_model  # noqa: E402
from toolkit.config import RunConfig, make_config  # noqa: E402
from toolkit.data.batches import Batch  # noqa: E402
from toolkit.distributed.world import World, init_world  # noqa: E402
from toolkit.models.base import Sampling  # noqa: E402
from toolkit.train.build import build_engine  # noqa: E402

KINDS = ("none", "sync", "async")
TARGET = 0.05  # of the training time


class Bench:
    """One model in training, with a saver of each kind."""

    def __init__(self, config: RunConfig, frames: int, folder: Path, world: World) -> None:
        self.engine = build_engine(untrained_model(config, FrameSpec(1, 64, 64)), config, world, None)
        shape = (config.train.batch, frames, 1, 64, 64)
        generator = torch.Generator().manual_seed(0)
        codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.batch = Batch(codes, list(range(shape[0])), ["-"] * shape[0], [])
        self.context, self.device = frames // 2, world.device
        self.savers = {
            kind: Saver(
                folder / kind,
                config.train.model_copy(
                    update={"checkpoint": config.train.checkpoint.model_copy(update={"async_save": kind == "async"})}
                ),
                config.hash8(),
            )
            for kind in KINDS[1:]
        }
        self.count = 0

    def _loss(self, batch: Batch) -> torch.Tensor:
        frames = batch.frames.to(self.device).float() / 255
        rollout = self.engine.wrapped(frames, self.context, Sampling())
        return torch.stack(list(rollout.losses.values())).sum()

    def save(self, kind: str) -> None:
        """What the training loop does at a checkpoint."""
        saver = self.savers[kind]
        saver.wait()
        self.count += 1
        saver.save(self.engine.gather(), Progress(self.count, self.count), last=False)

    def block(self, kind: str, steps: int) -> float:
        """Seconds of so many steps after a save of this kind; a save in the background must end within them."""
        began = time.perf_counter()
        if kind != "none":
            self.save(kind)
        for _ in range(steps):
            self.engine.step([self.batch], self._loss, False)
        took = time.perf_counter() - began
        if kind != "none":
            self.savers[kind].wait()
        return took


def measure(hidden: int, options: argparse.Namespace, folder: Path, world: World) -> dict[str, Any]:
    """One row: a model of this width."""
    tree = {
        "model": {"name": "modernn", "hidden": hidden},
        "train": {"batch": options.batch, "checkpoint": {"every": options.every}, "graph": "off"},
    }
    bench = Bench(make_config(tree, "benchmark"), options.frames, folder, world)
    bench.block("none", 2)
    step = bench.block("none", 3) / 3
    write = timed(lambda: bench.save("sync"))
    steps = max(3, math.ceil(3 * write / step))
    rounds = [{kind: bench.block(kind, steps) for kind in KINDS} for _ in range(options.rounds)]
    step = statistics.median(row["none"] for row in rounds) / steps
    lost = {kind: statistics.median(row[kind] - row["none"] for row in rounds) for kind in KINDS[1:]}
    snapshot = statistics.median(timed(bench.engine.gather) for _ in range(options.rounds))
    size = sum(file.stat().st_size for file in bench.savers["sync"].folder.glob("*/*")) / 2  # keep_last: 2
    parameters = sum(p.numel() for p in bench.engine.model.parameters())
    return {
        "model": f"modernn 4x{hidden}",
        "parameters": parameters,
        "checkpoint_mb": size / 1e6,
        "step_s": step,
        "write_s": write,
        "snapshot_s": snapshot,
        "block_steps": steps,
        "lost_s": lost,
        "share": {kind: value / (options.every * step) for kind, value in lost.items()},
        "shortest_every": {kind: max(1, math.ceil(value / (TARGET * step))) for kind, value in lost.items()},
    }


def cells(row: dict[str, Any]) -> list[str]:
    lost, share, shortest = row["lost_s"], row["share"], row["shortest_every"]
    return [
        row["model"],
        f"{row['parameters']:,}",
        f"{row['checkpoint_mb']:.0f} MB",
        f"{row['step_s']:.3f} s",
        f"{row['snapshot_s']:.3f} s",
        *(f"{lost[kind]:.3f} s" for kind in KINDS[1:]),
        f"{lost['async'] / lost['sync']:.2f}" if lost["sync"] > 0 else "-",
        *(f"{100 * share[kind]:.3f} %" for kind in KINDS[1:]),
        *(f"{shortest[kind]}" for kind in KINDS[1:]),
        "yes" if share["async"] < TARGET else "**no**",
    ]


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> Path:
    """The table, and the same as JSON."""
    settings = {key: value for key, value in vars(options).items() if key not in ("folder", "out")}
    every = f"share at every {options.every}"
    names = ["model", "parameters", "checkpoint", "step", "snapshot", "a save costs, sync", "async", "async / sync"]
    names += [f"{every}, sync", "async", f"below {100 * TARGET:.0f} % from every, sync", "async", "met"]
    lines = [cells(row) for row in rows]
    print(table(names, lines))
    title = (
        f"Checkpoints, steps of {options.batch} sequences of {options.frames} frames of 64x64, {options.rounds} rounds"
    )
    facts = {"torch": torch.__version__, "settings": settings, "rows": rows}
    where = device(torch.cuda.is_available())
    return write_report("checkpoint", title, names, lines, facts, options.out, where)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", default="64,192", help="widths of ModeRNN's four layers (default 64,192)")
    parser.add_argument("--batch", type=int, default=1, help="sequences per step (default 1)")
    parser.add_argument("--frames", type=int, default=6, help="per sequence (default 6)")
    parser.add_argument("--every", type=int, default=2000, help="train.checkpoint.every of the shares (default 2000)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to write checkpoints (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="where to write the report (default: beside this file)")
    options = parser.parse_args()
    world = init_world(group=True)
    rows = []
    print(f"{device(torch.cuda.is_available())}\n", flush=True)
    for hidden in map(int, options.hidden.split(",")):
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="checkpoint-bench-") as folder:
            rows.append(measure(hidden, options, Path(folder), world))
    print(f"\nwritten: {write(rows, options)}")
    world.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
