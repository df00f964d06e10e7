"""Sequences that lie in two splits: whoever trains on what it is tested with gets scores that are too good.

Every window of WINDOW frames (or of the shortest event's length) is compared by the CRCs of its frames. Windows in
which nothing moves, such as frames without rain, are equal anyway and don't count.
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.store import Store

WINDOW = 10
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing

_Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Windows:
    """The windows of a split: hash, event and first frame of each."""

    hashes: _Hashes
    events: npt.NDArray[np.int64]
    frames: npt.NDArray[np.int64]


def overlap_warnings(store: Store) -> list[str]:
    """Return a warning for every two splits that share windows. Reads all frames; raises StoreErrors."""
    splits = [split for split, info in store.splits.items() if info.frames]
    if len(splits) < 2:
        return []
    shortest = min(event.length for split in splits for event in store.events(split))
    length = min(WINDOW, shortest)
    windows = {split: _windows(store, split, length) for split in splits}
    found = []
    for one, two in itertools.combinations(splits, 2):
        same = np.isin(windows[two].hashes, windows[one].hashes)
        if not same.any():
            continue
        first = int(np.argmax(same))
        there = int(np.argmax(windows[one].hashes == windows[two].hashes[first]))
        told = [
            f"{split} {store.events(split)[int(windows[split].events[place])].key} from frame "
            f"{int(windows[split].frames[place])}"
            for split, place in ((one, there), (two, first))
        ]
        frames = f"{length} frames" if length > 1 else "one frame"
        found.append(
            f"{one} and {two} share {int(same.sum())} windows of {frames} (of {len(same)} in {two}), the first: "
            f"{told[0]} and {told[1]}: scores on {two} will be too good; remove the copies, or keep them in one split"
        )
    return found


def _windows(store: Store, split: str, length: int) -> Windows:
    hashes, events, frames = [], [], []
    for event in store.events(split):
        pixels = store.read(split, event.index, 0, event.length)
        codes = np.array([zlib.crc32(frame.data) for frame in pixels], dtype=np.uint64)
        moving = _moving(pixels, codes, length)
        combined = np.zeros(event.length - length + 1, dtype=np.uint64)
        for place in range(length):
            combined = combined * _FACTOR + codes[place : place + len(combined)] + np.uint64(1)
        places = np.flatnonzero(moving)
        hashes.append(combined[places])
        events.append(np.full(len(places), event.index, dtype=np.int64))
        frames.append(places.astype(np.int64))
    return Windows(np.concatenate(hashes), np.concatenate(events), np.concatenate(frames))


def _moving(pixels: npt.NDArray[np.uint8], codes: _Hashes, length: int) -> npt.NDArray[np.bool_]:
    """Return which windows hold something that is worth comparing: half of their steps change, or the one frame isn't
    of one value.
    """
    if length == 1:
        return np.array([frame.min() != frame.max() for frame in pixels])
    changes = np.concatenate([[0], np.cumsum(codes[1:] != codes[:-1])])
    return np.asarray(changes[length - 1 :] - changes[: len(changes) - length + 1] >= max(1, (length - 1) // 2))
