"""Forecasts of frames of any size in pieces of one size, blended without seams.

Neighbouring tiles overlap. Across an overlap of n pixels the later tile's share rises from nearly 0 to nearly 1 in the
shape of half a cosine, so that a tile counts for nothing at its own edge, where it knows least, and neither the
field nor its slope jumps. A pixel becomes a + share * (b - a): where two tiles agree the blend is what they say, to
the last bit. The model sees one tile at a time: its memory is that of a tile, whatever the frame.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from toolkit.errors import ConfigError

Predict = Callable[[Tensor], Tensor]


def predict_tiled(predict: Predict, frames: Tensor, tile: int, overlap: int) -> Tensor:
    """
    Args:
        predict: [B, Tc, C, h, w] -> [..., h, w], called once for each tile, h and w at most `tile`.
        frames: [B, Tc, C, H, W].
        tile: side of a tile; a frame that is smaller on one side is one tile there.
        overlap: pixels that neighbours share, at least; the last tiles end with the frame and may share more.

    Returns:
        [..., H, W].

    Raises:
        ConfigError: the overlap leaves no tile room to move on.
    """
    if not 0 <= overlap <= tile // 2:
        raise ConfigError(f"--tile {tile} --overlap {overlap}: the overlap is at least 0 and at most half a tile")
    height, width = frames.shape[-2:]
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    whole: Tensor | None = None
    for row, top in enumerate(rows):
        strip: Tensor | None = None
        for column, left in enumerate(columns):
            piece = predict(frames[..., top : top + tile, left : left + tile].contiguous())
            if strip is None:
                strip = piece.new_empty(*piece.shape[:-1], width)
            paste(strip, piece, left, columns[column - 1] + tile if column else left, dim=-1)
        assert strip is not None
        if whole is None:
            whole = strip.new_empty(*strip.shape[:-2], height, width)
        paste(whole, strip, top, rows[row - 1] + tile if row else top, dim=-2)
    assert whole is not None
    return whole


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along an axis; the last tile ends where the frame does."""
    last = max(size - tile, 0)
    return sorted({min(start, last) for start in range(0, last + tile - overlap, tile - overlap)})


def paste(target: Tensor, piece: Tensor, start: int, filled: int, dim: int) -> None:
    """Put `piece` into `target` from pixel `start` of axis `dim` on, blended with what stands there before `filled`."""
    shared = filled - start
    if shared > 0:
        place = torch.arange(1, shared + 1, device=piece.device, dtype=piece.dtype) / (shared + 1)
        share = 0.5 - 0.5 * torch.cos(torch.pi * place)
        share = share.view(-1, *[1] * (-1 - dim))
        before = target.narrow(dim, start, shared)
        before += share * (piece.narrow(dim, 0, shared) - before)
    rest = piece.shape[dim] - shared
    target.narrow(dim, filled, rest).copy_(piece.narrow(dim, shared, rest))
