"""Who am I: one process, or one rank of a torchrun job.

RANK and WORLD_SIZE both set: torchrun's environment. Neither: a single process. Only one of them is an error, because
training would silently fall apart into lone processes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from toolkit.errors import ConfigError

COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # a rank that is silent for longer ends the others


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over ranks, on every rank."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            distributed.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        """Leave the process group."""
        if distributed.is_initialized():
            distributed.destroy_process_group()


def init(group: bool = False) -> World:
    """Find out who this process is, pick its device, share the CPU's cores, join the process group.

    Args:
        group: make a process group even for one process (DeepSpeed wants one).

    Raises:
        ConfigError: half a torchrun environment.
    """
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 1:
        raise ConfigError(f"{missing[0]} is not set but its counterpart is: unset both, or start with torchrun")
    rank, size = int(given["RANK"] or 0), int(given["WORLD_SIZE"] or 1)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = _device(local_rank)
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    if (size > 1 or group) and not distributed.is_initialized():
        _join(rank, size, device)
    return World(rank, size, local_rank, device)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Slurm may show each task only its own card: then that card is number 0.
    index = local_rank if torch.cuda.device_count() > 1 else 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _join(rank: int, size: int, device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if size > 1:
        distributed.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    else:
        # No port is opened for a lone process.
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
