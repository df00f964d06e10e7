"""Jobs on this machine, beside (`local`) or before (`debug`) the command that waits for them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import submitit
from submitit.helpers import CommandFunction

from launch.jobs.attempts import why_not_begun
from launch.jobs.machine import Machine
from launch.jobs.submitter import Job, JobCommand, JobState, Submitter, job_command
from shards.filelock import lock_file
from toolkit.rundir import RunDir, lock
from toolkit.wording import count

NO_TIMEOUT_MIN = 10 * 365 * 24 * 60  # submitit's local default would end a job after two minutes
WATCHERS = ".watching"  # <sweep>/.watching/HOST-PID, locked by each sweep.py that waits for jobs of this machine


class _LocalLayer(Submitter):
    """A queue in front of this machine: N jobs at a time, each in a slot. Subclasses define how one starts."""

    def __init__(self, ranks: int, jobs: int, command: JobCommand = job_command) -> None:
        self.ranks = ranks
        self.jobs = jobs
        self.command = command
        self.machine = Machine.here()
        self._states: dict[Job, JobState] = {}
        self._slots: dict[int, tuple[Job, _Started]] = {}
        self._cancelled = False
        self._noted = False

    def assign(self, resources: Mapping[Path, Mapping[str, object]], scored: Collection[Path] = ()) -> None:
        keys = sorted({key for own in resources.values() for key in own})
        if keys and not self._noted:
            runs = sum(bool(own) for own in resources.values())
            print(f"note: resources of {count(runs, 'run')} ({', '.join(keys)}) hold on a cluster only: ignored here")
        self._noted = True

    def ranks_of(self, run: Path) -> int:
        return self.ranks

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
        waiting = [job for job, state in self._states.items() if state is JobState.QUEUED]
        for job in waiting:
            if len(self._slots) == self.jobs:
                break
            # Nothing to start here: its sweep has stopped, or another one was quicker.
            if why_not_begun(RunDir(job.run)) or lock.holder(job.run) is not None:
                self._states[job] = JobState.ENDED
                continue
            slot = next(slot for slot in range(self.jobs) if slot not in self._slots)
            self._slots[slot] = (job, self._start(job, slot))
            self._states[job] = JobState.RUNNING
        return dict(self._states)

    def interrupt(self) -> bool:
        """Drop what waits, and ask what runs to stop at its next checkpoint; `poll` shows when it has."""
        self._cancelled = True
        for job, state in self._states.items():
            if state is JobState.QUEUED:
                self._states[job] = JobState.ENDED
        return True

    @contextmanager
    def following(self, root: Path) -> Iterator[None]:
        print(f"{count(len(self._states), 'run')} to do, {self.jobs} at a time; logs in {root}/*/logs", flush=True)
        with watching(root):
            yield

    @abstractmethod
    def _start(self, job: Job, slot: int) -> _Started:
        """Start a job in a slot."""

    def _command(self, job: Job, slot: int, log_files: bool) -> list[str]:
        settings = self.machine.environment(self.jobs, self.ranks, slot)
        return ["env", *settings, *self.command(job.run, self.ranks, log_files)]


class _Started(Protocol):
    def ended(self) -> bool: ...

    def stop(self) -> None: ...


class LocalSubmitter(_LocalLayer):
    """Jobs in the background through submitit's LocalExecutor; they outlive the caller."""

    def exit_reason(self, job: Job) -> str | None:
        return "out of memory? See also logs/submitit"

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
        # So the signal goes to job.py itself, as soon as that has taken the lock and thereby recorded its process ID.
        record = lock.holder(self.run)
        if not self.told and record and record.get("job") == f"local-{self.job.job_id}":
            self.told = lock.is_held_by(self.run, int(record.get("pid", 0)))
            if self.told:
                os.kill(int(record["pid"]), signal.SIGTERM)


class DebugSubmitter(_LocalLayer):
    """One job at a time in the foreground, its output streaming through."""

    def __init__(self, ranks: int, command: JobCommand = job_command) -> None:
        super().__init__(ranks, jobs=1, command=command)

    def exit_reason(self, job: Job) -> str | None:
        return "out of memory?"

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


@contextmanager
def watching(root: Path) -> Iterator[None]:
    """While entered, `launch.sweeps.cancel` finds this process."""
    file = root / WATCHERS / f"{socket.gethostname()}-{os.getpid()}"
    file.parent.mkdir(exist_ok=True)
    with open(file, "w") as held:
        lock_file(held.fileno(), wait=True)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
