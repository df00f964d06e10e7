"""Who am I: one process, or one rank of a torchrun job or of a step of Slurm.

RANK and WORLD_SIZE both set: torchrun's environment. Only one of them is an error, because training would silently fall
apart into lone processes. Neither: a task of a Slurm step of several (toolkit/slurm.py), or a single process.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from toolkit import slurm
from toolkit.errors import EXIT_FAILURE, ConfigError, PeerError, ToolkitError
from toolkit.rendezvous import limit_s, meet

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# The last resort against a rank that is silent; in training the watchdog speaks much earlier.
COLLECTIVE_TIMEOUT = timedelta(hours=1)

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    store: Store | None = None  # what the ranks share besides collectives; None without a process group

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The elementwise sum over ranks, on every rank."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)))

    def barrier(self) -> None:
        if self.world_size > 1:
            distributed.barrier()

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def together(self, action: Callable[[], T]) -> T:
        """What rank 0's `action` returns, on every rank. If it fails there, all ranks fail, with its exit code."""
        if self.world_size == 1:
            return action()
        failure: Exception | None = None
        answer: Any = None
        if self.is_main:
            try:
                answer = action()
            except Exception as error:
                failure = error
        said = None if failure is None else (f"rank 0: {failure}", int(getattr(failure, "exit_code", EXIT_FAILURE)))
        said, answer = self.broadcast((said, answer))
        if failure is not None:
            raise failure
        if said is not None:
            raise PeerError(*said)
        return answer

    def call_out(self, word: str) -> None:
        """Let every rank know a word, without waiting for them; they see it with `heard`."""
        if self.store is not None:
            self.store.set(f"word/{word}", "1")

    def heard(self, word: str) -> bool:
        """Whether any rank has called it out."""
        return self.store is not None and bool(self.store.check([f"word/{word}"]))

    def close(self) -> None:
        """Leave the process group."""
        if distributed.is_initialized():
            distributed.destroy_process_group()


def init(
    group: bool = False, stop: Callable[[], bool] = lambda: False, timeout: timedelta = COLLECTIVE_TIMEOUT
) -> World:
    """Find out who this process is, pick its device, share the CPU's cores, join the process group.

    Args:
        group: make a process group even for one process (DeepSpeed wants one).
        stop: becomes true when this process is asked to stop; looked at while it waits for the other ranks.
        timeout: how long a collective may wait for a rank.

    Raises:
        ConfigError: half an environment of torchrun or Slurm.
        ToolkitError: the ranks can't find each other; see toolkit/rendezvous.py.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ and (task := slurm.task()) is not None:
        os.environ.update(task.environment)
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
    store = None
    if (size > 1 or group) and not distributed.is_initialized():
        # No port is opened for a lone process.
        store = meet(rank, size, stop) if size > 1 else distributed.HashStore()  # type: ignore[attr-defined]
        _join(rank, size, device, store, timeout)
    return World(rank, size, local_rank, device, store)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Slurm may show each task only its own card: then that card is number 0.
    index = local_rank if torch.cuda.device_count() > 1 else 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _join(rank: int, size: int, device: torch.device, store: Store, timeout: timedelta) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        # A rank that dies just now is waited for no longer than one that never came.
        joining = timedelta(seconds=limit_s())
        distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=joining)
        distributed.distributed_c10d._set_pg_timeout(timeout)
    except RuntimeError as error:
        name = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
        raise ToolkitError(
            f"rank {rank} of {size} on {socket.gethostname()}: the ranks found each other, but {backend} can't connect "
            f"them: {error}. If this machine has several networks, name the right one in {name}"
        ) from None
