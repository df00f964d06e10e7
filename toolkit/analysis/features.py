"""Record the features for the diagnosis of mode collapse from a checkpoint into one file.

    analysis/features-<split>-<which>.npz, without pickles; S sequences, T - 1 steps (T = context + horizon):

    index, key, mode   [S]                index in the split, key of the window, its mode ("" without a label)
    fed                [2]                "truth", "prediction": input of the steps after the context
    own_input          bool [2, T - 1]    whether the input of a step was the model's prediction
    memory_<layer>     [2, S, T - 1, C]   C_t of the layer (ModeRNN: the slot bus B_t), mean over positions
    slots_<layer>      [2, S, T - 1, N, w]        (ModeRNN) slot features, mean over positions
    weights_<layer>    [2, S, 2, N, G, D]         (ModeRNN with adaptive fusion) importance weights omega before any
                                                  sigmoid; G gate sets (4; released wiring: if, og)
    weights_steps      [2]                the steps of `weights`: the last of the context and the last of all
    about              JSON: model, run's hash, checkpoint's step, store and its digest, split, context, horizon

Float32. Both passes are equal up to step context - 1, where the inputs are the same. The sequences are evenly spaced in
the split. One process is enough: t-SNE and a domain classifier need a few hundred sequences.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolkit.checkpoint.weights import load_model
from toolkit.data.windows import WindowSet, open_windows
from toolkit.evaluate.run import predict
from toolkit.evaluate.table import save_npz
from toolkit.models.base import SequenceModel
from toolkit.models.capture import Captured, capture
from toolkit.rundir import RunDir
from toolkit.wording import count

logger = logging.getLogger(__name__)

FED = ("truth", "prediction")
Arrays = dict[str, NDArray[np.generic]]


def write_features(
    run: RunDir,
    which: str,
    *,
    split: str | None,
    limit: int,
    batch: int | None,
    device: torch.device,
) -> Path:
    """Write the file of one checkpoint; contents: see the docstring of the module.

    Args:
        which: as in `load_model`.
        split: None: the run's `eval.split`.
        limit: maximum number of sequences.
        batch: sequences per forward; None: the run's `eval.batch`.

    Raises:
        ConfigError: no store or split, or a model without a recurrent state.
        CheckpointError: there is no such checkpoint.
    """
    config = run.config()
    data, split, batch = config.data, split or config.eval.split, batch or config.eval.batch
    windows = open_windows(config, split)
    model, step = load_model(run, which, device)
    chosen = windows.spread(limit)
    number = len(chosen)
    parts = []
    for first in range(0, number, batch):
        parts.append(batch_features(model, windows, chosen[first : first + batch], data.context, data.horizon, device))
        done = min(first + batch, number)
        logger.info("%s-%s: %d of %s", split, which, done, count(number, "sequence"))
    arrays = _joined(parts)
    steps = np.arange(data.context + data.horizon - 1)
    about = {
        "model": config.model.name,
        "run": config.hash8(),
        "step": step,
        "store": str(data.store),
        "digest": windows.store.manifest.digest,
        "split": split,
        "context": data.context,
        "horizon": data.horizon,
    }
    arrays |= {
        "fed": np.array(FED),
        "own_input": np.stack([np.zeros_like(steps, dtype=bool), steps >= data.context]),
        "weights_steps": np.array(_weight_steps(data.context, len(steps))),
        "about": np.array(json.dumps(about)),
    }
    path = run.analysis / f"features-{split}-{which}.npz"
    save_npz(path, arrays)
    return path


def batch_features(
    model: SequenceModel,
    windows: WindowSet,
    indices: Sequence[int],
    context: int,
    horizon: int,
    device: torch.device,
) -> Arrays:
    """Compute the arrays of a few sequences, as in the file."""
    cut = [windows[index] for index in indices]
    codes = torch.from_numpy(np.stack([window.frames for window in cut])).to(device)
    steps = context + horizon - 1
    passes = []
    for known in (steps, context):  # fed with observations, fed with predictions: the same number of steps
        generator = torch.Generator(device).manual_seed(indices[0])
        with capture(model, _pooled) as seen:
            predict(model, codes[:, :known], steps + 1 - known, windows.scale, generator)
        passes.append(_arrays(seen, _weight_steps(context, steps)))
    both = {name: np.stack([one[name] for one in passes]) for name in passes[0]}
    return {
        "index": np.array(indices, dtype=np.int64),
        "key": np.array([window.key for window in cut]),
        "mode": np.array([window.mode or "" for window in cut]),
        **both,
    }


def _weight_steps(context: int, steps: int) -> tuple[int, int]:
    return context - 1, steps - 1


def _pooled(name: str, tensor: Tensor) -> Tensor:
    """Return the mean over positions in float32; importance weights have no positions."""
    exact = tensor.float()
    return exact if name == "weights" else exact.mean((-2, -1))


def _arrays(seen: Captured, weight_steps: tuple[int, int]) -> Arrays:
    """Stack the steps, [S, steps, ...], by name and layer."""
    arrays: Arrays = {}
    for name, layers in (("memory", seen.memory), ("slots", seen.slots), ("weights", seen.weights)):
        for layer, steps in layers.items():
            kept = [steps[step] for step in weight_steps] if name == "weights" else steps
            arrays[f"{name}_{layer}"] = torch.stack(kept, 1).cpu().numpy()
    return arrays


def _joined(parts: Sequence[Arrays]) -> Arrays:
    """Concatenate batches along S, the second axis of arrays with two passes."""
    flat = ("index", "key", "mode")
    return {name: np.concatenate([part[name] for part in parts], 0 if name in flat else 1) for name in parts[0]}
