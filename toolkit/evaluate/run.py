"""Evaluate a model on every window of a split, on any number of ranks, each window once.

Batches have a fixed composition, windows k * batch .. (k + 1) * batch - 1, and complete batches are distributed over
the ranks in turn. Rounding inside a batch may depend on its composition; with fixed batches predictions, and with
`ScoreTable` all scores, are bitwise identical on 1, 2 or 64 ranks of one machine type. Random numbers come from a
generator seeded by the batch number; the first member of an ensemble equals the forecast of ensemble size 1.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from shards.manifest import Scale
from toolkit.data.windows import Window, observed, to_unit
from toolkit.errors import ConfigError, PeerFaultError, exit_code_of
from toolkit.evaluate import protocols
from toolkit.evaluate.check import threshold_codes
from toolkit.evaluate.diagrams import Diagrams, sums_of
from toolkit.evaluate.ensemble import BestMember, Ensemble, MeanMember
from toolkit.evaluate.perceptual import LPIPS
from toolkit.evaluate.probabilistic import Members
from toolkit.evaluate.scoring import member_cost, new_table, score_batch
from toolkit.evaluate.table import ScoreTable
from toolkit.models.baselines import OpticalFlow
from toolkit.wording import count

SINGLE = Ensemble()


class Predictor(Protocol):
    """The model to evaluate: any `SequenceModel`, or a baseline."""

    def predict(
        self, context: Tensor, horizon: int, samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor: ...


class Windows(Protocol):
    """The data to evaluate on: a `WindowSet`."""

    @property
    def scale(self) -> Scale: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Window: ...
    def time(self, index: int) -> str | None: ...


@dataclass(frozen=True)
class Forecast:
    """One batch: windows with their indices, observation (codes) and scored prediction of the targets, both
    [B, horizon, C, H, W], the members of an ensemble, if they were kept, and the pixels that are not scored, if there
    are any.
    """

    indices: range
    windows: list[Window]
    truth: Tensor
    prediction: Tensor
    members: Members | None = None
    inflow: Tensor | None = None


@dataclass(frozen=True)
class Batches:
    """The batches of an evaluation; each depends on its number only.

    Attributes:
        total: number of windows evaluated, the first ones of `windows`.
        batch: windows per batch (the last batch may be smaller).
        exclude_inflow: see `evaluate_model`.
    """

    model: Predictor
    windows: Windows
    total: int
    context: int
    horizon: int
    protocol: protocols.Protocol
    batch: int
    device: torch.device
    ensemble: Ensemble
    exclude_inflow: bool = False

    def forecast(self, number: int, keep_members: bool = False) -> Forecast:
        """Compute the forecasts of a batch."""
        indices = range(number * self.batch, min(self.total, (number + 1) * self.batch))
        cut = [_window(self.windows, index, self.context + self.horizon) for index in indices]
        codes, seen = (
            torch.from_numpy(np.stack(each)).to(self.device)
            for each in ([window.frames for window in cut], [window.observations for window in cut])
        )
        context, truth = codes[:, : self.context], seen[:, self.context : self.context + self.horizon]
        inflow = None
        if self.exclude_inflow:
            inflow = inflow_of(seen[:, : self.context], self.horizon, self.windows.scale)
        kept: Members | None = None
        if keep_members and self.ensemble.samples > 1:
            kept = Members(self.ensemble.samples, truth, self.windows.scale, self.protocol, number, inflow)
        return Forecast(indices, cut, truth, self._predict(number, context, truth, kept, inflow), kept, inflow)

    def _members(self, number: int, context: Tensor, kept: Members | None) -> Iterator[Tensor]:
        generator = torch.Generator(self.device).manual_seed(number)
        for _ in range(self.ensemble.samples):
            member = predict(self.model, context, self.horizon, self.windows.scale, generator)
            if kept is not None:
                kept.add(member)
            yield member

    def _predict(
        self, number: int, context: Tensor, truth: Tensor, kept: Members | None, inflow: Tensor | None
    ) -> Tensor:
        scale, ensemble = self.windows.scale, self.ensemble
        members = self._members(number, context, kept)
        if ensemble.samples == 1:
            return next(members)
        if ensemble.select == "mean":
            mean = MeanMember()
            for member in members:
                mean.add(member)
            return mean.result()
        best = BestMember()
        for member in members:
            best.add(member, member_cost(member, truth, scale, self.protocol, inflow))
        return best.result()


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
    ensemble: Ensemble = SINGLE,
    lpips: LPIPS | None = None,
    exclude_inflow: bool = False,
    diagrams: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreTable:
    """Score a model on a split; every rank of the process group calls this and gets the same complete table.

    Args:
        windows: each of context + horizon frames.
        thresholds: event thresholds in the store's unit, if the protocol does not define them.
        batch: windows per forward pass; affects rounding.
        limit: use only the first `limit` windows.
        ensemble: ensemble size, and which forecast is scored.
        lpips: compute LPIPS too, with this network.
        exclude_inflow: do not score the pixels of `inflow_of`, the same ones for every model.
        diagrams: also make `diagrams` of the table, if there are thresholds.
        progress: called with (windows done, windows of this rank) after each batch.

    Raises:
        ConfigError: no windows, windows too short, a threshold outside the store's scale.
        ToolkitError: another rank failed; names the rank and its error.
    """
    total = len(windows) if limit is None else min(limit, len(windows))
    if total < 1:
        raise ConfigError(f"nothing to evaluate: {count(len(windows), 'window')}, --limit {limit}")
    thresholds = protocol.thresholds_for(thresholds)
    threshold_codes(thresholds, windows.scale)  # a bad threshold should fail before the first forward pass
    members = ensemble.samples if ensemble.samples > 1 else 0
    table = new_table(protocol, horizon, thresholds, lpips is not None, members, exclude_inflow)
    batches = Batches(
        model, windows, total, context, horizon, protocol, batch, torch.device(device), ensemble, exclude_inflow
    )
    if diagrams and thresholds:
        table.diagrams = Diagrams(thresholds, ensemble.samples, windows[0].frames.shape[-2:])
    mine = range(rank, -(-total // batch), world)
    share = sum(min(batch, total - number * batch) for number in mine)
    failure: Exception | None = None
    try:
        for number in mine:
            made = batches.forecast(number, keep_members=True)
            columns = score_batch(made.prediction, made.truth, windows.scale, protocol, thresholds, lpips, made.inflow)
            columns |= made.members.scores() if made.members else {}
            if table.diagrams is not None:
                table.diagrams.sums[number] = sums_of(
                    made.prediction, made.truth, windows.scale, protocol, thresholds, made.members, made.inflow
                )
            cut = made.windows
            table.update(made.indices, [window.key for window in cut], [window.mode for window in cut], columns)
            if progress is not None:
                progress(len(table), share)
    except Exception as error:
        if world == 1:
            raise
        failure = error
    return table if world == 1 else _gather(table, failure, rank, world)


def _gather(table: ScoreTable, failure: Exception | None, rank: int, world: int) -> ScoreTable:
    """Return the complete table on every rank; raise on all if one rank failed, so that none waits for it."""
    own_error = None if failure is None else (f"{type(failure).__name__}: {failure}", exit_code_of(failure))
    gathered: list[Any] = [None] * world
    distributed.all_gather_object(gathered, (own_error, table))
    if failure is not None:
        raise failure
    for other, (error, _) in enumerate(gathered):
        if error is not None:
            raise PeerFaultError(
                f"rank {rank} ends because the evaluation failed on rank {other}: {error[0]}", error[1]
            )
    merged = gathered[0][1]
    for _, part in gathered[1:]:
        merged.merge(part)
    return cast(ScoreTable, merged)


def predict(
    model: Predictor, codes: Tensor, horizon: int, scale: Scale, generator: torch.Generator | None = None
) -> Tensor:
    """Return one forecast of the targets float32 [B, horizon, C, H, W], not clamped, from context codes
    [B, Tc, C, H, W] of the inputs.

    A module is in evaluation mode during the call.
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


def inflow_of(codes: Tensor, horizon: int, scale: Scale) -> Tensor:
    """Return the pixels that flow in from outside the observed area by the optical flow of the context (with default
    options): no extrapolation can know them. The mask depends on the context alone, so it is the same for all models.

    Args:
        codes: context of the targets, [B, Tc, C, H, W].

    Returns:
        bool [B, horizon, C, H, W].
    """
    seen = observed(codes[:, -1], scale)
    return OpticalFlow().predict_with_inflow(to_unit(codes, scale), horizon, observed=seen)[1][0]


def sample_frames(
    model: Predictor,
    windows: Windows,
    table: ScoreTable,
    *,
    context: int,
    horizon: int,
    protocol: protocols.Protocol,
    batch: int,
    show: int,
    device: torch.device | str,
    ensemble: Ensemble = SINGLE,
    exclude_inflow: bool = False,
) -> dict[str, NDArray[np.generic]]:
    """Return frames for figures: the first `show` (at least 1) sequences of each mode in a table.

    They are the forecasts that were scored; the other arguments are those of `evaluate_model`.

    Returns:
        context [S, Tc, C, H, W], truth and prediction [S, horizon, C, H, W] of the targets as codes
        (predictions rounded to 0..max_code); index, key, mode, time [S] (of the first frame, "" without time stamps);
        mse [S], the mean over the frames of a sequence; scale, a JSON text.
    """
    indices = table.first_of_modes(show)
    batches = Batches(
        model, windows, len(table), context, horizon, protocol, batch, torch.device(device), ensemble, exclude_inflow
    )
    cut: dict[int, Window] = {}
    predicted: dict[int, NDArray[np.generic]] = {}
    for number, places in itertools.groupby(sorted(indices), key=lambda index: index // batch):
        made = batches.forecast(number)
        values = torch.nan_to_num(made.prediction, nan=0.0).clamp(0.0, 1.0) * windows.scale.max_code
        shown = values.round().cpu().numpy().astype(made.windows[0].frames.dtype)
        for index in places:
            row = index - made.indices.start
            cut[index], predicted[index] = made.windows[row], shown[row]
    frames = np.stack([cut[index].observations for index in indices])
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
        "prediction": np.stack([predicted[index] for index in indices]),
        "index": np.array(indices, dtype=np.int64),
        "key": columns["key"][rows],
        "mode": columns["mode"][rows],
        "time": np.array([windows.time(index) or "" for index in indices], dtype=np.str_),
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
