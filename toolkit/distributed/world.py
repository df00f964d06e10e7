"""Distributed context: rank, world size and device of this process, under torchrun, in a step of Slurm, or alone.

RANK and WORLD_SIZE both set: torchrun's environment. Only one of them is an error, because training would silently fall
apart into lone processes. Neither: a task of a Slurm step of several (slurm.py), or a single process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from shards import log
from toolkit.config.sections import TrainConfig
from toolkit.distributed import device as devices
from toolkit.distributed import slurm
from toolkit.distributed.rendezvous import LIMIT_VARIABLE, limit_s, meet
from toolkit.errors import EXIT_FAILURE, ConfigError, PeerError, ToolkitError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# The last resort against a rank that is silent; in training the watchdog speaks much earlier.
COLLECTIVE_TIMEOUT = timedelta(hours=1)
INTERFACE = {"nccl": "NCCL_SOCKET_IFNAME", "gloo": "GLOO_SOCKET_IFNAME"}

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

    @property
    def local_size(self) -> int:
        """The number of ranks on this machine."""
        return _ranks_here()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the elementwise sum over ranks, on every rank."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)))

    def barrier(self) -> None:
        """Wait for all ranks. A sum that is looked at: NCCL's own barrier has to guess the device."""
        if self.world_size > 1:
            self.any(False)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def run_on_rank_zero(self, action: Callable[[], T]) -> T:
        """Return what rank 0's `action` returns, on every rank. If it fails, all ranks fail, with its exit code."""
        if self.world_size == 1:
            return action()
        failure: Exception | None = None
        answer: Any = None
        if self.is_main:
            try:
                answer = action()
            except Exception as error:
                failure = error
        fault = None if failure is None else (f"rank 0: {failure}", int(getattr(failure, "exit_code", EXIT_FAILURE)))
        fault, answer = self.broadcast((fault, answer))
        if failure is not None:
            raise failure
        if fault is not None:
            raise PeerError(*fault)
        return answer

    def set_flag(self, name: str) -> None:
        """Set a flag that every rank sees with `is_flag_set`, without waiting for them."""
        if self.store is not None:
            self.store.set(f"flag/{name}", "1")

    def is_flag_set(self, name: str) -> bool:
        """Return whether any rank has set the flag."""
        return self.store is not None and bool(self.store.check([f"flag/{name}"]))

    def close(self) -> None:
        """Leave the process group."""
        leave_group()


def leave_group() -> None:
    """Leave the process group, if this process is in one: ending in it, gloo's threads may abort the process."""
    if distributed.is_initialized():
        deepspeed = sys.modules.get("deepspeed")
        if deepspeed is not None and deepspeed.comm.is_initialized():
            deepspeed.comm.destroy_process_group()  # and its own references to it
        else:
            distributed.destroy_process_group()


def init_world(
    train: TrainConfig | None = None,
    group: bool = False,
    stop: Callable[[], bool] = lambda: False,
    timeout: timedelta = COLLECTIVE_TIMEOUT,
) -> World:
    """Find out who this process is, set its device and arithmetic, share the CPU's cores, join the process group.

    Args:
        train: on which device, and how it computes there, see toolkit/distributed/device.py; None: the defaults.
        group: make a process group even for one process (DeepSpeed wants one).
        stop: becomes true when this process is asked to stop; looked at while it waits for the other ranks.
        timeout: how long a collective may wait for a rank.

    Raises:
        ConfigError: half an environment of torchrun or Slurm; no GPU, or fewer than ranks.
        ToolkitError: the ranks can't find each other; see toolkit/distributed/rendezvous.py.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ and (task := slurm.task()) is not None:
        os.environ.update(task.environment)
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 1:
        raise ConfigError(f"{missing[0]} is not set but its counterpart is: unset both, or start with torchrun")
    rank, size = int(given["RANK"] or 0), int(given["WORLD_SIZE"] or 1)
    log.configure(rank, size)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    train = train or TrainConfig()
    devices.set_arithmetic(train)
    device = devices.choose(train.device, local_rank)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _ranks_here()))
    store = None
    if (size > 1 or group) and not distributed.is_initialized():
        # No port is opened for a lone process.
        store = meet(rank, size, stop) if size > 1 else distributed.HashStore()  # type: ignore[attr-defined]
        _join(rank, size, device, store, timeout)
    return World(rank, size, local_rank, device, store)


def _ranks_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _join(rank: int, size: int, device: torch.device, store: Store, timeout: timedelta) -> None:
    """Make the process group, and a first sum over it: NCCL connects with the first collective, gloo at once.

    NCCL connects inside C++, and waits there forever for a rank that died meanwhile: so it does in a thread of its
    own, which is given up after the time limit.

    Raises:
        ConfigError: the ranks' devices don't go together, see toolkit/distributed/device.py.
        ToolkitError: they can't be connected, or not in time.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    limit = limit_s()  # a rank that dies just now is waited for no longer than one that never came
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
            with on_device:  # a new thread begins on GPU 0
                if size > 1:
                    devices.check_seats(store, rank, size, device, limit)
                distributed.init_process_group(
                    backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=limit)
                )
                if size > 1:
                    one = torch.ones((), device=device)
                    distributed.all_reduce(one)
                    one.item()  # on a GPU the sum is only begun before
        except BaseException as error:  # for the waiting thread to raise
            failure.append(error)

    thread = threading.Thread(target=connect, name="connect", daemon=True)
    thread.start()
    deadline = time.monotonic() + limit + min(5.0, limit)  # the library's own words, if it has any, come at the limit
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(0.05)  # in parts, so that signals are seen meanwhile
    if thread.is_alive():
        said = f"no answer within {limit:g} s ({LIMIT_VARIABLE}): a rank died just now, or waits in another network"
    elif not failure:
        distributed.distributed_c10d._set_pg_timeout(timeout)
        return
    elif isinstance(failure[0], RuntimeError):
        said = " ".join(str(failure[0]).partition("Exception raised from")[0].split())  # without C++'s stack
    else:
        raise failure[0]
    name = INTERFACE[backend]
    raise ToolkitError(
        f"rank {rank} of {size} on {socket.gethostname()}: the ranks found each other, but {backend} can't connect "
        f"them: {said}. If this machine has several networks, name the right one in {name} (now "
        f"{os.environ.get(name, 'not set')})" + "; NCCL_DEBUG=INFO tells more" * (backend == "nccl")
    ) from None
