"""The device of a process, and how it computes there: `train.device`, `train.tf32`, `train.deterministic`.

`init_world` calls these in order, before anything runs on a GPU: `set_arithmetic`, `choose`, and once the ranks have
met `check_seats`.

fp32 means fp32: torch by itself lets cuDNN round the operands of fp32 convolutions to TF32, 10 bits of mantissa instead
of 23, on cards from compute capability 8.0 on. Here that is done only where `train.tf32` asks for it.

What `train.deterministic` sets, and its effects on a GPU:

    cuBLAS                  CUBLAS_WORKSPACE_CONFIG, which it reads once: so this comes before anything else
    cuDNN                   deterministic algorithms, and none chosen by a race of timings
    attention               torch's own: flash in its deterministic form, memory-efficient without split keys, cuDNN not
    TrajGRU's warp          gathers, whose backward is sorted: grid_sample's adds gradients in no fixed order
    everything else         torch refuses an operator that has no deterministic form, by name

Two runs of one command on one kind of machine then give the same bits, as they do on a CPU without it.
"""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from toolkit.config.sections import Device, TrainConfig
from toolkit.errors import ConfigError
from toolkit.wording import count, some

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

WORKSPACES = (":4096:8", ":16:8")  # of cuBLAS: those with which it adds in a fixed order


def set_arithmetic(config: TrainConfig) -> None:
    """Set how torch rounds and in which order it adds, in this process, from now on.

    Raises:
        ConfigError: `train.deterministic`, and CUBLAS_WORKSPACE_CONFIG is set to what isn't.
    """
    with warnings.catch_warnings():
        # torch 2.9 to 2.11 point to newer names of these switches. The old names set both, and the compiler still reads
        # the old ones: with only the new ones set it fails there.
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
        torch.backends.cudnn.allow_tf32 = config.tf32
    if config.deterministic:
        workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACES[0])
        if workspace not in WORKSPACES:
            raise ConfigError(
                f"train.deterministic: CUBLAS_WORKSPACE_CONFIG is {workspace!r}, with which cuBLAS promises no order "
                f"of sums: unset it, or set it to {' or '.join(WORKSPACES)}"
            )
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # one more kernel
        torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = config.deterministic
    if torch.are_deterministic_algorithms_enabled() != config.deterministic:
        torch.use_deterministic_algorithms(config.deterministic)


def choose(wanted: Device, local_rank: int) -> torch.device:
    """Return this process's device, and make it torch's current one.

    A rank takes the GPU of its number among those that it sees. Where tasks see only GPUs of their own (Slurm's
    `--gpus-per-task`, `--gpu-bind=single:1`, MIG) the number goes round: `check_seats` finds whether that was right.

    Raises:
        ConfigError: `cuda`, and torch sees no GPU; or a job of Slurm was given GPUs and can't use them.
    """
    if wanted == "auto" and (given := os.environ.get("SLURM_STEP_GPUS")) and not torch.cuda.is_available():
        node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
        raise ConfigError(
            f"can't use the GPUs of this job ({given}) on node {node}: {why_none()}. Install torch for GPUs, tell who "
            "runs the cluster if it is this node's driver, or train on CPUs: --gpus-per-node 0, or train.device=cpu"
        )
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"train.device cuda: on {socket.gethostname()} {why_none()}: use a machine with a GPU, or set "
            "train.device=auto (--device auto), which takes the CPU where there is none"
        )
    index = local_rank % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def why_none() -> str:
    """Return why torch sees no GPU, as far as it knows."""
    if not (torch.version.cuda or torch.version.hip):
        return f"torch {torch.__version__} is built without support of GPUs"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"torch {torch.__version__} sees no GPU" + (f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden == "" else "")


def facts(config: TrainConfig, device: torch.device) -> dict[str, object]:
    """Return what a run computes on and how, for env.json, the log and the report."""
    found: dict[str, object] = {"device": "CPU", "tf32": config.tf32, "deterministic": config.deterministic}
    if device.type == "cuda":
        found |= {
            "device": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


@dataclass(frozen=True)
class Seat:
    """Where a rank computes."""

    host: str
    gpu: str | None  # what no other GPU is called; None: the CPU
    visible: int  # GPUs that the rank sees

    @staticmethod
    def of(device: torch.device) -> Seat:
        """Return this process's."""
        if device.type == "cpu":
            return Seat(socket.gethostname(), None, 0)
        # A part of a card (MIG) may bear the whole card's UUID, but is named by its own.
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if device.index < len(named) and named[device.index].startswith("MIG-"):
            gpu = named[device.index]
        else:
            properties: Any = torch.cuda.get_device_properties(device)
            gpu = str(getattr(properties, "uuid", device.index))  # torch before 2.5 doesn't tell
        return Seat(socket.gethostname(), gpu, torch.cuda.device_count())


def check_seats(store: Store, rank: int, size: int, device: torch.device, limit: float) -> None:
    """Compare the devices of all ranks, through what they share besides collectives: NCCL, whose first call would hang
    or fail in its own words, isn't needed for it.

    Args:
        limit: how long to wait for the others, in seconds.

    Raises:
        ConfigError: two ranks compute on the same GPU, or some on GPUs and some on CPUs. On all ranks alike.
    """
    keys = [f"seat/{other}" for other in range(size)]
    store.set(keys[rank], json.dumps(asdict(Seat.of(device))))
    store.wait(keys, timedelta(seconds=limit))
    fault = fault_of([Seat(**json.loads(text)) for text in store.multi_get(keys)])
    if fault is None:
        return
    store.add("seats seen", 1)
    deadline = time.monotonic() + limit
    while rank == 0 and store.add("seats seen", 0) < size and time.monotonic() < deadline:
        time.sleep(0.01)  # rank 0 may serve the store, and all are to have read it
    raise ConfigError(fault)


def fault_of(seats: list[Seat]) -> str | None:
    """Return what is wrong with the ranks' devices, or None."""
    on_cpu = [rank for rank, seat in enumerate(seats) if seat.gpu is None]
    if on_cpu and len(on_cpu) < len(seats):
        named = [f"rank {rank} on {seats[rank].host}" for rank in on_cpu]
        return (
            f"{len(on_cpu)} of {len(seats)} ranks would compute on the CPU and the others on GPUs: {some(named)}. "
            "Look at the GPUs there (nvidia-smi), or set train.device=cpu for all"
        )
    held: dict[tuple[str, str], list[int]] = {}
    for rank, seat in enumerate(seats):
        if seat.gpu is not None:
            held.setdefault((seat.host, seat.gpu), []).append(rank)
    for (host, gpu), ranks in held.items():
        if len(ranks) > 1:
            return _crowd(host, gpu, ranks, seats)
    return None


def _crowd(host: str, gpu: str, ranks: list[int], seats: list[Seat]) -> str:
    here = [seat for seat in seats if seat.host == host]
    cards = max(len({seat.gpu for seat in here}), *(seat.visible for seat in here))
    what = (
        f"{host}: {count(len(here), 'rank')} and {count(cards, 'GPU')} visible: ranks {', '.join(map(str, ranks))} "
        f"would share {gpu}, and NCCL takes one rank per GPU. "
    )
    if cards < len(here):
        return what + (
            f"Start {count(cards, 'rank')} on this machine, let the job see {len(here)} GPUs (CUDA_VISIBLE_DEVICES, "
            "Slurm's --gpus-per-node), or set train.device=cpu, which connects the ranks by gloo"
        )
    return what + "LOCAL_RANK, the number of a rank on its machine, must differ: start with torchrun or srun, or set it"
