"""Writing the shards of a store in jobs of a cluster.

A job is a part of the store's shards: what it writes depends on the plan alone, it may be run twice or at the same time
as another for the same shards, and what it has finished is known by the records in the partial folder. So a job that is
killed needs no care: the next identical call submits what is still missing. `local` runs the jobs on this machine,
through submitit; `slurm` as one array of a Slurm cluster, by a job layer that registers itself as an entry point of the
group `shards.clusters`: this package knows nothing of schedulers. The store is put together when all jobs are done.

A job layer is a module with a command line, run as a process of its own:

    python -m MODULE --name NAME --folder DIR --count N --cpus N [--profile NAME] -- COMMAND ...

runs COMMAND with the numbers 0 to N - 1 appended, waits, and exits with 0 when all did; with 2 when the cluster refused
the jobs; on SIGTERM it ends them.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from shards.errors import ShardError, UsageError
from shards.part import WORK
from shards.progress import Progress
from shards.sources.base import Source
from shards.workers import run_jobs
from shards.writer import ShardJob, ShardResult, StoreWriter, recall, recorded

if TYPE_CHECKING:
    import submitit

CLUSTERS = ("local", "slurm")
JOB_LAYERS = "shards.clusters"  # group of entry points: cluster = module of the job layer
TIMEOUT_MINUTES = 7 * 24 * 60  # submitit's own limit for a local job is five minutes
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Cluster:
    """Where jobs run, and how many there are."""

    name: str
    jobs: int
    profile: str | None = None  # of a Slurm cluster: what its jobs ask for


def job_layer(cluster: str) -> str:
    """Return the module that runs jobs on a cluster, as an installed package registers it.

    Raises:
        UsageError: no installed package does.
    """
    found = list(entry_points(group=JOB_LAYERS))  # in the order of sys.path
    registered = {entry.name: entry.value for entry in reversed(found)}
    if cluster not in registered:
        raise UsageError(
            f"--cluster {cluster}: no installed package registers a job layer for it (entry points {JOB_LAYERS}: "
            f"{', '.join(registered) or 'none'}); in a checkout run pip install -e . once more, or use --workers"
        )
    return registered[cluster]


def run_on_cluster(
    writer: StoreWriter, source: Source, jobs: Sequence[ShardJob], workers: int, cluster: Cluster, progress: Progress
) -> list[ShardResult]:
    """As `workers.run_jobs`, in `cluster.jobs` jobs of `workers` processes each. Raises ShardErrors."""
    before = {job for job in jobs if recorded(writer.plan, job)}
    progress.keep(_amount(writer, before)[0], 0)
    count = min(cluster.jobs, len(jobs))
    parts = [jobs[len(jobs) * i // count : len(jobs) * (i + 1) // count] for i in range(count)]
    watched = set(jobs) - before
    if cluster.name == "slurm":
        return _on_slurm(writer, source, parts, workers, cluster, lambda: _show(writer, watched, progress))
    return _by_submitit(writer, source, parts, workers, cluster, lambda: _show(writer, watched, progress))


def _on_slurm(
    writer: StoreWriter,
    source: Source,
    parts: Sequence[Sequence[ShardJob]],
    workers: int,
    cluster: Cluster,
    show: Callable[[], None],
) -> list[ShardResult]:
    module = job_layer(cluster.name)
    folder = writer.plan.folder.resolve() / "jobs"
    folder.mkdir(exist_ok=True)
    work = pickle.dumps((writer, source, parts, workers))
    (folder / WORK).write_bytes(work)
    for old in folder.glob("*.error"):
        old.unlink()
    name = f"shards{writer.plan.folder.name.replace('.partial', '').replace('.', '-')}"
    options = ["--name", name, "--folder", str(folder), "--count", str(len(parts)), "--cpus", str(workers)]
    profile = ["--profile", cluster.profile] if cluster.profile else []
    task = [sys.executable, "-m", "shards.part", str(folder), hashlib.sha256(work).hexdigest()]
    command = [sys.executable, "-m", module, *options, *profile, "--", *task]
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    # Safe path: not from the working directory, which may be anybody's, are modules taken (Python 3.11 and later).
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    # A session of its own: a Ctrl-C comes to us alone, and we end it and thereby its jobs.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            show()
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait()
    show()
    missing = [number for number, part in enumerate(parts) if not all(recorded(writer.plan, job) for job in part)]
    if missing:
        raise _failure(folder, parts, missing, process.returncode)
    # They were written by these jobs, or compared with their digests there.
    results = [recall(writer.plan, job, compare=False) for part in parts for job in part]
    return [result for result in results if result is not None]


def _failure(folder: Path, parts: Sequence[Sequence[ShardJob]], missing: Sequence[int], code: int) -> ShardError:
    """Why parts are missing: what the first job that left a word says."""
    said = [(number, folder / f"{number}.error") for number in missing if (folder / f"{number}.error").exists()]
    if not said and code == 2:  # the cluster refused, and has said why
        error = ShardError("nothing was written: the cluster took no job (see above)")
        error.exit_code = 2
        return error
    lost = f"{len(missing)} of {len(parts)} jobs did not finish their shards"
    again = "Finished shards are kept: the same command goes on with those that are missing"
    if not said:
        logs = [
            _last_line(log) for number in missing for log in (*folder.glob(f"*_{number}.log"), *folder.glob("*.log"))
        ]
        words = f", the log of one ends: {logs[0]}" if logs else ""
        return ShardError(f"{lost}{words}. {again}; raise `time` or `mem` in the profile if that is why")
    number, file = said[0]
    told = json.loads(file.read_text(encoding="utf-8"))
    error = ShardError(f"{told['message']}\n{lost}, the first is job {number}. {again}")
    error.exit_code = int(told["code"])
    return error


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(nothing)")


def _by_submitit(
    writer: StoreWriter,
    source: Source,
    parts: Sequence[Sequence[ShardJob]],
    workers: int,
    cluster: Cluster,
    show: Callable[[], None],
) -> list[ShardResult]:
    import submitit

    executor = submitit.AutoExecutor(folder=writer.plan.folder / "jobs", cluster=cluster.name)
    executor.update_parameters(timeout_min=TIMEOUT_MINUTES, name="shards")
    submitted = [executor.submit(run_part, writer, source, part, workers) for part in parts]
    try:
        while not all(job.done() for job in submitted):
            time.sleep(POLL_SECONDS)
            show()
        results = [result for job in submitted for result in _result(job)]
    finally:
        for job in submitted:
            if not job.done():
                job.cancel()
    show()
    return results


def run_part(
    writer: StoreWriter, source: Source, jobs: Sequence[ShardJob], workers: int
) -> list[ShardResult] | ShardError:
    """What one job does. Its errors travel as values: submitit would turn them into text."""
    try:
        return run_jobs(writer, source, jobs, workers, Progress(sum(job.last - job.first for job in jobs)))
    except ShardError as error:
        return error


def _result(job: submitit.Job[list[ShardResult] | ShardError]) -> list[ShardResult]:
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        result: list[ShardResult] | ShardError = job.result()
    except (FailedJobError, UncompletedJobError) as error:
        raise ShardError(
            f"job {job.job_id} failed, its log is {job.paths.stderr}: {str(error).strip().splitlines()[-1]}; "
            "run the same command again to go on"
        ) from None
    if isinstance(result, ShardError):
        raise result
    return result


def _show(writer: StoreWriter, jobs: Iterable[ShardJob], progress: Progress) -> None:
    """Progress, by the records of finished shards."""
    events, size = _amount(writer, {job for job in jobs if recorded(writer.plan, job)})
    progress.add(events - progress.events, size - progress.bytes)


def _amount(writer: StoreWriter, jobs: Iterable[ShardJob]) -> tuple[int, int]:
    """Events and bytes of shards; an event that lies in two counts where it begins."""
    splits = writer.plan.splits
    planned = {(job.split, i): splits[job.split][i].length for job in jobs for i in range(job.first, job.last)}
    return len(planned), sum(planned.values()) * writer.plan.frames.bytes
