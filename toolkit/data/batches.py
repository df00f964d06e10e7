"""Read the micro-batches of a rank: frames of codes, in the order of `order.py`, starting at any step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from shards import StoreError, TransportError
from shards.manifest import Codes
from toolkit.data.augment import augment
from toolkit.data.order import rank_positions, window_at
from toolkit.data.readers import read_in_processes
from toolkit.data.windows import Window, WindowSet
from toolkit.wording import count

MOST_SKIPS = 100  # consecutive damaged samples after which reading fails


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        frames: codes [B, T, C, H, W].
        positions: of each sample in the infinite stream; identifies it and seeds its random numbers.
        keys: of each sample in the store.
        skipped: errors of samples that could not be read (`data.on_error: skip`).
    """

    frames: torch.Tensor
    positions: list[int]
    keys: list[str]
    skipped: list[str]

    @property
    def fingerprint(self) -> int:
        """A sum of 48-bit hashes of position and key; its sum over micro-batches and ranks identifies a batch."""
        names = (f"{position}:{key}" for position, key in zip(self.positions, self.keys, strict=True))
        return sum(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") for name in names)

    def pin_memory(self) -> Batch:
        """Pin the frames; the loader calls this in a thread."""
        return replace(self, frames=self.frames.pin_memory())


@dataclass(frozen=True)
class Share:
    """The share of one rank in every global batch."""

    batch: int
    micro_batch: int
    rank: int
    world_size: int

    @property
    def accumulation(self) -> int:
        """Micro-batches per optimizer step."""
        return self.batch // (self.world_size * self.micro_batch)


@dataclass(frozen=True)
class _Sample:
    frames: Codes
    position: int
    key: str
    skipped: list[str]


class _Stream(Dataset[_Sample]):
    """Windows by position."""

    def __init__(self, windows: WindowSet, seed: int, kinds: tuple[str, ...], on_error: str) -> None:
        self.windows, self.seed, self.kinds, self.on_error = windows, seed, kinds, on_error

    def __getitem__(self, position: int) -> _Sample:
        window, skipped = self._read(window_at(position, self.seed, len(self.windows)))
        frames = augment(window.frames, self.kinds, self.seed, position) if self.kinds else window.frames
        return _Sample(frames, position, window.key, skipped)

    def _read(self, index: int) -> tuple[Window, list[str]]:
        """Read a window, or with `skip` the next readable one: depends on the store only, so ranks stay consistent."""
        skipped: list[str] = []
        for further in range(min(MOST_SKIPS, len(self.windows))):
            try:
                return self.windows[(index + further) % len(self.windows)], skipped
            except TransportError:
                raise  # an unreachable server is not a damaged sample
            except StoreError as error:
                if self.on_error == "raise":
                    raise
                skipped.append(str(error))
        raise StoreError(f"{count(len(skipped), 'consecutive sample')} cannot be read; the last: {skipped[-1]}")


class _Positions(Sampler[list[int]]):
    """Micro-batches of positions, without end."""

    def __init__(self, share: Share, first_step: int) -> None:
        self.share, self.first_step = share, first_step

    def __iter__(self) -> Iterator[list[int]]:
        step, size = self.first_step, self.share.micro_batch
        while True:
            positions = rank_positions(step, self.share.batch, self.share.rank, self.share.world_size)
            for first in range(0, len(positions), size):
                yield list(positions[first : first + size])
            step += 1


def _collate(samples: list[_Sample]) -> Batch:
    return Batch(
        torch.from_numpy(np.stack([sample.frames for sample in samples])),
        [sample.position for sample in samples],
        [sample.key for sample in samples],
        [text for sample in samples for text in sample.skipped],
    )


def read_batches(
    windows: WindowSet,
    seed: int,
    share: Share,
    first_step: int,
    *,
    workers: int = 0,
    pin: bool = False,
    kinds: tuple[str, ...] = (),
    on_error: str = "raise",
) -> Iterator[Batch]:
    """Yield the micro-batches of this rank without end, starting at optimizer step `first_step`.

    Args:
        workers: number of reader processes; 0 reads in this process. They are started by a forkserver, because forked
            children of a process that has used threads or zarr can hang (toolkit/data/readers.py).
        pin: use page-locked memory, for the copy to a GPU.
        kinds: of augmentation, see toolkit/data/augment.py.
        on_error: `raise`, or `skip` damaged samples, which are reported in `Batch.skipped`.
    """
    stream, positions = _Stream(windows, seed, kinds, on_error), _Positions(share, first_step)
    if workers:
        return read_in_processes(stream, positions, _collate, workers, pin)
    # The loader draws worker seeds: not from the global generator.
    own = torch.Generator().manual_seed(0)
    return iter(DataLoader(stream, batch_sampler=positions, collate_fn=_collate, pin_memory=pin, generator=own))
