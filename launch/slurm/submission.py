"""What a call of sbatch submits: the jobs that train runs, or those that evaluate them apart (`--evaluate-apart`)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.jobs.job import EVALUATE, TRAIN
from launch.slurm import client
from launch.slurm.queue import SUBMISSIONS, is_of, is_report, job_names, owners
from launch.slurm.request import Request, describe_submitted
from launch.slurm.script import Shape
from toolkit.errors import ConfigError


@dataclass(frozen=True)
class Submission:
    """Jobs that one call of sbatch made."""

    folder: Path
    job: str
    runs: tuple[Path, ...]
    request: Request

    @property
    def size(self) -> int:
        """Return the number of its jobs."""
        return -(-len(self.runs) // self.request.pack)

    def jobs(self) -> list[tuple[Path, str]]:
        """Return its runs with the job of each, as squeue shows it; of a packed one the job that it was meant for."""
        names = job_names(self.job, len(self.runs), self.request.pack)
        return list(zip(self.runs, names, strict=True))


def check_apart(request: Request) -> None:
    """Refuse packed jobs whose runs are to be evaluated apart.

    Raises:
        ConfigError: naming both options.
    """
    if request.shape.pack:
        raise ConfigError(
            f"--evaluate-apart with --pack {request.shape.pack} (or `pack` in a profile or `resources`): a packed run "
            "is evaluated in its place, while the other places of the job train: leave one of them out"
        )


def training_of(request: Request) -> Request:
    """Return what the trainings of runs ask for, which other jobs evaluate."""
    return replace(request, only=TRAIN)


def evaluation_of(request: Request) -> Request:
    """Return what the evaluations of runs ask for, in jobs of their own."""
    gpus = min(1, request.shape.gpus_per_node)
    shape = Shape(1, gpus, 1, asks_for_gpus=request.shape.asks_for_gpus)
    return replace(request, profile=request.profile.evaluation_request(gpu=bool(gpus)), shape=shape, only=EVALUATE)


@dataclass(frozen=True)
class Call:
    """What sbatch is called for."""

    request: Request
    runs: Sequence[Path]
    apart: bool = False  # the call before trains these runs


def planned_calls(
    groups: Sequence[tuple[Request, Sequence[Path]]],
    array_size: int | None,
    evaluate_apart: bool,
    scored: Collection[Path] = (),
) -> list[Call]:
    """Return the calls of sbatch for runs.

    Args:
        groups: runs by their request.
        array_size: longest array of the cluster; None: not known, one array for each request.
        evaluate_apart: runs are trained and evaluated by different jobs.
        scored: runs without a training to do, which are then only evaluated.
    """
    calls: list[Call] = []
    for request, runs in groups:
        if not evaluate_apart:
            calls += [Call(request, part) for part in _arrays(request, runs, array_size)]
            continue
        training, evaluation = training_of(request), evaluation_of(request)
        for part in _arrays(training, [run for run in runs if run not in scored], array_size):
            calls += [Call(training, part), Call(evaluation, part, apart=True)]
        evaluated = [run for run in runs if run in scored]
        calls += [Call(evaluation, part) for part in _arrays(evaluation, evaluated, array_size)]
    return calls


def _arrays(request: Request, runs: Sequence[Path], array_size: int | None) -> list[Sequence[Path]]:
    """Return the runs of each array: as many as it may have jobs for."""
    size = len(runs) or 1 if array_size is None else max(1, array_size) * request.pack
    return [runs[first : first + size] for first in range(0, len(runs), size)]


def awaited(names: Sequence[str]) -> list[str]:
    """Return the jobs that --after names: by their numbers, or those that a sweep's folder has in the queue.

    Raises:
        ConfigError: neither a job nor a sweep.
    """
    found: list[str] = []
    for name in names:
        root = Path(name).resolve()
        if re.fullmatch(r"\d+(_\d+)?", name):
            found.append(name)
        elif (root / SUBMISSIONS).is_dir():
            jobs = [job for job in client.queue(owners(root)) if is_of(root, job) and not is_report(root, job)]
            found += sorted({job.base for job in jobs})
        else:
            raise ConfigError(f"--after {name}: neither the number of a job nor the folder of a sweep on a cluster")
    return found


def descriptions(submissions: Sequence[Submission]) -> list[str]:
    """Return what was submitted, a line for each request."""
    lines: list[str] = []
    done: list[Request] = []
    for request in [one.request for one in submissions]:
        if request not in done:
            done.append(request)
            own = [one for one in submissions if one.request == request]
            runs = sum(len(one.runs) for one in own)
            lines.append(describe_submitted(request, runs, [one.job for one in own], sum(one.size for one in own)))
    return lines
