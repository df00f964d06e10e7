"""What the scoring of a run will need of its config, its store and the machine, checked before anything is trained.

Does not import torch: a sweep checks its runs on the login node.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards import Store
from shards.manifest import Scale
from toolkit.config import RunConfig
from toolkit.config.channels import target_frames
from toolkit.data.windows import WindowSet
from toolkit.errors import ConfigError
from toolkit.evaluate.protocols import load_protocol
from toolkit.models.plugins import UnloadedModel
from toolkit.models.registry import PystepsOptions, StepOptions, StepsOptions
from toolkit.wording import exact_number

ALEXNET_VARIABLE = "MODERNN_ALEXNET"
ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
LPIPS_CHANNELS = (1, 3)
FEWEST = 8  # sequences of a mode in a diagnosis of mode collapse: four for training and four for testing
LPIPS_SMALLEST = 31  # pixels of a side: AlexNet's third block still has one position
logger = logging.getLogger(__name__)


def check_scoring(config: RunConfig, store: Store | None = None) -> None:
    """Check that a trained run could be scored as its config asks, and log what of `eval` will have no effect.

    Args:
        store: of `config.data.store`; None: not at hand, what depends on it is not checked.

    Raises:
        ConfigError: an unknown protocol; thresholds that it doesn't take, or outside of the store's values; channels
            that the store lacks; no such split, or no window of context + horizon frames in it; frames too small for
            SSIM or LPIPS; LPIPS without its package or weights, or together with `exclude_inflow`; pysteps' nowcasts
            without it.
    """
    asked, model = config.eval, config.model
    protocol = load_protocol(asked.protocol)
    thresholds = protocol.thresholds_for(asked.thresholds)
    if asked.lpips and asked.exclude_inflow:
        raise ConfigError(
            "eval.lpips and eval.exclude_inflow: LPIPS compares whole frames and can't leave out pixels: set "
            "eval.lpips=false (of a trained run: --no-lpips), or eval.exclude_inflow=false"
        )
    if asked.lpips:
        _check_lpips_files()
    if isinstance(model, PystepsOptions | StepsOptions):
        _check_pysteps(model.name)
    unknown = isinstance(model, UnloadedModel)  # what it can is in its file
    if asked.ensemble_size > 1 and not (model.stochastic or unknown):
        logger.warning(
            "eval.ensemble_size %d: %s is deterministic and makes one forecast", asked.ensemble_size, model.name
        )
    if asked.ensemble_size == 1 and model.stochastic:
        logger.warning(
            "eval.ensemble_size 1: %s is stochastic, and one random forecast of each sequence is scored",
            model.name,
        )
    if asked.analyse and not (isinstance(model, StepOptions) or unknown):
        logger.warning("eval.analyse %d: %s has no recurrent state to analyse", asked.analyse, model.name)
    if store is None:
        return
    threshold_codes(thresholds, store.manifest.scale)
    frames = target_frames(config.data, store.manifest.frames, str(store.path))
    _check_side(min(frames.height, frames.width), protocol.ssim_window, "SSIM's window", "another eval.protocol")
    if asked.lpips:
        _check_side(min(frames.height, frames.width), LPIPS_SMALLEST, "LPIPS", "eval.lpips=false")
        if frames.channels not in LPIPS_CHANNELS:
            raise ConfigError(
                f"eval.lpips takes frames of 1 or 3 channels, this run predicts {frames.channels}: set eval.lpips=false"
            )
    windows = WindowSet(store, asked.split, config.data.context + config.data.horizon, config.data.eval_stride)
    if isinstance(model, StepOptions):
        _check_modes(windows, asked.analyse)


def _check_side(side: int, needed: int, what: str, instead: str) -> None:
    if side < needed:
        raise ConfigError(
            f"{what} needs frames of at least {needed} x {needed} pixels, and this store's have a side of {side}: "
            f"use a store of larger frames, or {instead}"
        )


def _check_modes(windows: WindowSet, most: int) -> None:
    """Log where the sequences of `eval.analyse` have too few modes for a diagnosis of mode collapse."""
    found = Counter(windows.mode(index) or "no mode" for index in windows.spread(most))
    if most and sum(number >= FEWEST for mode, number in found.items() if mode != "no mode") < 2:
        counts = ", ".join(f"{number} of {mode}" for mode, number in sorted(found.items()))
        logger.warning(
            "eval.analyse %d: there will be no diagnosis of mode collapse, which needs two modes with %d sequences "
            "each: those of %s are %s: set eval.analyse higher, or use a store with modes",
            *(most, FEWEST, windows.split, counts),
        )


def _check_pysteps(name: str) -> None:
    """Check that what pysteps' nowcasts import is installed, without importing it."""
    if missing := [package for package in ("pysteps", "cv2") if importlib.util.find_spec(package) is None]:
        raise ConfigError(
            f"model {name} needs pysteps and OpenCV (no {' and no '.join(missing)} here): pip install '.[pysteps]', or "
            "choose model.name=optical_flow, which needs neither"
        )


def _check_lpips_files() -> None:
    """Check what can be checked without reading the weights."""
    if importlib.util.find_spec("lpips") is None:  # finds it without importing it
        raise ConfigError(
            "eval.lpips: the package lpips, which holds LPIPS's weights, is not installed: pip install lpips, or set "
            "eval.lpips=false"
        )
    file = alexnet_file()
    if os.environ.get(ALEXNET_VARIABLE) and not file.exists():
        raise ConfigError(f"eval.lpips: {ALEXNET_VARIABLE}={file}: no such file")
    if not file.exists():
        _warn_of_missing(file)


@functools.cache  # once, not for each run of a sweep
def _warn_of_missing(file: Path) -> None:
    logger.warning(
        "eval.lpips: %s is not there, and without it scoring fails, as nothing is downloaded unasked: "
        "curl --create-dirs -o %s %s",
        *(file, file, ALEXNET_URL),
    )


def alexnet_file() -> Path:
    """Return where the ImageNet weights of LPIPS's AlexNet are looked for: MODERNN_ALEXNET, or torch's cache."""
    if named := os.environ.get(ALEXNET_VARIABLE):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    home = Path(os.environ.get("TORCH_HOME", cache)).expanduser()
    return home / "hub" / "checkpoints" / ALEXNET_URL.rpartition("/")[2]


def threshold_codes(thresholds: Sequence[float], scale: Scale, key: str = "eval.thresholds") -> list[int]:
    """Return for each threshold, in the store's unit, the smallest code whose value reaches it.

    Args:
        key: where they were given, for messages.

    Raises:
        ConfigError: a threshold that no code or every code reaches, one twice, or a decreasing scale.
    """
    if thresholds and scale.gain <= 0:
        raise ConfigError(
            f"{key}: the values of this store decrease with its codes (gain {scale.gain:g}): "
            "convert the archive with a gain above 0"
        )
    for place, threshold in enumerate(thresholds):
        if not 0 < fractional_code(threshold, scale) <= scale.max_code:
            low, high = scale.offset, scale.offset + scale.gain * scale.max_code
            raise ConfigError(
                f"{key}: {exact_number(threshold)} is outside of this store, whose values are {low:g} to {high:g}"
                f"{'' if scale.unit == '1' else ' ' + scale.unit}: choose {key} above the first and at most the second"
            )
        if threshold in thresholds[:place]:
            raise ConfigError(f"{key}: {exact_number(threshold)} is given twice: leave one out")
    return [math.ceil(fractional_code(threshold, scale)) for threshold in thresholds]


def fractional_code(threshold: float, scale: Scale) -> float:
    """Return the code that would have a value, rounded to float32, in which values are compared (`Scale.to_physical`).

    So 0.3 is code 3 of a gain of 0.1, for which float64 gives 3.0000000000000004, and 5 is code 500 of float32's 0.01.
    """
    exact = (threshold - scale.offset) / scale.gain
    return float(np.float32(exact)) if abs(exact) <= 2 * scale.max_code else exact  # NaN and what overflows as they are
