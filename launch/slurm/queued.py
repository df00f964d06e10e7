"""Apply the command line to jobs that a sweep has in the queue already, or report what has no effect on them.

Slurm changes the limit of an array (--jobs), and time, partition, QOS and account of jobs that wait. All else was fixed
when the job was submitted; so was everything of jobs that run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.jobs.pack import Pack, find_pack
from launch.jobs.submitter import ENDING
from launch.slurm import client
from launch.slurm.client import QueuedJob, SlurmError
from launch.slurm.queue import is_of, is_report, runs_of, submission_of
from toolkit.atomic import write_atomic
from toolkit.rundir.records import read_text
from toolkit.wording import count, first_line

UPDATED = {"time": "timelimit", "partition": "partition", "qos": "qos", "account": "account"}  # key -> scontrol's
SCRIPT = "submit.sbatch"
# Options of sbatch that differ between submissions of the same request.
ITS_OWN = ("job-name", "array", "output", "error", "dependency", "kill-on-invalid-dep", "comment", "chdir", "open-mode")
Wanted = Callable[[Path, Path], tuple[str, Pack | None]]
"""(run, folder of its submission) -> the text that it would be submitted by now, and how it would be packed."""


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
        fresh = [job for job in mine if job.base not in self.done and job.state != ENDING]
        self.done |= {job.base for job in fresh}
        there = runs_of(self.root, fresh)
        for base in sorted({job.base for job in fresh}, key=int):
            jobs = [job for job in fresh if job.base == base]
            waiting = [job for job in jobs if job.waiting]
            if waiting:
                if self.throttle and "_" in waiting[0].name:
                    self._throttle(base, waiting[0], self.throttle)
                self._update(base, waiting, len(jobs) - len(waiting))
            run = next((run for run, job in there.items() if job.base == base), None)
            folder = submission_of(self.root, jobs[0])
            if run is not None and (folder / SCRIPT).exists():
                self._compare(base, folder, wanted(run, folder), waits=bool(waiting))

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

    def _update(self, base: str, waiting: Sequence[QueuedJob], running: int) -> None:
        """Apply time, partition, QOS and account to the jobs of a submission that wait."""
        file = submission_of(self.root, waiting[0]) / SCRIPT
        name = f"{base}_[{','.join(str(job.index) for job in waiting)}]" if running else base
        for key in [key for key in UPDATED if key in self.given]:
            value, before = str(self.given[key]), read_text(file)
            if options_of(before).get(key) == value:
                continue
            try:
                client.call("scontrol", "update", f"jobid={name}", f"{UPDATED[key]}={value}")
            except SlurmError as error:
                print(f"note: --{key} has no effect on job {base} in the queue: {first_line(error)}; {_again(base)}")
                continue
            others = f"; {running} that run keep theirs" if running else ""
            print(f"job {base} in the queue: {key} {value} from now on ({len(waiting)} waiting{others})")
            if before:  # it says what the job has
                write_atomic(file, _with_option(before, key, value))

    def _compare(self, base: str, folder: Path, wanted: tuple[str, Pack | None], waits: bool) -> None:
        """Report in what a submission differs from one that would be made now."""
        (text, pack), known = wanted, find_pack(folder)
        now, before = options_of(text), options_of(read_text(folder / SCRIPT))
        skipped = {*ITS_OWN, *(key for key in UPDATED if waits and key in self.given)}  # those are reported above
        keys = [key for key in dict.fromkeys([*before, *now]) if key not in skipped and before.get(key) != now.get(key)]
        parts = [f"{key} {before.get(key, 'none')} (now: {now.get(key, 'none')})" for key in keys]
        if known != pack:
            parts.append(f"pack {_places(known)} (now: {_places(pack)})")
        if parts:
            what = f"job {base} {'in the queue' if waits else 'that runs'}, which keeps {', '.join(parts)}"
            print(f"note: no effect on {what}; {_again(base, waits)}")


def _places(pack: Pack | None) -> str:
    return f"{pack.places} x {count(pack.ranks, 'rank')}" if pack else "none"


def _again(base: str, waits: bool = True) -> str:
    return f"to apply it: scancel {'--state=PENDING ' if waits else ''}{base}, then give this command again"


def options_of(text: str) -> dict[str, str]:
    """Return the options of sbatch that a text holds."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))


def _with_option(text: str, key: str, value: str) -> str:
    line = f"#SBATCH --{key}={value}"
    changed, found = re.subn(rf"^#SBATCH --{key}=.*$", lambda _: line, text, count=1, flags=re.MULTILINE)
    return changed if found else re.sub(r"^#SBATCH", lambda _: f"{line}\n#SBATCH", text, count=1, flags=re.MULTILINE)
