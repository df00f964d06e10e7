"""Diagnose mode collapse from recorded features: distances, scores, and t-SNE coordinates.

    analysis/collapse-<split>-<which>.json    A-distances between modes and between truth-fed and prediction-fed
                                              features, the collapse score of every mode, provenance
    analysis/collapse-<split>-<which>.npz     memory, slots [n, 2]: t-SNE of the memory states and of the slot features;
                                              memory_mode, slots_slot [n]: their labels; weights [S, N]

The features are those of the last layer after the last step, means over positions, prediction-fed unless stated
otherwise. Definitions of the distances: toolkit/analysis/distance.py. `weights` are the importance weights of the slots
of each sequence, means over gates and channels, after the sigmoid of equation 4 (for I_t = 1). Modes with fewer than
`FEWEST` sequences are excluded and reported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.npz import load_npz
from toolkit.analysis.distance import Collapse, collapse, embed
from toolkit.atomic import write_atomic
from toolkit.errors import CONTENT_ERRORS, ToolkitError
from toolkit.evaluate.check import FEWEST
from toolkit.evaluate.table import save_npz
from toolkit.shipped import command

VERSION = 1
TRUTH, PREDICTION = 0, 1  # indices of the first axis of the features
EMBEDDED = 900  # maximum number of points of a t-SNE plot
Arrays = Mapping[str, NDArray[Any]]


class TooFewModesError(ToolkitError):
    """Fewer than two modes have enough sequences to diagnose mode collapse."""


def diagnose(features: Path) -> Path:
    """Write the two files next to `features-<split>-<which>.npz`; return the JSON file.

    Raises:
        TooFewModesError: fewer than two modes have enough sequences.
        ToolkitError: not a file of features.
    """
    arrays = _read(features)
    memory = arrays[f"memory_{_last_layer(arrays, 'memory')}"][:, :, -1]
    modes = arrays["mode"]
    labels, counts = np.unique(modes, return_counts=True)
    few = {str(mode): int(count) for mode, count in zip(labels, counts, strict=True) if not mode or count < FEWEST}
    kept = [str(mode) for mode in labels if str(mode) not in few]
    if len(kept) < 2:
        raise TooFewModesError(
            f"{features}: mode collapse needs at least two modes with {FEWEST} sequences each, found "
            f"{dict(zip(map(str, labels), map(int, counts), strict=True))}: record more sequences "
            f"({command('analyse', '--run', features.parents[1], '--limit', 'N')}), or label the modes of the store"
        )
    by_mode = {mode: memory[:, modes == mode] for mode in kept}
    found = collapse(
        {mode: both[TRUTH] for mode, both in by_mode.items()},
        {mode: both[PREDICTION] for mode, both in by_mode.items()},
    )
    target = features.with_name(features.name.replace("features-", "collapse-", 1))
    save_npz(target, _points(arrays, memory[PREDICTION], modes))
    record = {
        "version": VERSION,
        **json.loads(str(arrays["about"])),
        "layer": _last_layer(arrays, "memory"),
        "sequences": {mode: both.shape[1] for mode, both in by_mode.items()},
        "left_out": few,
        "modes": {mode: _plain(result) for mode, result in found.items()},
        "score": float(np.mean([result.score for result in found.values()])),
    }
    write_atomic(target.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    return target.with_suffix(".json")


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        arrays = load_npz(path)
        _last_layer(arrays, "memory")
        return arrays
    except CONTENT_ERRORS as error:
        raise ToolkitError(
            f"{path}: not a file of features ({error}); create it: {command('analyse', '--run', path.parents[1])}"
        ) from None


def _last_layer(arrays: Arrays, name: str) -> int:
    layers = [int(key.rpartition("_")[2]) for key in arrays if key.startswith(f"{name}_") and key[-1].isdigit()]
    if not layers:
        raise KeyError(f"no {name}_<layer>")
    return max(layers)


def _points(arrays: Arrays, memory: NDArray[Any], modes: NDArray[np.generic]) -> dict[str, NDArray[np.generic]]:
    """Compute the data of the figures."""
    shown = _spread(len(memory), EMBEDDED)
    points: dict[str, NDArray[np.generic]] = {"memory": embed(memory[shown]), "memory_mode": modes[shown]}
    if any(key.startswith("slots_") for key in arrays):
        slots = arrays[f"slots_{_last_layer(arrays, 'slots')}"][PREDICTION, :, -1]  # [S, N, w]
        shown = _spread(len(slots), EMBEDDED // slots.shape[1])
        points["slots"] = embed(slots[shown].reshape(-1, slots.shape[2]))
        points["slots_slot"] = np.tile(np.arange(slots.shape[1]), len(shown))
    if "weights_steps" in arrays and any(key.startswith("weights_") and key[-1].isdigit() for key in arrays):
        omega = arrays[f"weights_{_last_layer(arrays, 'weights')}"][PREDICTION, :, -1]  # [S, N, G, D]
        points["weights"] = (1.0 / (1.0 + np.exp(-omega.astype(np.float64)))).mean((2, 3))
        points["weights_mode"] = modes
    return points


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of 0 .. count - 1, evenly spaced."""
    kept = min(count, most)
    return np.arange(kept, dtype=np.int64) * count // kept


def _plain(result: Collapse) -> dict[str, object]:
    between = {mode: asdict(distance) for mode, distance in result.between.items()}
    return {"score": result.score, "between": between, "drift": asdict(result.drift)}
