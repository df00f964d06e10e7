"""Sequences that lie in two splits: whoever trains on what it is tested with gets scores that are too good.

Every window of WINDOW frames, and every shorter event as a whole, is compared by the CRCs of its frames. Windows in
which nothing moves, such as frames without rain, are equal anyway and don't count.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.store import Event, Store

WINDOW = 10
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing

_Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Frames:
    """What is kept of an event: the CRC of each frame, and whether it holds more than one value."""

    codes: _Hashes
    varied: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Windows:
    """The windows of a split: hash, event and first frame of each, and whether its event is compared by it."""

    hashes: _Hashes
    events: npt.NDArray[np.int64]
    frames: npt.NDArray[np.int64]
    compared: npt.NDArray[np.bool_]


def overlap_warnings(store: Store) -> list[str]:
    """Return a warning for every two splits that share windows, by their length. Reads all frames; raises
    StoreErrors.
    """
    splits = [split for split, info in store.splits.items() if info.frames]
    if len(splits) < 2:
        return []
    seen = {split: [_frames(store, split, event) for event in store.events(split)] for split in splits}
    lengths = {min(WINDOW, len(event.codes)) for events in seen.values() for event in events}
    found = []
    for length in sorted(lengths, reverse=True):
        windows = {split: _windows(events, length) for split, events in seen.items()}
        for one, two in itertools.combinations(splits, 2):
            there, here = windows[one], windows[two]
            same = np.isin(here.hashes, there.hashes[there.compared])
            same |= here.compared & np.isin(here.hashes, there.hashes)
            if same.any():
                first = int(np.argmax(same))
                where = int(np.argmax(there.hashes == here.hashes[first]))
                pair = _place(store, one, there, where), _place(store, two, here, first)
                found.append(_warning(one, two, length, int(same.sum()), len(same), pair))
    return found


def _warning(one: str, two: str, length: int, shared: int, count: int, pair: tuple[str, str]) -> str:
    frames = f"{length} frames" if length > 1 else "one frame"
    return (
        f"{one} and {two} share {shared} window{'s' * (shared > 1)} of {frames} (of {count} in {two}), the first: "
        f"{pair[0]} and {pair[1]}: scores on {two} will be too good; remove the copies, or keep them in one split"
    )


def _place(store: Store, split: str, windows: Windows, number: int) -> str:
    return f"{split} {store.events(split)[int(windows.events[number])].key} from frame {int(windows.frames[number])}"


def _frames(store: Store, split: str, event: Event) -> Frames:
    pixels = store.read(split, event.index, 0, event.length)
    codes = np.array([zlib.crc32(frame.data) for frame in pixels], dtype=np.uint64)
    return Frames(codes, np.array([frame.min() != frame.max() for frame in pixels]))


def _windows(events: Sequence[Frames], length: int) -> Windows:
    parts = []
    for index, event in enumerate(events):
        if len(event.codes) < length:
            continue
        combined = np.zeros(len(event.codes) - length + 1, dtype=np.uint64)
        for place in range(length):
            combined = combined * _FACTOR + event.codes[place : place + len(combined)] + np.uint64(1)
        places = np.flatnonzero(_moving(event, length))
        compared = length == WINDOW or len(event.codes) == length
        parts.append((combined[places], np.full(len(places), index), places, np.full(len(places), compared)))
    if not parts:
        parts = [(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))]
    return Windows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _moving(event: Frames, length: int) -> npt.NDArray[np.bool_]:
    """Return which windows hold something that is worth comparing: half of their steps change, or the one frame isn't
    of one value.
    """
    if length == 1:
        return event.varied
    codes = event.codes
    changes = np.concatenate([[0], np.cumsum(codes[1:] != codes[:-1])])
    return np.asarray(changes[length - 1 :] - changes[: len(changes) - length + 1] >= max(1, (length - 1) // 2))
