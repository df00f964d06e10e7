"""LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018), AlexNet.

    d(x, y) = sum over l of the mean over positions of  w_l . (f_l(x) - f_l(y))^2

x and y have three channels in -1..1; f_l is the l-th of five feature maps, at each position divided by its length.

The w_l are the calibrated weights of version 0.1, from the installed `lpips` package. Its network is not used: it
imports torchvision, whose binary must match the build of torch. For the same weights the values are equal to the
package's (tests/toolkit/evaluate/test_perceptual.py).

The ImageNet weights of the trunk are not part of a package. They are searched, in this order, in the file that
`MODERNN_ALEXNET` names (.pth with torchvision's names, or .npz), and in torch's cache, where torchvision leaves them.
Nothing is downloaded: the error of a missing file has the command that fetches it.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.errors import ConfigError
from toolkit.evaluate.check import ALEXNET_URL as URL
from toolkit.evaluate.check import ALEXNET_VARIABLE as VARIABLE
from toolkit.evaluate.check import LPIPS_CHANNELS, LPIPS_SMALLEST, alexnet_file

# Convolutions of torchvision's AlexNet: index in `features`, inputs, outputs, kernel, stride, padding.
CONVOLUTIONS = (
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
)
POOL_BEFORE = (3, 6)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for -1..1
EPSILON = 1e-10
BLOCK = 1 << 22  # pixels in one pass; its largest maps are 4 times the frames


class LPIPS(nn.Module):
    """The distance between frames, in evaluation mode, without gradients."""

    def __init__(self, trunk: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
        """
        Args:
            trunk: `features.N.weight` and `.bias` of torchvision's AlexNet; other entries are ignored.
            heads: `linN.model.1.weight` [1, C, 1, 1] of the lpips package.
        """
        super().__init__()
        self.convolutions = nn.ModuleDict()
        for index, inputs, outputs, kernel, stride, padding in CONVOLUTIONS:
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding)
            weights = {name: trunk[f"features.{index}.{name}"] for name in ("weight", "bias")}
            convolution.load_state_dict(weights)
            self.convolutions[str(index)] = convolution
        for number in range(len(CONVOLUTIONS)):
            self.register_buffer(f"head{number}", heads[f"lin{number}.model.1.weight"].float())
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def features(self, frames: Tensor) -> list[Tensor]:
        """Return the five feature maps of frames [N, 3, H, W] in -1..1."""
        assert isinstance(self.shift, Tensor) and isinstance(self.scale, Tensor)
        maps, x = [], (frames - self.shift) / self.scale
        for index, *_ in CONVOLUTIONS:
            if index in POOL_BEFORE:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(self.convolutions[str(index)](x))
            maps.append(x)
        return maps

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distance float32 [N] of frames [N, 1 or 3, H, W], normally in -1..1.

        Raises:
            ConfigError: frames too small, or of another number of channels.
        """
        _, channels, height, width = first.shape
        if channels not in LPIPS_CHANNELS or min(height, width) < LPIPS_SMALLEST:
            raise ConfigError(
                f"LPIPS takes frames of 1 or 3 channels and at least {LPIPS_SMALLEST}x{LPIPS_SMALLEST} pixels, these "
                f"have {channels} and {height}x{width}: choose a protocol without it (eval.protocol)"
            )
        block = max(1, BLOCK // (height * width))
        parts = [
            self._block(a.float().expand(-1, 3, -1, -1), b.float().expand(-1, 3, -1, -1))
            for a, b in zip(first.split(block), second.split(block), strict=True)
        ]
        return torch.cat(parts)

    def _block(self, first: Tensor, second: Tensor) -> Tensor:
        total = first.new_zeros(first.shape[0])
        for number, (a, b) in enumerate(zip(self.features(first), self.features(second), strict=True)):
            square = (_unit(a) - _unit(b)).square()
            total = total + F.conv2d(square, self.get_buffer(f"head{number}")).mean((1, 2, 3))
        return total


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(1, keepdim=True).sqrt() + EPSILON)


def load_lpips(device: torch.device | str = "cpu") -> LPIPS:
    """Return LPIPS with calibrated weights.

    Raises:
        ConfigError: the `lpips` package or the weights of the trunk are missing.
    """
    return LPIPS(_trunk(), _heads()).to(device)


def _heads() -> dict[str, Tensor]:
    found = importlib.util.find_spec("lpips")  # finds it without importing it
    if found is None or not found.submodule_search_locations:
        raise ConfigError("LPIPS: the package lpips, which holds its weights, is not installed: pip install lpips")
    path = Path(next(iter(found.submodule_search_locations)), "weights", "v0.1", "alex.pth")
    heads: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return heads


def _trunk() -> dict[str, Tensor]:
    named = os.environ.get(VARIABLE)
    path = alexnet_file()
    if named and not path.exists():
        raise ConfigError(f"{VARIABLE}={named}: no such file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of another kind, or none: one answer to all of them
        raise ConfigError(
            f"LPIPS: no ImageNet weights of AlexNet: {path}: {type(error).__name__}: {error}. Nothing is downloaded "
            f"unasked: curl --create-dirs -o {path.with_suffix('.pth')} {URL}, or name the file in the variable "
            f"{VARIABLE}, or set eval.lpips=false"
        ) from None
    missing = [f"features.{index}.weight" for index, *_ in CONVOLUTIONS if f"features.{index}.weight" not in weights]
    if missing:
        raise ConfigError(f"{path}: no weights of torchvision's AlexNet: {missing[0]} is missing; see {URL}")
    return {name: value.float() for name, value in weights.items()}
