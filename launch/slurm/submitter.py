"""Sweeps on a Slurm cluster: a sweep is one array, a job is a run directory.

    runs/<sweep>/slurm/<key>/      one submission; <key> is in its jobs' name, so that squeue alone tells what is queued
      submit.sbatch  runs.txt      array task n runs line n + 1
      pack.json                    or, where jobs run several runs each: how many; see launch/jobs/pack.py
      logs/4711_0_0_batch.log      and the log of such a job's batch script
      job                          its id, for people
      4711_0.log                   what happened before the run's own log began

Nothing has to be remembered: whether a run has a job is asked of squeue, by the name of the submission, whose folder
was written before; how a run stands is read from its directory.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from launch.jobs import snapshot
from launch.jobs.pack import PACK_SCRIPT, RUNS, Pack, find_pack
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
from launch.slurm.profile import Profile
from launch.slurm.queue import (
    REPORT,
    SUBMISSIONS,
    failure_of,
    is_evaluation,
    is_of,
    is_report,
    job_of_array,
    owners,
    runs_of,
    submission_of,
)
from launch.slurm.script import Shape, array_text, command_text, run_text
from launch.slurm.submission import Call, Submission, Work, awaited, evaluated_apart, names_of, planned_calls
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
        profile: Profile,
        shape: Shape,
        throttle: int | None = None,
        command: JobCommand = job_command,
        after: Sequence[str] = (),
        evaluate_apart: bool = False,
    ) -> None:
        """
        Args:
            root: the sweep's directory.
            throttle: most runs at a time; None: as many as the cluster likes.
            after: jobs, or folders of sweeps, that have to end before the jobs begin.
            evaluate_apart: each run is evaluated by a job of its own, which begins when its training has succeeded.

        Raises:
            ConfigError: packed jobs whose runs are to be evaluated apart.
        """
        self.root = root.resolve()
        self.profile = profile
        self.shape = shape
        self.throttle = throttle
        self.command = command
        self.after = after
        self.evaluate_apart = evaluate_apart
        if evaluate_apart:
            evaluated_apart(profile, shape)
        self._names: dict[Job, str] = {}
        self._evaluations: list[str] = []  # jobs that evaluate what other ones train
        self._states: dict[Job, JobState] = {}
        self._absent: dict[Job, int] = {}
        self._asked_at = 0.0
        self._queue: list[QueuedJob] = []
        self._copy: snapshot.Snapshot | None = None
        self._throttled: set[str] = set()  # arrays that --jobs holds for

    @property
    def ranks_per_run(self) -> int:
        return self.shape.ranks

    @property
    def runs_per_job(self) -> int:
        return self.shape.pack or 1

    def check(self) -> None:
        """Find out whether this machine can submit, before anything is made.

        Raises:
            SlurmError: no Slurm here, or its controller doesn't answer.
        """
        client.check_installed()
        settings = client.configuration()
        self.array_size = client.max_array_size(settings)
        if self.shape.gpus_per_node and settings.get("SelectType") == "select/linear":
            print("note: this cluster gives nodes whole (select/linear): jobs use the GPUs of theirs without asking")
            self.shape = dataclasses.replace(self.shape, asks_for_gpus=False)
        check_time(self.profile)
        if self.throttle and self.shape.pack and self.throttle < self.shape.pack:
            raise ConfigError(
                f"--jobs {self.throttle} is fewer runs at a time than one job of --pack {self.shape.pack} has: give "
                f"--jobs {self.shape.pack} or more, or pack fewer runs"
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
        """Return the texts that sbatch would be given, and its answer to each.

        Raises:
            SlurmError: it would refuse one.
        """
        self.check()
        lines = []
        for number, call in enumerate(self._calls([run.resolve() for run in runs]), 1):
            folder = self.root / SUBMISSIONS / f"submission-{number}"
            code = self.root / "code" / "snapshot"
            text = self._text(call, folder, folder.name, [], code, "TRAINING" if call.apart else None)
            lines += ["", f"# {folder}/submit.sbatch: {count(len(call.runs), 'run')}", text] if show else []
            tested = self._text(call, folder, folder.name, [], code)  # no job there yet to wait for
            lines += [client.sbatch_test(tested, client.submission_environment(call.work.profile))] if test else []
        return lines

    def adopt(self, queued: Mapping[Path, str]) -> list[Job]:
        if self.throttle:
            self._throttle_queued(self.throttle)
        return [self._follow(run, name) for run, name in queued.items()]

    def _throttle_queued(self, runs: int) -> None:
        """Apply --jobs to what is in the queue already; Slurm knows it of each array alone, and counts jobs."""
        waiting = [job for job in self._queue if job.waiting and "_" in job.name and is_of(self.root, job)]
        arrays = {job.base: job for job in waiting}
        for base in sorted(arrays.keys() - self._throttled, key=int):
            self._throttled.add(base)
            pack = find_pack(submission_of(self.root, arrays[base]))
            places = pack.places if pack else 1
            jobs = max(1, runs // places)
            note = f", in {count(jobs, 'job')} of {places}" if pack else ""
            try:
                client.call("scontrol", "update", f"jobid={base}", f"arraytaskthrottle={jobs}")
                print(f"array {base} in the queue: {jobs * places} runs at a time from now on (--jobs){note}")
            except SlurmError as error:
                print(f"note: --jobs has no effect on array {base} in the queue: {first_line(error)}")

    def submit(self, runs: Sequence[Path]) -> list[Job]:
        """Submit runs in as few arrays as the controller allows.

        Raises:
            SlurmError: refused; then none of them was submitted.
        """
        if not runs:
            return []
        runs = [run.resolve() for run in runs]
        copy = self._copy = snapshot.take(self.root)
        if copy.commit is None:
            print(f"note: the code in {snapshot.ROOT} is not under version control: copied as it is, without a commit")
        if copy.untracked:
            print(f"note: copied though git doesn't know them: {some(copy.untracked)}")
        changed = [run.name for run in runs if snapshot.point(run, copy.path)]
        if changed:
            print(f"note: these resume with changed code ({copy.path.name}): {some(changed)}")
        calls = self._calls(runs)
        for call in calls:
            write = partial(self._write_text, code=copy.path, work=call.work)
            run_concurrently(write, call.runs)
        submissions: list[Submission] = []
        evaluations: list[Submission] = []  # of runs that the submission before trains
        ending = [*self._ending(), *awaited(self.after)]
        try:
            for call in calls:
                if call.apart:
                    evaluations.append(self._submit_part(call.runs, [], call.work, submissions[-1].job))
                else:
                    after = [*ending, *self._predecessor(submissions)]
                    submissions.append(self._submit_part(call.runs, after, call.work))
        except BaseException:
            client.cancel([submission.job for submission in (*evaluations, *submissions)])
            raise
        self._evaluations += [submission.job for submission in evaluations]
        self._throttled |= {submission.job for submission in (*submissions, *evaluations)}
        jobs = [self._follow(run, name) for submission in submissions for run, name in submission.jobs()]
        names, kind = names_of(submissions)
        number = sum(submission.size for submission in submissions)
        places = f" of {count(number, 'job')} with {count(self.shape.pack, 'place')}" if self.shape.pack else ""
        print(f"submitted {count(len(runs), 'run')} as {kind} {names}{places}")
        if evaluations:
            names, kind = names_of(evaluations)
            print(f"evaluation: {kind} {names}; each job begins when the training of its run has succeeded")
        return jobs

    def _calls(self, runs: Sequence[Path]) -> list[Call]:
        return planned_calls(self.profile, self.shape, self.evaluate_apart, runs, self._parts)

    def submit_report(self, fresh: bool) -> None:
        """Submit the job that makes the report when all jobs of the sweep have ended, however; a refusal is logged.

        Args:
            fresh: jobs have come since the last call, so that one that waits for fewer of them is taken back.
        """
        name = f"{self.root.name}-{REPORT}"
        old = [job.name for job in self._queue if is_report(self.root, job) and job.waiting]
        if old and not fresh:
            return
        copy = self._copy or snapshot.take(self.root)
        folder = self.root / SUBMISSIONS / REPORT
        folder.mkdir(parents=True, exist_ok=True)
        python = self.profile.python or sys.executable
        command = [python, str(copy.path / "launch" / "report.py"), str(self.root)]
        names = [
            *self._names.values(),
            *self._evaluations,
            *(job.base for job in self._queue if is_of(self.root, job) and is_evaluation(job)),
        ]
        after = sorted({name.partition("_")[0] for name in names}, key=int)
        light, comment = self.profile.light_request("60"), str(self.root)
        cpus = light.cpus_per_task
        text = command_text(light, cpus, folder, name, command, copy.path, Path.cwd(), comment, after=after)
        write_atomic(folder / "submit.sbatch", text)
        try:
            client.cancel(old)
            job = client.sbatch(str(folder / "submit.sbatch"), client.submission_environment(self.profile))
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
        name = job_of_array(job.run, self._names[job])
        return failure_of(self.root, name) or client.exit_reason(name)

    def _follow(self, run: Path, name: str) -> Job:
        job = Job(run, len(self._names))
        self._names[job], self._states[job], self._absent[job] = name, JobState.QUEUED, 0
        return job

    def _write_text(self, run: Path, code: Path, work: Work) -> None:
        (run / "logs").mkdir(exist_ok=True)
        command = self._there(code, [*self.command(run, 1, True), *work.options])
        text = run_text(work.profile, work.shape.alone, self.root, run, code, command, Path.cwd())
        write_atomic(run / work.text, text)

    def _there(self, code: Path, command: Sequence[str]) -> list[str]:
        """Return a command of this checkout as the nodes have it: of the copy of the code, by the profile's Python."""
        replaced = {str(script): str(code / script.relative_to(snapshot.ROOT)) for script in (JOB_SCRIPT, PACK_SCRIPT)}
        replaced[sys.executable] = self.profile.python or sys.executable
        return [replaced.get(word, word) for word in command]

    def announce(self, runs: int) -> list[str]:
        """Return how that many runs become jobs; without arrays where no Slurm answers."""
        shape = self.shape
        number = -(-runs // (shape.pack or 1))
        try:
            client.check_installed()
            size = max(1, client.max_array_size())
            jobs = f"in {count(-(-number // size), 'array')} (of at most {size})"
        except SlurmError:
            jobs = "(no Slurm answers here that says how long an array may be)"
        throttle = f", {self.throttle} runs at a time" if self.throttle else ""
        gpus = count(shape.gpus_per_node, "GPU") if shape.gpus_per_node else "no GPUs"
        what = f"a run on {count(shape.nodes, 'node')} with {gpus}"
        if shape.pack:
            jobs = f"in {count(number, 'job')} {jobs}"
            what = f"a job runs {shape.pack} of {count(shape.ranks, 'rank')} side by side on a node with {gpus}"
        request = evaluated_apart(self.profile, shape)[1].shape if self.evaluate_apart else None
        apart = [f"each is evaluated in a job of its own with {count(request.gpus_per_node, 'GPU')}"] if request else []
        return [f"{count(runs, 'run')} {jobs}, {what}{throttle}", *apart]

    def _parts(self, runs: Sequence[Path]) -> list[Sequence[Path]]:
        size = max(1, self.array_size) * (self.shape.pack or 1)
        return [runs[first : first + size] for first in range(0, len(runs), size)]

    def _predecessor(self, submissions: Sequence[Submission]) -> list[str]:
        """Return the job that the next one waits for. A throttle holds within an array; so arrays run one by one."""
        lanes = 1 if self.array_size > 1 else self._jobs_at_a_time
        return [submissions[-lanes].job] if lanes and self.throttle and len(submissions) >= lanes else []

    @property
    def _jobs_at_a_time(self) -> int | None:
        return self.throttle and max(1, self.throttle // (self.shape.pack or 1))

    def _ending(self) -> list[str]:
        """Return jobs of the sweep that end at this moment: what is submitted now waits until they are gone."""
        mine = [job for job in self._queue if is_of(self.root, job)]
        left = {job.base for job in mine if job.state != ENDING}
        return sorted({job.name if job.base in left else job.base for job in mine if job.state == ENDING})

    def _submit_part(
        self, runs: Sequence[Path], after: Sequence[str], work: Work, trained_by: str | None = None
    ) -> Submission:
        key, shape = work.new_key(), work.shape
        folder, name = self.root / SUBMISSIONS / key, f"{self.root.name}-{key}"
        (folder / "logs" if shape.pack else folder).mkdir(parents=True)
        write_atomic(folder / RUNS, "".join(f"{run}\n" for run in runs))
        if shape.pack:
            Pack(shape.pack, shape.ranks, shape.gpus_per_node).write(folder)
        text = self._text(Call(runs, work), folder, name, after, runs[0].joinpath("code").resolve(), trained_by)
        write_atomic(folder / "submit.sbatch", text)
        try:
            job = client.sbatch(str(folder / "submit.sbatch"), client.submission_environment(work.profile))
        except BaseException as error:
            # An answer may have been lost on its way, or a Ctrl-C was quicker: the job may be there all the same.
            accepted = [job.base for job in client.queue() if job.job_name == name]
            if not accepted or not isinstance(error, SlurmError):
                client.cancel(accepted[:1])
                shutil.rmtree(folder)
                raise
            job = accepted[0]
        write_atomic(folder / "job", job + "\n")
        return Submission(folder, job, tuple(runs), shape.pack or 1)

    def _text(
        self, call: Call, folder: Path, name: str, after: Sequence[str], code: Path, trained_by: str | None = None
    ) -> str:
        profile, shape = call.work.profile, call.work.shape
        number = -(-len(call.runs) // (shape.pack or 1))
        throttle = f"%{self._jobs_at_a_time}" if self.throttle else ""
        array = f"0-{number - 1}{throttle}" if number > 1 else None
        cwd = Path.cwd()
        packed = [sys.executable, str(PACK_SCRIPT), str(folder), *self._job_script()] if shape.pack else []
        command = self._there(code, packed)
        texts = (command, call.work.text, trained_by)
        return array_text(profile, shape, self.root, folder, name, array, after, cwd, code, *texts)

    def _job_script(self) -> list[str]:
        """Return the option of pack.py that names the script of a run's job, where that isn't ours."""
        script = self.command(self.root, 1, True)[1]
        return [] if script == str(JOB_SCRIPT) else ["--job", script]
