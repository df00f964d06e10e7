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
from launch.slurm import client
from launch.slurm.queue import REPORT, SUBMISSIONS, runs_of
from shards.filelock import lock_file
from toolkit.rundir import lock
from toolkit.rundir.sweep import preparing, read_runs


def cancel(root: Path) -> list[str]:
    """End every live job of the sweep in `root`; returns a line for each thing that was done, or one that says none.

    Raises:
        SlurmError: it was submitted to a cluster that can't be asked from here.
    """
    if not root.is_dir():
        return [f"{root}: no such sweep; nothing to cancel"]
    with preparing(root):  # a sweep.py that is submitting finishes first: what it submits is found
        done = [*_end_cluster(root.resolve()), *_end_watchers(root), *_end_here(root)]
    return done or [f"{root}: no live job; nothing to cancel"]


def _end_cluster(root: Path) -> list[str]:
    if not (root / SUBMISSIONS).is_dir():
        return []
    client.check_installed()
    queue = client.queue()
    jobs = list(runs_of(root, queue).values())
    report = [job for job in queue if job.job_name == f"{root.name}-{REPORT}" and job.comment == str(root)]
    # The report's job first: the end of the others would start it.
    client.cancel([job.base for job in report])
    client.cancel(sorted({job.base for job in jobs}, key=int))
    lines = []
    for base in sorted({job.base for job in jobs}, key=int):
        kinds = Counter("waited" if job.waiting else "ran" for job in jobs if job.base == base)
        lines.append(f"cancelled job {base}: " + ", ".join(f"{count} runs {kind}" for kind, count in kinds.items()))
    if any("ran" in line for line in lines):
        lines.append("what ran writes a checkpoint, if it can within the cluster's KillWait")
    return lines + [f"cancelled job {job.base}: the report" for job in report]


def _end_watchers(root: Path) -> list[str]:
    lines = []
    for file in sorted((root / WATCHERS).glob("*")):
        host, _, pid = file.name.rpartition("-")
        if host != socket.gethostname():
            lines.append(f"sweep.py (process {pid}) waits on {host}: end it there")
        elif _locked(file) and not (pid.isdecimal() and lock.has_open(int(pid), file)):
            lines.append(f"{file}: is locked, but not by the process {pid} that it names: nothing is ended")
        elif _locked(file):
            os.kill(int(pid), signal.SIGTERM)
            lines.append(f"stopped sweep.py (process {pid}): it starts no more runs")
        else:
            file.unlink(missing_ok=True)  # of one that was killed
    return lines


def _end_here(root: Path) -> list[str]:
    lines = []
    for item in read_runs(root):
        record = lock.holder(item.run.path)
        if record is None or str(record.get("job", "")).partition("_")[0].isdigit():  # Slurm's
            continue
        if record.get("host") != socket.gethostname():
            lines.append(f"{item.name}: {lock.describe(record)}: end it there")
        elif "pid" not in record:  # damaged; its holder writes it anew within seconds
            lines.append(f"{item.name}: {lock.LOCK_NAME} doesn't say who holds it: try again in a moment")
        elif lock.is_held_by(item.run.path, int(record["pid"])):
            os.kill(int(record["pid"]), signal.SIGTERM)
            lines.append(
                f"{item.name}: asked {record.get('job')} (process {record['pid']}) to write a checkpoint and end"
            )
        else:
            lines.append(f"{item.name}: its job was killed; what it started ends by itself")
    return lines


def _locked(file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), open(file) as handle:
        return not lock_file(handle.fileno(), shared=True)
    return False
