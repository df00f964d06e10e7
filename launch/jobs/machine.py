"""The processors and GPUs that this machine, or a job on it, shares out among runs. Does not import torch."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """Processors and GPUs that this process may use."""

    cpus: int
    gpus: tuple[str, ...]  # names for CUDA_VISIBLE_DEVICES

    @staticmethod
    def here() -> Machine:
        """Return the processors that this process may use, and the NVIDIA GPUs, found without torch."""
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            devices = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
            return Machine(cpus, tuple(str(number) for number in range(len(devices))))
        return Machine(cpus, tuple(part.strip() for part in visible.split(",") if part.strip()))

    def jobs(self, ranks: int) -> int:
        """Return how many jobs of that many ranks run side by side by default."""
        return max(1, (len(self.gpus) or self.cpus) // ranks)

    def environment(self, jobs: int, ranks: int, slot: int) -> list[str]:
        """Return arguments of `env` for the job in a slot: its share of processors and GPUs.

        A number of threads that the user set stays. Jobs share GPUs when there are fewer than jobs times ranks; the
        ranks of one job can't, and its training refuses it (`check_seats`), unless `train.device` is `cpu`.
        """
        settings = []
        if "OMP_NUM_THREADS" not in os.environ:
            settings.append(f"OMP_NUM_THREADS={max(1, self.cpus // (jobs * ranks))}")
        if self.gpus:
            mine = {self.gpus[(slot * ranks + rank) % len(self.gpus)]: None for rank in range(ranks)}
            settings.append(f"CUDA_VISIBLE_DEVICES={','.join(mine)}")
        elif "CUDA_VISIBLE_DEVICES" not in os.environ:
            return ["-u", "CUDA_VISIBLE_DEVICES", *settings]  # submitit would set it to nothing and hide all
        return settings


def share_of_processors(places: int, place: int) -> set[int]:
    """Return the processors of one of several places; those of all where there are fewer processors than places."""
    mine = sorted(os.sched_getaffinity(0))
    each = len(mine) // places
    return set(mine[place * each : (place + 1) * each]) if each else set(mine)
