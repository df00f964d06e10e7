"""A stack of recurrent cells between an optional 1x1 patch embedding and a 1x1 read-out."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from toolkit.models.base import Noise, StepModel

LayerState = tuple[Tensor, Tensor]  # hidden state H and memory C (of ModeRNN the slot bus B), [B, hidden, h, w] each


class StackedCells(StepModel):
    """Cells on top of one another: each reads H_t of the cell below, the read-out that of the last.

    Args:
        depth: channels of a patched frame.
        hidden: channels of each cell's H and memory.
        cells: modules that take (x, state) and return the state after it, first layer first. They are made after the
            embedding and before the read-out, which fixes the order in which parameters are drawn.
        embed: a 1x1 convolution without bias takes a frame to `hidden` channels; else the first cell reads the frame.
    """

    def __init__(self, depth: int, hidden: int, cells: Iterable[nn.Module], embed: bool = False) -> None:
        super().__init__()
        self.hidden = hidden
        self.embed = nn.Conv2d(depth, hidden, 1, bias=False) if embed else None
        self.cells = nn.ModuleList(cells)
        self.read_out = nn.Conv2d(hidden, depth, 1, bias=False)

    def init_state(self, batch: int, height: int, width: int, like: Tensor, noise: Noise | None) -> list[LayerState]:
        zero = like.new_zeros(batch, self.hidden, height, width)
        return [(zero, zero) for _ in self.cells]

    def memories(self, state: list[LayerState]) -> list[Tensor]:
        return [memory for _, memory in state]

    def step(self, frame: Tensor, state: list[LayerState]) -> tuple[Tensor, list[LayerState]]:
        after = []
        x = frame if self.embed is None else self.embed(frame)
        for cell, layer in zip(self.cells, state, strict=True):
            layer = self.layer(cell, x, layer)
            x = layer[0]
            after.append(layer)
        return self.read_out(x), after
