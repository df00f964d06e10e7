"""Apply the command line to jobs that a sweep has in the queue already, or report what has no effect on them.

Slurm changes the limit of an array (--jobs), and time, partition, QOS and account of jobs that wait. All else was fixed
when the job was submitted; so was everything of jobs that run. What each submission asked for is in its `request.json`,
which is compared with the request of each of its runs now: every key of the profile that concerns a run, the
numbers of ranks and of runs in a job, and whether runs are evaluated apart. The code is not compared: a job keeps its
copy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.jobs.pack import find_pack
from launch.jobs.submitter import ENDING
from launch.slurm import client
from launch.slurm.client import QueuedJob, SlurmError
from launch.slurm.queue import is_evaluation, is_of, is_report, runs_of, submission_of
from launch.slurm.request import APART, Record, Request
from toolkit.atomic import write_atomic
from toolkit.rundir.records import read_object
from toolkit.wording import count, first_line, some

UPDATED = {"time": "timelimit", "partition": "partition", "qos": "qos", "account": "account"}  # key -> scontrol's
RECORD = "request.json"
Groups = Sequence[tuple[Request, Sequence[Path]]]
Wanted = Callable[[Sequence[Path], QueuedJob], Groups]
"""(runs, one of the jobs of their submission) -> the requests by which they would be submitted now."""


@dataclass
class QueuedJobs:
    """The jobs of a sweep in the queue; each submission is changed once."""

    root: Path
    throttle: int | None  # --jobs
    given: Mapping[str, object]  # keys of the profile that the command line gives
    done: set[str] = field(default_factory=set)  # jobs, by their base, that need nothing

    def apply(self, queue: Sequence[QueuedJob], wanted: Wanted) -> None:
        """Apply the command line to jobs that wait, and report what has no effect."""
        mine = [job for job in queue if is_of(self.root, job) and not is_report(self.root, job)]
        mine = [job for job in mine if job.state != ENDING]
        evaluated = set(runs_of(self.root, [job for job in mine if is_evaluation(job)]))
        fresh = [job for job in mine if job.base not in self.done]
        self.done |= {job.base for job in fresh}
        for base in sorted({job.base for job in fresh}, key=int):
            jobs = [job for job in fresh if job.base == base]
            there = runs_of(self.root, jobs)
            groups = wanted(list(there), jobs[0])
            refused: list[str] = []
            if waiting := [job for job in jobs if job.waiting]:
                if self.throttle and "_" in waiting[0].name:
                    self._throttle(base, waiting[0], self.throttle)
                refused = self._update(base, waiting, len(jobs) - len(waiting), [request for request, _ in groups])
            before = read_record(submission_of(self.root, jobs[0]))
            if groups and not before:
                print(f"note: job {base} is of an earlier version, or submitted by hand: its options are not compared")
            for request, runs in groups if before else ():
                own = {run: there[run] for run in runs}
                _compare(before, request, own, len(own) == len(there), refused if waiting else ())
            if before.get("evaluation") == APART and not is_evaluation(jobs[0]):
                _report_unevaluated(base, [run for run in there if run not in evaluated])

    def _throttle(self, base: str, job: QueuedJob, runs: int) -> None:
        """Apply --jobs to an array; Slurm knows it of each array alone, and counts jobs."""
        pack = find_pack(submission_of(self.root, job))
        places = pack.places if pack else 1
        jobs = max(1, runs // places)
        note = f", in {count(jobs, 'job')} of {places}" if pack else ""
        try:
            client.call("scontrol", "update", f"jobid={base}", f"arraytaskthrottle={jobs}")
            print(f"array {base} in the queue: {jobs * places} runs at a time from now on (--jobs){note}")
        except SlurmError as error:
            print(f"note: --jobs has no effect on array {base} in the queue: {first_line(error)}")

    def _update(self, base: str, waiting: Sequence[QueuedJob], running: int, requests: Sequence[Request]) -> list[str]:
        """Apply time, partition, QOS and account to the jobs of a submission that wait: as their requests have them.

        Returns the keys that Slurm refused to change, which are reported.
        """
        folder, refused = submission_of(self.root, waiting[0]), []
        name = f"{base}_[{','.join(str(job.index) for job in waiting)}]" if running else base
        for key in [key for key in UPDATED if key in self.given]:
            values, before = {getattr(request.profile, key) for request in requests}, read_record(folder)
            value = values.pop() if len(values) == 1 else None
            if value is None or before.get(key) == value:
                continue  # runs that want different values are reported by `_compare`
            try:
                client.call("scontrol", "update", f"jobid={name}", f"{UPDATED[key]}={value}")
            except SlurmError as error:
                again = _again(base, waits=True)
                print(f"note: --{key} has no effect on job {base} in the queue: {first_line(error)}; {again}")
                refused.append(key)
                continue
            others = f"; {running} that run keep theirs" if running else ""
            print(f"job {base} in the queue: {key} {value} from now on ({len(waiting)} waiting{others})")
            if before:  # it says what the jobs have
                write_record(folder, {**before, key: value})
        return refused


def read_record(folder: Path) -> Record:
    """Return what a submission asked for; empty where that isn't known."""
    return read_object(folder / RECORD)


def write_record(folder: Path, record: Record) -> None:
    """Write what a submission asked for."""
    write_atomic(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _compare(
    before: Record, request: Request, jobs: Mapping[Path, QueuedJob], complete: bool, refused: Sequence[str]
) -> None:
    """Report in what the jobs of runs of a submission differ from those that would be submitted now.

    Args:
        complete: these are all runs of the submission that have a job.
        refused: keys that are reported already.
    """
    now = request.record
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key) and key not in refused]
    if not keys:
        return
    parts = ", ".join(_difference(key, before.get(key), now.get(key)) for key in keys)
    base, waits = next(iter(jobs.values())).base, any(job.waiting for job in jobs.values())
    which, whose = base, ""
    if not complete:
        whose = f" for {some([run.name for run in jobs])}"
        tasks = sorted({job.index for job in jobs.values()})
        which = f"{base}_{tasks[0]}" if len(tasks) == 1 else f"'{base}_[{','.join(map(str, tasks))}]'"
    state = "in the queue" if waits else "that runs"
    print(f"note: no effect on job {base} {state}{whose}, which keeps {parts}; {_again(which, waits)}")


def _again(jobs: str, waits: bool) -> str:
    return f"to apply it: scancel {'--state=PENDING ' if waits else ''}{jobs}, then give this command again"


def _difference(key: str, before: object, now: object) -> str:
    if key.startswith("env."):  # it may be a password
        return f"another {key}"
    return f"{key} {_shown(before)} (now: {_shown(now)})"


def _shown(value: object) -> str:
    text = "; ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
    return text or "none"


def _report_unevaluated(base: str, runs: Sequence[Path]) -> None:
    """Report runs that their job only trains, and whose evaluation is not in the queue: cancelled, or dropped."""
    if runs:
        names = some([run.name for run in runs])
        print(f"note: job {base} only trains {names}, and no job evaluates: give this command again when it has ended")
