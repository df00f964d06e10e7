"""What each run of a sweep asks of a cluster, and which runs therefore share arrays and packed jobs.

Lowest first: the profile, `resources` of the sweep file, those of the run's entry in it, the command line.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.jobs.job import EVALUATE
from launch.slurm.profile import Profile, overridden
from launch.slurm.script import EVALUATION_TEXT, RUN_TEXT, Shape
from toolkit.errors import ConfigError
from toolkit.wording import count, some

Own = Mapping[str, object]  # `resources` of a run
Record = Mapping[str, object]  # a request as JSON values
APART = "apart"


@dataclass(frozen=True)
class Request:
    """What the jobs of some runs ask for."""

    profile: Profile
    shape: Shape
    own: str = field(default="", compare=False)  # what the sweep file asks for, as text
    only: str | None = None  # what a job does with its run: `train` or `evaluate`; None: both

    @property
    def note(self) -> str:
        """Return what the sweep file asks for, as the end of a line."""
        what = f"; resources: {self.own}" if self.own else ""
        return what + ("; evaluation, in jobs of their own" if self.only == EVALUATE else "")

    @property
    def text(self) -> str:
        """Return the name of a job's batch script in the run directory."""
        return EVALUATION_TEXT if self.only == EVALUATE else RUN_TEXT

    @property
    def options(self) -> list[str]:
        """Return the options of launch/jobs/job.py."""
        return ["--only", self.only] if self.only else []

    @property
    def record(self) -> Record:
        """Return all that the jobs ask for, to be compared with a later request."""
        values = self.profile.model_dump(mode="json", exclude={"light", "env", "sbatch"})
        for section in ("env", "sbatch"):
            values |= {f"{section}.{key}": value for key, value in getattr(self.profile, section).items()}
        evaluation = "in the same job" if self.only is None else APART
        return {**values, "pack": self.shape.pack, "ranks": self.shape.ranks, "evaluation": evaluation}

    @property
    def pack(self) -> int:
        """Return how many runs a job has room for."""
        return self.shape.pack or 1


class Requests:
    """The request of every run of a sweep."""

    def __init__(self, profile: Profile, given: Mapping[str, object] | None = None, ranks: int | None = None) -> None:
        """
        Args:
            given: keys of the profile that the command line gives.
            ranks: of each run; None: one for each GPU.
        """
        self.profile = profile
        self.given = {key: value for key, value in (given or {}).items() if value is not None}
        self.ranks = ranks
        self.asks_for_gpus = True
        self._owns: dict[Path, Own] = {}
        self._made: dict[str, Request] = {}

    def assign(self, owns: Mapping[Path, Own]) -> None:
        """Note the `resources` of runs.

        Raises:
            ConfigError: requests that can't be met, each with the runs that have it.
        """
        self._owns = dict(owns)
        runs: dict[str, list[Path]] = {}
        for run, own in owns.items():
            runs.setdefault(_text(own), []).append(run)
        faults = []
        for text, those in runs.items():
            try:
                self.of(those[0])
            except ConfigError as error:
                faults.append(
                    f"resources ({text}) of {some([run.name for run in those], 2)}: {error}" if text else str(error)
                )
        if faults:
            raise ConfigError("\n".join(faults))

    def of(self, run: Path | None = None) -> Request:
        """Return the request of a run; None: that of a run without resources of its own."""
        own = {} if run is None else self._owns.get(run, {})
        text = _text(own)
        if text not in self._made:
            profile = overridden(overridden(self.profile, own, nulls=True), self.given)
            used = _text({key: value for key, value in own.items() if key not in self.given})
            made = Request(profile, Shape.of(profile, self.ranks), used)
            self._made[text] = next((known for known in self._made.values() if known == made), made)
        found = self._made[text]
        return found if self.asks_for_gpus else replace(found, shape=replace(found.shape, asks_for_gpus=False))

    def plans(self, run: Path) -> bool:
        """Return whether a run is one of those that were assigned."""
        return run in self._owns

    def all(self) -> list[Request]:
        """Return the different requests of the runs that were assigned; without any, that of the profile."""
        return [request for request, _ in self.groups(list(self._owns))] or [self.of()]

    def usual(self) -> Request:
        """Return the request of most runs that were assigned, of several the first."""
        groups = self.groups(list(self._owns))
        return max(groups, key=lambda group: len(group[1]))[0] if groups else self.of()

    def groups(self, runs: Sequence[Path]) -> list[tuple[Request, list[Path]]]:
        """Return runs by their request, in the order in which each comes first."""
        found: list[tuple[Request, list[Path]]] = []
        for run in runs:
            request = self.of(run)
            those = next((those for known, those in found if known == request), None)
            if those is None:
                found.append((request, [run]))
            else:
                those.append(run)
        return found

    def fitting(self, runs: Sequence[Path], room: int) -> Collection[Path]:
        """Return the runs that fit into `room` as jobs that are full, or the last of their request."""
        taken: list[Path] = []
        for request, those in self.groups(runs):
            for first in range(0, len(those), request.pack):
                job = those[first : first + request.pack]
                if len(taken) + len(job) > room:
                    break
                taken += job
        return set(taken)


def _text(own: Own) -> str:
    return ", ".join(f"{key}: {'null' if value is None else value}" for key, value in sorted(own.items()))


def describe(request: Request, runs: int, array_size: int | None, throttle: int | None) -> str:
    """Return how that many runs become jobs.

    Args:
        array_size: longest array of the cluster; None: not known.
        throttle: most runs at a time.
    """
    shape = request.shape
    number = -(-runs // request.pack)
    jobs = "(no Slurm answers here that says how long an array may be)"
    if array_size is not None:
        jobs = f"in {count(-(-number // array_size), 'array')} (of at most {array_size})"
    limit = f", {throttle} runs at a time" if throttle else ""
    gpus = count(shape.gpus_per_node, "GPU") if shape.gpus_per_node else "no GPUs"
    what = f"a run on {count(shape.nodes, 'node')} with {gpus}"
    if shape.pack:
        jobs = f"in {count(number, 'job')} {jobs}"
        what = f"a job runs {shape.pack} of {count(shape.ranks, 'rank')} side by side on a node with {gpus}"
    return f"{count(runs, 'run')} {jobs}, {what}{limit}{request.note}"


def describe_submitted(request: Request, runs: int, jobs: Sequence[str], number: int) -> str:
    """Return how that many runs were submitted: by which calls of sbatch, and as how many jobs."""
    kind = "array" if number > len(jobs) else "job"
    pack = request.shape.pack
    places = f" of {count(number, 'job')} with {count(pack, 'place')}" if pack else ""
    names = f"{kind}{'s' * (len(jobs) > 1)} {', '.join(jobs)}"
    return f"submitted {count(runs, 'run')} as {names}{places}{request.note}"
