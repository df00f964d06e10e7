"""A model as users write it: one file with its options."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from shards.manifest import FrameSpec
from toolkit.models.base import Noise, StepModel
from toolkit.models.registry import OddKernel, StepOptions

SMALLEST = 1


class Widths(StepOptions):
    kernel: OddKernel = Field(3, ge=SMALLEST, description="odd kernel size")


class Recurrent(StepModel):
    """Needs one convolution a layer."""

    def __init__(self, options: Widths, shape: FrameSpec) -> None:
        super().__init__()
        self.hidden = options.hidden
        depth = shape.channels * options.patch**2
        self.embed = nn.Conv2d(depth, options.hidden, 1)
        padding = options.kernel // 2
        self.cells = nn.ModuleList(
            nn.Conv2d(2 * options.hidden, options.hidden, options.kernel, padding=padding)
            for _ in range(options.layers)
        )
        self.read_out = nn.Conv2d(options.hidden, depth, 1)

    def init_state(self, batch: int, height: int, width: int, like: Tensor, noise: Noise | None) -> list[Tensor]:
        return [like.new_zeros(batch, self.hidden, height, width) for _ in self.cells]

    def memories(self, state: list[Tensor]) -> list[Tensor]:
        return state

    def step(self, frame: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        after, x = [], self.embed(frame)
        for cell, hidden in zip(self.cells, state, strict=True):
            x = torch.tanh(self.layer(cell, torch.cat([x, hidden], 1)))
            after.append(x)
        return self.read_out(x), after


class Forgetful(Recurrent):
    """Breaks the contract: a forecast depends on the one before."""

    calls = 0

    def step(self, frame: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        self.calls += 1
        made, after = super().step(frame, state)
        return made + self.calls, after


class DrawnWidths(Widths):
    @property
    def stochastic(self) -> bool:
        return True


class SecretlyDrawn(Recurrent):
    """Draws its first state, and does not declare it."""

    def init_state(self, batch: int, height: int, width: int, like: Tensor, noise: Noise | None) -> list[Tensor]:
        first = super().init_state(batch, height, width, like, noise)
        return first if noise is None else [noise.normal(*state.shape[1:]).to(state) for state in first]


class Drawn(SecretlyDrawn):
    stochastic = True

    def __init__(self, options: DrawnWidths, shape: FrameSpec) -> None:
        super().__init__(options, shape)


class Noisy(Recurrent):
    """Stochastic in the module alone."""

    stochastic = True


class SaysNoisy(Recurrent):
    """Stochastic in the options alone."""

    def __init__(self, options: DrawnWidths, shape: FrameSpec) -> None:
        super().__init__(options, shape)


class Untyped(StepModel):
    def __init__(self, options, shape) -> None:
        super().__init__()


class WrongOptions(Recurrent):
    def __init__(self, options: FrameSpec, shape: FrameSpec) -> None:
        super().__init__(options, shape)
