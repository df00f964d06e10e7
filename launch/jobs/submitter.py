"""What hands run directories to something that runs them: this machine (local.py) or a cluster (launch/slurm).

A `Submitter` takes run directories and returns handles; a job's only knowledge is its run directory, and what became
of a run is read from there, never from the scheduler's word (see toolkit/rundir/status.py).
"""

from __future__ import annotations

import contextlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar

JOB_SCRIPT = Path(__file__).resolve().parent / "job.py"
ENDING = "COMPLETING"  # a job of a queue that ends at this moment
WRITERS = 16
Item = TypeVar("Item")
Result = TypeVar("Result")


class JobState(Enum):
    """What a submitter knows about a job; not whether its run succeeded."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class Job:
    """Handle of a submitted job."""

    run: Path
    number: int


class QueueEntry(Protocol):
    """A job in a scheduler's queue, as the scheduler calls it and its state."""

    @property
    def name(self) -> str: ...

    @property
    def state(self) -> str: ...


JobCommand = Callable[[Path, int, bool], list[str]]
"""(run directory, ranks, output to log files?) -> the command of its job."""


def job_command(run: Path, ranks: int, log_files: bool, script: Path = JOB_SCRIPT) -> list[str]:
    """Return the command that a job runs, the same on every cluster."""
    flags = ["--log-files"] if log_files else []
    return [sys.executable, str(script), str(run), "--ranks", str(ranks), *flags]


class Submitter(ABC):
    """Something that runs run directories.

    What only a scheduler has (a queue that outlives this command, a job for the report) has a default here that is
    right without one.
    """

    detached = False  # True: jobs continue without the command that submitted them, which need not wait

    def assign(  # noqa: B027  for clusters
        self, resources: Mapping[Path, Mapping[str, object]], scored: Collection[Path] = ()
    ) -> None:
        """Note what the sweep file asks for its runs, by keys of a cluster's profile.

        Args:
            scored: runs without a training to do, which are only evaluated.
        """

    @abstractmethod
    def ranks_of(self, run: Path) -> int:
        """Return how many processes train a run."""

    @property
    def runs_per_job(self) -> int:
        """Most runs that one job of a scheduler's queue has room for."""
        return 1

    def fitting(self, runs: Sequence[Path], room: int) -> Collection[Path]:
        """Return the first runs, `room` at most, that make full jobs."""
        return runs[:room]

    def check(self) -> None:  # noqa: B027  nothing can be missing by default
        """Raise an error if this machine cannot submit, before anything is made."""

    def announce(self, runs: Sequence[Path]) -> list[str]:
        """Return lines that say how runs become jobs."""
        return []

    def queued(self) -> Mapping[Path, QueueEntry]:
        """Return the jobs that runs of this sweep have in the queue, whoever submitted them."""
        return {}

    def adopt(self, queued: Mapping[Path, str]) -> list[Job]:
        """Follow jobs that were in the queue before; `queued` maps runs to the names of their jobs."""
        return []

    def strangers(self, planned: Collection[Path]) -> list[str]:
        """Return a line for each job in the queue that is of the sweep, but of no run that is planned."""
        return []

    def preview(self, runs: Sequence[Path], show: bool, test: bool) -> list[str]:
        """Return what would be submitted, as text, and whether it would be taken."""
        return []

    @abstractmethod
    def submit(self, runs: Sequence[Path]) -> list[Job]:
        """Take run directories; return without waiting for them."""

    def submit_report(self, fresh: bool) -> None:  # noqa: B027  the caller's last line names the command
        """Submit a job that makes the report when all jobs have ended; `fresh`: jobs were submitted just now."""

    def following(self, root: Path) -> contextlib.AbstractContextManager[None]:
        """Return a context in which this command waits for the jobs of the sweep in `root`."""
        return contextlib.nullcontext()

    @abstractmethod
    def poll(self) -> dict[Job, JobState]:
        """Return the state of every job submitted so far; a local one also starts what has its turn."""

    def interrupt(self) -> bool:
        """React to a signal to the waiting command: stop the jobs, or return False if they continue without it."""
        return False

    @abstractmethod
    def exit_reason(self, job: Job) -> str | None:
        """Return what is known about the end of a job that left no final status in its run directory."""


def run_concurrently(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Do what writes small files for each of many runs; each waits for the disk, and all of them at the same time."""
    first = [work(item) for item in items[:1]]  # alone: what it finds out about this machine is kept for the others
    with ThreadPoolExecutor(WRITERS) as pool:
        return first + list(pool.map(work, items[1:]))
