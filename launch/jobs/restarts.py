"""Why a run's jobs began anew: `<run>/restarts.tsv`, which launch/slurm/job.sh writes at a restart.

    1763851234  4711_3  2  node[1-2]  node2  lost node2

When the job began anew (UNIX seconds), the job, which start of it this is, the nodes of the start before, those of them
that were lost, and why that start ended. Columns are separated by tabs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

NAME = "restarts.tsv"


@dataclass(frozen=True)
class Restart:
    """One line."""

    time: float
    job: str
    start: int  # 2 for the first restart
    nodes: str  # as Slurm writes lists of them
    lost: str  # with commas
    cause: str


def restarts_of(run: Path) -> list[Restart]:
    """All restarts of a run, oldest first; a line that a kill left half is no restart that is known."""
    restarts: list[Restart] = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run / NAME).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                when, job, start, nodes, lost, cause = line.split("\t")
                restarts.append(Restart(float(when), job, int(start), nodes, lost, cause))
    return restarts
