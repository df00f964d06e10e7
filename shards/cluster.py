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
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from shards import errors
from shards.errors import ShardError, UsageError
from shards.part import WORK, main
from shards.plain import to_plain
from shards.progress import Progress
from shards.sources.base import Source
from shards.writer import ShardJob, ShardResult, StoreWriter, recall, recorded

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
    """Write shards as `workers.run_jobs` does, in `cluster.jobs` jobs of `workers` processes each. Raises
    ShardErrors.
    """
    before = {job for job in jobs if recorded(writer.plan, job)}
    progress.keep(_amount(writer, before)[0], 0)
    count = min(cluster.jobs, len(jobs))
    parts = [jobs[len(jobs) * i // count : len(jobs) * (i + 1) // count] for i in range(count)]
    watched = set(jobs) - before

    def show() -> None:
        _show(writer, watched, progress)

    folder = writer.plan.folder.resolve() / "jobs"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.error"):
        old.unlink()
    module = type(source).__module__
    plain = {"writer": to_plain(writer), "source": to_plain(source), "parts": to_plain(parts), "workers": workers}
    work = json.dumps(plain).encode()
    (folder / WORK).unlink(missing_ok=True)
    with (folder / WORK).open("xb") as file:
        file.write(work)
    task = (folder, hashlib.sha256(work).hexdigest(), module)
    if cluster.name == "slurm":
        code = _on_slurm(task, len(parts), workers, cluster, show)
    else:
        code = _by_submitit(task, len(parts), show)
    show()
    missing = [number for number, part in enumerate(parts) if not all(recorded(writer.plan, job) for job in part)]
    if missing:
        raise _failure(folder, parts, missing, code)
    # They were written by these jobs, or compared with their digests there.
    results = [recall(writer.plan, job, compare=False) for part in parts for job in part]
    return [result for result in results if result is not None]


def _on_slurm(task: tuple[Path, str, str], count: int, workers: int, cluster: Cluster, show: Callable[[], None]) -> int:
    """Run `count` jobs by the job layer and return its exit code."""
    layer = job_layer(cluster.name)
    folder, sha256, module = task
    name = f"shards{folder.parent.name.replace('.partial', '').replace('.', '-')}"
    options = ["--name", name, "--folder", str(folder), "--count", str(count), "--cpus", str(workers)]
    profile = ["--profile", cluster.profile] if cluster.profile else []
    part = [sys.executable, "-m", "shards.part", str(folder), sha256, module]
    command = [sys.executable, "-m", layer, *options, *profile, "--", *part]
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
    return process.returncode


def _failure(folder: Path, parts: Sequence[Sequence[ShardJob]], missing: Sequence[int], code: int) -> ShardError:
    """Return why parts are missing: the first error that a job wrote."""
    said = [(number, folder / f"{number}.error") for number in missing if (folder / f"{number}.error").exists()]
    if not said and code == 2:  # the cluster refused, and has said why
        error = ShardError("nothing was written: the cluster took no job (see above)")
        error.exit_code = 2
        return error
    lost = f"{len(missing)} of {len(parts)} jobs did not finish their shards"
    again = "Finished shards are kept: the same command resumes with those that are missing"
    if not said:
        logs = [
            _last_line(log) for number in missing for log in (*folder.glob(f"*_{number}.log"), *folder.glob("*.log"))
        ]
        words = f", the log of one ends: {logs[0]}" if logs else ""
        return ShardError(f"{lost}{words}. {again}; raise `time` or `mem` in the profile if that is why")
    number, file = said[0]
    told = json.loads(file.read_text(encoding="utf-8"))
    kind = getattr(errors, str(told.get("kind")), ShardError)
    failure: ShardError = (kind if kind in ShardError.__subclasses__() else ShardError)(
        f"{told['message']}; {lost}, the first is job {number}. {again}"
    )
    failure.exit_code = int(told["code"])
    return failure


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(nothing)")


def _by_submitit(task: tuple[Path, str, str], count: int, show: Callable[[], None]) -> int:
    """Run `count` jobs on this machine; return 1 if one ended without an exit code, else 0."""
    import submitit
    from submitit.core.utils import FailedJobError, UncompletedJobError

    executor = submitit.AutoExecutor(folder=task[0], cluster="local")
    executor.update_parameters(timeout_min=TIMEOUT_MINUTES, name="shards")
    submitted = [executor.submit(main, *task, number) for number in range(count)]
    code = 0
    try:
        while not all(job.done() for job in submitted):
            time.sleep(POLL_SECONDS)
            show()
        for number, job in enumerate(submitted):
            try:
                job.result()
            except (FailedJobError, UncompletedJobError) as error:
                code = 1
                log = job.paths.stderr  # it may go with the unfinished store
                last = _last_line(log) if log.exists() else str(error).strip().splitlines()[-1]
                message = f"job {job.job_id} failed, its log ends: {last}"
                (task[0] / f"{number}.error").write_text(json.dumps({"code": 1, "message": message}), encoding="utf-8")
    finally:
        for job in submitted:
            if not job.done():
                job.cancel()
    return code


def _show(writer: StoreWriter, jobs: Iterable[ShardJob], progress: Progress) -> None:
    """Show progress, by the records of finished shards."""
    events, size = _amount(writer, {job for job in jobs if recorded(writer.plan, job)})
    progress.add(events - progress.events, size - progress.bytes)


def _amount(writer: StoreWriter, jobs: Iterable[ShardJob]) -> tuple[int, int]:
    """Return events and bytes of shards; an event that lies in two counts where it begins."""
    splits = writer.plan.splits
    planned = {(job.split, i): splits[job.split][i].length for job in jobs for i in range(job.first, job.last)}
    return len(planned), sum(planned.values()) * writer.plan.frames.bytes
