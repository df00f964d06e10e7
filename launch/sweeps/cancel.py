"""Ending all live jobs of a sweep: those of a Slurm cluster and those of this machine. Again has nothing left to do.

What runs is asked to stop and writes a checkpoint; what waits is dropped. Found is everything: jobs in the queue by
their names, so also those of a sweep.py that was killed before it could note their numbers; processes of this machine
by the locks that they hold, and with them every sweep.py that would start the next one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import Counter
from pathlib import Path

from launch.jobs.local import WATCHERS
from launch.jobs.submitter import ENDING
from launch.slurm import client
from launch.slurm.client import SlurmError
from launch.slurm.queue import SUBMISSIONS, is_evaluation, is_of, is_report, owners, runs_of
from shards.filelock import lock_file
from toolkit.rundir import lock
from toolkit.rundir.sweep import preparing, read_runs
from toolkit.wording import count


def cancel(root: Path, dry_run: bool = False) -> list[str]:
    """End every live job of the sweep in `root`; returns a line for each thing that was done, or one that says none.

    Args:
        dry_run: only say what would be ended.

    Raises:
        SlurmError: it was submitted to a cluster that can't be asked from here.
    """
    ended = _Ended(root.resolve(), dry_run)
    if not root.is_dir():
        # Of a folder that was deleted or renamed the jobs may be there yet, and know where it was.
        return ended.cluster() or [f"{root}: no such sweep; nothing to cancel"]
    with contextlib.nullcontext() if dry_run else preparing(root):  # what another sweep.py is submitting is found
        done = [*ended.cluster(), *ended.watchers(), *ended.here()]
    return done or [f"{root}: no live job; nothing to cancel"]


class _Ended:
    """What is ended, a line for each, or only named."""

    def __init__(self, root: Path, dry_run: bool) -> None:
        self.root = root
        self.dry_run = dry_run

    def _signal(self, pid: int) -> None:
        if not self.dry_run:
            os.kill(pid, signal.SIGTERM)

    def _words(self, done: str, would: str) -> str:
        return f"would {would}" if self.dry_run else done

    def cluster(self) -> list[str]:
        """End the jobs in Slurm's queue, whoever submitted them, also by a run's own text."""
        root = self.root
        try:
            client.check_installed()
            queue = [job for job in client.queue(owners(root)) if is_of(root, job) and job.state != ENDING]
        except SlurmError:
            if (root / SUBMISSIONS).is_dir():
                raise
            return []  # nothing of it was submitted to a cluster
        report = [job for job in queue if is_report(root, job)]
        jobs = [job for job in queue if job not in report]
        if not self.dry_run:
            # First what waits for others: their end would start the report, and drop the evaluations.
            client.cancel([job.base for job in report])
            client.cancel(sorted({job.base for job in jobs if is_evaluation(job)}, key=int))
            client.cancel(sorted({job.base for job in jobs if not is_evaluation(job)}, key=int))
        verb, lines, ran = self._words("cancelled", "cancel"), [], False
        of_runs = runs_of(root, jobs)
        for base in sorted({job.base for job in jobs}, key=int):
            own = {run: job for run, job in of_runs.items() if job.base == base}
            at_work = [lock.holder(run) is not None if job.packed else not job.waiting for run, job in own.items()]
            at_work += [not job.waiting for job in jobs if job.base == base] if not own else []
            kinds = Counter("ran" if live else "waited" for live in at_work)
            ran |= kinds["ran"] > 0
            parts = [f"{count(number, 'run')} {kind}" for kind, number in sorted(kinds.items())]
            what = " (evaluation)" if any(is_evaluation(job) for job in jobs if job.base == base) else ""
            lines.append(f"{verb} job {base}{what}: {', '.join(parts)}")
        if ran and not self.dry_run:
            lines.append("what ran writes a checkpoint, if it can within the cluster's KillWait")
        return lines + [f"{verb} job {job.base}: the report" for job in report]

    def watchers(self) -> list[str]:
        """Stop the sweep.py that would start the next runs of this machine."""
        lines = []
        for file in sorted((self.root / WATCHERS).glob("*")):
            host, _, pid = file.name.rpartition("-")
            if host != socket.gethostname():
                lines.append(f"sweep.py (process {pid}) waits on {host}: end it there")
            elif _locked(file) and not (pid.isdecimal() and lock.has_open(int(pid), file)):
                lines.append(f"{file}: is locked, but not by the process {pid} that it names: nothing is ended")
            elif _locked(file):
                self._signal(int(pid))
                lines.append(f"{self._words('stopped', 'stop')} sweep.py (process {pid}): it starts no more runs")
            elif not self.dry_run:
                file.unlink(missing_ok=True)  # of one that was killed
        return lines

    def here(self) -> list[str]:
        """Ask the jobs of this machine to write a checkpoint and end."""
        lines = []
        for item in read_runs(self.root):
            record = lock.holder(item.run.path)
            if record is None or str(record.get("job", "")).partition("_")[0].isdigit():  # Slurm's
                continue
            if record.get("host") != socket.gethostname():
                lines.append(f"{item.name}: {lock.describe(record)}: end it there")
            elif "pid" not in record:  # damaged; its holder writes it anew within seconds
                lines.append(f"{item.name}: {lock.LOCK_NAME} doesn't say who holds it: try again in a moment")
            elif lock.is_held_by(item.run.path, int(record["pid"])):
                self._signal(int(record["pid"]))
                who = f"{record.get('job')} (process {record['pid']}) to write a checkpoint and end"
                lines.append(f"{item.name}: {self._words('asked', 'ask')} {who}")
            else:
                lines.append(f"{item.name}: its job was killed; what it started ends by itself")
        return lines


def _locked(file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), open(file) as handle:
        return not lock_file(handle.fileno(), shared=True)
    return False
