"""Which pixels of a frame are kept, and at what size: the options --crop and --size, which all archives share.

First the crop, then the size. A crop selects pixels and changes none. Resizing is bilinear between pixel centres,
without smoothing, as OpenCV's `resize` does it and so as the published results on KTH were made; shrinking to less than
half the size therefore skips pixels. A code for missing data is never mixed with values: what is observed is averaged
over the observed neighbours, and a pixel is missing where they weigh less than half.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError, UsageError
from shards.georeference import Grid
from shards.manifest import Codes
from shards.sources.inputs import by


@dataclass(frozen=True)
class Crop:
    """Rows [top, top + height) and columns [left, left + width) of a frame."""

    top: int
    left: int
    height: int
    width: int


def parse_crop(text: str, size: tuple[int, int]) -> Crop:
    """Parse `384` (centred square), `TOP,LEFT,HEIGHT,WIDTH` or `none`, within frames of `size` (height, width). Raises
    UsageError.
    """
    height, width = size
    try:
        numbers = [] if text == "none" else [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if text == "none":
        return Crop(0, 0, height, width)
    if len(numbers) == 1:
        side = numbers[0]
        crop = Crop((height - side) // 2, (width - side) // 2, side, side)
    elif len(numbers) == 4:
        crop = Crop(*numbers)
    else:
        crop = Crop(0, 0, 0, 0)
    inside = min(crop.top, crop.left) >= 0 and crop.top + crop.height <= height and crop.left + crop.width <= width
    if min(crop.height, crop.width) < 1 or not inside:
        raise UsageError(
            f"--crop {text}: frames are {by(size)} pixels (height x width); give SIDE for a centred square, "
            "TOP,LEFT,HEIGHT,WIDTH, or none"
        )
    return crop


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Parse `128` (square) or `HEIGHTxWIDTH`; None or `none` for no resizing. Raises UsageError."""
    if text is None or text == "none":
        return None
    try:
        sides = [int(part) for part in text.split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise UsageError(f"--size {text}: give SIDE for squares, or HEIGHTxWIDTH, such as 120x160")
    return sides[0], sides[-1]


@dataclass(frozen=True)
class Geometry:
    """From frames of `source` (height, width) to those that are stored."""

    source: tuple[int, int]
    crop: Crop
    size: tuple[int, int] | None = None
    missing_code: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what is stored."""
        return self.size or (self.crop.height, self.crop.width)

    def place(self, grid: Grid) -> Grid:
        """Return the grid of what is stored. Raises SourceError if `grid` isn't that of the source's frames."""
        if (grid.height, grid.width) != self.source:
            raise SourceError(
                f"the grid has {grid.height}x{grid.width} pixels, the frames have {by(self.source)}; repair the source"
            )
        crop = self.crop
        return grid.cut(crop.top, crop.left, crop.height, crop.width, self.shape)

    def apply(self, frames: Codes) -> Codes:
        """Cut and resize the last two axes of `frames`, which are `source`'s."""
        crop = self.crop
        cut = frames[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        return resize(cut, self.shape, self.missing_code)


def resize(codes: Codes, size: tuple[int, int], missing_code: int | None = None) -> Codes:
    """Resize bilinearly at pixel centres on the last two axes; see the module's docstring for missing pixels."""
    if codes.shape[-2:] == size:
        return codes
    rows, columns = _weights(codes.shape[-2], size[0]), _weights(codes.shape[-1], size[1])
    flat = codes.reshape(-1, *codes.shape[-2:])
    out = np.empty((len(flat), *size), dtype=codes.dtype)
    for frame, target in zip(flat, out, strict=True):  # one at a time: the floats of a long event would be large
        if missing_code is None or not (missing := frame == missing_code).any():
            target[:] = np.rint(_blend(frame.astype(np.float32), rows, columns))
            continue
        seen = _blend((~missing).astype(np.float32), rows, columns)
        values = _blend(np.where(missing, 0, frame).astype(np.float32), rows, columns)
        target[:] = np.where(seen >= 0.5, np.rint(values / np.maximum(seen, 0.5)), missing_code)
    return out.reshape(*codes.shape[:-2], *size)


_Weights = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]


def _weights(old: int, new: int) -> _Weights:
    """Per new pixel its two neighbours and the share of the second; beyond the edge the edge counts."""
    place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    first = np.floor(place).astype(np.intp)
    return first, np.minimum(first + 1, old - 1), (place - first).astype(np.float32)


def _blend(frame: npt.NDArray[np.float32], rows: _Weights, columns: _Weights) -> npt.NDArray[np.float32]:
    return _blend_rows(np.ascontiguousarray(_blend_rows(frame, rows).T), columns).T  # picking rows is cheap


def _blend_rows(frame: npt.NDArray[np.float32], weights: _Weights) -> npt.NDArray[np.float32]:
    first, second, share = weights
    above = frame.take(first, axis=0)
    blended = frame.take(second, axis=0)
    blended -= above
    blended *= share[:, None]
    blended += above
    return blended


def add_geometry_arguments(parser: argparse.ArgumentParser, crop: str | None, size: str | None, note: str = "") -> None:
    """Add --crop and --size, with the source's defaults; a crop of None is reported by `note`."""
    parser.add_argument(
        "--crop",
        default=crop,
        help=f"SIDE of a centred square, TOP,LEFT,HEIGHT,WIDTH, or none (default: {note or crop})",
    )
    parser.add_argument(
        "--size",
        default=size,
        help=f"then resize to SIDE or HEIGHTxWIDTH, bilinear; none to keep (default: {size or 'none'})",
    )
