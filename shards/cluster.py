"""Writing the shards of a store in jobs of a cluster, through submitit.

A job is a part of the store's shards: what it writes depends on the plan alone, it may be run twice or at the same time
as another for the same shards, and what it has finished is known by the records in the partial folder. So a job that is
killed needs no care: the next identical call submits what is still missing. `local` runs the jobs on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shards.errors import ShardError
from shards.progress import Progress
from shards.sources.base import Source
from shards.workers import run_jobs
from shards.writer import ShardJob, ShardResult, StoreWriter, recorded

CLUSTERS = ("local",)
TIMEOUT_MINUTES = 7 * 24 * 60  # submitit's own limit for a local job is five minutes
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Cluster:
    """Where jobs run, and how many there are."""

    name: str
    jobs: int


def run_on_cluster(
    writer: StoreWriter, source: Source, jobs: Sequence[ShardJob], workers: int, cluster: Cluster, progress: Progress
) -> list[ShardResult]:
    """As `workers.run_jobs`, in `cluster.jobs` jobs of `workers` processes each. Raises ShardErrors."""
    import submitit

    executor = submitit.AutoExecutor(folder=writer.plan.folder / "jobs", cluster=cluster.name)
    executor.update_parameters(timeout_min=TIMEOUT_MINUTES, name="shards")
    count = min(cluster.jobs, len(jobs))
    parts = [jobs[len(jobs) * i // count : len(jobs) * (i + 1) // count] for i in range(count)]
    before = {job for job in jobs if recorded(writer.plan, job)}
    progress.keep(_amount(writer, before)[0], 0)
    submitted = [executor.submit(run_part, writer, source, part, workers) for part in parts]
    try:
        while not all(job.done() for job in submitted):
            time.sleep(POLL_SECONDS)
            _show(writer, set(jobs) - before, progress)
        results = [result for job in submitted for result in _result(job)]
    finally:
        for job in submitted:
            if not job.done():
                job.cancel()
    _show(writer, set(jobs) - before, progress)
    return results


def run_part(
    writer: StoreWriter, source: Source, jobs: Sequence[ShardJob], workers: int
) -> list[ShardResult] | ShardError:
    """What one job does. Its errors travel as values: submitit would turn them into text."""
    try:
        return run_jobs(writer, source, jobs, workers, Progress(sum(job.last - job.first for job in jobs)))
    except ShardError as error:
        return error


def _result(job: Any) -> list[ShardResult]:
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
