"""Every model trained 200 steps on three real archives, under every way of computing it that must not matter.

    python benchmarks/training.py --digits FOLDER --kth FOLDER --radar FOLDER     on 2 cores: three quarters of an hour
    python benchmarks/training.py --digits FOLDER --steps 20 --models convlstm    a minute, to see that it works

FOLDER: MNIST's idx files (Mixed Moving MNIST at 64x64), KTH's avi files (128x128), radar composites (384x384, patch
16; MeteoSwiss by default). For each archive and model, at small widths, 3 + 2 frames, on 2 ranks: fp32 and bf16 x
ZeRO 1 and 2 x without and with `step` checkpointing, each a run by the toolkit's own training loop, on GPUs under
`train.deterministic`. Asked of each: does
the loss fall (the mean of the last tenth of the steps under that of the first)? Asked of pairs: are all 200 losses of
the checkpointed run those of the other, bit for bit; how far are those of ZeRO 2 from those of ZeRO 1?

Prints a row per archive and model and writes benchmarks/training-DATE-DEVICE.md and .json. A run that is there already
(`--folder`) is not trained again: the command can be stopped and started.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import write_report  # noqa: E402

WIDTHS: dict[str, dict[str, Any]] = {
    "convlstm": {"layers": 2, "hidden": 16, "kernel": 3},
    "trajgru": {"hidden": [8, 12], "flows": [5, 5], "strides": [4, 2], "stem": 4, "flow_hidden": 8},
    "predrnn": {"layers": 2, "hidden": 12, "kernel": 3},
    "mim": {"layers": 2, "hidden": 12, "kernel": 3},
    "conv_tt_lstm": {"layers": 2, "hidden": 12, "blocks": [1, 1], "kernel": 3},
    "rim": {"layers": 2, "hidden": 24, "kernel": 3, "value": 8, "input_key": 8, "message_key": 8},
    "svg_lp": {"width": 8, "latent": 32, "rnn": 32, "z": 8},
    "simvp": {"frames": 2, "spatial_hidden": 8, "spatial_layers": 2, "hidden": 16, "layers": 2, "mlp_ratio": 2},
    "modernn_released": {"layers": 2, "hidden": 12},
    "modernn": {"layers": 2, "hidden": 12},
}
PATCHED = {"convlstm", "predrnn", "mim", "conv_tt_lstm", "rim", "modernn_released", "modernn"}
# What the archive asks of a model: the patch of step models, the strides of TrajGRU, the square of SVG, SimVP's depth.
ARCHIVES: dict[str, dict[str, Any]] = {
    "digits": {"patch": 4, "svg": 64, "strides": [4, 2], "simvp": 2},
    "kth": {"patch": 8, "svg": 128, "strides": [4, 2], "simvp": 4},
    "radar": {"patch": 16, "svg": 512, "strides": [8, 2], "simvp": 6},
}
WAYS = [(precision, zero, policy) for precision in ("fp32", "bf16") for zero in (1, 2) for policy in ("none", "step")]


def convert(archive: str, source: Path, folder: Path) -> Path:
    """The store of an archive, made by the toolkit's own command unless it is there."""
    store = folder / f"store-{archive}"
    if (store / "manifest.json").exists():
        return store
    command = {
        "digits": ["moving-mnist", str(store), "--digits", str(source), "--train", "400", "--val", "2", "--test", "2"],
        "kth": ["kth", str(source), str(store), "--size", "128"],
        "radar": ["radar", str(source), str(store)],
    }[archive]
    subprocess.run([sys.executable, "-m", "shards", "convert", *command], cwd=ROOT, check=True)
    return store


def tree_of(model: str, archive: str, store: Path, steps: int, way: tuple[str, int, str]) -> dict[str, Any]:
    """The config of one run."""
    fit = ARCHIVES[archive]
    options = {"name": model, **WIDTHS[model]}
    if model in PATCHED:
        options["patch"] = fit["patch"]
    options |= {"svg_lp": {"size": fit["svg"]}, "trajgru": {"strides": fit["strides"]}}.get(model, {})
    options |= {"spatial_layers": fit["simvp"]} if model == "simvp" else {}
    precision, zero, policy = way
    train = {"steps": steps, "batch": 2, "lr": 1e-3, "clip": 1.0, "precision": precision, "zero": zero}
    train |= {
        "deterministic": True,
        "activation_checkpointing": {"policy": policy},
        "validate_every": steps,
        "checkpoint": {"every": steps},
        "log_every": 1,
        "images": 0,
    }
    # No split of this name: nothing is validated.
    data = {"store": str(store), "context": 3, "horizon": 2, "val_split": "none"}
    return {"model": options, "data": data, "train": {**train, "sampling": {"slope": 1 / steps, "stop": steps}}}


def name_of(way: tuple[str, int, str]) -> str:
    precision, zero, policy = way
    return f"{precision} ZeRO-{zero} {policy}"


def train_all(jobs: list[dict[str, Any]]) -> int:
    """On each rank: train the runs one after the other."""
    from toolkit.config import make_config
    from toolkit.distributed.world import init_world
    from toolkit.rundir import RunDir
    from toolkit.signals import StopRequest
    from toolkit.train.loop import train

    world = init_world(make_config(jobs[0]["tree"], "benchmark").train, group=True)
    for job in jobs:
        path = Path(job["run"])
        if world.is_main:
            RunDir.create(path, make_config(job["tree"], path.name))
        world.barrier()
        if not RunDir(path).done:
            code = train(RunDir(path), world, "auto", StopRequest())
            if code:
                return code
        world.barrier()
    world.close()
    return 0


def losses_of(run: Path) -> list[float]:
    """The loss of every optimizer step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def judge(traces: dict[tuple[str, int, str], list[float]]) -> dict[str, Any]:
    """What the runs of one model and archive say."""
    tenth = max(1, len(next(iter(traces.values()))) // 10)
    ends = {way: (mean(trace[:tenth]), mean(trace[-tenth:])) for way, trace in traces.items()}
    return {
        "first": {p: ends[p, 1, "none"][0] for p in ("fp32", "bf16")},
        "last": {p: ends[p, 1, "none"][1] for p in ("fp32", "bf16")},
        "falling": sum(last < first for first, last in ends.values()),
        "ways": len(ends),
        "step_equal": sum(traces[p, z, "none"] == traces[p, z, "step"] for p in ("fp32", "bf16") for z in (1, 2)),
        "zero_apart": {
            p: max(abs(a - b) / a for a, b in zip(traces[p, 1, "none"], traces[p, 2, "none"], strict=True))
            for p in ("fp32", "bf16")
        },
    }


def run_model(model: str, archive: str, store: Path, folder: Path, steps: int, ranks: int) -> dict[str, Any]:
    """All ways of one model on one archive."""
    runs = {way: folder / archive / model / name_of(way).replace(" ", "-") for way in WAYS}
    jobs = [{"run": str(path), "tree": tree_of(model, archive, store, steps, way)} for way, path in runs.items()]
    began = time.perf_counter()
    if not all((path / "DONE").exists() for path in runs.values()):
        file = folder / archive / f"{model}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(jobs))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*torchrun, str(Path(__file__).resolve()), "--jobs", str(file)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{archive} {model}: {done.stderr[-3000:]}")
    row = judge({way: losses_of(path) for way, path in runs.items()})
    return {"archive": archive, "model": model, **row, "seconds": round(time.perf_counter() - began)}


HEAD = ("archive", "model", "fp32 loss", "bf16 loss", "falling", "step = none", "ZeRO 2 - 1, fp32", "bf16")


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    ends = [f"{row['first'][p]:.4f} -> {row['last'][p]:.4f}" for p in ("fp32", "bf16")]
    counts = [f"{row['falling']} of {row['ways']}", f"{row['step_equal']} of 4"]
    return [row["archive"], row["model"], *ends, *counts, *(f"{row['zero_apart'][p]:.1e}" for p in ("fp32", "bf16"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for archive in ARCHIVES:
        parser.add_argument(f"--{archive}", type=Path, metavar="FOLDER")
    parser.add_argument("--models", default=",".join(WIDTHS), help="comma-separated (default: all)")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=2, help="processes that share each run (default: 2)")
    parser.add_argument("--folder", type=Path, help="keep stores and runs here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="where to write the report (default: beside this file)")
    parser.add_argument("--jobs", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.jobs:
        return train_all(json.loads(options.jobs.read_text()))
    archives = [archive for archive in ARCHIVES if getattr(options, archive)]
    if not archives:
        parser.error("name at least one of --digits, --kth, --radar")
    rows = []
    with tempfile.TemporaryDirectory(prefix="training-bench-") as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for archive in archives:
            store = convert(archive, getattr(options, archive).resolve(), folder)
            for model in options.models.split(","):
                rows.append(run_model(model, archive, store, folder, options.steps, options.ranks))
                print(" | ".join(cells(rows[-1])), f"| {rows[-1]['seconds']} s", flush=True)
    title = f"Training, {options.steps} steps on {options.ranks} ranks, loss at the first and last tenth"
    print(write_report("training", title, HEAD, [cells(row) for row in rows], {"rows": rows}, options.out))
    return 0 if all(row["falling"] == row["ways"] and row["step_equal"] == 4 for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
