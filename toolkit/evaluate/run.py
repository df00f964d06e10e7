"""The evaluation run: every window of a split through a model, on any number of ranks, once.

Batches have a fixed composition, windows k * batch .. (k + 1) * batch - 1, and whole batches are dealt to the ranks
in turn. The arithmetic inside a batch may depend on its composition, so it is this that makes predictions, and with
`ScoreTable` all scores, the same to the last bit on 1, 2 or 64 ranks of one machine type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from shards.manifest import Scale
from toolkit.data.windows import Window, to_unit
from toolkit.errors import ConfigError, ToolkitError
from toolkit.evaluate import protocols
from toolkit.evaluate.scoring import new_table, score_batch, threshold_codes
from toolkit.evaluate.table import ScoreTable


class Predictor(Protocol):
    """What is evaluated: any `SequenceModel`, or a baseline."""

    def predict(
        self, context: Tensor, horizon: int, samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor: ...


class Windows(Protocol):
    """What it is evaluated on: a `WindowSet`."""

    @property
    def scale(self) -> Scale: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Window: ...


def evaluate_model(
    model: Predictor,
    windows: Windows,
    *,
    context: int,
    horizon: int,
    protocol: protocols.Protocol,
    thresholds: Sequence[float],
    batch: int,
    device: torch.device | str,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreTable:
    """Score a model on a split; every rank of the process group calls this and gets the same whole table.

    Args:
        windows: each of context + horizon frames.
        thresholds: event thresholds in the store's unit.
        batch: windows per forward pass; part of the result's last bits.
        limit: use the first so many windows only.
        progress: called with (windows done, windows of this rank) after each batch.

    Raises:
        ConfigError: no windows, windows too short, a threshold outside the store's scale.
        ToolkitError: another rank failed; says which and how.
    """
    total = len(windows) if limit is None else min(limit, len(windows))
    if total < 1:
        raise ConfigError(f"nothing to evaluate: {len(windows)} windows, --limit {limit}")
    threshold_codes(thresholds, windows.scale)  # a bad threshold should fail before the first forward pass
    table = new_table(protocol, horizon, thresholds)
    mine = range(rank, -(-total // batch), world)
    share = sum(min(batch, total - number * batch) for number in mine)
    failure: Exception | None = None
    try:
        for number in mine:
            indices = range(number * batch, min(total, (number + 1) * batch))
            cut = [_window(windows, index, context + horizon) for index in indices]
            codes = torch.from_numpy(np.stack([window.frames for window in cut])).to(device)
            # Seeded by the batch: models that draw random numbers draw the same on any number of ranks.
            generator = torch.Generator(device).manual_seed(number)
            prediction = predict(model, codes[:, :context], horizon, windows.scale, generator)
            columns = score_batch(
                prediction, codes[:, context : context + horizon], windows.scale, protocol, thresholds
            )
            table.update(indices, [window.key for window in cut], [window.mode for window in cut], columns)
            if progress is not None:
                progress(len(table), share)
    except Exception as error:
        if world == 1:
            raise
        failure = error
    return table if world == 1 else _gather(table, failure, rank, world)


def _gather(table: ScoreTable, failure: Exception | None, rank: int, world: int) -> ScoreTable:
    """The whole table on every rank. A rank that failed says so here: the others must not wait for it."""
    said = None if failure is None else f"{type(failure).__name__}: {failure}"
    gathered: list[Any] = [None] * world
    distributed.all_gather_object(gathered, (said, table))
    if failure is not None:
        raise failure
    for other, (error, _) in enumerate(gathered):
        if error is not None:
            raise ToolkitError(f"rank {rank} stops: evaluation failed on rank {other}: {error}")
    merged = gathered[0][1]
    for _, part in gathered[1:]:
        merged.merge(part)
    return cast(ScoreTable, merged)


def predict(
    model: Predictor, codes: Tensor, horizon: int, scale: Scale, generator: torch.Generator | None = None
) -> Tensor:
    """One forecast: context codes uint8 [B, Tc, C, H, W] -> float32 [B, horizon, C, H, W], not clamped.

    A module is put into evaluation mode for the call and back after.
    """
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        with torch.no_grad():
            return model.predict(to_unit(codes, scale), horizon, samples=1, generator=generator)[0].float()
    finally:
        if isinstance(model, nn.Module):
            model.train(training)


def sample_frames(
    model: Predictor,
    windows: Windows,
    table: ScoreTable,
    *,
    context: int,
    horizon: int,
    show: int,
    device: torch.device | str,
) -> dict[str, NDArray[Any]]:
    """Frames for people to look at: the first `show` (at least 1) sequences of each mode in a table.

    Returns:
        context [S, Tc, C, H, W], truth and prediction [S, horizon, C, H, W] as codes (uint8; predictions rounded to
        0..max_code); index, key, mode [S]; mse [S], the sequence's mean over its frames; scale, a JSON text.
    """
    indices = table.first_of_modes(show)
    cut = [_window(windows, index, context + horizon) for index in indices]
    predicted = []
    for window in cut:  # one at a time: the pictures don't depend on how many are shown
        codes = torch.from_numpy(window.frames[None, :context]).to(device)
        values = predict(model, codes, horizon, windows.scale, torch.Generator(device).manual_seed(0))
        values = torch.nan_to_num(values, nan=0.0).clamp(0.0, 1.0) * windows.scale.max_code
        predicted.append(values.round().to(torch.uint8).cpu().numpy()[0])
    frames = np.stack([window.frames for window in cut])
    columns = table.arrays()
    rows = np.searchsorted(columns["index"], indices)
    scale = windows.scale
    described = {
        "unit": scale.unit,
        "offset": scale.offset,
        "gain": scale.gain,
        "max_code": scale.max_code,
        "missing_code": scale.missing_code,
    }
    return {
        "context": frames[:, :context],
        "truth": frames[:, context : context + horizon],
        "prediction": np.stack(predicted),
        "index": np.array(indices, dtype=np.int64),
        "key": columns["key"][rows],
        "mode": columns["mode"][rows],
        "mse": columns["mse"][rows].mean(1),
        "scale": np.array(json.dumps(described)),
    }


def _window(windows: Windows, index: int, length: int) -> Window:
    window = windows[index]
    if len(window.frames) < length:
        raise ConfigError(
            f"window {index} ({window.key}) has {len(window.frames)} frames, context + horizon need {length}: "
            "cut longer windows, or set data.context and data.horizon"
        )
    return window
