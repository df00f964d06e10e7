"""Models of a few thousand parameters, and what tests of several models share."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from toolkit.config import RunConfig, make_config
from toolkit.models.registry import MODELS

SMALL = {
    "modernn": {"layers": 2, "hidden": 8},
    "convlstm": {"layers": 2, "hidden": 8, "kernel": 3},
    "modernn_released": {"layers": 2, "hidden": 8},
    "predrnn": {"layers": 2, "hidden": 8, "kernel": 3},
    "mim": {"layers": 3, "hidden": 8, "kernel": 3},
    "conv_tt_lstm": {"layers": 1, "hidden": 4, "blocks": [2, 3, 2], "skip": 2, "kernel": 3, "rank": 3, "steps": 4},
    "rim": {"layers": 2, "hidden": 9, "modules": 3, "active": 2, "kernel": 3, "value": 5, "heads": 2},
    "trajgru": {"hidden": [4, 6], "flows": [3, 2], "strides": [2, 2], "stem": 3, "flow_hidden": 4},
    "svg_lp": {"size": 32, "width": 4, "latent": 8, "rnn": 8, "z": 3},
    "simvp": {"frames": 3, "spatial_hidden": 4, "hidden": 8, "layers": 2, "mlp_ratio": 2},
}


def config_of(name: str, **options) -> RunConfig:
    train = {key: options.pop(key) for key in ("loss_frames",) if key in options}
    train["activation_checkpointing"] = {"policy": options.pop("checkpointing", "none")}
    return make_config({"model": {"name": name, **SMALL.get(name, {}), **options}, "train": train}, "test")


TRAINED = [name for name, entry in MODELS.items() if entry.trained]


NEEDING_PYSTEPS = ("pysteps", "steps")


def needing_extras(names: Iterable[str]) -> list[Any]:
    """Parameters for pytest; those that need what isn't installed are skipped."""
    absent = pytest.mark.skipif(find_spec("pysteps") is None, reason="pip install '.[pysteps]'")
    return [pytest.param(name, marks=absent) if name in NEEDING_PYSTEPS else name for name in names]


def assert_same(ours, plain, parameters) -> None:
    """Outputs and all gradients of a random projection of them agree to 1e-10."""
    for a, b in zip(ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)
    directions = [torch.randn_like(a) for a in ours]
    of_ours = torch.autograd.grad(sum((a * d).sum() for a, d in zip(ours, directions, strict=True)), parameters)
    of_plain = torch.autograd.grad(sum((b * d).sum() for b, d in zip(plain, directions, strict=True)), parameters)
    for a, b in zip(of_ours, of_plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)
        assert a.abs().max() > 0


def blobs(shift: tuple[float, float], length: int, size: int = 48) -> torch.Tensor:
    """Frames [1, T, 1, size, size] of smooth spots that move by (right, down) pixels per frame."""
    grid = torch.arange(size, dtype=torch.float32)
    spots = ((18, 14, 3.0), (30, 22, 4.0), (16, 34, 5.0), (26, 8, 3.5))  # x, y, width
    frames = []
    for t in range(length):
        right, down = shift[0] * t, shift[1] * t
        frames.append(
            sum(
                torch.exp(-((grid - x - right).square() + (grid - y - down).square().unsqueeze(1)) / (2 * width**2))
                for x, y, width in spots
            )
        )
    return torch.stack(frames)[None, :, None] / 2
