"""What the tests evaluate: windows made of noise, and a model that is one convolution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from shards.manifest import Scale
from toolkit.data.windows import Window
from toolkit.evaluate.perceptual import CONVOLUTIONS
from toolkit.evaluate.protocols import load_protocol
from toolkit.evaluate.run import evaluate_model
from toolkit.evaluate.table import ScoreTable

GREY = Scale(quantity="brightness", unit="1", offset=0.0, gain=1 / 255)
DBZ = Scale(quantity="radar reflectivity", unit="dBZ", offset=0.0, gain=0.25, max_code=254, missing_code=255)


class ListedWindows:
    """The reading side of a WindowSet over an array [n, T, C, H, W]."""

    def __init__(self, frames: np.ndarray, scale: Scale = GREY, modes: tuple[str | None, ...] = ("a", "b")) -> None:
        self.frames, self.scale, self.modes = frames, scale, modes

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Window:
        return Window(self.frames[index], f"w{index:03d}", self.modes[index % len(self.modes)])

    def time(self, index: int) -> str | None:
        return None


def noise_windows(count: int, length: int = 4, size: int = 12, seed: int = 0, **options: object) -> ListedWindows:
    frames = np.random.default_rng(seed).integers(0, 255, (count, length, 1, size, size), dtype=np.uint8)
    return ListedWindows(frames, **options)  # type: ignore[arg-type]


class Blur(nn.Module):
    """Predicts a fixed blur of the last frame, its own output after that."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.filter = nn.Conv2d(1, 1, 3, padding=1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.filter.weight.copy_(torch.rand(1, 1, 3, 3, generator=generator) / 5)
            self.filter.bias.fill_(0.01)

    def predict(
        self, context: Tensor, horizon: int, samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        frames = [context[:, -1]]
        for _ in range(horizon):
            frames.append(self.filter(frames[-1]))
        return torch.stack(frames[1:], dim=1).unsqueeze(0).expand(samples, -1, -1, -1, -1, -1)


class Dice(Blur):
    """`Blur` with noise of its generator on top; frame `broken` of every member after the first is NaN."""

    def __init__(self, broken: int | None = None) -> None:
        super().__init__()
        self.broken = broken
        self.members = 0

    def predict(
        self, context: Tensor, horizon: int, samples: int = 1, generator: torch.Generator | None = None
    ) -> Tensor:
        forecast = super().predict(context, horizon, samples).clone()
        forecast += 0.3 * torch.randn(forecast.shape, generator=generator)
        if self.broken is not None and self.members:
            forecast[:, :, self.broken] = torch.nan
        self.members += 1
        return forecast


PAPER = load_protocol("paper")


def evaluate(model: object, windows: ListedWindows, **options: object) -> ScoreTable:
    chosen = {"context": 2, "horizon": 2, "protocol": PAPER, "thresholds": (), "batch": 3, "device": "cpu"} | options
    return evaluate_model(model, windows, **chosen)  # type: ignore[arg-type]


def members_of(windows: ListedWindows, batch: int, count: int) -> list[list[torch.Tensor]]:
    """Every forecast [B, 2, C, H, W] that `Dice` makes, by batch and member, drawn in the stated order."""
    found = []
    for number in range(-(-len(windows) // batch)):
        generator = torch.Generator().manual_seed(number)
        frames = windows.frames[number * batch : (number + 1) * batch, :2]
        context = torch.from_numpy(frames).float() / windows.scale.max_code
        with torch.no_grad():
            found.append([Dice().predict(context, 2, generator=generator)[0] for _ in range(count)])
    return found


def random_trunk() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    trunk = {}
    for index, inputs, outputs, kernel, *_ in CONVOLUTIONS:
        scale = (2 / (inputs * kernel**2)) ** 0.5
        trunk[f"features.{index}.weight"] = scale * torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        trunk[f"features.{index}.bias"] = 0.1 * torch.randn(outputs, generator=generator)
    return trunk
