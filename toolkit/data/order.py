"""Which sample comes when: a pure function of (seed, epoch, number of windows).

Training consumes one endless stream of samples. Position p lies in epoch p // n, at place p % n of that epoch's
permutation. A global batch of step s is positions s * batch .. (s + 1) * batch - 1, whatever the number of ranks, so
the only cursor that a checkpoint needs is the number of samples consumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def stream_of(*words: int | str) -> np.random.RandomState:
    """A random stream named by words.

    RandomState is used because numpy guarantees its streams never change between versions; its successor may.
    """
    return np.random.RandomState(_key(words))


class Restarted:
    """The streams of `stream_of`, one after the other in one object: making one costs 200 us, to seed it anew 15."""

    def __init__(self) -> None:
        self._state = np.random.RandomState(0)

    def named(self, *words: int | str) -> np.random.RandomState:
        """Return the stream with this name, from its beginning; the one returned before is gone."""
        self._state.seed(_key(words))
        return self._state


def _key(words: Sequence[int | str]) -> NDArray[np.uint32]:
    digest = hashlib.sha256("/".join(str(word) for word in words).encode()).digest()
    return np.frombuffer(digest, dtype="<u4")


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of `count` windows in an epoch."""
    return stream_of("order", seed, epoch).permutation(count).astype(np.int64)


def window_at(position: int, seed: int, count: int) -> int:
    """The window at a position of the endless stream."""
    epoch, place = divmod(position, count)
    return int(permutation(seed, epoch, count)[place])


def rank_positions(step: int, batch: int, rank: int, world_size: int) -> range:
    """The positions of one rank in the global batch of an optimizer step; `world_size` divides `batch`."""
    share = batch // world_size
    first = step * batch + rank * share
    return range(first, first + share)
