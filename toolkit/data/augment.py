"""Augmentation of training windows: exact symmetries of the grid and of time, chosen per sample.

Each kind is applied with probability 1/2, determined by (seed, position of the sample), so a sample is the same on any
number of ranks or reader processes and after any restart. Evaluation does not augment.
"""

from __future__ import annotations

import numpy as np

from shards.manifest import Codes
from toolkit.data.order import stream_of

KINDS = ("flip", "rotate", "reverse")


def augment(frames: Codes, kinds: tuple[str, ...], seed: int, position: int) -> Codes:
    """Flip, rotate and reverse one window at random.

    Args:
        frames: [T, C, H, W].
        kinds: of `flip` (left-right and up-down, independently), `rotate` (by 90, 180 or 270 degrees; by 180 on grids
            that are not square), `reverse` (time).

    Returns:
        [T, C, H, W], contiguous.
    """
    stream = stream_of("augment", seed, position)
    coins = stream.random_sample(4) < 0.5
    quarter_turns = int(stream.randint(1, 4))
    if "flip" in kinds:
        frames = frames[..., ::-1] if coins[0] else frames
        frames = frames[..., ::-1, :] if coins[1] else frames
    if "rotate" in kinds and coins[2]:
        square = frames.shape[-1] == frames.shape[-2]
        frames = np.rot90(frames, quarter_turns if square else 2, axes=(-2, -1))
    if "reverse" in kinds and coins[3]:
        frames = frames[::-1]
    return np.ascontiguousarray(frames)
