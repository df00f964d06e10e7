"""Refuse a training that can't fit into memory, by arithmetic, before any of that memory is asked for.

A lower bound: what weights, gradients, Adam's state and the frames of a micro-batch take, without activations. The
resource estimate (`plan`) knows those as well.
"""

from __future__ import annotations

import os

import torch

from shards.manifest import FrameSpec
from toolkit.config import RunConfig
from toolkit.errors import ConfigError
from toolkit.models.base import count_parameters
from toolkit.shipped import command

GB = 1e9


def least_memory(config: RunConfig, shape: FrameSpec, ranks: int, gpu: bool) -> tuple[int, int]:
    """Return (bytes of the model and its optimizer on one rank, bytes of its frames in fp32), both at least."""
    train = config.train
    numbers = count_parameters(config.model, shape)
    width = 2 if train.precision == "bf16" else 4
    state = 0 if train.offload_optimizer and gpu else 8 + (4 if width == 2 else 0)
    divided = [ranks if train.stage >= stage else 1 for stage in (3, 2, 1)]
    model = sum(numbers * size // part for size, part in zip((width, width, state), divided, strict=True))
    sequences = train.micro_batch or train.share(ranks)
    frames = sequences * (config.data.context + config.data.horizon)
    return model, 4 * frames * shape.channels * shape.height * shape.width


def check_size(config: RunConfig, shape: FrameSpec, ranks: int, device: torch.device) -> None:
    """Check that a rank's device holds what a training needs at least.

    Raises:
        ConfigError: with both numbers, and which keys to change.
    """
    model, frames = least_memory(config, shape, ranks, device.type == "cuda")
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if model + frames > available:
        keys = "the options of `model`" if model > frames else "train.batch, data.context or data.horizon"
        raise ConfigError(
            f"this run needs at least {(model + frames) / GB:,.1f} GB on {device} ({model / GB:,.1f} for weights, "
            f"gradients and Adam's state, {frames / GB:,.1f} for frames), which has {available / GB:,.1f} GB: lower "
            f"{keys}. Resource estimate: {command('plan', '--config', 'FILE')}"
        )
