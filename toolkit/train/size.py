"""Refuse a training that can't fit into memory, by arithmetic, before any of that memory is asked for.

A lower bound: what weights, gradients, the optimizer's state and the frames of a micro-batch take, without activations.
The resource estimate (`plan`) knows those as well.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

from shards.manifest import FrameSpec
from toolkit.checkpoint.initialise import freeze
from toolkit.config import RunConfig
from toolkit.data.readers import PREFETCH
from toolkit.errors import ConfigError
from toolkit.models.base import build_model
from toolkit.shipped import command
from toolkit.train.optimizer import moments_of

GB = 1e9
READER_BYTES = 240e6  # of a reader process without its batches: mostly PyTorch's libraries


def least_memory(config: RunConfig, shape: FrameSpec, ranks: int, gpu: bool) -> tuple[int, int]:
    """Return (bytes of the model and its optimizer on one rank, bytes of its frames in fp32), both at least."""
    train = config.train
    with torch.device("meta"):
        built = build_model(config.model, shape)
    freeze(built, train.init_from)
    present = sum(parameter.numel() for parameter in built.parameters())
    trained = sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)
    width = 2 if train.precision == "bf16" else 4
    state = 4 * len(moments_of(train)) + 4 * (train.ema is not None) + 4 * (width == 2)
    if train.offload_optimizer and gpu:
        state = 0
    sizes = (present * width, trained * width, trained * state)
    model = sum(size // (ranks if train.stage >= stage else 1) for size, stage in zip(sizes, (3, 2, 1), strict=True))
    sequences = train.micro_batch or train.share(ranks)
    frames = sequences * (config.data.context + config.data.horizon)
    return model, 4 * frames * shape.channels * shape.height * shape.width


def host_memory() -> int:
    """Return the bytes of memory that this process and its children may use: of the machine, or of their cgroup."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):
        own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        for folder in (Path("/sys/fs/cgroup") / own.lstrip("/"), Path("/sys/fs/cgroup")):
            for name in ("memory.max", "memory/memory.limit_in_bytes"):
                with contextlib.suppress(OSError, ValueError):
                    limits.append(int((folder / name).read_text()))
    return min(limits)


def check_readers(config: RunConfig, shape: FrameSpec, ranks: int) -> None:
    """Check that the machine's memory holds the reader processes of all ranks on it.

    Args:
        ranks: on this machine.

    Raises:
        ConfigError: with both numbers.
    """
    workers, data = config.data.num_workers, config.data
    windows = PREFETCH * (config.train.micro_batch or -(-config.train.batch // ranks))
    each = READER_BYTES + windows * (data.context + data.horizon) * shape.bytes
    needed, available = ranks * workers * each, host_memory()
    if needed > available:
        raise ConfigError(
            f"data.num_workers {workers}: {ranks * workers:,} reader processes on this machine need about "
            f"{needed / GB:,.1f} GB ({each / 1e6:,.0f} MB each), which has {available / GB:,.1f} GB: use at most "
            f"{max(0, int(available / 2 / each / ranks))}"
        )


def check_size(config: RunConfig, shape: FrameSpec, ranks: int, device: torch.device) -> None:
    """Check that a rank's device holds what a training needs at least.

    Raises:
        ConfigError: with both numbers, and which keys to change.
    """
    model, frames = least_memory(config, shape, ranks, device.type == "cuda")
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    else:
        available = host_memory()
    if model + frames > available:
        keys = "the options of `model`" if model > frames else "train.batch, data.context or data.horizon"
        raise ConfigError(
            f"this run needs at least {(model + frames) / GB:,.1f} GB on {device} ({model / GB:,.1f} for weights, "
            f"gradients and the optimizer's state, {frames / GB:,.1f} for frames), which has {available / GB:,.1f} GB: "
            f"lower {keys}. Resource estimate: {command('plan', '--config', 'FILE')}"
        )
