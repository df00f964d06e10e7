"""Compute one forecast: from the frames of an archive to physical values with times.

Frames are encoded like the training data, with the scale of the run's store. An archive with the same unit but a
different encoding is converted; a different unit, number of channels or time step is an error. A pixel without an
observation in any context frame has no forecast, and neither has one that flows in from outside of the observed area
(models that move the last frame; toolkit/models/baselines.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import torch
from numpy.typing import NDArray

from shards import ShardError, SourceError
from shards.georeference import Grid
from shards.manifest import Codes, FrameSpec, Scale, Values
from shards.mappings import MAPPINGS
from shards.recent import Archive, Frame
from shards.sources.inputs import by
from shards.sources.radar_readers import DBZ, FINE_DBZ
from toolkit.config.channels import check_names
from toolkit.data.windows import to_unit
from toolkit.errors import ConfigError, NonFiniteError
from toolkit.forecast.tiles import predict_tiled
from toolkit.forecast.trained import Trained
from toolkit.models.base import SequenceModel
from toolkit.models.baselines import Advection
from toolkit.wording import count

logger = logging.getLogger(__name__)

STEP_TOLERANCE = 0.01  # relative, of the time step; for jitter of frames see shards.recent


@dataclass(frozen=True)
class Request:
    """Settings of a forecast.

    Attributes:
        lead: frames to predict.
        samples: ensemble size; more than one requires a stochastic model.
        seed: of the random numbers of the members.
        tile: side of the tiles; None: no tiling.
        overlap: of neighbouring tiles, pixels.
        keep_inflow: keep the values of pixels that flow in from outside the observed area (`model.outside`).
    """

    lead: int
    samples: int = 1
    seed: int = 0
    tile: int | None = None
    overlap: int = 32
    keep_inflow: bool = False


@dataclass(frozen=True)
class Frames:
    """Frames in a model's scale.

    Attributes:
        codes: uint8 [L, C, H, W].
        seen: where there is an observation, bool of the same shape. A scale may have no code for missing pixels.
    """

    codes: Codes
    seen: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.codes)

    def select(self, channels: Sequence[int]) -> Frames:
        """Return some channels of the frames."""
        if list(channels) == list(range(self.codes.shape[1])):
            return self
        return Frames(self.codes[:, list(channels)], self.seen[:, list(channels)])


@dataclass(frozen=True)
class Forecast:
    """A forecast with its context and metadata; C channels: the targets.

    Attributes:
        values: float32 [S, T, C, H, W] in `scale.physical_unit`, NaN for missing pixels.
        units: output of the model, clamped to 0..1; 0 where a pixel flows in.
        inflow: pixels that flow in from outside the observed area, in any member.
        context: frames that it was made from, [Tc, C, H, W]; `times`: of these frames.
        reference: time of the last observation, UTC; None if the archive has no time stamps.
    """

    values: Values
    units: NDArray[np.float32]
    inflow: NDArray[np.bool_]  # [T, C, H, W]
    context: Frames
    times: tuple[datetime | None, ...]
    step_seconds: float | None
    scale: Scale
    grid: Grid | None
    trained: Trained
    source: str  # name of the archive
    licence: str

    @property
    def reference(self) -> datetime | None:
        return self.times[-1]

    @property
    def unseen(self) -> NDArray[np.bool_]:
        """Return the pixels without an observation in the context, bool [C, H, W]."""
        return np.asarray(~self.context.seen.any(0))

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Return the pixels without a forecast, bool [T, C, H, W]."""
        return np.asarray(self.unseen | self.inflow)

    def valid(self) -> list[datetime | None]:
        """Return the valid time of every predicted frame."""
        if self.reference is None or self.step_seconds is None:
            return [None] * self.values.shape[1]
        return [
            self.reference + timedelta(seconds=self.step_seconds * lead) for lead in range(1, self.values.shape[1] + 1)
        ]

    def recoded(self, archive: Archive, frames: Sequence[Frame]) -> Frames:
        """Return the targets of other frames of the archive in the model's scale, for example the observations."""
        return read_recoded(archive, frames, self.scale).select(self.trained.targets)

    def mean_codes(self) -> Codes:
        """Return the ensemble mean as codes [T, C, H, W], with the missing code where there is no value."""
        codes = np.rint(self.units.mean(0) * self.scale.max_code).astype(self.scale.code_type)
        if self.scale.missing_code is not None:
            codes[self.missing] = self.scale.missing_code
        return codes


def _quantity(scale: Scale) -> str:
    return f"{scale.quantity} " + ("without a unit" if scale.unit == "1" else f"in {scale.unit}")


def check_fits(trained: Trained, archive: Archive, request: Request) -> None:
    """Check that archive and model match.

    Raises:
        ConfigError: the frames of the archive differ from the training data, or the model does not support the request;
            the message states both values.
    """
    theirs, ours = archive.description, trained
    if (theirs.scale.unit, theirs.scale.mapping) != (ours.scale.unit, ours.scale.mapping):
        raise ConfigError(
            f"{archive.where}: {_quantity(theirs.scale)}, the model was trained on {_quantity(ours.scale)}: "
            "pass options of the source after --, or train on such an archive"
        )
    if theirs.frames.channels != ours.frames.channels:
        raise ConfigError(
            f"{archive.where}: frames with {count(theirs.frames.channels, 'channel')}, the model was trained on "
            f"{ours.frames.channels}{_named(ours.frames)}: choose another --input"
        )
    check_names(ours.frames, theirs.frames, archive.where)
    step, known = theirs.step_seconds, ours.step_seconds
    if step is not None and known is not None and abs(step / known - 1) > STEP_TOLERANCE:
        raise ConfigError(
            f"{archive.where}: the time step is {step:g} s, the model was trained on {known:g} s, so motion per frame "
            "would differ. Train on such an archive, or pass `-- --step SECONDS` if the time step is detected wrongly"
        )
    check_request(trained, request)


def _named(frames: FrameSpec) -> str:
    return f" ({', '.join(frames.names)})" if frames.names else ""


def check_request(trained: Trained, request: Request) -> None:
    """Raise ConfigError for a request that the model does not support."""
    if request.keep_inflow and not isinstance(trained.model, Advection):
        raise ConfigError(
            f"--keep-inflow: {trained.config.model.name} does not move the last frame, so it has no inflow: omit it"
        )
    if request.samples > 1 and not trained.model.stochastic:
        raise ConfigError(
            f"--ensemble-size {request.samples}: {trained.config.model.name} is deterministic, all members would be "
            "equal: omit --ensemble-size, or use a stochastic model such as svg_lp"
        )


def make_forecast(trained: Trained, archive: Archive, frames: Sequence[Frame], request: Request) -> Forecast:
    """Read the context frames and predict the frames after them.

    Raises:
        ConfigError: see `check_fits`; or the model does not accept frames of this size.
        SourceError, StoreError: a frame cannot be read.
    """
    check_fits(trained, archive, request)
    codes = read_frames(archive, frames)
    whole = Frames(*recoded(codes, archive.description.scale, trained.scale))
    _log_recoding(codes, archive, trained.scale)
    context = whole.select(trained.targets)
    reference = frames[-1].time
    units, inflow = _predict(trained, whole.select(trained.inputs), request, reference)
    if inflow.any():
        logger.info(
            "%s of %s pixels (%.1f %%; at the last lead time %.1f %%) flow in from outside the observed area and are "
            "missing in the forecast",
            f"{inflow.sum():,}", f"{inflow.size:,}", 100 * inflow.mean(), 100 * inflow[-1].mean(),
        )  # fmt: skip
    described = archive.description
    return Forecast(
        values=_physical(units, inflow | ~context.seen.any(0), trained.scale),
        units=units,
        inflow=inflow,
        context=context,
        times=tuple(frame.time for frame in frames),
        step_seconds=trained.step_seconds or described.step_seconds,
        scale=trained.scale,
        grid=archive.grid(),
        trained=trained,
        source=". ".join(text for text in (described.source.name, described.source.citation) if text),
        licence=described.source.licence,
    )


def read_frames(archive: Archive, frames: Sequence[Frame]) -> Codes:
    """Return frames of an archive as codes [L, C, H, W].

    Raises:
        ShardError: one can't be read. A file that is still being written makes its library fail in ways of its own.
    """
    try:
        return archive.read(frames)
    except (ShardError, MemoryError):
        raise
    except Exception as error:
        what = f"{frames[0]} to {frames[-1]}"
        raise SourceError(f"{archive.where}: {what}: can't be read ({type(error).__name__}: {error})") from error


def read_recoded(archive: Archive, frames: Sequence[Frame], wanted: Scale) -> Frames:
    """Return frames of an archive in another scale; see `read_frames` and `recoded`."""
    return Frames(*recoded(read_frames(archive, frames), archive.description.scale, wanted))


def recoded(codes: Codes, scale: Scale, wanted: Scale) -> tuple[Codes, NDArray[np.bool_]]:
    """Convert codes to another scale with the same unit; also return which pixels were observed.

    If `wanted` has no missing code, missing pixels become 0, the input of models for missing pixels.
    """
    seen = np.ones(codes.shape, dtype=bool) if scale.missing_code is None else codes != scale.missing_code
    if scale == wanted:
        return codes, seen
    values = scale.to_physical(np.arange(np.iinfo(codes.dtype).max + 1, dtype=codes.dtype))
    absent = np.isnan(values)
    table = wanted.to_code(np.where(absent, wanted.to_physical(np.zeros(1, np.uint8))[0], values))
    if wanted.missing_code is not None:
        table[absent] = wanted.missing_code
    elif absent.any():
        table[absent] = 0
    return np.asarray(table[codes]), seen


def _log_recoding(codes: Codes, archive: Archive, wanted: Scale) -> None:
    """Log what the conversion to other codes rounds and clips. Values below 0 dBZ are no echo, and not counted."""
    scale = archive.description.scale
    if scale == wanted or wanted.mapping is not None:
        return
    values, half = scale.to_physical(np.arange(np.iinfo(codes.dtype).max + 1, dtype=codes.dtype)), abs(wanted.gain) / 2
    low, high = sorted(wanted.offset + wanted.gain * code for code in (0, wanted.max_code))
    table = values > high + half
    if wanted not in (DBZ, FINE_DBZ):
        table |= values < low - half
    clipped = int(table[codes].sum())
    logger.log(
        logging.WARNING if clipped else logging.INFO,
        "%s: values are converted to the model's codes, %g..%g %s in steps of %.3g; %s of %s are outside and clipped",
        archive.where, low, high, wanted.unit, 2 * half, f"{clipped:,}", count(codes.size, "pixel"),
    )  # fmt: skip


def _predict(
    trained: Trained, context: Frames, request: Request, reference: datetime | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Predict [S, T, C, H, W] in 0..1, one member at a time; all tiles of a member use the same random numbers.

    Args:
        context: of the inputs.

    Returns:
        The members, and the inflow [T, C, H, W] of any of them, both of the targets.
    """
    device = next((p.device for p in trained.model.parameters()), torch.device("cpu"))
    unit = to_unit(torch.from_numpy(context.codes), trained.scale)[None]
    frames = torch.cat([unit, torch.from_numpy(context.seen[None, -1:]).float()], 1)  # tiles are cut of both
    moment = 0 if reference is None else int((reference - datetime(1970, 1, 1)).total_seconds())
    members = []
    for member in range(request.samples):
        seed = request.seed + 1_000_003 * moment + member

        def predict(part: torch.Tensor, seed: int = seed) -> torch.Tensor:
            generator = torch.Generator(device).manual_seed(seed) if request.samples > 1 else None
            return _member(trained.model, part.to(device), request, generator).float().cpu()

        try:
            predicted = (
                predict(frames)
                if request.tile is None
                else predict_tiled(predict, frames, request.tile, request.overlap)
            )
        except ConfigError as error:
            if request.tile is not None:
                raise
            size, trained_on = by(context.codes.shape[-2:]), by((trained.frames.height, trained.frames.width))
            raise ConfigError(
                f"frames of {size} pixels, the model was trained on {trained_on} and accepts no other "
                f"size ({error}): use tiles, --tile {min(trained.frames.height, trained.frames.width)}"
            ) from None
        members.append(predicted.clamp(0.0, 1.0).numpy())
        if not isinstance(trained.model, Advection):
            _check_finite(predicted, trained)
    made = np.stack(members)
    if not isinstance(trained.model, Advection):
        return made, np.zeros(made.shape[1:], dtype=bool)
    inflow = np.isnan(made)
    return np.where(inflow, np.float32(0), made), inflow.any(0)


def _check_finite(predicted: torch.Tensor, trained: Trained) -> None:
    """Raise NonFiniteError where a member [T, C, H, W] holds NaN or infinite values, which would read as no event."""
    wrong = ~torch.isfinite(predicted)
    if wrong.any():
        lead = int(wrong.flatten(1).any(1).nonzero()[0]) + 1
        raise NonFiniteError(
            f"{trained.title}: {int(wrong.sum()):,} of {wrong.numel():,} values of the forecast are NaN or infinite, "
            f"the first at lead time {lead}; use another checkpoint (--which), or evaluate this one"
        )


def _member(
    model: SequenceModel, frames: torch.Tensor, request: Request, generator: torch.Generator | None
) -> torch.Tensor:
    """Return a forecast [T, C, H, W] of context frames [1, Tc + 1, C, H, W], of which the last is the mask of observed
    pixels; NaN where a pixel flows in.
    """
    context, observed = frames[:, :-1].contiguous(), frames[:, -1] > 0.5
    if request.keep_inflow or not isinstance(model, Advection):
        return model.predict(context, request.lead, 1, generator)[0, 0]
    made, inflow = model.predict_with_inflow(context, request.lead, 1, generator, observed)
    return made.masked_fill(inflow, torch.nan)[0, 0]


def _physical(units: NDArray[np.float32], missing: NDArray[np.bool_], scale: Scale) -> Values:
    values = np.asarray(scale.offset + scale.gain * scale.max_code * units, dtype=np.float32)
    if scale.mapping is not None:
        values = MAPPINGS[scale.mapping].physical(values)
    values[:, missing] = np.nan
    return values
