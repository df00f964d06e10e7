"""Reader processes: batches that other processes read ahead, and send through shared memory where there is room.

Each reader keeps PREFETCH micro-batches ready. Their frames lie in /dev/shm, which a container limits to 64 MB unless
it is told otherwise (`docker run --shm-size`). A batch that finds no room there is sent through a pipe instead: its
bytes are the same, at the cost of two more copies. So a small /dev/shm is logged, and ends no training.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from toolkit.errors import ToolkitError
from toolkit.signals import CAUGHT
from toolkit.wording import count

if TYPE_CHECKING:
    from toolkit.data.batches import Batch

PREFETCH = 2  # micro-batches that each reader keeps ready
SHARED = "/dev/shm"  # noqa: S108  where Linux keeps shared memory
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Parcel:
    """What a reader sends: a batch, or the error that it met.

    Attributes:
        batch: its frames in shared memory, or empty where `frames` holds them.
        frames: that are sent through the pipe.
        error: of the toolkit or of the store, to be raised where the batch is wanted.
    """

    batch: Batch | None
    frames: NDArray[np.generic] | None = None
    error: Exception | None = None

    def pin_memory(self) -> _Parcel:
        """Pin the frames; the loader calls this in a thread."""
        return self if self.batch is None else _Parcel(self.unpack().pin_memory())

    def unpack(self) -> Batch:
        """Return the batch, or raise the error."""
        if self.error is not None:
            raise self.error
        assert self.batch is not None
        return self.batch if self.frames is None else replace(self.batch, frames=torch.from_numpy(self.frames))


class _Careful(Dataset[Any]):
    """Samples; one that can't be read is the error itself, which the loader would else wrap into a traceback."""

    def __init__(self, samples: Dataset[Any]) -> None:
        self.samples = samples

    def __getitem__(self, position: int) -> Any:
        try:
            return self.samples[position]
        except ValueError as error:
            if not hasattr(error, "exit_code"):  # a bug, whose traceback is wanted
                raise
            return error


@dataclass(frozen=True)
class _Pack:
    """Makes a parcel of samples, in the reader."""

    collate: Callable[[list[Any]], Batch]

    def __call__(self, samples: list[Any]) -> _Parcel:
        error = next((sample for sample in samples if isinstance(sample, Exception)), None)
        if error is not None:
            pickle.dumps(error)  # fails here, and not in the thread that sends
            return _Parcel(None, error=error)
        batch = self.collate(samples)
        try:
            batch.frames.share_memory_()
        except RuntimeError:  # no room. In the thread that sends it would be lost, and waited for until the watchdog
            return _Parcel(replace(batch, frames=torch.empty(0)), batch.frames.numpy())
        return _Parcel(batch)


def read_in_processes(
    samples: Dataset[Any],
    positions: Sampler[list[int]],
    collate: Callable[[list[Any]], Batch],
    workers: int,
    pin: bool,
) -> Iterator[Batch]:
    """Yield the batches of `positions`, read by other processes.

    They ignore stop signals, which Slurm and terminals send to all processes of a job, because the training needs them
    until its checkpoint. They exit with this process.
    """
    loader = DataLoader(
        _Careful(samples),
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=_Pack(collate),
        pin_memory=pin,
        prefetch_factor=PREFETCH,
        multiprocessing_context="forkserver",
        worker_init_fn=_end_with_training,
        generator=torch.Generator().manual_seed(0),  # the loader draws worker seeds; do not use the global generator
    )
    multiprocessing.get_context("forkserver").set_forkserver_preload(["toolkit.data.tether"])
    os.environ["MODERNN_TETHER"] = str(os.getpid())
    resource_tracker.ensure_running()  # started below, it would unblock signals
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)  # inherited by child processes
    try:
        parcels = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    return _from_readers(parcels, workers)


def _end_with_training(_: int) -> None:
    """Exit this reader with the training, where the system can't (tether.py); torch only watches the forkserver."""
    training = multiprocessing.parent_process()
    assert training is not None

    def wait() -> None:
        training.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _from_readers(parcels: Iterator[_Parcel], workers: int) -> Iterator[Batch]:
    """Yield batches, with a clear error if a reader process dies (torch checks every five seconds)."""
    while True:
        try:
            parcel = next(parcels)
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
        yield parcel.unpack()


def log_shared_memory(workers: int, ranks: int, batch_bytes: int) -> None:
    """Log a warning where the batches that readers keep ready don't fit into shared memory.

    Args:
        workers: readers of each rank.
        ranks: on this machine.
        batch_bytes: of a micro-batch of frames.
    """
    try:
        free = shutil.disk_usage(SHARED).free
    except OSError:
        return
    needed = ranks * (workers * PREFETCH + 1) * batch_bytes  # and the one in use
    if workers and needed > free:
        logger.warning(
            "%s has %s bytes free, %s with %d batches of %s bytes each need up to %s: what doesn't fit is sent "
            "through pipes, which is slower. In a container give it more: docker run --shm-size=%dm; or lower "
            "data.num_workers",
            SHARED,
            f"{free:,}",
            count(ranks * workers, "reader process", "reader processes"),
            PREFETCH,
            f"{batch_bytes:,}",
            f"{needed:,}",
            -(-2 * needed // 2**20),
        )
