"""Extrapolation nowcast by pysteps (Pulkkinen et al., GMD 12, 2019), the usual baseline of radar papers.

Motion from the last frames of the context by its dense Lucas-Kanade method (features tracked by OpenCV, interpolated),
then its backward semi-Lagrangian advection of the last frame; what moves in from beyond the frame is 0. All of it with
pysteps' defaults, on the CPU, each sequence and channel by itself; a single frame of context has no motion and
persists. No parameters, no training, no random numbers. (Its DARTS is left out: 10 s a sequence of 64 x 64.)

pysteps is an extra (`pip install '.[pysteps]'`; it is built from source, so that needs a C compiler) and is imported at
the first forecast: configs and reports that name this model don't need it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.manifest import FrameSpec
from toolkit.errors import ConfigError
from toolkit.models.baselines import Advection
from toolkit.models.registry import PystepsOptions


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


@dataclass(frozen=True)
class _Functions:
    """pysteps' functions for motion, extrapolation and ensembles."""

    motion: Callable[..., Any]
    extrapolate: Callable[..., Any]
    steps: Callable[..., Any]

    def velocity(self, fields: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the motion [2, H, W] of fields [T, H, W], pixels per step to the right and down; 0 for one field."""
        still = np.zeros((2, *fields.shape[1:]))
        return np.asarray(self.motion(fields)) if len(fields) > 1 else still

    def inside(self, observed: Tensor, velocity: NDArray[np.float64], horizon: int) -> NDArray[np.bool_]:
        """Return where an extrapolation comes from observed pixels, bool [horizon, H, W]."""
        seen = observed.cpu().numpy().astype(np.float32)
        return np.asarray(self.extrapolate(seen, velocity, horizon, outval=0.0) >= 0.5)


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
    found = motion.get_method("LK"), extrapolation.get_method("semilagrangian"), nowcasts.get_method("steps")
    return _Functions(*found)
