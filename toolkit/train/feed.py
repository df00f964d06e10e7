"""This rank's micro-batches, and what happens where they can't be had: a store that stalls, is damaged or was replaced.

A rank without data still takes part in the step, with placeholders and a flag (`Engine.step`): so all ranks learn of it
at the same place, nothing is updated, and the steps before it can be saved.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch

from toolkit.config import RunConfig
from toolkit.data.batches import Batch, Share, read_batches
from toolkit.data.order import rank_positions
from toolkit.data.readers import log_shared_memory
from toolkit.data.stalls import CalledWindows, Iterated, Reads
from toolkit.distributed.world import World
from toolkit.errors import EXIT_DATA, PeerError, StoppedError
from toolkit.train.check import Data

logger = logging.getLogger(__name__)

STOP = "stop"  # the flag by which a rank that waits for data learns that another was asked to stop


class Feed:
    """The data of a training on one rank.

    Args:
        step: that training starts from.
        is_asked_to_stop: whether this rank was.
        begin_read: called before each read; returns how many seconds it may take.

    Attributes:
        batches: micro-batches in order; the profiler may put a wrapper around them.
        val: the windows of the validation, or None.
        fault: why this rank has no data for the step, or None.
    """

    def __init__(
        self,
        config: RunConfig,
        data: Data,
        share: Share,
        step: int,
        world: World,
        is_asked_to_stop: Callable[[], bool],
        begin_read: Callable[[], float],
    ) -> None:
        self.config, self.share, self.world = config, share, world
        self.spec = data.train.frames
        self.fault: ValueError | None = None
        self._asked = is_asked_to_stop
        if world.local_rank == 0:
            frame_bytes = self.spec.bytes
            log_shared_memory(
                config.data.num_workers,
                world.local_size,
                share.micro_batch * (config.data.context + config.data.horizon) * frame_bytes,
            )
        self._reads = Reads(self.is_stopping, world.device)
        read = read_batches(
            data.train,
            config.seed,
            share,
            step,
            workers=config.data.num_workers,
            pin=world.device.type == "cuda",
            kinds=config.data.augment,
            on_error=config.data.on_error,
        )
        self.batches: Iterator[Batch] = Iterated(self._reads, read, begin_read)
        self.val = data.val and CalledWindows(self._reads, data.val, begin_read)

    def is_stopping(self) -> bool:
        """Whether any rank was asked to stop, as far as this one can know without waiting for them."""
        if self._asked():
            self.world.set_flag(STOP)
            return True
        return self.world.is_flag_set(STOP)

    def fetch(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step; placeholders where they can't be had, and `fault` is set."""
        try:
            batches = [next(self.batches) for _ in range(self.share.accumulation)]
        except ValueError as error:
            if not hasattr(error, "exit_code"):
                raise
            self.fault = error
            return [self._placeholder(step)] * self.share.accumulation
        for fault in (fault for batch in batches for fault in batch.skipped):
            logger.warning("step %d: skipped a damaged sample: %s", step, fault)
        return batches

    def _placeholder(self, step: int) -> Batch:
        """Return a micro-batch of the right shape."""
        share, data = self.share, self.config.data
        positions = list(rank_positions(step, share.batch, share.rank, share.world_size)[: share.micro_batch])
        frames = torch.zeros(
            (len(positions), data.context + data.horizon, *self.spec.shape), dtype=getattr(torch, self.spec.dtype)
        )
        return Batch(frames, positions, [""] * len(positions), [])

    def agree(self) -> ValueError | None:
        """Return the error to end with after a step that was lost; None: a rank was asked to stop. Collective."""
        own = None if self.fault is None or isinstance(self.fault, StoppedError) else self.fault
        told = None if own is None else (str(own), int(getattr(own, "exit_code", EXIT_DATA)))
        faults: list[tuple[str, int] | None] = [told]
        if self.world.world_size > 1:
            faults = [None] * self.world.world_size
            torch.distributed.all_gather_object(faults, told)
        for rank, fault in enumerate(faults):
            if fault is not None:
                text = f"rank {self.world.rank} ends because rank {rank} has no data: {fault[0]}"
                return own or PeerError(text, fault[1])
        return None

    def close(self) -> None:
        """End the reader processes and the thread that waits for them."""
        # Readers end when nothing refers to their batches: at once, for a training is part of a cycle, and at the
        # interpreter's end they would be waited for without having been told.
        del self.batches
        self._reads.close()
