"""The job layer: hand run directories to something that runs them. Here: this machine, beside or before the caller.

A `Submitter` takes run directories and returns handles; a job's only knowledge is its run directory, and what became
of a run is read from there, never from the scheduler's word (see launch/view.py).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

import submitit
from submitit.helpers import CommandFunction

from launch import lock

JOB_SCRIPT = Path(__file__).resolve().parent / "job.py"
NO_TIMEOUT_MIN = 10 * 365 * 24 * 60  # submitit's local default would end a job after two minutes


class JobState(Enum):
    """What the layer knows about a job; not whether its run succeeded."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class Job:
    """Handle of a submitted job."""

    run: Path
    number: int


class Submitter(Protocol):
    """Something that runs run directories."""

    def submit(self, runs: Sequence[Path]) -> list[Job]:
        """Take run directories; returns without waiting for them."""

    def poll(self) -> dict[Job, JobState]:
        """The state of every job submitted so far; a local layer also starts what has its turn."""

    def cancel(self) -> None:
        """Drop what waits, and ask what runs to stop at its next checkpoint; `poll` tells when it has."""

    def last_words(self, job: Job) -> str | None:
        """What the layer knows about the end of a job that left no word in its run directory."""


JobCommand = Callable[[Path, int, bool], list[str]]
"""(run directory, ranks, output to log files?) -> the command of its job."""


def job_command(run: Path, ranks: int, log_files: bool) -> list[str]:
    """The command that a job runs, the same on every cluster."""
    flags = ["--log-files"] if log_files else []
    return [sys.executable, str(JOB_SCRIPT), str(run), "--ranks", str(ranks), *flags]


@dataclass(frozen=True)
class Machine:
    """What this machine has to share out."""

    cpus: int
    gpus: tuple[str, ...]  # names for CUDA_VISIBLE_DEVICES

    @staticmethod
    def here() -> Machine:
        """The processors that this process may use, and the NVIDIA GPUs, found without torch."""
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            devices = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
            return Machine(cpus, tuple(str(number) for number in range(len(devices))))
        return Machine(cpus, tuple(part.strip() for part in visible.split(",") if part.strip()))

    def jobs(self, ranks: int) -> int:
        """How many jobs of so many ranks run side by side by default."""
        return max(1, (len(self.gpus) or self.cpus) // ranks)

    def environment(self, jobs: int, ranks: int, slot: int) -> list[str]:
        """Arguments of `env` for the job in a slot: its share of processors and GPUs.

        A number of threads that the user set stays. Jobs share GPUs when there are fewer than jobs times ranks; the
        ranks of one job can't, and its training says so (toolkit/device.py), unless `train.device` is `cpu`.
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


class _LocalLayer:
    """A queue in front of this machine: so many jobs at a time, each in a slot. Subclasses say how one starts."""

    def __init__(self, ranks: int, jobs: int, command: JobCommand = job_command) -> None:
        self.ranks = ranks
        self.jobs = jobs
        self.command = command
        self.machine = Machine.here()
        self._states: dict[Job, JobState] = {}
        self._slots: dict[int, tuple[Job, _Started]] = {}
        self._cancelled = False

    def submit(self, runs: Sequence[Path]) -> list[Job]:
        fresh = [Job(run.resolve(), len(self._states) + place) for place, run in enumerate(runs)]
        self._states.update(dict.fromkeys(fresh, JobState.QUEUED))
        return fresh

    def poll(self) -> dict[Job, JobState]:
        for slot, (job, started) in list(self._slots.items()):
            if started.ended():
                self._states[job] = JobState.ENDED
                del self._slots[slot]
            elif self._cancelled:
                started.stop()
        for job in [job for job, state in self._states.items() if state is JobState.QUEUED]:
            if len(self._slots) == self.jobs:
                break
            if lock.holder(job.run) is not None:  # another sweep was quicker: nothing to start here
                self._states[job] = JobState.ENDED
                continue
            slot = next(slot for slot in range(self.jobs) if slot not in self._slots)
            self._slots[slot] = (job, self._start(job, slot))
            self._states[job] = JobState.RUNNING
        return dict(self._states)

    def cancel(self) -> None:
        self._cancelled = True
        for job, state in self._states.items():
            if state is JobState.QUEUED:
                self._states[job] = JobState.ENDED

    def last_words(self, job: Job) -> str | None:
        return "out of memory? See also logs/submitit"

    def _start(self, job: Job, slot: int) -> _Started:
        raise NotImplementedError

    def _command(self, job: Job, slot: int, log_files: bool) -> list[str]:
        settings = self.machine.environment(self.jobs, self.ranks, slot)
        return ["env", *settings, *self.command(job.run, self.ranks, log_files)]


class _Started(Protocol):
    def ended(self) -> bool: ...

    def stop(self) -> None: ...


class LocalSubmitter(_LocalLayer):
    """Jobs in the background through submitit's LocalExecutor; they outlive the caller."""

    def _start(self, job: Job, slot: int) -> _Started:
        executor = submitit.LocalExecutor(folder=job.run / "logs" / "submitit")
        executor.update_parameters(timeout_min=NO_TIMEOUT_MIN, stderr_to_stdout=True)
        with _terminal_signals_blocked():
            return _SubmititJob(job.run, executor.submit(CommandFunction(self._command(job, slot, log_files=True))))


class _SubmititJob:
    def __init__(self, run: Path, job: submitit.Job[str]) -> None:
        self.run = run
        self.job = job
        self.told = False

    def ended(self) -> bool:
        return bool(self.job.done())

    def stop(self) -> None:
        # submitit's tasks swallow SIGTERM, and its cancel() kills within a second, which is no time for a checkpoint.
        # So the signal goes to launch/job.py itself, as soon as that has taken the lock and thereby said who it is.
        record = lock.holder(self.run)
        if not self.told and record and record.get("job") == f"local-{self.job.job_id}":
            self.told = lock.is_held_by(self.run, int(record["pid"]))
            if self.told:
                os.kill(int(record["pid"]), signal.SIGTERM)


class DebugSubmitter(_LocalLayer):
    """One job at a time in the foreground, its output streaming through."""

    def __init__(self, ranks: int, command: JobCommand = job_command) -> None:
        super().__init__(ranks, jobs=1, command=command)

    def _start(self, job: Job, slot: int) -> _Started:
        # A session of its own: a Ctrl-C reaches the caller alone, which asks the job once to stop.
        return _Child(subprocess.Popen(self._command(job, slot, log_files=False), start_new_session=True))


class _Child:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.told = False

    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        if not self.told:
            self.told = True
            self.process.terminate()


@contextmanager
def _terminal_signals_blocked() -> Iterator[None]:
    """Children started meanwhile never get the terminal's Ctrl-C or hang-up; ours waits until the end of the block."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
