"""What launch/slurm/job.sh does around a step, by stand-ins for Slurm: causes, requeues, nodes it keeps away from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.jobs.snapshot import MARK, ROOT
from launch.slurm.profile import Profile
from launch.slurm.script import Shape, run_text
from tests.support.process import SLURM_TOOLS, wait_for
from toolkit.rundir import RunDir
from toolkit.rundir.events import NAME, RestartEvent, append_event, read_events, read_restarts, timestamp
from toolkit.rundir.status import read_status

JOB = "JobId=7 JobState={state} Reason=None Requeue=1 Restarts={restarts} TimeLimit=01:00:00 EndTime={end} {more}\n"
NODE = (
    "NodeName={name} Arch=x86_64 State={state} ThreadsPerCore=1 BootTime=2026-01-01T00:00:00 SlurmdStartTime={began}\n"
)


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + seconds))


@dataclass
class Job:
    """A run's text on a cluster that says what a test wants."""

    folder: Path
    exclude: str | None = None
    nodes: str = "a,b"

    @property
    def run(self) -> Path:
        return self.folder / "demo" / "run"

    def prepare(self) -> None:
        shutil.copytree(SLURM_TOOLS, self.folder / "bin", ignore=shutil.ignore_patterns("sbatch", "squeue", "scancel"))
        (self.run / "logs").mkdir(parents=True)
        (self.run / "config.yaml").write_text("")
        code = self.folder / "code"
        code.symlink_to(ROOT)
        text = run_text(
            Profile(exclude=self.exclude),
            Shape(2, 1, 2),
            self.run.parent,
            self.run,
            code,
            [sys.executable, "job"],
            ROOT,
        )
        (self.folder / "text").write_text(text.replace(f"code/{MARK}", "code/setup.py"))
        self.say()
        self.says_of_nodes()
        self.step("exit 3")
        self.dead()

    def dead(self, *nodes: str) -> None:
        """On these no task can be started."""
        (self.folder / "dead").write_text("".join(f"{node}\n" for node in nodes))

    def say(self, state: str = "RUNNING", restarts: int = 0, end_s: float = 3000, more: str = "") -> None:
        """What Slurm says of the job."""
        text = JOB.format(state=state, restarts=restarts, end=moment(end_s), more=more)
        (self.folder / "job").write_text(text)

    def says_of_nodes(self, **states: str) -> None:
        """What Slurm says of nodes; `new` stands for a slurmd that has begun a second ago."""
        lines = [
            NODE.format(name=name, state="IDLE" if state == "new" else state, began=moment(-(state != "new") * 9999))
            for name, state in {"a": "ALLOCATED", "b": "MIXED", **states}.items()
        ]
        (self.folder / "nodes").write_text("".join(lines))

    def step(self, text: str) -> None:
        (self.folder / "step").write_text(text + "\n")

    def start(self, restart: int = 0) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PATH": f"{self.folder}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
        environment |= {"SLURM_JOB_NODELIST": self.nodes, "SLURM_JOB_NUM_NODES": str(len(self.nodes.split(",")))}
        environment |= {"SLURM_RESTART_COUNT": str(restart), "SLURM_JOB_PARTITION": "main"}
        environment["SLURMD_NODENAME"] = self.nodes.split(",")[0]
        (self.folder / "srun.pid").unlink(missing_ok=True)
        return subprocess.Popen(["bash", str(self.folder / "text")], env=environment)

    def go(self, restart: int = 0, signal_: signal.Signals | None = None) -> int:
        with self.start(restart) as process:
            if signal_:
                wait_for(self.folder / "srun.pid")
                time.sleep(0.2)  # the traps are set, the step listens
                process.send_signal(signal_)
        return process.returncode

    def calls(self) -> list[str]:
        """What it has asked Slurm to change since the last look."""
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    def log(self, restart: int = 0) -> str:
        return (self.run / "logs" / f"7_{restart}_batch.log").read_text()

    def restart(self) -> RestartEvent:
        return read_restarts(self.run)[-1]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    made = Job(tmp_path)
    made.prepare()
    return made


ABORTED = "echo 'slurmstepd-a: error: *** STEP 7.0 ON a CANCELLED AT 2026-11-22T23:06:02 DUE TO {} ***' >&2; "
LISTENS = "trap 'exit 3' USR2; while :; do sleep 0.05; done"
CAUSES = [
    (signal.SIGUSR2, {}, "asked by a signal"),
    (signal.SIGUSR2, {"end_s": 150}, "time limit"),
    (signal.SIGTERM, {"state": "COMPLETING", "restarts": 1}, "preempted or requeued"),
    (signal.SIGTERM, {"state": "COMPLETING", "restarts": 1, "due": "JOB REQUEUE"}, "requeued"),
    (signal.SIGTERM, {"state": "COMPLETING", "restarts": 1, "due": "PREEMPTION"}, "preempted"),
    (signal.SIGTERM, {"state": "CANCELLED"}, "cancelled"),
    (signal.SIGTERM, {"state": "COMPLETING"}, "cancelled"),
    (None, {"more": f"PreemptTime={moment(0)}"}, "preempted"),
    (None, {"more": "PreemptTime=None"}, "asked by a signal"),
    (None, {"silent": True}, "asked by a signal"),
]


@pytest.mark.parametrize("refusal", ["Requested operation is presently disabled", "Access/permission denied"])
def test_a_requeue_that_slurm_refuses_fails_the_run_at_once(job: Job, refusal: str) -> None:
    (job.folder / "refusal").write_text(f"slurm_requeue error: {refusal}\n")
    assert job.go() == 3
    assert job.calls() == ["requeue 7"]
    assert "not requeued: Slurm refuses it" in job.log()
    reason = (
        f"job 7: Slurm refuses to requeue it ({refusal}): --retry failed submits it again, to resume from its last "
        "checkpoint"
    )
    assert (job.run / "FAILED").read_text() == f"{reason}\n"
    assert read_status(RunDir(job.run)).reason == reason


def test_a_requeue_that_fails_for_now_is_asked_for_again(job: Job) -> None:
    (job.folder / "refusal").write_text("Socket timed out on send/recv operation\n")
    (job.folder / "once").write_text("refusal")  # the file that is gone then
    assert job.go() == 3
    assert job.calls() == ["requeue 7", "requeue 7"]
    assert "Socket timed out" in job.log()
    assert not (job.run / "FAILED").exists()


@pytest.mark.parametrize(("number", "said", "cause"), CAUSES)
def test_the_next_start_knows_why(job: Job, number: signal.Signals | None, said: dict[str, object], cause: str) -> None:
    due = ABORTED.format(said.pop("due")) if "due" in said else ""
    silent = said.pop("silent", False)
    job.say(**said)  # type: ignore[arg-type]
    due += (
        f"mv {job.folder}/job {job.folder}/kept; (sleep 1; mv {job.folder}/kept {job.folder}/job) & " if silent else ""
    )
    job.step(due + (LISTENS if number else "exit 3"))
    assert job.go(0, number) == 3
    requeued = "state" not in said
    assert job.calls() == (["requeue 7"] if requeued else [])
    assert f"asked to stop: {cause}\n" in job.log()
    assert ("not requeued: Slurm has the job as" in job.log()) is not requeued
    job.step("exit 0")
    assert job.go(1) == 0
    restart = job.restart()
    assert (restart.job, restart.start, restart.nodes, restart.lost, restart.cause) == ("7", 2, "a,b", "", cause)
    assert abs(restart.time - time.time()) < 60


def test_a_lost_node_is_left_out_at_once_and_for_an_hour(job: Job) -> None:
    job.say("COMPLETING", restarts=1)
    job.says_of_nodes(b="DOWN*")
    job.step(LISTENS)
    job.go(0, signal.SIGTERM)
    assert job.calls() == ["update jobid=7 excnodelist=b"]
    job.nodes = "a,c"
    job.say(restarts=1)
    job.says_of_nodes()  # it is back
    job.step("exit 3")
    assert job.go(1) == 3
    assert (job.restart().lost, job.restart().cause) == ("b", "lost b")
    assert job.calls() == ["requeue 7", "update jobid=7 excnodelist=b"]
    job.nodes = "b,c"  # Slurm has taken it all the same: moved before anything begins
    job.say(restarts=2)
    job.step("touch began")
    assert job.go(2) == 3
    assert "on a node that this run has lost lately" in job.log(2)
    assert job.calls() == ["requeue 7", "update jobid=7 excnodelist=b"]
    file = job.run / NAME
    long_ago = timestamp(time.time() - 3700)
    events = [{**json.loads(line), "time": long_ago} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    job.step("exit 0")
    assert job.go(3) == 0
    assert job.calls() == []
    assert job.restart().cause == "on a node that this run has lost lately"


def test_a_lost_node_that_is_back_at_once_is_known_by_what_srun_says(job: Job) -> None:
    job.say("COMPLETING", restarts=1)
    job.step(f"echo 'srun: error: Node failure on b'; {ABORTED.format('NODE FAILURE')} {LISTENS}")
    job.go(0, signal.SIGTERM)
    assert job.calls() == ["update jobid=7 excnodelist=b"]
    job.nodes = "a,c"
    job.step("exit 0")
    assert job.go(1) == 0
    assert (job.restart().lost, job.restart().cause) == ("b", "lost b")


def test_what_the_profile_excludes_stays_so_and_enough_nodes_are_left(tmp_path: Path) -> None:
    job = Job(tmp_path, exclude="d")
    job.prepare()
    (job.run / "restarts.tsv").write_text(f"{time.time():.0f}\t6\t2\ta,b\tb\tlost b\n")
    job.nodes = "a,c"
    assert job.go() == 3
    assert job.calls() == ["requeue 7", "update jobid=7 excnodelist=d,b"]
    append_event(job.run, "restart", job="6", start=3, nodes="a,b,c", lost="a,b,c", cause="lost a,b,c")
    assert job.go() == 3
    assert job.calls() == ["requeue 7"]


def test_a_start_that_lost_its_own_node_left_no_word(job: Job) -> None:
    (job.run / "logs" / "7_0_batch.log").write_text(f"{moment(-60).replace('T', ' ')} job 7, start 1, on a,b\n")
    job.says_of_nodes(a="new")
    job.nodes = "b,c"
    job.step("exit 0")
    assert job.go(1) == 0
    assert (job.restart().lost, job.restart().cause) == ("a", "lost a")
    (job.run / "logs" / "7_1_batch.log").write_text(f"{moment(-60).replace('T', ' ')} job 7, start 2, on b,c\n")
    job.says_of_nodes()
    assert job.go(2) == 0
    assert (job.restart().lost, job.restart().cause) == ("", "exited without a final status")
    assert job.go(4) == 0  # start 4 never came to its log
    assert job.restart().cause == "it could not begin"


def test_a_start_that_was_given_up_leaves_the_run_to_the_next(job: Job) -> None:
    job.step(f"touch {job.run}/logs/7_1_batch.log; exit 9")
    assert job.go() == 3
    assert "Slurm has begun this job again: left to that start" in job.log()
    assert not (job.run / "FAILED").exists()
    (job.run / "logs" / "7_1_batch.log").unlink()
    job.say(restarts=1)  # it is pending no more, but its new start has not come to its log
    job.step("exit 3")
    assert job.go() == 3
    assert "not requeued: Slurm has the job as RUNNING" in job.log()
    assert job.calls() == []


def test_a_failure_is_no_stop(job: Job) -> None:
    job.step("exit 1")
    assert job.go() == 1
    assert "srun returned 1; see" in (job.run / "FAILED").read_text()
    (event,) = read_events(job.run, "fail")
    assert (event["job"], event["exit_code"]) == ("7", 1)
    assert event["cause"] == (job.run / "FAILED").read_text().strip()
    job.step(f"echo why >{job.run}/FAILED; exit 3")
    assert job.go() == 3
    assert (job.run / "FAILED").read_text() == "why\n"
    assert job.calls() == []


def test_a_node_that_only_the_ranks_have_found_dead(job: Job) -> None:
    """Slurm believes in it for minutes; without it the job is over and its failure nobody's."""
    job.dead("b")
    job.step(f"echo 'hung: rank 1 is silent' >{job.run}/FAILED; exit 6")
    assert job.go() == 3
    assert not (job.run / "FAILED").exists()
    assert job.calls() == ["requeue 7", "update jobid=7 excnodelist=b"]
    job.nodes = "a,c"
    job.step("exit 0")
    assert job.go(1) == 0
    assert (job.restart().lost, job.restart().cause) == ("b", "lost b")
    job.say(restarts=2)
    job.step(f"echo why >{job.run}/FAILED; exit 6")
    job.dead("a", "c")  # not even its own: here that can't be found out
    assert job.go(2) == 6
    assert (job.run / "FAILED").read_text() == "why\n"
    assert job.calls() == []


def test_a_failure_after_slurm_has_requeued_the_job_is_none(job: Job) -> None:
    job.say("PENDING", restarts=1)
    job.step(f"echo why >{job.run}/FAILED; echo 'STEP 7.0 ON a CANCELLED AT 2026 DUE TO PREEMPTION'; exit 137")
    assert job.go() == 3
    assert not (job.run / "FAILED").exists()
    assert "asked to stop: preempted\n" in job.log()
    assert job.calls() == []


def test_without_any_python_it_stops_and_requeues_all_the_same(job: Job) -> None:
    """As where the environment's file system is away: nothing can look for causes, and that is said."""
    text = (job.folder / "text").read_text()
    (job.folder / "text").write_text(text.replace(f"python={sys.executable}\n", "python=/nowhere/python\n"))
    (job.folder / "bin" / "python3").write_text("#!/bin/bash\nexit 1\n")
    (job.folder / "bin" / "python3").chmod(0o755)
    job.step(LISTENS)
    assert job.go(0, signal.SIGTERM) == 3
    assert job.calls() == ["requeue 7"]
    assert "asked to stop: cause unknown: no Python on this node could look for it\n" in job.log()
    job.step("exit 0")
    assert job.go(1) == 0
    assert job.restart().cause == "cause unknown: no Python on this node could look for it"
    job.say(restarts=2)
    job.step("exit 1")
    assert job.go(2) == 1
    assert "srun returned 1; see" in (job.run / "FAILED").read_text()


def test_the_python_of_the_node_looks_for_causes_where_a_container_has_that_of_the_run(job: Job) -> None:
    text = (job.folder / "text").read_text()
    (job.folder / "text").write_text(text.replace(f"python={sys.executable}\n", "python=/opt/container/python\n"))
    (job.folder / "bin" / "python3").symlink_to(sys.executable)
    job.say("CANCELLED")
    job.step(LISTENS)
    assert job.go(0, signal.SIGTERM) == 3
    assert "asked to stop: cancelled\n" in job.log()


@pytest.mark.parametrize("tries", [2, 9])
def test_a_step_that_slurm_does_not_start_yet_is_tried_again(job: Job, tries: int) -> None:
    """As it is just after an earlier start of the job was ended, or while the controller is away."""
    code = job.folder / "code"
    code.unlink()
    (code / "launch" / "slurm").mkdir(parents=True)
    (code / "setup.py").touch()
    text = (ROOT / "launch" / "slurm" / "job.sh").read_text()
    (code / "launch" / "slurm" / "job.sh").write_text(text.replace("PATIENCE=5", "PATIENCE=0.1"))
    refusal = "srun: error: Unable to create step for job 7: Job/step already completing or completed"
    job.step(
        f"echo >>{job.folder}/tries; [ $(wc -l <{job.folder}/tries) -ge {tries} ] || {{ echo '{refusal}'; exit 1; }}"
    )
    assert job.go() == (0 if tries == 2 else 3)
    assert not (job.run / "FAILED").exists()
    assert job.calls() == ([] if tries == 2 else ["requeue 7"])
    if tries == 9:
        assert "asked to stop: no step could be started\n" in job.log()


def test_a_step_that_slurm_ended_for_want_of_memory(job: Job) -> None:
    job.step("echo 'slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your processes'; exit 137")
    assert job.go() == 137
    failure = (job.run / "FAILED").read_text()
    assert "srun returned 137" in failure
    assert "OUT_OF_MEMORY, says Slurm: raise mem in the profile" in failure
    assert read_status(RunDir(job.run)).kind == "out of memory"


def test_a_packed_job_keeps_its_verdict_to_itself(job: Job) -> None:
    (job.run / "pack.json").write_text("{}")
    job.step("exit 1")
    assert job.go() == 1
    assert not (job.run / "FAILED").exists()
    assert "srun returned 1; see" in (job.run / "logs" / "7.failed").read_text()


def test_a_node_on_which_the_sweeps_runs_fail_is_left_before_anything_begins(job: Job) -> None:
    lines = [f"{time.time():.0f}\tb\trun{number}\tno driver\n" for number in (1, 2)]
    (job.run.parent / "early_failures.tsv").write_text("".join(lines))
    job.step("touch began")
    assert job.go() == 3
    assert job.calls() == ["requeue 7", "update jobid=7 excnodelist=b"]
