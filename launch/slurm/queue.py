"""The status of a sweep's runs from Slurm, merged with that from their directories. Does not import torch.

Directories come first: they hold the progress of a training, and they are right where no scheduler answers. Slurm
knows two things that they don't: which jobs are pending and why; and how a job ended that left no final status. Each
takes one call, whatever the number of runs: squeue, and sacct only when a run lacks a final status. Where a call fails
or takes too long, one line reports it and the table is made without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pwd
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.jobs.pack import PACK, RUNS, find_pack, is_unfinished, listed_runs
from launch.jobs.submitter import ENDING
from launch.slurm import client
from launch.slurm.client import QueuedJob, SlurmError
from toolkit.rundir import RunDir
from toolkit.rundir.lock import read_lock
from toolkit.rundir.records import read_text
from toolkit.rundir.status import RunView
from toolkit.wording import duration, first_line

SUBMISSIONS = "slurm"  # folder of a sweep: slurm/<key>/ is one submission, <key> ends the name of its jobs
EVALUATION = "evaluation"  # how <key> begins where jobs evaluate runs that others train
REPORT = "report"  # what stands for <key> in the name of the job that makes the report
PATIENCE_S = 10.0
SHARE = 20  # of the time that --watch watches, at most 1/20 is spent asking
LONGEST_PAUSE_S = 600.0
WORDS = {  # of squeue's reasons
    "AssocGrpGRES": "the account is at its GPU limit",
    "BeginTime": "requeued, starts again soon",
    "Dependency": "another job has to end first",
    "JobArrayTaskLimit": "limit of --jobs reached",
    "JobHeldAdmin": "held by an administrator",
    "JobHeldUser": "held; scontrol release lets it go",
    "PartitionTimeLimit": "`time` is more than the partition allows",
    "Priority": "jobs of higher priority come first",
    "QOSMaxJobsPerUserLimit": "limit of running jobs per user reached",
    "ReqNodeNotAvail": "nodes are down, drained or reserved",
    "Resources": "waits for free nodes",
}
ENDS = {  # of sacct's states, those that say more than that a job is gone
    "BOOT_FAIL": "node failed",
    "CANCELLED": "cancelled",
    "DEADLINE": "timeout",
    "NODE_FAIL": "node failed",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted",
    "TIMEOUT": "timeout",
}
NO_END = ("PENDING", "RUNNING", "REQUEUED", "RESIZING", "SUSPENDED")  # sacct lags behind squeue


@dataclass(frozen=True)
class Ended:
    """How sacct says that a job ended."""

    state: str  # the first word: TIMEOUT, CANCELLED
    text: str  # for people


def job_names(base: str, runs: int, places: int) -> list[str]:
    """Return the job that each of a submission's runs was meant for, as squeue shows it."""
    return [f"{base}_{index // places}" if runs > places else base for index in range(runs)]


def submission_of(root: Path, job: QueuedJob) -> Path:
    """Return the folder of the submission that a job of the sweep in `root` would be of: its name ends with the key."""
    return root / SUBMISSIONS / job.job_name.rpartition("-")[2]


def is_of(root: Path, job: QueuedJob) -> bool:
    """Return whether a job is of the sweep in `root`: by its comment, or by a submission that lies there."""
    return job.comment == str(root) or (submission_of(root, job) / RUNS).exists()


def is_report(root: Path, job: QueuedJob) -> bool:
    """Return whether a job makes the report of the sweep in `root`."""
    return job.job_name == f"{root.name}-{REPORT}" and job.comment == str(root)


def is_evaluation(job: QueuedJob) -> bool:
    """Return whether a job evaluates a run that another one trains."""
    return _evaluates(job.job_name.rpartition("-")[2])


def _evaluates(key: str) -> bool:
    return key.startswith(EVALUATION)


def _precedence(job: QueuedJob) -> int:
    """Of several jobs of a run the training counts, then the evaluation that waits for it, then one that ends."""
    return 0 if job.state == ENDING else 1 if is_evaluation(job) else 2


def runs_of(root: Path, jobs: Sequence[QueuedJob]) -> dict[Path, QueuedJob]:
    """Return which runs of a sweep have which jobs. A job is known by its name, whose end is a submission's folder."""
    # An evaluation whose training has failed is about to be dropped.
    jobs = [job for job in jobs if not (is_evaluation(job) and job.reason.startswith("DependencyNever"))]
    found: dict[Path, QueuedJob] = {}
    lists: dict[Path, list[Path]] = {}
    packed: dict[Path, list[QueuedJob]] = {}
    for job in sorted(jobs, key=_precedence):
        folder = submission_of(root, job)
        if (folder / RUNS).exists():
            runs = lists.setdefault(folder, listed_runs(folder))
            if (folder / PACK).exists():
                packed.setdefault(folder, []).append(job)
            elif job.index < len(runs):
                found[runs[job.index]] = job
        elif job.comment == str(root) and not is_report(root, job):  # a run's own text, by hand
            found[root / job.job_name] = job
    for folder, those in packed.items():
        found |= _packed(folder, lists[folder], those)
    return found


def _packed(folder: Path, runs: Sequence[Path], jobs: Sequence[QueuedJob]) -> dict[Path, QueuedJob]:
    """Return the job of each run that a packed submission still has to do.

    It is the one that has the run; else the one that it was meant for, or any other that is left.
    """
    pack = find_pack(folder)
    since = (folder / RUNS).stat().st_mtime
    known = {job.name: dataclasses.replace(job, packed=True) for job in jobs}
    last = max(known.values(), key=lambda job: job.state != ENDING)
    found = {}
    for run, name in zip(runs, job_names(jobs[0].base, len(runs), pack.places if pack else 1), strict=True):
        if is_unfinished(RunDir(run), since):
            holder = str(read_lock(run).get("job", "")).rpartition("_")[0]
            found[run] = known.get(holder) or known.get(name) or last
    return found


@dataclass
class Scheduler:
    """Queries Slurm at intervals and caches the answers; the intervals grow where a query takes long or fails."""

    patience_s: float = PATIENCE_S
    clock: Callable[[], float] = time.monotonic
    note: str | None = None  # what could not be asked
    _jobs: list[QueuedJob] | None = None
    _next: float = 0.0
    _pause: float = 0.0
    _ended: dict[str, Ended | None] = field(default_factory=dict)
    _accounting: bool = True

    def merge(self, views: Sequence[RunView], read_again: Callable[[RunView], RunView]) -> list[RunView]:
        """Add information from Slurm to the views. Query nothing if none of them was submitted to a cluster.

        Args:
            read_again: reads a run's directory again.
        """
        roots = {Path(view.path).parent.resolve() for view in views}
        roots = {root for root in roots if (root / SUBMISSIONS).is_dir()}
        if not roots:
            return list(views)
        asked = self._ask(roots)
        jobs = {run: job for root in roots for run, job in runs_of(root, self._jobs or []).items()}
        result = []
        for view in views:
            path = Path(view.path).resolve()
            if path.parent not in roots or self._jobs is None:
                result.append(view)
                continue
            job = jobs.get(path)
            if asked and job is None and _of_slurm(view) and view.live:
                view = read_again(view)  # it may have ended since its directory was read
            result.append(with_job(view, job))
        return self._with_ends(result, jobs, asked)

    def _ask(self, roots: set[Path]) -> bool:
        """Ask squeue, if it is time to; true when it was."""
        if self.clock() < self._next:
            return False
        began = self.clock()
        self.note = None
        try:
            if shutil.which("squeue") is None:
                raise SlurmError("no squeue on this machine")
            self._jobs = client.queue(owners(*roots), self.patience_s)
            self._pause = SHARE * (self.clock() - began)
        except SlurmError as error:
            self._jobs = None
            self.note = f"queue unknown, from the run directories alone: {first_line(error)}"
            self._pause = min(LONGEST_PAUSE_S, max(self.patience_s, 2 * self._pause))
        self._next = self.clock() + self._pause
        return True

    def _with_ends(self, views: list[RunView], jobs: Mapping[Path, QueuedJob], asked: bool) -> list[RunView]:
        """Query sacct for runs without a live process that had a job."""
        if self._jobs is None:
            return views
        names: dict[str, str] = {}
        submitted: dict[Path, list[dict[Path, str]]] = {}
        for view in views:
            path = Path(view.path).resolve()
            if view.state not in ("interrupted", "new", "trained") or view.kind == "stopped" or path in jobs:
                continue
            if path.parent not in submitted:
                submitted[path.parent] = [submitted_jobs(path.parent, evaluations) for evaluations in (False, True)]
            name = last_job(path, *(those.get(path) for those in submitted[path.parent]))
            if name is not None:
                names[view.path] = name
        unknown = sorted({name for name in names.values() if self._ended.get(name) is None})
        if unknown and asked and self._accounting:
            self._ask_ends(unknown)
        ended = []
        for view in views:
            name = names.get(view.path)
            if name is not None and (end := self._ended.get(name)):
                view = with_end(view, name, end)
            if name is not None and (why := failure_of(Path(view.path).parent, name)):
                view = dataclasses.replace(view, reason=f"{why}; run the sweep again to resume")
            ended.append(view)
        return ended

    def _ask_ends(self, names: Sequence[str]) -> None:
        bases = sorted({name.partition("_")[0] for name in names}, key=int)
        form = "--format=JobID,State,ExitCode,NodeList"
        command = ("sacct", "--noheader", "--parsable2", "--allocations", form, f"--jobs={','.join(bases)}")
        try:
            text = client.call(*command, timeout_s=self.patience_s)
        except SlurmError as error:
            if "disabled" in str(error) or "not on this machine" in str(error):
                self._accounting = False
                self.note = "no accounting on this cluster: the exit reason of jobs without a final status is unknown"
            else:
                self.note = f"exit reason of jobs without a final status unknown: {first_line(error)}"
            return
        self._ended.update(read_ends(text))


def read_ends(text: str) -> dict[str, Ended]:
    """Job -> its end, from sacct's lines `JobID|State|ExitCode|NodeList`; the last line of a requeued job holds."""
    found: dict[str, Ended] = {}
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) != 4 or not parts[1]:
            continue
        name, state, code, nodes = parts
        word = state.split()[0].rstrip("+")  # `CANCELLED by 1000`
        for one in client.tasks_of(name):
            if word in NO_END:
                found.pop(one, None)
            else:
                where = f", on {nodes}" if nodes and nodes != "None assigned" else ""
                found[one] = Ended(word, f"{state}, exit code {code}{where}")
    return found


def with_job(view: RunView, job: QueuedJob | None) -> RunView:
    """Return the view of a run from its directory and its job in the queue; None if it has no job there."""
    if view.state == "done":
        return view
    if job is None:
        if not (view.live and _of_slurm(view)) or view.held:
            return view
        reason = f"job {job_name(view)} left the queue without a final status; run the sweep again to resume"
        return dataclasses.replace(_inactive(view), state="interrupted", kind=None, reason=reason)
    if job.packed and not view.held and not job.waiting and job.state != ENDING:
        reason = f"waits for a place in job {job.name}"
        return dataclasses.replace(_inactive(view), state="queued", kind=None, host=None, reason=reason)
    if job.waiting:
        if view.held:  # somebody has it already, by hand
            return view
        return dataclasses.replace(_inactive(view), state="queued", kind=None, host=None, reason=why_waiting(job))
    if view.live:
        return dataclasses.replace(view, host=view.host or job.nodes or None)
    if job.state in ("SUSPENDED", "STOPPED"):
        return dataclasses.replace(view, state="running", kind="suspended", reason=f"job {job.name} is {job.state}")
    if job.state == ENDING or view.state == "failed":
        return view  # its final status is written
    if job_name(view) == job.name and view.updated is not None:
        quiet = (
            f"job {job.name} runs on {job.nodes}, but has written nothing for {duration(time.time() - view.updated)}"
        )
        return dataclasses.replace(view, state="running", kind="silent", reason=quiet)
    return dataclasses.replace(view, state="starting", kind=None, host=job.nodes or None, reason=f"job {job.name}")


def _inactive(view: RunView) -> RunView:
    """Without what only a run that works has."""
    return dataclasses.replace(view, rate=None, eta_s=None, data_wait=None)


def with_end(view: RunView, name: str, end: Ended) -> RunView:
    """Return the view of a run without a live process, with the end of its job."""
    if end.state == "COMPLETED":
        return view
    text = f"job {name} ended: {end.text}; run the sweep again to resume"
    kind = None if view.state == "trained" else ENDS.get(end.state, view.kind)
    return dataclasses.replace(view, kind=kind, reason=text)


def why_waiting(job: QueuedJob) -> str:
    """Return squeue's reason for a pending job, with an explanation."""
    word = job.reason.partition(",")[0].strip("()")
    known = next((text for key, text in WORDS.items() if word.startswith(key)), None)
    state = "" if job.state == "PENDING" else f" {job.state}"
    kind = "evaluation, " if is_evaluation(job) else ""
    return f"{kind}job {job.name}{state}: {word}" + (f" ({known})" if known else "")


def job_name(view: RunView) -> str | None:
    """Return the current or last job of a run as shown by squeue: 4711_3 for 4711_3_0 (start 0)."""
    match = re.fullmatch(r"(\d+(?:_\d+)?)_\d+", view.job or "")
    return match[1] if match else None


def submitted_jobs(root: Path, evaluations: bool = False) -> dict[Path, str]:
    """Return the last submitted job of each run of a sweep.

    Args:
        evaluations: of the jobs that evaluate what others train; else of the others.
    """
    found: dict[Path, str] = {}
    files = [file for file in (root / SUBMISSIONS).glob("*/job") if _evaluates(file.parent.name) == evaluations]
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        job, runs = file.read_text(encoding="utf-8", errors="replace").strip(), listed_runs(file.parent)
        pack = find_pack(file.parent)
        found |= dict(zip(runs, job_names(job, len(runs), pack.places if pack else 1), strict=True))
    return found


def last_job(run: Path, submitted: str | None, evaluation: str | None) -> str | None:
    """Return the job that a run has or had last, as squeue shows it: its lock names it, unless a later one never began.

    Args:
        submitted, evaluation: its jobs by `submitted_jobs`; another job of a packed array may have taken the run.
    """
    taken = str(read_lock(run).get("job", "")).rpartition("_")[0]
    meant = (evaluation if RunDir(run).done else None) or submitted or evaluation
    known = [name for name in (taken, meant) if name and re.fullmatch(r"\d+(_\d+)?", name)]
    return max(known, key=lambda name: int(name.partition("_")[0]), default=None)  # of the same array: which took it


def failure_of(root: Path, name: str) -> str | None:
    """Return why a packed job failed, which its batch script writes beside its logs; None where it wrote nothing."""
    files = sorted((root / SUBMISSIONS).glob(f"*/logs/{name}.failed"))
    return next((first_line(text) for file in files if (text := read_text(file).strip())), None)


def _of_slurm(view: RunView) -> bool:
    return job_name(view) is not None


def owners(*roots: Path) -> str:
    """Return the users whose jobs those of sweeps may be, for squeue: this one, and who owns the submissions."""
    users = {client.user_name()}
    for root in roots:
        for folder in (root / SUBMISSIONS, *(root / SUBMISSIONS).glob("*/")):
            with contextlib.suppress(OSError):
                users.add(_name_of(folder.stat().st_uid))
    return ",".join(sorted(users))


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
