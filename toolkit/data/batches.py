"""Read the micro-batches of a rank: uint8 frames, in the order of `order.py`, starting at any step."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from shards import StoreError, TransportError
from toolkit.data.augment import augment
from toolkit.data.order import rank_positions, window_at
from toolkit.data.windows import Window, WindowSet
from toolkit.errors import ToolkitError
from toolkit.signals import CAUGHT
from toolkit.wording import count

MOST_SKIPS = 100  # consecutive damaged samples after which reading fails


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        frames: uint8 [B, T, C, H, W].
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
    frames: NDArray[np.uint8]
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
            children of a process that has used threads or zarr can hang. They ignore stop signals, which Slurm and
            terminals send to all processes of a job, because the training needs them until its checkpoint. They exit
            with this process.
        pin: use page-locked memory, for the copy to a GPU.
        kinds: of augmentation, see toolkit/data/augment.py.
        on_error: `raise`, or `skip` damaged samples, which are reported in `Batch.skipped`.
    """
    loader = DataLoader(
        _Stream(windows, seed, kinds, on_error),
        batch_sampler=_Positions(share, first_step),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=_end_with_training,
        generator=torch.Generator().manual_seed(0),  # the loader draws worker seeds; do not use the global generator
    )
    if not workers:
        return iter(loader)
    resource_tracker.ensure_running()  # started below, it would unblock signals
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)  # inherited by child processes
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return _from_readers(batches, workers)


def _end_with_training(_: int) -> None:
    """Exit this reader with the training; torch only watches its parent process, the forkserver."""
    training = multiprocessing.parent_process()
    assert training is not None

    def wait() -> None:
        training.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _from_readers(batches: Iterator[Batch], workers: int) -> Iterator[Batch]:
    """Yield batches, with a clear error if a reader process dies (torch checks every five seconds)."""
    while True:
        try:
            batch = next(batches)
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # A reader that dies while it sends frames breaks the connection; errors raised in it contain "Caught ...
            # in".
            if "Caught " in str(error) or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
                raise
            how = str(error) or type(error).__name__
            raise ToolkitError(
                f"one of the {workers} reader processes died ({how}): probably killed by the out-of-memory killer. "
                "Run it again, with fewer data.num_workers if memory is short"
            ) from None
        yield batch
