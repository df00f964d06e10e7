"""Which rank this process is in a step of Slurm, from the environment alone: a container has no `scontrol`.

Does not import torch.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from toolkit.errors import ConfigError

_NODES = r"(?:[^,\[\]]|\[[\d,-]+\])+"  # one item of a list: n[08-10,12]-ib
FIRST_PORT, PORTS = 12_000, 20_000  # below 32,768, where Linux takes the ports of outgoing connections


@dataclass(frozen=True)
class Task:
    """One task of a step of several, which is one rank."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int

    @property
    def environment(self) -> dict[str, str]:
        """The same in the variables that torchrun sets."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def task(environ: Mapping[str, str] = os.environ) -> Task | None:
    """Return the rank of this process in its step; None outside a step, in a step of one task, and in a shell.

    Raises:
        ConfigError: a step whose variables are incomplete.
    """
    # A batch script has SLURM_PROCID and SLURM_NTASKS too, but no step; `srun --pty bash` has a step, but its shell is
    # one process whatever the number of tasks.
    if "SLURM_STEP_ID" not in environ or "SLURM_PTY_PORT" in environ or int(environ.get("SLURM_NTASKS", "1")) == 1:
        return None
    try:
        node = int(environ["SLURM_NODEID"])
        nodes = environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"]
        return Task(
            rank=int(environ["SLURM_PROCID"]),
            size=int(environ["SLURM_NTASKS"]),
            local_rank=int(environ["SLURM_LOCALID"]),
            local_size=tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])[node],
            address=_reachable(hosts(nodes)[0], environ),
            port=FIRST_PORT + int(environ["SLURM_JOB_ID"]) % PORTS,  # jobs that share a node have ids of their own
        )
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"this is a step of {environ['SLURM_NTASKS']} tasks, but its environment doesn't say which of them this "
            f"process is ({type(error).__name__}: {error}): start it with srun, and keep the SLURM_ variables"
        ) from None


def job_name(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the job as shown by squeue, for example 4711 or 4711_3, and its number of earlier starts; None outside."""
    if "SLURM_JOB_ID" not in environ:
        return None
    array = environ.get("SLURM_ARRAY_JOB_ID")
    name = f"{array}_{environ['SLURM_ARRAY_TASK_ID']}" if array else environ["SLURM_JOB_ID"]
    return f"{name}_{environ.get('SLURM_RESTART_COUNT', '0')}"


def is_earlier_start(name: object, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a name as `job_name` gives it is of this very job, but of another start."""
    mine = job_name(environ)
    return mine is not None and name != mine and str(name).rpartition("_")[0] == mine.rpartition("_")[0]


def hosts(nodelist: str) -> list[str]:
    """Expand the names in Slurm's short form, in its order: `n[08-10,12],gpu1-ib` is n08, n09, n10, n12, gpu1-ib."""
    if not re.fullmatch(rf"{_NODES}(,{_NODES})*", nodelist):
        raise ValueError(f"not a list of nodes: {nodelist!r}")
    names: list[str] = []
    for item in re.findall(_NODES, nodelist):
        parts = [""]
        for text, ranges in re.findall(r"([^\[\]]+)|\[([^\]]*)\]", item):
            ends = [text] if text else _numbers(ranges)
            parts = [part + end for part in parts for end in ends]
        names += parts
    return names


def _numbers(ranges: str) -> list[str]:
    """['08', '09', '12'] for '08-09,12'."""
    numbers = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        numbers += [f"{number:0{len(first)}}" for number in range(int(first), int(last or first) + 1)]
    return numbers


def tasks_per_node(counts: str) -> list[int]:
    """[2, 2, 1] for '2(x2),1'."""
    result = []
    for part in counts.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"not a list of tasks: {counts!r}")
        result += [int(match[1])] * int(match[2] or 1)
    return result


def _reachable(host: str, environ: Mapping[str, str]) -> str:
    """Return the host, or if it cannot be resolved here, the address of the node that started the step: in a batch job
    that is the same node."""
    address = environ.get("SLURM_LAUNCH_NODE_IPADDR")
    if address is None:
        return host
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return address
    return host
