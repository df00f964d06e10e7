"""Forecast frames of any size in tiles of one size, blended without seams.

Neighbouring tiles overlap. Across an overlap of n pixels the weight of the later tile rises from nearly 0 to nearly 1
as half a cosine, so that a tile has almost no weight at its edge, where it has the least context, and neither the field
nor its gradient is discontinuous. A pixel becomes a + weight * (b - a): where two tiles agree, the blend is bitwise
equal to both. Where one of them is NaN, the value of the other is used. The model processes one tile at a time, so
memory does not depend on the size of the frame.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.errors import ConfigError

Predict = Callable[[Tensor], Tensor]


def predict_tiled(predict: Predict, frames: Tensor, tile: int, overlap: int) -> Tensor:
    """Predict all tiles of a frame and blend them.

    Args:
        predict: [B, Tc, C, h, w] -> [..., h, w], called once for each tile, h and w at most `tile`.
        frames: [B, Tc, C, H, W].
        tile: side of a tile; an axis shorter than that has one tile.
        overlap: minimum overlap in pixels; the last tiles end at the edge of the frame and may overlap more.

    Returns:
        [..., H, W].

    Raises:
        ConfigError: the overlap is larger than half a tile.
    """
    if not 0 <= overlap <= tile // 2:
        raise ConfigError(f"--tile {tile} --overlap {overlap}: the overlap must be at least 0 and at most half a tile")
    height, width = frames.shape[-2:]
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    frame: Tensor | None = None
    for row, top in enumerate(rows):
        strip: Tensor | None = None
        for column, left in enumerate(columns):
            piece = predict(frames[..., top : top + tile, left : left + tile].contiguous())
            if strip is None:
                strip = piece.new_empty(*piece.shape[:-1], width)
            paste(strip, piece, left, columns[column - 1] + tile if column else left, dim=-1)
        assert strip is not None
        if frame is None:
            frame = strip.new_empty(*strip.shape[:-2], height, width)
        paste(frame, strip, top, rows[row - 1] + tile if row else top, dim=-2)
    assert frame is not None
    return frame


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """Return the first pixels of the tiles along an axis; the last tile ends at the edge of the frame."""
    last = max(size - tile, 0)
    return sorted({min(start, last) for start in range(0, last + tile - overlap, tile - overlap)})


def paste(target: Tensor, piece: Tensor, start: int, filled: int, dim: int) -> None:
    """Write `piece` into `target` from pixel `start` of axis `dim`, blended with existing pixels before `filled`."""
    shared = filled - start
    if shared > 0:
        place = torch.arange(1, shared + 1, device=piece.device, dtype=piece.dtype) / (shared + 1)
        weight = 0.5 - 0.5 * torch.cos(torch.pi * place)
        weight = weight.view(-1, *[1] * (-1 - dim))
        before, after = target.narrow(dim, start, shared), piece.narrow(dim, 0, shared)
        blend = before + weight * (after - before)
        before.copy_(torch.where(before.isnan(), after, torch.where(after.isnan(), before, blend)))
    rest = piece.shape[dim] - shared
    target.narrow(dim, filled, rest).copy_(piece.narrow(dim, shared, rest))
