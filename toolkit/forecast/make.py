"""One forecast: from the frames of an archive to physical values with times.

Frames are encoded as they were for training: by the scale of the run's own store. An archive in the same unit but with
other codes is coded anew; another unit, channel count or time step is refused. A pixel without an observation in any
frame of the context has no forecast either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import torch
from numpy.typing import NDArray

from shards.manifest import Codes, Scale, Values
from shards.mappings import MAPPINGS
from shards.recent import Archive, Frame
from shards.sources.grid import Grid
from shards.sources.inputs import by
from toolkit.data.windows import to_unit
from toolkit.errors import ConfigError
from toolkit.forecast.tiles import predict_tiled
from toolkit.forecast.trained import Trained

STEP_TOLERANCE = 0.01  # of the time step; jitter of single frames is another matter, see shards.recent


@dataclass(frozen=True)
class Request:
    """What is asked of a forecast.

    Attributes:
        lead: frames to predict.
        samples: members; more than one only of a model with chance.
        tile: side of the pieces that the model is shown; None: whole frames.
    """

    lead: int
    samples: int = 1
    seed: int = 0
    tile: int | None = None
    overlap: int = 32


@dataclass(frozen=True)
class Forecast:
    """
    Attributes:
        values: float32 [S, T, C, H, W] in `scale.physical_unit`, NaN where nothing was ever observed.
        units: the same as the model gave it, clamped to 0..1, without gaps.
        context: codes of the model's scale, uint8 [Tc, C, H, W], and their times.
        reference: time of the last observation, UTC; None where the archive has no clock.
    """

    values: Values
    units: NDArray[np.float32]
    unseen: NDArray[np.bool_]  # [C, H, W]
    context: Codes
    times: tuple[datetime | None, ...]
    step_seconds: float | None
    scale: Scale
    grid: Grid | None
    trained: Trained
    source: str  # the archive's name, and its terms
    licence: str

    @property
    def reference(self) -> datetime | None:
        return self.times[-1]

    def valid(self) -> list[datetime | None]:
        """The time of every predicted frame."""
        if self.reference is None or self.step_seconds is None:
            return [None] * self.values.shape[1]
        return [
            self.reference + timedelta(seconds=self.step_seconds * lead) for lead in range(1, self.values.shape[1] + 1)
        ]

    def recoded(self, archive: Archive, frames: Sequence[Frame]) -> Codes:
        """Other frames of the archive in the codes of the model's scale, such as those that followed."""
        return recoded(archive.read(frames), archive.description.scale, self.scale)[0]

    def mean_codes(self) -> Codes:
        """The members' mean as codes, uint8 [T, C, H, W], missing where it has no value."""
        codes = np.rint(self.units.mean(0) * self.scale.max_code).astype(np.uint8)
        if self.scale.missing_code is not None:
            codes[:, self.unseen] = self.scale.missing_code
        return codes


def _quantity(scale: Scale) -> str:
    return f"{scale.quantity} " + ("without a unit" if scale.unit == "1" else f"in {scale.unit}")


def check_fits(trained: Trained, archive: Archive, request: Request) -> None:
    """
    Raises:
        ConfigError: the archive's frames aren't what the model learnt from, or the model can't do what is asked; both
            numbers are named.
    """
    theirs, ours = archive.description, trained
    if (theirs.scale.unit, theirs.scale.mapping) != (ours.scale.unit, ours.scale.mapping):
        raise ConfigError(
            f"{archive.where}: {_quantity(theirs.scale)}, the model learnt {_quantity(ours.scale)}: "
            "name options of the source after --, or train on such an archive"
        )
    if theirs.frames.channels != ours.frames.channels:
        raise ConfigError(
            f"{archive.where}: frames of {theirs.frames.channels} channels, the model learnt from "
            f"{ours.frames.channels}: choose another --input"
        )
    step, known = theirs.step_seconds, ours.step_seconds
    if step is not None and known is not None and abs(step / known - 1) > STEP_TOLERANCE:
        raise ConfigError(
            f"{archive.where}: a frame every {step:g} s, the model learnt from one every {known:g} s: its motion would "
            "be of another speed. Train on such an archive, or say `-- --step SECONDS` if it was measured wrongly"
        )
    if request.samples > 1 and not ours.model.stochastic:
        raise ConfigError(
            f"--ensemble-size {request.samples}: {ours.config.model.name} makes no random choice, all members would be "
            "equal: leave --ensemble-size out, or take a model with chance such as svg_lp"
        )


def make_forecast(trained: Trained, archive: Archive, frames: Sequence[Frame], request: Request) -> Forecast:
    """Read the frames, and predict what comes after them.

    Raises:
        ConfigError: see `check_fits`; or the model takes no frames of this size.
        SourceError, StoreError: a frame can't be read.
    """
    check_fits(trained, archive, request)
    codes, seen = recoded(archive.read(frames), archive.description.scale, trained.scale)
    reference = frames[-1].time
    units = _predict(trained, codes, request, reference)
    unseen: NDArray[np.bool_] = np.asarray(~seen.any(0))
    described = archive.description
    return Forecast(
        values=_physical(units, unseen, trained.scale),
        units=units,
        unseen=unseen,
        context=codes,
        times=tuple(frame.time for frame in frames),
        step_seconds=trained.step_seconds or described.step_seconds,
        scale=trained.scale,
        grid=archive.grid(),
        trained=trained,
        source=". ".join(text for text in (described.source.name, described.source.citation) if text),
        licence=described.source.licence,
    )


def recoded(codes: Codes, scale: Scale, wanted: Scale) -> tuple[Codes, NDArray[np.bool_]]:
    """Codes of one scale as codes of another with the same unit, and which pixels were observed.

    Where `wanted` has no code for a missing pixel it becomes 0, which is what models are fed for one.
    """
    seen = np.ones(codes.shape, dtype=bool) if scale.missing_code is None else codes != scale.missing_code
    if scale == wanted:
        return codes, seen
    values = scale.to_physical(np.arange(256, dtype=np.uint8))
    absent = np.isnan(values)
    table = wanted.to_code(np.where(absent, wanted.to_physical(np.zeros(1, np.uint8))[0], values))
    if wanted.missing_code is not None:
        table[absent] = wanted.missing_code
    elif absent.any():
        table[absent] = 0
    return np.asarray(table[codes]), seen


def _predict(trained: Trained, codes: Codes, request: Request, reference: datetime | None) -> NDArray[np.float32]:
    """[S, T, C, H, W] in 0..1. Members are made one by one; every tile of a member has the same random numbers."""
    device = next((p.device for p in trained.model.parameters()), torch.device("cpu"))
    unit = to_unit(torch.from_numpy(codes), trained.scale)[None]
    moment = 0 if reference is None else int((reference - datetime(1970, 1, 1)).total_seconds())
    members = []
    for member in range(request.samples):
        seed = request.seed + 1_000_003 * moment + member

        def predict(part: torch.Tensor, seed: int = seed) -> torch.Tensor:
            generator = torch.Generator(device).manual_seed(seed) if request.samples > 1 else None
            made = trained.model.predict(part.to(device), request.lead, 1, generator)
            return made[0, 0].float().cpu()

        try:
            whole = (
                predict(unit) if request.tile is None else predict_tiled(predict, unit, request.tile, request.overlap)
            )
        except ConfigError as error:
            if request.tile is not None:
                raise
            trained_on = by((trained.frames.height, trained.frames.width))
            raise ConfigError(
                f"frames of {by(codes.shape[-2:])} pixels, the model learnt from {trained_on}, and takes no others "
                f"({error}): forecast in pieces with --tile {min(trained.frames.height, trained.frames.width)}"
            ) from None
        members.append(whole.clamp(0.0, 1.0).numpy())
    return np.stack(members)


def _physical(units: NDArray[np.float32], unseen: NDArray[np.bool_], scale: Scale) -> Values:
    values = np.asarray(scale.offset + scale.gain * scale.max_code * units, dtype=np.float32)
    if scale.mapping is not None:
        values = MAPPINGS[scale.mapping].physical(values)
    values[..., unseen] = np.nan
    return values
