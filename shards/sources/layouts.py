"""The order of an array's axes: `--layout ntchw` names them, n sequences, t frames, c channels, h rows, w columns.

Files don't say it. Where a shape leaves one plausible reading, that is taken and reported; where it leaves two, such as
[6, 53, H, W] (six sequences, or six frames?), the user has to say.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError
from shards.sources.inputs import by

AXES = {"n": "sequences", "t": "frames", "c": "channels", "h": "rows", "w": "columns"}
_CHANNELS = (1, 2, 3, 4)
_CLEARLY = 10  # times as long: that axis counts sequences


def parse_layout(text: str) -> str:
    """Check what --layout was given: t, h and w once each, h before w, and n and c if need be."""
    if not {"t", "h", "w"} <= set(text) <= set(AXES) or len(set(text)) < len(text) or text.index("h") > text.index("w"):
        raise argparse.ArgumentTypeError(
            f"{text!r}: letters for the axes in their order, such as nthw, tnhw, ntchw, nthwc or thw "
            f"({', '.join(f'{letter} {what}' for letter, what in AXES.items())})"
        )
    return text


def guess_layout(where: object, shape: Sequence[int], sequences_first: bool = False) -> str:
    """Return the layout that a shape allows. Raises SourceError where it allows none, or more than one.

    Args:
        where: what the message calls the array.
        shape: of 3 to 5 axes.
        sequences_first: what else is known says that the first axis counts sequences.
    """
    found = _frame_layouts(tuple(shape))
    if found and len(found[0]) < len(shape):
        one, two = shape[:2]
        orders = ["nt", "tn"]
        if sequences_first or one == 1 or (two > 1 and one >= _CLEARLY * two):  # a sequence has more than one frame
            orders = ["nt"]
        elif two == 1 or two >= _CLEARLY * one:
            orders = ["tn"]
        found = [order + layout[1:] for layout in found for order in orders]
    if len(found) == 1:
        return found[0]
    raise SourceError(
        f"{where}: an array of {by(shape)} can be read as {' or '.join(found) or 'nothing known'}; say --layout "
        f"{found[0] if found else 'nthw'} or another ({', '.join(f'{letter} {what}' for letter, what in AXES.items())})"
    )


def _frame_layouts(shape: tuple[int, ...]) -> list[str]:
    """Return how the axes may be ordered, without that which counts sequences of 4 or 5 axes."""
    if len(shape) == 3:
        return ["thw", "hwt"] if shape[0] == shape[1] != shape[2] else [] if shape[2] in (1, 3) else ["thw"]
    if len(shape) == 4:
        found = [layout for layout, axis in (("tchw", 1), ("thwc", 3)) if shape[axis] in (1, 3)]
        return found or ["thw"]
    if len(shape) == 5:
        found = [layout for layout, axis in (("tchw", 2), ("thwc", 4)) if shape[axis] in _CHANNELS]
        return found or ["tchw", "thwc"]
    return []


def frames_of(array: Any, layout: str, index: int, begin: int, end: int) -> npt.NDArray[Any]:
    """Read frames [begin, end) of sequence `index` of an array or an HDF5 dataset: [T, C, H, W]."""
    place: dict[str, int | slice] = {"n": index, "t": slice(begin, end)}
    values = np.asarray(array[tuple(place.get(letter, slice(None)) for letter in layout)])
    rest = layout.replace("n", "")
    if "c" not in rest:
        values, rest = values[..., None], f"{rest}c"
    return values.transpose([rest.index(letter) for letter in "tchw"])


def sides_of(shape: Sequence[int], layout: str) -> dict[str, int]:
    """Return the length of every axis by its letter; n and c are 1 where the array lacks them."""
    return {"n": 1, "c": 1, **dict(zip(layout, shape, strict=True))}
