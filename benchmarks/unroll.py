"""Peak memory and time of a training step under every unroll policy, against the number of frames T.

    python benchmarks/unroll.py                       = --curve: 32x32, T = 5 to 200: a quarter of an hour on 2 cores
    python benchmarks/unroll.py --large               384x384 at patch 4: T = 20, and `recursive` at T = 200: hours
    python benchmarks/unroll.py --device cuda --size 128 --batch 8
    python benchmarks/unroll.py --frames 20 --policies none step+layers --steps 5

Each point is a fresh process: forward, backward and Adam of the paper's model (4 x 64, N = 4). The peak is that of the
whole process (CPU: resident set; CUDA: allocated). Policies have the names of
`train.activation_checkpointing.policy`; `+layers` and `+offload` stand for `per_layer` and `offload` of the same
section. Gradients are compared bit for bit with those of the first policy at the same T: a difference ends in exit code
1 where equality is promised, which on a GPU is with --deterministic. On a CPU seconds are those of the processors,
summed over threads: other work on the machine disturbs them less than the clock's. Says at the start how many it will
take; writes unroll-..., .json and .png
(unroll-large-... for --large) after every point.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # instead of this folder, whose shards.py would hide the package

from benchmarks.report import device, in_child, write_report  # noqa: E402

POLICIES = ("none", "step", "step+layers", "segment", "segment+layers", "recursive", "recursive+layers")
CURVE = (5, 10, 20, 50, 100, 200)
LARGE = (("step", 20), ("recursive", 20), ("step+layers", 20), ("recursive+layers", 20), ("recursive+layers", 200))
HEAD = (
    "T",
    "policy",
    "peak GiB",
    "x first",
    "of it the step's",
    "x first",
    "s/step",
    "x first",
    "s/frame",
    "gradients",
)
Point = tuple[str, int]  # policy, T


def measure(options: argparse.Namespace, policy: str, frames: int) -> dict[str, Any]:
    """Run training steps in this process; what they took and their gradients' digest."""
    import torch

    from shards.manifest import FrameSpec
    from toolkit.checkpoint.weights import untrained_model
    from toolkit.config import make_config
    from toolkit.distributed.device import set_arithmetic
    from toolkit.models.base import Noise, Sampling
    from toolkit.unroll import give_memory_back

    device = torch.device(options.device)
    torch.manual_seed(0)
    name, *extras = policy.split("+")
    if device.type == "cpu" and "layers" in extras:  # as in training
        give_memory_back()
    way = {"policy": name, "per_layer": "layers" in extras, "offload": "offload" in extras}
    train = {"activation_checkpointing": way, "deterministic": options.deterministic}
    sizes = {key: getattr(options, key) for key in ("layers", "hidden", "patch")}
    config = make_config({"model": {"name": options.model, **sizes}, "train": train}, "benchmark")
    set_arithmetic(config.train)
    model = untrained_model(config, FrameSpec(1, options.size, options.size))
    model.to(device, torch.bfloat16 if options.precision == "bf16" else torch.float32)
    adam = torch.optim.Adam(model.parameters(), fused=True)
    batch = torch.rand(options.batch, frames, 1, options.size, options.size, device=device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def step(frames: torch.Tensor) -> str:
        adam.zero_grad()
        losses = model(frames, max(1, frames.shape[1] // 2), Sampling(noise=Noise(range(options.batch), device))).losses
        torch.stack(list(losses.values())).sum().backward()
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.grad.float().cpu().numpy().tobytes())
        adam.step()
        return digest.hexdigest()

    step(batch[:, :2])  # libraries, Adam's moments
    adam.zero_grad()
    before, times, digests = held(device), [], []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(options.steps):
        began = clock()
        digests.append(step(batch))
        times.append(clock() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    return {"seconds": statistics.median(times), "peak": peak, "before": before, "gradients": digests[0]}


def held(device: Any) -> float:
    """GiB that the process (or torch, on the GPU) holds now."""
    if device.type == "cuda":
        import torch

        return torch.cuda.memory_allocated() / 2**30
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30


def child(options: argparse.Namespace, policy: str, frames: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    arguments = [__file__, "--point", policy, str(frames)]
    for key in ("model", "device", "precision", "size", "patch", "layers", "hidden", "batch", "steps"):
        arguments += [f"--{key}", str(getattr(options, key))]
    arguments += ["--deterministic"] * options.deterministic
    found = in_child(arguments, f"{policy} at T = {frames}")
    promised = options.device == "cpu" or options.deterministic
    return {"policy": policy, "frames": frames, "promised": promised, **found}


def forwards(policy: str, frames: int) -> int:
    """A training step's time in forward steps; a backward step is worth two."""
    from toolkit.unroll import schedule_of

    def inside(part: Any, depth: int) -> int:
        if isinstance(part, int):
            return part * (depth + (layers and part > 1))
        return sum(inside(p, depth + 1) for p in part)

    name, layers = policy.split("+")[0], "+layers" in policy
    return 3 * (frames - 1) + inside(schedule_of(name, frames - 1), 0)


def estimate(options: argparse.Namespace, points: Sequence[Point]) -> float:
    """Seconds that the points will take, from a step of three frames."""
    trial = argparse.Namespace(**{**vars(options), "steps": 1})
    unit = child(trial, "step", 3)["seconds"] / forwards("step", 3)
    return sum(8 + unit * (options.steps * forwards(*point) + 4) for point in points)


def compared(rows: list[dict[str, Any]]) -> None:
    """Add to each row its ratios to the first policy at the same T, and whether the gradients are equal."""
    for row in rows:
        first = next(r for r in rows if r["frames"] == row["frames"])
        row["against"] = first["policy"]
        row["own"] = row["peak"] - row["before"]
        for key in ("peak", "own", "seconds"):
            row[f"{key}_ratio"] = row[key] / first[key]
        row["equal"] = row["gradients"] == first["gradients"]
        row.setdefault("promised", True)  # reports from before were of CPUs


def cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The table's lines."""
    return [
        [
            str(r["frames"]),
            r["policy"],
            f"{r['peak']:.3f}",
            f"{r['peak_ratio']:.2f}",
            f"{r['own']:.3f}",
            f"{r['own_ratio']:.2f}",
            f"{r['seconds']:.2f}",
            f"{r['seconds_ratio']:.2f}",
            f"{r['seconds'] / r['frames']:.3f}",
            "equal" if r["equal"] else "**DIFFER**" if r["promised"] else "differ (not promised)",
        ]
        for r in rows
    ]


def growth(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How peak and time per frame grow from T = 20 to 200, for every policy that has both."""
    at = {(r["policy"], r["frames"]): r for r in rows}
    lines = []
    for policy in dict.fromkeys(r["policy"] for r in rows if (r["policy"], 200) in at):
        long = at[policy, 200]
        for short in (at.get((name, 20)) for name in dict.fromkeys((policy, "step", "step+layers"))):
            if short:
                peak, pace = long["peak"] / short["peak"], long["seconds"] / short["seconds"] / 10
                lines.append(
                    f"- `{policy}` at T = 200 over `{short['policy']}` at T = 20: {peak:.2f} x the peak, "
                    f"{pace:.2f} x the time per frame"
                )
    return lines


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Peak against T, one line per policy, less what the process held before: libraries, weights, Adam, the batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(r["policy"].split("+")[0] for r in rows))}
    for policy in dict.fromkeys(r["policy"] for r in rows):
        own = sorted((r["frames"], r["own"]) for r in rows if r["policy"] == policy)
        name, _, extras = policy.partition("+")
        axes.plot(*zip(*own, strict=True), colours[name], ls="--" if extras else "-", marker="o", ms=4, label=policy)
    axes.set(xscale="log", yscale="log", xlabel="frames T", ylabel="peak less what was held before the step, GiB")
    ticks = sorted({r["frames"] for r in rows})
    axes.set_xticks(ticks, labels=[str(t) for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def write(rows: list[dict[str, Any]], options: argparse.Namespace) -> Path:
    """Table, JSON and plot; called after every point, so that a long run that is stopped has said what it knows."""
    import torch

    compared(rows)
    title = f"Unrolling {options.model} {options.layers} x {options.hidden} at {options.size}x{options.size}, patch "
    title += f"{options.patch}, batch {options.batch}, {options.precision}"
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "point", "curve", "keep")}
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "settings": settings, "rows": rows}
    name = "unroll" + "-large" * options.large + f"-{options.precision}"
    path = write_report(name, title, HEAD, cells(rows), facts, options.out, device(options.device != "cpu"))
    with path.open("a") as file:
        file.write("\n" + "\n".join(growth(rows)) + "\n" if growth(rows) else "")
    plot(rows, path.with_suffix(".png"))
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--curve", action="store_true", help="every policy at every T (the default)")
    which.add_argument("--large", action="store_true", help="384x384")
    parser.add_argument("--frames", type=int, nargs="+", help=f"T (default: {' '.join(map(str, CURVE))})")
    parser.add_argument("--policies", nargs="+", help=f"default: {' '.join(POLICIES)}")
    parser.add_argument("--model", default="modernn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--deterministic", action="store_true", help="on a GPU: train.deterministic")
    parser.add_argument("--size", type=int, help="default: 32; 384 with --large")
    for name, default in (("patch", 4), ("layers", 4), ("hidden", 64), ("batch", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=1, help="at each point, after one of two frames (default 1)")
    parser.add_argument("--keep", type=Path, help="a .json of this benchmark whose points aren't measured again")
    parser.add_argument("--out", type=Path, help="where the report goes (default: beside this file)")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.size = options.size or (384 if options.large else 32)
    return options


def main() -> int:
    options = arguments()
    if options.point:
        print(json.dumps(measure(options, options.point[0], int(options.point[1]))))
        return 0
    points: list[Point] = list(LARGE)
    if not options.large or options.frames or options.policies:
        points = [(policy, frames) for frames in options.frames or CURVE for policy in options.policies or POLICIES]
    rows: list[dict[str, Any]] = json.loads(options.keep.read_text())["rows"] if options.keep else []
    points = [point for point in points if point not in [(row["policy"], row["frames"]) for row in rows]]
    seconds = estimate(options, points)
    print(
        f"{device(options.device != 'cpu')}: {len(points)} points, about {seconds / 60:.0f} minutes of work", flush=True
    )
    for policy, frames in points:
        rows.append(child(options, policy, frames))
        path = write(rows, options)
        print("  ".join(cells(rows[-1:])[0]), flush=True)
    print("\n".join(["", *growth(rows), f"written: {path}"]))
    return 0 if all(row["equal"] or not row["promised"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
