"""Time and peak memory of a training step for every unroll policy, each in a fresh process.

    python benchmarks/unroll.py                                the paper's model at 64x64, batch 2
    python benchmarks/unroll.py --size 384 --patch 16 --batch 1
    python benchmarks/unroll.py --device cuda --batch 8

Prints a table: seconds a step (median), the peak of the process (CPU: resident set; CUDA: allocated), and both as
ratios to `none`. Gradients of all policies are compared bit for bit on the way.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time

POLICIES = ("none", "step", "segment", "recursive")


def measure(options: argparse.Namespace, policy: str) -> dict[str, object]:
    """Run a few training steps in this process; what they took and their gradients' digest."""
    import torch

    from shards.manifest import FrameSpec
    from toolkit.config import make_config
    from toolkit.models.base import Noise, Sampling, build_model

    device = torch.device(options.device)
    torch.manual_seed(0)
    tree = {
        "model": {"name": options.model, "layers": options.layers, "hidden": options.hidden, "patch": options.patch},
        "train": {"checkpointing": policy},
    }
    model = build_model(make_config(tree, "benchmark"), FrameSpec(1, options.size, options.size))
    model.to(device, torch.bfloat16 if options.precision == "bf16" else torch.float32)
    frames = torch.rand(options.batch, options.frames, 1, options.size, options.size, device=device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    times = []
    for _ in range(options.steps):
        began = time.perf_counter()
        model.zero_grad()
        noise = Noise(range(options.batch), device)
        sum(model(frames, options.frames // 2, Sampling(noise=noise)).losses.values()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.grad.float().cpu().numpy().tobytes())
    if device.type == "cuda":
        peak, before = torch.cuda.max_memory_allocated() / 2**30, 0.0
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = statistics.median(times[1:] or times)
    return {"seconds": seconds, "peak": peak, "before": before, "gradients": digest.hexdigest()}


def main() -> int:
    """Measure every policy in a child of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="modernn")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    for name, default in (("size", 64), ("patch", 4), ("layers", 4), ("hidden", 64), ("frames", 20), ("batch", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=3, help="steps per policy, the first not counted")
    parser.add_argument("--policy", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.policy:
        print(json.dumps(measure(options, options.policy)))
        return 0
    results = {}
    for policy in POLICIES:
        child = subprocess.run(
            [sys.executable, *sys.argv, "--policy", policy], capture_output=True, text=True, check=False
        )
        if child.returncode:
            print(child.stderr, file=sys.stderr)
            return child.returncode
        results[policy] = json.loads(child.stdout.splitlines()[-1])
    first = results[POLICIES[0]]
    print(f"{options.model} {options.layers}x{options.hidden}, {options.size}x{options.size} patch {options.patch}, ")
    print(f"{options.frames} frames, batch {options.batch}, {options.precision}, {options.device}\n")
    print("| policy | s/step | x none | peak GiB | of it activations GiB | x none | gradients |")
    print("|---|---|---|---|---|---|---|")
    for policy, r in results.items():
        own, own_first = r["peak"] - r["before"], first["peak"] - first["before"]
        same = "equal" if r["gradients"] == first["gradients"] else "DIFFER"
        print(
            f"| {policy} | {r['seconds']:.2f} | {r['seconds'] / first['seconds']:.2f} | {r['peak']:.2f} "
            f"| {own:.2f} | {own / own_first:.2f} | {same} |"
        )
    return 0 if all(r["gradients"] == first["gradients"] for r in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
