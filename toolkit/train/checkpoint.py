"""Contract 4: a checkpoint.

    checkpoints/step-00001000/
      weights.pt      fp32 weights by parameter name
      moments.pt      Adam's moments by parameter name
      trainer.json    step, samples consumed, best-so-far, config identity, who wrote it
      manifest.json   bytes and SHA-256 of the others, written last
    checkpoints/latest    the name of the newest complete one
    checkpoints/best      the name of the one with the best validation score

It is written under a temporary name, every file fsynced, then the manifest, then renamed, and only then named by
`latest`. It does not depend on the world size or ZeRO stage that wrote it. No random state is in it: every random
number of training is a function of (seed, sample position), see toolkit/train/sampling.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from shards import open_store
from toolkit.errors import CheckpointError
from toolkit.models.base import SequenceModel, build_model
from toolkit.models.registry import MODELS
from toolkit.rundir import RunDir, write_atomic
from toolkit.train.engine import TrainState

NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Progress:
    """Where training stands, beside weights and optimizer."""

    step: int
    samples: int
    best: dict[str, float] | None = None  # {"step", "score"}
    written_by: dict[str, Any] = field(default_factory=dict)


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def save(folder: Path, state: TrainState, progress: Progress, config_hash: str) -> Path:
    """Write one complete checkpoint and point `latest` at it. One process calls it."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / name_of(progress.step)
    temporary = folder / f".{final.name}.tmp"
    for old in (temporary, final):
        if old.exists():
            shutil.rmtree(old)
    temporary.mkdir()
    _write(temporary / "weights.pt", lambda path: torch.save(state.weights, path))
    _write(temporary / "moments.pt", lambda path: torch.save(state.moments, path))
    record = {
        "step": progress.step,
        "samples": progress.samples,
        "skipped": state.skipped,
        "best": progress.best,
        "config": config_hash,
        "written_by": progress.written_by,
    }
    _write(temporary / "trainer.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in sorted(temporary.iterdir())}
    _write(temporary / "manifest.json", lambda path: path.write_text(json.dumps({"files": files}, indent=1) + "\n"))
    os.rename(temporary, final)
    _sync_folder(folder)
    write_atomic(folder / "latest", final.name + "\n")
    return final


def _write(path: Path, write: Callable[[Path], object]) -> None:
    write(path)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def fault_of(path: Path) -> str | None:
    """Why a checkpoint can't be used, or None when it is whole."""
    try:
        files = json.loads((path / "manifest.json").read_text())["files"]
    except FileNotFoundError:
        return "no manifest.json: it was not finished"
    except (ValueError, KeyError, TypeError):
        return "manifest.json is damaged"
    for name, facts in files.items():
        file = path / name
        if not file.exists():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, the manifest says {facts['bytes']}"
        if _digest(file) != facts["sha256"]:
            return f"{name} differs from its SHA-256 in the manifest"
    return None


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first, whole or not."""
    found = (NAME.fullmatch(path.name) for path in folder.glob("step-*"))
    return sorted(int(match.group(1)) for match in found if match)


def newest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint; what is passed over, and why, goes to `say`. None when there is none."""
    for step in reversed(steps_in(folder)):
        path = folder / name_of(step)
        fault = fault_of(path)
        if fault is None:
            return path
        say(f"passing over {path}: {fault}")
    return None


def exactly(folder: Path, step: int) -> Path:
    """The checkpoint of one step.

    Raises:
        CheckpointError: it isn't there, or isn't whole.
    """
    path = folder / name_of(step)
    if not path.exists():
        there = ", ".join(map(str, steps_in(folder))) or "none"
        raise CheckpointError(f"{path}: no such checkpoint; there are: {there}. Use --resume auto for the newest")
    fault = fault_of(path)
    if fault is not None:
        raise CheckpointError(f"{path}: {fault}. Use --resume auto to take the newest whole one")
    return path


def load(path: Path, config_hash: str) -> tuple[TrainState, Progress]:
    """Read a whole checkpoint (see `newest`, `exactly`).

    Raises:
        CheckpointError: it belongs to a run of another config.
    """
    record = json.loads((path / "trainer.json").read_text())
    if record["config"] != config_hash:
        raise CheckpointError(
            f"{path}: is of the run {record['config']}, this one is {config_hash}: give each run a folder of its own"
        )
    weights = torch.load(path / "weights.pt", map_location="cpu", weights_only=True)
    moments = torch.load(path / "moments.pt", map_location="cpu", weights_only=True)
    progress = Progress(record["step"], record["samples"], record["best"], record["written_by"])
    return TrainState(weights, moments, record["step"], record.get("skipped", 0)), progress


def mark_best(folder: Path, step: int) -> None:
    """Point `best` at a checkpoint."""
    write_atomic(folder / "best", name_of(step) + "\n")


def prune(folder: Path, keep_last: int) -> list[int]:
    """Delete all but the newest `keep_last` checkpoints and the best; returns the steps deleted."""
    kept = set(steps_in(folder)[-keep_last:])
    best = pointed(folder, "best")
    doomed = [step for step in steps_in(folder) if step not in kept and name_of(step) != best]
    for step in doomed:
        shutil.rmtree(folder / name_of(step))
    return doomed


def pointed(folder: Path, pointer: str) -> str | None:
    """The name in `latest` or `best`, or None."""
    try:
        name = (folder / pointer).read_text().strip()
    except FileNotFoundError:
        return None
    return name if NAME.fullmatch(name) else None


def load_model(run: RunDir, which: str, device: torch.device) -> tuple[SequenceModel, int]:
    """A trained model in evaluation mode, in fp32, and the step that its weights are from (0 where there are none).

    Args:
        which: `last`, `best` (the best validation score; without validation the last) or a step number.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one.
    """
    config = run.config()
    if not MODELS[config.model.name].trained:
        if which not in ("best", "last", "0"):
            raise CheckpointError(f"{run.path}: {config.model.name} is not trained: there is no step {which}, only 0")
        return build_model(config, open_store(config.data.store).manifest.frames).to(device).eval(), 0
    if which == "best":
        name = pointed(run.checkpoints, "best") or pointed(run.checkpoints, "latest")
    elif which == "last":
        name = pointed(run.checkpoints, "latest")
    else:
        name = name_of(int(which))
    if name is None:
        raise CheckpointError(f"{run.checkpoints}: no checkpoint; train first: python launch/train.py --run {run.path}")
    match = NAME.fullmatch(name)
    assert match is not None
    path = exactly(run.checkpoints, int(match.group(1)))
    model = build_model(config, open_store(config.data.store).manifest.frames)
    model.load_state_dict(torch.load(path / "weights.pt", map_location="cpu", weights_only=True))
    return model.to(device).eval(), int(match.group(1))
