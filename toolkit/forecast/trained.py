"""Load a trained model with the metadata of its frames, from a run directory or an exported folder.

Metadata: size, unit, time step, and the options that convert an archive to such frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards import open_store
from shards.errors import ManifestError
from shards.fields import Fields
from shards.manifest import FrameSpec, Scale, read_scale
from toolkit.checkpoint.export import damaged, frame_options, frames_of, read_export
from toolkit.checkpoint.source import CONFIG
from toolkit.checkpoint.weights import load_model, store_of_run
from toolkit.config import RunConfig
from toolkit.errors import CheckpointError, ConfigError
from toolkit.models.base import SequenceModel
from toolkit.rundir import RunDir


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, and the metadata of its training data.

    Attributes:
        frames, scale, step_seconds: of its store.
        archive: source and options with which its store was converted; untrusted input, see
            `shards.recent.open_archive`.
        run_hash: identity of its run; the config of an export has no paths, and so another hash.
    """

    model: SequenceModel
    config: RunConfig
    frames: FrameSpec
    scale: Scale
    step_seconds: float | None
    archive: Mapping[str, Any]
    step: int
    run_hash: str

    @property
    def inputs(self) -> list[int]:
        """Channels of the store's frames that the model reads."""
        choice = self.model.channel_choice
        return [*(range(self.frames.channels) if choice is None else choice.inputs)]

    @property
    def targets(self) -> list[int]:
        """Channels of the store's frames that the model predicts."""
        choice = self.model.channel_choice
        return self.inputs if choice is None else [choice.inputs[place] for place in choice.targets]

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the predicted channels; empty where they have none."""
        return tuple(self.frames.names[index] for index in self.targets) if self.frames.names else ()

    @property
    def title(self) -> str:
        """Model, run and step, for messages."""
        return f"{self.config.model.name}, run {self.config.name} ({self.run_hash}), step {self.step:,}"


def load_trained(path: str | Path, which: str, device: torch.device, model_file: Path | None = None) -> Trained:
    """Load a trained model.

    Args:
        path: a run directory, whose store must exist, or an exported folder.
        which: `best`, `last` or a step; an export has one checkpoint, `best` or its step.
        model_file: the file that the model is from, which is then run; None: the model is one of the toolkit's.

    Raises:
        CheckpointError, ConfigError, ManifestError: it is neither, has no such checkpoint, or cannot be used.
    """
    run = RunDir(Path(path))
    if not run.config_file.exists():
        return _of_export(Path(path), which, device, model_file)
    run.load_model_file(model_file)
    config = run.config()
    manifest = open_store(store_of_run(run, config)).manifest
    model, step = load_model(run, which, device, store="any")
    of_store = manifest.frames, manifest.scale, manifest.step_seconds, frame_options(manifest)
    return Trained(model, config, *of_store, step, config.hash8())


def _of_export(folder: Path, which: str, device: torch.device, model_file: Path | None) -> Trained:
    model, config, record = read_export(folder, model_file)
    shape = frames_of(record)
    step, run_hash = _run_of(folder, record)
    if which not in ("best", str(step)):
        raise ConfigError(f"{folder}: an export holds one checkpoint, step {step}, requested {which}: omit --which")
    try:
        scale = read_scale(Fields(record["scale"], "scale"), int(np.iinfo(shape.code_type).max))
        archive, step_seconds = dict(record["archive"]), record["step_seconds"]
    except ManifestError as error:
        raise damaged(folder, error) from None
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{folder / CONFIG}: has no conversion options of the archive (written by toolkit {record['toolkit']}): "
            "export the run again, into another folder"
        ) from None
    return Trained(model.to(device), config, shape, scale, step_seconds, archive, step, run_hash)


def _run_of(folder: Path, record: Mapping[str, Any]) -> tuple[int, str]:
    """Return the step of an export and the identity of its run."""
    try:
        return int(record["run"]["step"]), str(record["run"]["hash"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{folder / CONFIG}: damaged, names no run and step; export the run again") from None
