"""Nowcasts by pysteps (Pulkkinen et al., GMD 12, 2019), the usual baselines of radar papers; nothing is trained.

    pysteps    extrapolation: motion from the last frames of the context by its dense Lucas-Kanade method (features
               tracked by OpenCV, interpolated), then its backward semi-Lagrangian advection of the last frame; what
               moves in from beyond the frame is 0. Deterministic. (Its DARTS is left out: 10 s a sequence of 64 x 64.)
    steps      STEPS (Bowler et al. 2006; Seed et al. 2013), an ensemble: the motion of the last three frames, found
               once and perturbed for each member; these frames as a cascade of spatial scales, of which each is
               extrapolated, ages by an autoregressive model of its own (order 2) and is perturbed by noise with the
               spectrum of the last frame; then the distribution of values is matched to that of the last frame. Values
               below `threshold` are set to 0 before (STEPS has to know what no rain is), so a forecast has none

With pysteps' defaults but for the options, on the CPU, each sequence and channel by itself. A single frame of context
has no motion and persists. Members of `steps` differ by a seed from the generator; without a generator the forecast is
that of S-PROG, the same cascade without perturbations. Where pysteps can't fit the cascade's model, the last frame is
extrapolated; a warning has the number of such forecasts, at 1, 10, 100 and every 1,000. Rain in the last frame alone is
clutter to pysteps, and its forecast is dry.

pysteps is an extra (`pip install '.[pysteps]'`; it is built from source, so that needs a C compiler) and is imported at
the first forecast: configs and reports that name these models don't need it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.manifest import FrameSpec
from toolkit.errors import ConfigError
from toolkit.models.baselines import Advection
from toolkit.models.registry import PystepsOptions, StepsOptions
from toolkit.wording import count, first_line

logger = logging.getLogger(__name__)

ORDER = 2  # of the autoregressive model of STEPS, which takes one frame more


class Pysteps(Advection):
    """Predicts that the last frame moves on along pysteps' motion."""

    def __init__(self, options: PystepsOptions | None = None, shape: FrameSpec | None = None) -> None:
        super().__init__()
        self.options = options or PystepsOptions()

    def _advect(
        self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None, observed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `Advection._advect` does.

        Raises:
            ConfigError: pysteps isn't installed.
        """
        pysteps = _pysteps("pysteps")
        frames: NDArray[np.float32] = context[:, -self.options.frames :].float().cpu().numpy()
        forecast = np.empty((context.shape[0], horizon, *context.shape[2:]), dtype=np.float32)
        inside = None if observed is None else np.empty(forecast.shape, dtype=bool)
        for sequence, channel in np.ndindex(context.shape[0], context.shape[2]):
            fields = frames[sequence, :, channel]
            velocity = pysteps.velocity(fields)
            forecast[sequence, :, channel] = pysteps.extrapolate(fields[-1], velocity, horizon, outval=0.0)
            if observed is not None and inside is not None:
                inside[sequence, :, channel] = pysteps.inside(observed[sequence, channel], velocity, horizon)
        shape = (samples, *forecast.shape)
        made = torch.from_numpy(forecast).to(context.device).expand(shape)
        return made, None if inside is None else torch.from_numpy(inside).to(context.device).expand(shape)


class Steps(Advection):
    """Draws members of pysteps' STEPS ensemble."""

    stochastic = True

    def __init__(self, options: StepsOptions | None = None, shape: FrameSpec | None = None) -> None:
        super().__init__()
        self.options = options or StepsOptions()
        self._motion: dict[bytes, NDArray[np.float64]] = {}  # of the last call: members are drawn one by one
        self._extrapolated = 0

    def _advect(
        self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None, observed: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return what `Advection._advect` does; a value that flows in is 0.

        Raises:
            ConfigError: pysteps isn't installed.
        """
        pysteps = _pysteps("steps")
        frames: NDArray[np.float32] = context[:, -ORDER - 1 :].float().cpu().numpy()
        frames = np.where(frames < self.options.threshold, np.float32(0), frames)
        batch, channels = frames.shape[0], frames.shape[2]
        seeds = _seeds(generator, (samples, batch, channels))
        forecast = np.empty((samples, batch, horizon, *frames.shape[2:]), dtype=np.float32)
        seen = np.ones(forecast.shape[1:], dtype=bool)
        known, self._motion = self._motion, {}
        for sequence, channel in np.ndindex(batch, channels):
            fields = frames[sequence, :, channel]
            key = hashlib.sha256(fields.tobytes()).digest()
            velocity = self._motion[key] = known[key] if key in known else pysteps.velocity(fields)
            for member in range(samples):
                seed = None if seeds is None else int(seeds[member, sequence, channel])
                one = self._member(pysteps, fields, velocity, horizon, seed) if len(fields) > 1 else fields[-1]
                forecast[member, sequence, :, channel] = one
            if observed is not None:
                seen[sequence, :, channel] = pysteps.inside(observed[sequence, channel], velocity, horizon)
        inside = torch.from_numpy(np.isfinite(forecast) & seen).to(context.device)
        made = torch.from_numpy(np.nan_to_num(forecast, copy=False)).to(context.device)
        return made, None if observed is None else inside

    def _member(
        self,
        pysteps: _Functions,
        fields: NDArray[np.float32],
        velocity: NDArray[np.float64],
        horizon: int,
        seed: int | None,
    ) -> NDArray[np.float32]:
        """Return one member [horizon, H, W], NaN where a value flows in; without a seed that of S-PROG."""
        common = {
            "timesteps": horizon,
            "precip_thr": self.options.threshold,
            "n_cascade_levels": self.options.levels,
            "ar_order": min(ORDER, len(fields) - 1),
        }
        perturbed = {"n_ens_members": 1, "kmperpixel": self.options.kilometres, "timestep": self.options.minutes}
        state = np.random.get_state()  # noqa: NPY002  pysteps seeds NumPy's global generator
        try:
            with _quiet():
                if seed is None:
                    made = pysteps.sprog(fields, velocity, **common)
                else:
                    made = pysteps.steps(fields, velocity, **common, **perturbed, seed=seed)[0]
        except (ValueError, np.linalg.LinAlgError) as error:
            # Hardly any rain, or frames without change: no autoregressive model can be fitted.
            self._extrapolated += 1
            if self._extrapolated in (1, 10, 100) or self._extrapolated % 1000 == 0:
                number, reason = count(self._extrapolated, "forecast"), first_line(error)
                logger.warning("steps: %s extrapolated without perturbations, as pysteps fails: %s", number, reason)
            made = pysteps.extrapolate(fields[-1], velocity, horizon)
        finally:
            np.random.set_state(state)  # noqa: NPY002
        return np.asarray(made, dtype=np.float32)


def _seeds(generator: torch.Generator | None, shape: tuple[int, ...]) -> Tensor | None:
    """Draw one seed for each forecast, member by member, so that the first ones don't depend on how many follow."""
    if generator is None:
        return None
    return torch.randint(0, 2**31 - 1, shape, generator=generator, device=generator.device).cpu()


@dataclass(frozen=True)
class _Functions:
    """pysteps' functions for motion, extrapolation and nowcasts."""

    motion: Callable[..., Any]
    extrapolate: Callable[..., Any]
    steps: Callable[..., Any]
    sprog: Callable[..., Any]

    def velocity(self, fields: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the motion [2, H, W] of fields [T, H, W], pixels per step to the right and down; 0 for one field."""
        if len(fields) == 1:
            return np.zeros((2, *fields.shape[1:]))
        with _quiet():
            return np.asarray(self.motion(fields))

    def inside(self, observed: Tensor, velocity: NDArray[np.float64], horizon: int) -> NDArray[np.bool_]:
        """Return where an extrapolation comes from observed pixels, bool [horizon, H, W]."""
        seen = observed.cpu().numpy().astype(np.float32)
        return np.asarray(self.extrapolate(seen, velocity, horizon, outval=0.0) >= 0.5)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop the pages that pysteps prints, and its warnings of divisions by 0 and singular matrices."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _pysteps(name: str) -> _Functions:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it announces its configuration file
            import cv2  # noqa: F401  pysteps would miss it later, when it looks for motion
            from pysteps import extrapolation, motion, nowcasts
    except ImportError as error:
        raise ConfigError(
            f"model {name} needs pysteps and OpenCV ({error}): pip install '.[pysteps]', or choose "
            "model.name=optical_flow, which needs neither"
        ) from None
    return _Functions(
        motion.get_method("LK"),
        extrapolation.get_method("semilagrangian"),
        nowcasts.get_method("steps"),
        nowcasts.get_method("sprog"),
    )
