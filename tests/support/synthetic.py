"""Sweep directories as launch/sweep.py, training and evaluation leave them, without having run any of these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from shards.manifest import Scale
from toolkit.atomic import write_atomic
from toolkit.config import make_config
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.table import STATUS, ScoreTable, save_npz
from toolkit.rundir import RunDir

GREY = Scale("intensity", "1", 0.0, 1 / 255)
DBZ = Scale("radar reflectivity", "dBZ", 0.0, 0.25, max_code=254, missing_code=255)


@dataclass(frozen=True)
class Scene:
    """What all runs of a sweep are scored on: frames [n, T, C, H, W] with a mode each."""

    frames: np.ndarray
    modes: tuple[str, ...]
    context: int
    scale: Scale = GREY
    thresholds: tuple[float, ...] = ()
    step_seconds: float | None = None
    name: str = "moving-mnist"


def noise_scene(count: int = 4, size: int = 16, **options: Any) -> Scene:
    frames = np.random.default_rng(5).integers(0, 250, (count, 6, 1, size, size), dtype=np.uint8)
    modes = tuple(f"{1 + i % 2} digits" for i in range(count))
    return Scene(frames, modes, context=3, **options)


def write_run(
    folder: Path,
    group: str,
    seed: int,
    scene: Scene,
    skill: float,
    *,
    ending: str = "done",
    scored: bool = True,
    steps: int = 200,
    model: Mapping[str, Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
    predictions: np.ndarray | None = None,
) -> RunDir:
    """One run; `skill` divides its errors. `ending`: `done`, or the text of FAILED."""
    tree = {"name": f"{group}-seed{seed}", "seed": seed, "model": dict(model or {"name": "modernn"})}
    run = RunDir.create(folder, make_config(tree, "synthetic"))
    random = np.random.default_rng(1000 * seed + len(group))
    reached = steps if ending == "done" else steps // 2
    lines = []
    for step in range(10, reached + 1, 10):
        loss = (0.02 + 0.1 * np.exp(-step / (steps / 5))) / skill * random.lognormal(0, 0.1)
        lines.append({"step": step, "kind": "train", "loss": loss, "seq_per_s": 21.5 + seed, "time": 1e9 + 1.5 * step})
        if step % 50 == 0:
            best = float(step == 150)
            lines.append({"step": step, "kind": "val", "mse": 700 * loss, "best": best, "time": 1e9 + 1.5 * step + 1})
    write_atomic(run.metrics_file, "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 21')
    run.write_state(step=reached, steps=steps, phase="done")
    if ending == "done":
        run.mark_done()
    elif ending != "running":
        run.mark_failed(ending)
    if scored:
        for place, which in enumerate(("best", "last")):
            write_scores(run, which, scene, skill / (1 + 0.05 * place), random, protocol or {}, predictions)
    return run


def score_table(scene: Scene, errors: np.ndarray) -> ScoreTable:
    """A table in which every score follows from `errors` [n, horizon]."""
    count, horizon = errors.shape
    table = ScoreTable("paper", horizon, ("mse", "mae", "psnr", "ssim"), scene.thresholds)
    values: dict[str, np.ndarray] = {name: np.zeros((count, horizon), np.int64) for name in STATUS}
    values |= {"mse": errors, "mae": 3 * errors, "psnr": 30 - 4 * np.log10(errors), "ssim": 1 / (1 + errors / 100)}
    for threshold in scene.thresholds:
        values[f"hits@{threshold:g}"] = np.full((count, horizon), 100)
        values[f"misses@{threshold:g}"] = np.round(errors).astype(np.int64)
        values[f"false_alarms@{threshold:g}"] = np.round(errors / 2).astype(np.int64)
        values[f"correct_negatives@{threshold:g}"] = np.full((count, horizon), 900)
    table.update(range(count), [f"s{i:03d}" for i in range(count)], scene.modes[:count], values)
    return table


def write_scores(
    run: RunDir,
    which: str,
    scene: Scene,
    skill: float,
    random: np.random.Generator,
    protocol: Mapping[str, Any],
    predictions: np.ndarray | None,
) -> None:
    count, length = scene.frames.shape[:2]
    horizon = length - scene.context
    leads = np.arange(1, horizon + 1)
    harder = np.array([float("".join(filter(str.isdigit, mode)) or 1) for mode in scene.modes])[:, None]
    errors = (20 + 6 * leads) * harder / skill * random.lognormal(0, 0.05, (count, horizon))
    table = score_table(scene, errors)
    baseline = score_table(scene, (40 + 16 * leads) * harder * np.ones((count, 1))).compute()
    shown = table.first_of_modes(2)
    truth = scene.frames[:, scene.context :]
    made = truth if predictions is None else predictions
    save_npz(
        run.eval / f"test-{which}.samples.npz",
        {
            "context": scene.frames[shown, : scene.context],
            "truth": truth[shown],
            "prediction": made[shown],
            "index": np.array(shown),
            "key": np.array([f"s{i:03d}" for i in shown]),
            "mode": np.array([scene.modes[i] for i in shown]),
            "time": np.array(["2015-05-15T23:45:00Z" if scene.step_seconds else ""] * len(shown)),
            "mse": errors[shown].mean(1),
            "scale": np.array(json.dumps(asdict(scene.scale))),
        },
    )
    write_result(run, which, scene, table, baseline.as_dict(), protocol)


def write_result(
    run: RunDir,
    which: str,
    scene: Scene,
    table: ScoreTable,
    persistence: Mapping[str, Any] | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> None:
    """The scores of a table as an evaluation leaves them."""
    table.save(run.eval / f"test-{which}.table.npz")
    scores = table.compute().as_dict()
    record = {
        "version": 1,
        "protocol": {**load_protocol("paper").choices(), **(protocol or {})},
        "store": {"path": "stores/digits", "name": scene.name, "digest": "ab" * 32},
        "split": "test",
        "step": 150 if which == "best" else 200,
        "thresholds": list(scene.thresholds),
        "context": scene.context,
        "stride": None,
        "batch": 8,
        "limit": None,
        "show": 2,
        "which": which,
        "unit": scene.scale.unit,
        "step_seconds": scene.step_seconds,
        "frames": list(scene.frames.shape[2:]),
        "parameters": 123_456 + 1000 * run.config().model.layers,
        "seconds": 3.0,
        **scores,
        "persistence": persistence or scores,
    }
    write_atomic(run.eval / f"test-{which}.json", json.dumps(record))


def write_sweep(root: Path, name: str, runs: Sequence[tuple[str, str, int]]) -> None:
    """sweep.yaml for (directory, group, seed)."""
    items = [
        {"dir": folder, "name": f"{group}-seed{seed}", "group": group, "seed": seed, "settings": {"model.name": group}}
        for folder, group, seed in runs
    ]
    write_atomic(root / "sweep.yaml", yaml.safe_dump({"name": name, "file": "sweep.yaml", "runs": items}))
