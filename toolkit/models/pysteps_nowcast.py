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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.manifest import FrameSpec
from toolkit.errors import ConfigError
from toolkit.models.baselines import Baseline
from toolkit.models.registry import PystepsOptions


class Pysteps(Baseline):
    """Predicts that the last frame moves on along pysteps' motion."""

    def __init__(self, options: PystepsOptions | None = None, shape: FrameSpec | None = None) -> None:
        super().__init__()
        self.options = options or PystepsOptions()

    def _predict(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        """context [B, Tc, C, H, W] -> [samples, B, horizon, C, H, W] in float32.

        Raises:
            ConfigError: pysteps isn't installed.
        """
        motion_of, extrapolate = _pysteps()
        frames: NDArray[np.float32] = context[:, -self.options.frames :].float().cpu().numpy()
        forecast = np.empty((context.shape[0], horizon, *context.shape[2:]), dtype=np.float32)
        for sequence, channel in np.ndindex(context.shape[0], context.shape[2]):
            fields = frames[sequence, :, channel]
            still = np.zeros((2, *fields.shape[1:]))
            velocity = motion_of(fields) if len(fields) > 1 else still  # pixels per step, right and down
            forecast[sequence, :, channel] = extrapolate(fields[-1], velocity, horizon, outval=0.0)
        return torch.from_numpy(forecast).to(context.device).expand(samples, -1, -1, -1, -1, -1)


def _pysteps() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """pysteps' functions for motion and extrapolation."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it announces its configuration file
            import cv2  # noqa: F401  pysteps would miss it later, when it looks for motion
            from pysteps import extrapolation, motion
    except ImportError as error:
        raise ConfigError(
            f"model pysteps needs pysteps and OpenCV ({error}): pip install '.[pysteps]', or choose "
            "model.name=optical_flow, which needs neither"
        ) from None
    return motion.get_method("LK"), extrapolation.get_method("semilagrangian")
