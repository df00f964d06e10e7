"""What a call of sbatch submits: the jobs that train runs, or those that evaluate them apart (`--evaluate-apart`)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.jobs.job import EVALUATE, TRAIN
from launch.slurm import client
from launch.slurm.profile import Profile
from launch.slurm.queue import EVALUATION, SUBMISSIONS, is_of, is_report, job_names, owners
from launch.slurm.script import EVALUATION_TEXT, RUN_TEXT, Shape
from toolkit.errors import ConfigError
from toolkit.models.plugins import entry_of
from toolkit.rundir import RunDir


@dataclass(frozen=True)
class Submission:
    """Jobs that one call of sbatch made."""

    folder: Path
    job: str
    runs: tuple[Path, ...]
    places: int = 1  # runs of a job

    @property
    def size(self) -> int:
        """Return the number of its jobs."""
        return -(-len(self.runs) // self.places)

    def jobs(self) -> list[tuple[Path, str]]:
        """Return its runs with the job of each, as squeue shows it; of a packed one the job that it was meant for."""
        names = job_names(self.job, len(self.runs), self.places)
        return list(zip(self.runs, names, strict=True))


@dataclass(frozen=True)
class Work:
    """What the job of a run does, and what it requests."""

    profile: Profile
    shape: Shape
    only: str | None = None  # `train` or `evaluate`; None: both

    @property
    def text(self) -> str:
        """Return the name of its batch script in the run directory."""
        return EVALUATION_TEXT if self.only == EVALUATE else RUN_TEXT

    @property
    def options(self) -> list[str]:
        """Return the options of launch/jobs/job.py."""
        return ["--only", self.only] if self.only else []

    def new_key(self) -> str:
        """Return a name for the folder of a submission."""
        return (EVALUATION if self.only == EVALUATE else "") + secrets.token_hex(4)


def evaluated_apart(profile: Profile, shape: Shape) -> tuple[Work, Work]:
    """Return what trains runs and what evaluates them, in jobs of their own.

    Raises:
        ConfigError: packed jobs, whose places do not stay free while a run is evaluated.
    """
    if shape.pack:
        raise ConfigError(
            f"--evaluate-apart with --pack {shape.pack} (or `pack` in the profile): a packed run is evaluated in its "
            "place, while the other places of the job train: leave one of them out"
        )
    gpus = min(1, shape.gpus_per_node)
    request = profile.evaluation_request(gpu=bool(gpus))
    alone = Shape(1, gpus, 1, asks_for_gpus=shape.asks_for_gpus)
    return Work(profile, shape, TRAIN), Work(request, alone, EVALUATE)


@dataclass(frozen=True)
class Call:
    """What sbatch is called for."""

    runs: Sequence[Path]
    work: Work
    apart: bool = False  # the call before trains these runs


def planned_calls(
    profile: Profile,
    shape: Shape,
    evaluate_apart: bool,
    runs: Sequence[Path],
    parts: Callable[[Sequence[Path]], list[Sequence[Path]]],
) -> list[Call]:
    """Return the calls of sbatch for runs; a run without a training to do is only evaluated, where that is apart.

    Args:
        parts: splits runs into those of one call.
    """
    if not evaluate_apart:
        return [Call(part, Work(profile, shape)) for part in parts(runs)]
    training, evaluation = evaluated_apart(profile, shape)
    trained = [run for run in runs if _needs_training(RunDir(run))]
    calls: list[Call] = []
    for part in parts(trained):
        calls += [Call(part, training), Call(part, evaluation, apart=True)]
    left = set(trained)
    return calls + [Call(part, evaluation) for part in parts([run for run in runs if run not in left])]


def _needs_training(run: RunDir) -> bool:
    return not run.done and entry_of(run.config().model).trained


def names_of(submissions: Sequence[Submission]) -> tuple[str, str]:
    """Return the jobs of submissions, and what they are: `array`, `jobs`."""
    several = sum(submission.size for submission in submissions) > len(submissions)
    names = ", ".join(submission.job for submission in submissions)
    return names, ("array" if several else "job") + "s" * (len(submissions) > 1)


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
