"""Sweeps on a Slurm cluster: the runs of a sweep that ask for the same are one array, a job is a run directory.

    runs/<sweep>/slurm/<key>/      one submission; <key> is in its jobs' name, so that squeue alone tells what is queued
      submit.sbatch  runs.txt      array task n runs line n + 1
      request.json                 what its jobs ask for; see launch/slurm/queued.py
      pack.json                    or, where jobs run several runs each: how many; see launch/jobs/pack.py
      logs/4711_0_0_batch.log      and the log of such a job's batch script
      job                          its id, for people
      4711_0.log                   what happened before the run's own log began

Nothing has to be remembered: whether a run has a job is asked of squeue, by the name of the submission, whose folder
was written before; how a run stands is read from its directory.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from launch.jobs import snapshot
from launch.jobs.job import EVALUATE
from launch.jobs.pack import PACK_SCRIPT, RUNS, Pack
from launch.jobs.submitter import (
    ENDING,
    JOB_SCRIPT,
    Job,
    JobCommand,
    JobState,
    Submitter,
    job_command,
    run_concurrently,
)
from launch.slurm import client
from launch.slurm.client import QueuedJob, SlurmError
from launch.slurm.limits import check_time, own_file_system
from launch.slurm.queue import (
    EVALUATION,
    REPORT,
    SUBMISSIONS,
    failure_of,
    is_evaluation,
    is_of,
    is_report,
    last_job,
    owners,
    runs_of,
    submitted_jobs,
)
from launch.slurm.queued import QueuedJobs, write_record
from launch.slurm.request import Own, Request, Requests, describe
from launch.slurm.script import array_text, command_text, run_text
from launch.slurm.submission import (
    Call,
    Submission,
    awaited,
    check_apart,
    descriptions,
    evaluation_of,
    planned_calls,
    training_of,
)
from toolkit.atomic import write_atomic
from toolkit.errors import ConfigError
from toolkit.rundir import lock
from toolkit.shipped import command as typed
from toolkit.wording import count, first_line, some

POLL_S = 5.0


class SlurmSubmitter(Submitter):
    """Jobs on a cluster; they outlive the caller."""

    detached = True

    def __init__(
        self,
        root: Path,
        requests: Requests,
        throttle: int | None = None,
        command: JobCommand = job_command,
        after: Sequence[str] = (),
        evaluate_apart: bool = False,
    ) -> None:
        """
        Args:
            root: the sweep's directory.
            requests: what its jobs ask for.
            throttle: most runs at a time; None: as many as the cluster likes.
            after: jobs, or folders of sweeps, that have to end before the jobs begin.
            evaluate_apart: each run is evaluated by a job of its own, which begins when its training has succeeded.
        """
        self.root = root.resolve()
        self.requests = requests
        self.throttle = throttle
        self.command = command
        self.after = after
        self.evaluate_apart = evaluate_apart
        self._names: dict[Job, str] = {}
        self._scored: frozenset[Path] = frozenset()
        self._evaluations: list[str] = []  # jobs that evaluate what other ones train
        self._states: dict[Job, JobState] = {}
        self._absent: dict[Job, int] = {}
        self._asked_at = 0.0
        self._queue: list[QueuedJob] = []
        self._copy: snapshot.Snapshot | None = None
        self._in_queue = QueuedJobs(self.root, throttle, requests.given)

    def assign(self, resources: Mapping[Path, Own], scored: Collection[Path] = ()) -> None:
        self.requests.assign(resources)
        self._scored = frozenset(scored)
        for request in self.requests.all() if self.evaluate_apart else ():
            check_apart(request)

    def ranks_of(self, run: Path) -> int:
        return self.requests.of(run).shape.ranks

    @property
    def runs_per_job(self) -> int:
        return max(request.pack for request in self.requests.all())

    def fitting(self, runs: Sequence[Path], room: int) -> Collection[Path]:
        return self.requests.fitting(runs, room)

    def check(self, settings: Mapping[str, str] | None = None) -> None:
        """Check requests and machine before anything is made; `settings`: of Slurm's configuration, None: ask for them.

        Raises:
            SlurmError: no Slurm here, or its controller doesn't answer.
        """
        if settings is None:
            client.check_installed()
            settings = client.configuration()
        self.array_size = client.max_array_size(settings)
        requests = self.requests.all()
        if any(request.shape.gpus_per_node for request in requests) and settings.get("SelectType") == "select/linear":
            print("note: this cluster gives nodes whole (select/linear): jobs use the GPUs of theirs without asking")
            self.requests.asks_for_gpus = False
        for request in requests:
            check_time(request.profile)
        pack = self.runs_per_job
        if self.throttle and self.throttle < pack:
            raise ConfigError(
                f"--jobs {self.throttle} is fewer runs at a time than one job of --pack {pack} has: give "
                f"--jobs {pack} or more, or pack fewer runs"
            )
        if kind := own_file_system(self.root):
            print(f"note: {self.root} is in this machine's own storage ({kind}): can the nodes see it? (--runs DIR)")

    def queued(self) -> dict[Path, QueuedJob]:
        """Return the jobs of runs of this sweep in the queue, whoever submitted them. Query squeue once."""
        self._queue = client.queue(owners(self.root))
        return runs_of(self.root, self._queue)

    def strangers(self, planned: Collection[Path]) -> list[str]:
        there = {run: job for run, job in runs_of(self.root, self._queue).items() if job.state != ENDING}
        lost = {run.name: job.name for run, job in there.items() if run not in planned}
        return [f"{run}: is not planned any more, and job {job} has it: scancel {job}" for run, job in lost.items()]

    def preview(self, runs: Sequence[Path], show: bool, test: bool) -> list[str]:
        """Return the texts that sbatch would be given, and its answer to each. Texts alone need no Slurm.

        Raises:
            SlurmError: it would refuse one, or doesn't answer.
        """
        lines, longest = [], None
        try:
            self.check()
            longest = self.array_size
        except SlurmError as error:
            if test:
                raise
            self.check({})
            lines.append(f"note: no Slurm answers here, so each request is one array: {first_line(error)}")
        for number, call in enumerate(self._calls(runs, longest), 1):
            folder, code = self.root / SUBMISSIONS / f"submission-{number}", self.root / "code" / "snapshot"
            request, size = call.request, len(call.runs)
            text = self._text(request, size, folder, folder.name, [], code, "TRAINING" if call.apart else None)
            lines += ["", f"# {folder}/submit.sbatch: {count(size, 'run')}{request.note}", text] if show else []
            text = self._text(request, size, folder, folder.name, [], code)  # without the job that isn't there yet
            lines += [client.sbatch_test(text, client.submission_environment(request.profile))] if test else []
        return lines

    def adopt(self, queued: Mapping[Path, str]) -> list[Job]:
        self._in_queue.apply(self._queue, self._wanted)
        return [self._follow(run, name) for run, name in queued.items()]

    def _wanted(self, runs: Sequence[Path], job: QueuedJob) -> list[tuple[Request, list[Path]]]:
        """Return the requests by which runs in the queue, of those that are planned, would be submitted now."""
        groups = self.requests.groups([run for run in runs if self.requests.plans(run)])
        if is_evaluation(job):
            return [(evaluation_of(request), those) for request, those in groups]
        return [(training_of(request) if self.evaluate_apart else request, those) for request, those in groups]

    def submit(self, runs: Sequence[Path]) -> list[Job]:
        """Submit runs in as few arrays as the controller allows.

        Raises:
            SlurmError: refused; then none of them was submitted.
        """
        if not runs:
            return []
        runs = [run.resolve() for run in runs]
        copy = self._code()
        changed = [run.name for run in runs if snapshot.point(run, copy.path)]
        if changed:
            print(f"note: these resume with changed code ({copy.path.name}): {some(changed)}")
        calls = self._calls(runs, self.array_size)
        for call in calls:
            run_concurrently(partial(self._write_text, code=copy.path, request=call.request), call.runs)
        submissions: list[Submission] = []
        evaluations: list[Submission] = []  # of runs that the submission before trains
        ending = [*self._ending(), *awaited(self.after)]
        try:
            for call in calls:
                if call.apart:
                    after = self._predecessors(evaluations, call.request)
                    evaluations.append(self._submit_part(call.runs, call.request, after, submissions[-1].job))
                else:
                    after = [*ending, *self._predecessors(submissions, call.request)]
                    submissions.append(self._submit_part(call.runs, call.request, after))
        except BaseException:
            client.cancel([submission.job for submission in (*evaluations, *submissions)])
            raise
        self._evaluations += [submission.job for submission in evaluations]
        self._in_queue.done |= {submission.job for submission in (*submissions, *evaluations)}
        print("\n".join(descriptions([*submissions, *evaluations])))
        return [self._follow(run, name) for submission in submissions for run, name in submission.jobs()]

    def _code(self) -> snapshot.Snapshot:
        """Return the copy of the code that all jobs of this command run, which is made at the first call."""
        if self._copy is None:
            copy = self._copy = snapshot.take(self.root)
            if copy.commit is None:
                print(f"note: the code in {snapshot.ROOT} is not under version control: copied, without a commit")
            if copy.untracked:
                print(f"note: copied though git doesn't know them: {some(copy.untracked)}")
        return self._copy

    def submit_report(self, fresh: bool) -> None:
        """Submit the job that makes the report when all jobs of the sweep have ended, however; a refusal is logged.

        Args:
            fresh: jobs have come since the last call, so that one that waits for fewer of them is taken back.
        """
        name = f"{self.root.name}-{REPORT}"
        old = [job.name for job in self._queue if is_report(self.root, job) and job.waiting]
        if old and not fresh:
            return
        copy, profile = self._code(), self.requests.usual().profile
        folder = self.root / SUBMISSIONS / REPORT
        folder.mkdir(parents=True, exist_ok=True)
        python = profile.python or sys.executable
        command = [python, str(copy.path / "launch" / "report.py"), str(self.root)]
        queued = [job.base for job in self._queue if is_of(self.root, job) and is_evaluation(job)]
        names = [*self._names.values(), *self._evaluations, *queued]
        after = sorted({name.partition("_")[0] for name in names}, key=int)
        light, comment = profile.light_request("60"), str(self.root)
        cpus = light.cpus_per_task
        text = command_text(light, cpus, folder, name, command, copy.path, Path.cwd(), comment, after=after)
        write_atomic(folder / "submit.sbatch", text)
        try:
            client.cancel(old)
            job = client.sbatch(str(folder / "submit.sbatch"), client.submission_environment(light))
        except SlurmError as error:
            print(f"note: no job for the report ({first_line(error)}): {typed('report', self.root)}")
            return
        print(f"job {job} makes the report when all have ended: {self.root}/report/index.html")

    def poll(self) -> dict[Job, JobState]:
        """How every job stands; the queue is asked once in POLL_S at most."""
        if time.monotonic() - self._asked_at < POLL_S:
            return dict(self._states)
        self._asked_at = time.monotonic()
        try:
            queue = client.queue(owners(self.root))
        except SlurmError as error:
            print(f"{error}\nasking again", file=sys.stderr, flush=True)
            return dict(self._states)
        there = runs_of(self.root, queue)
        for job in self._names:
            entry = there.get(job.run)
            # Twice absent is ended: meanwhile a shared file system has shown what the job wrote last.
            self._absent[job] = 0 if entry else self._absent[job] + 1
            if entry:
                waits = entry.waiting or (entry.packed and lock.holder(job.run) is None)
                self._states[job] = JobState.QUEUED if waits else JobState.RUNNING
            elif self._absent[job] > 1:
                self._states[job] = JobState.ENDED
        return dict(self._states)

    def exit_reason(self, job: Job) -> str | None:
        """Return why its job failed, as its batch script wrote it, or how Slurm says that it ended."""
        name = last_job(job.run, self._names[job], submitted_jobs(self.root, evaluations=True).get(job.run))
        return name and (failure_of(self.root, name) or client.exit_reason(name))

    def _follow(self, run: Path, name: str) -> Job:
        job = Job(run, len(self._names))
        self._names[job], self._states[job], self._absent[job] = name, JobState.QUEUED, 0
        return job

    def _write_text(self, run: Path, code: Path, request: Request) -> None:
        (run / "logs").mkdir(exist_ok=True)
        command = self._on_node(request, code, [*self.command(run, 1, True), *request.options])
        text = run_text(request.profile, request.shape.alone, self.root, run, code, command, Path.cwd())
        write_atomic(run / request.text, text)

    def _on_node(self, request: Request, code: Path, command: Sequence[str]) -> list[str]:
        """Return a command of this checkout as the nodes have it: of the copy of the code, by the profile's Python."""
        replaced = {str(script): str(code / script.relative_to(snapshot.ROOT)) for script in (JOB_SCRIPT, PACK_SCRIPT)}
        replaced[sys.executable] = request.profile.python or sys.executable
        return [replaced.get(word, word) for word in command]

    def announce(self, runs: Sequence[Path]) -> list[str]:
        """Return how runs become jobs; without arrays where no Slurm answers."""
        size = None
        with contextlib.suppress(SlurmError):
            client.check_installed()
            size = max(1, client.max_array_size())
        # The arrays of a request are one line.
        return [describe(call.request, len(call.runs), size, self.throttle) for call in self._calls(runs, None)]

    def _calls(self, runs: Sequence[Path], array_size: int | None) -> list[Call]:
        """Return the calls of sbatch for runs."""
        return planned_calls(self.requests.groups(runs), array_size, self.evaluate_apart, self._scored)

    def _predecessors(self, submissions: Sequence[Submission], request: Request) -> list[str]:
        """Return the jobs that the next one waits for. A throttle holds within an array; so arrays run one by one."""
        if not self.throttle or not submissions:
            return []
        lanes = 1 if self.array_size > 1 else self._jobs_at_a_time(request)
        own = [one.job for one in submissions if one.request == request]
        if len(own) >= (lanes or 1):
            return [own[-(lanes or 1)]]
        return [one.job for one in submissions if one.request != request]

    def _jobs_at_a_time(self, request: Request) -> int | None:
        return self.throttle and max(1, self.throttle // request.pack)

    def _ending(self) -> list[str]:
        """Return jobs of the sweep that end at this moment: what is submitted now waits until they are gone."""
        mine = [job for job in self._queue if is_of(self.root, job)]
        left = {job.base for job in mine if job.state != ENDING}
        return sorted({job.name if job.base in left else job.base for job in mine if job.state == ENDING})

    def _submit_part(
        self, runs: Sequence[Path], request: Request, after: Sequence[str], trained_by: str | None = None
    ) -> Submission:
        key, shape = (EVALUATION if request.only == EVALUATE else "") + secrets.token_hex(4), request.shape
        pack = Pack(shape.pack, shape.ranks, shape.gpus_per_node) if shape.pack else None
        folder, name = self.root / SUBMISSIONS / key, f"{self.root.name}-{key}"
        (folder / "logs" if pack else folder).mkdir(parents=True)
        write_atomic(folder / RUNS, "".join(f"{run}\n" for run in runs))
        if pack:
            pack.write(folder)
        text = self._text(request, len(runs), folder, name, after, runs[0].joinpath("code").resolve(), trained_by)
        write_atomic(folder / "submit.sbatch", text)
        write_record(folder, request.record)
        try:
            job = client.sbatch(str(folder / "submit.sbatch"), client.submission_environment(request.profile))
        except BaseException as error:
            # An answer may have been lost on its way, or a Ctrl-C was quicker: the job may be there all the same.
            accepted = [job.base for job in client.queue() if job.job_name == name]
            if not accepted or not isinstance(error, SlurmError):
                client.cancel(accepted[:1])
                shutil.rmtree(folder)
                raise
            job = accepted[0]
        write_atomic(folder / "job", job + "\n")
        return Submission(folder, job, tuple(runs), request)

    def _text(
        self,
        request: Request,
        runs: int,
        folder: Path,
        name: str,
        after: Sequence[str],
        code: Path,
        trained_by: str | None = None,
    ) -> str:
        number = -(-runs // request.pack)
        throttle = f"%{self._jobs_at_a_time(request)}" if self.throttle else ""
        array = f"0-{number - 1}{throttle}" if number > 1 else None
        cwd, profile, shape = Path.cwd(), request.profile, request.shape
        packed = [sys.executable, str(PACK_SCRIPT), str(folder), *self._job_script()] if shape.pack else []
        command = self._on_node(request, code, packed)
        texts = (command, request.text, trained_by)
        return array_text(profile, shape, self.root, folder, name, array, after, cwd, code, *texts)

    def _job_script(self) -> list[str]:
        """Return the option of pack.py that names the script of a run's job, where that isn't ours."""
        script = self.command(self.root, 1, True)[1]
        return [] if script == str(JOB_SCRIPT) else ["--job", script]
