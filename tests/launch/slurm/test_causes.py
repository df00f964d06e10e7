"""What launch/slurm/causes.py makes of logs and of what Slurm says, without a job."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.slurm import causes
from launch.slurm.causes import Job, ended_by_log, last_lost, lost_by_log, lost_by_state, main
from toolkit.rundir.events import read_restarts

FAR, SOON = "2099-01-01T00:00:00", "2026-01-01T00:00:00"
NODE = "NodeName={} Arch=x86_64 State={} ThreadsPerCore=1 BootTime=2026-01-01T00:00:00 SlurmdStartTime={} LastBusy=0\n"


class Slurm:
    """Answers by the words of a command."""

    def __init__(self) -> None:
        self.answers = {"show job": "", "show node": "", "sinfo": "a b c d"}

    def ask(self, *command: str) -> str:
        if "hostnames" in command:
            return command[-1].replace(",", "\n")
        words = " ".join(command)
        return next((text for key, text in self.answers.items() if key in words), "")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> Slurm:
    made = Slurm()
    monkeypatch.setattr(causes, "_ask", made.ask)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a,b")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    return made


def job_of(run: Path, restart: int = 0, **logs: str) -> Job:
    (run / "logs").mkdir(exist_ok=True)
    for start, text in logs.items():
        (run / "logs" / f"7_3_{start.removeprefix('start')}_batch.log").write_text(text)
    return Job(str(run), "7_3", restart)


@pytest.mark.parametrize(
    ("number", "about", "cause"),
    [
        ("USR2", "", "asked by a signal"),
        ("USR2", f"JobState=RUNNING Restarts=0 EndTime={FAR} ", "asked by a signal"),
        ("USR2", f"JobState=RUNNING Restarts=0 EndTime={SOON} ", "time limit"),
        ("USR2", "JobState=RUNNING Restarts=0 EndTime=Unknown ", "asked by a signal"),
        ("STEP", f"JobState=RUNNING Restarts=0 EndTime={SOON} ", "time limit"),
        ("STEP", f"JobState=RUNNING Restarts=0 EndTime={FAR} PreemptTime={SOON} ", "preempted"),
        ("STEP", f"JobState=COMPLETING Restarts=0 EndTime={SOON} ", "time limit"),
        ("TERM", f"JobState=COMPLETING Restarts=0 EndTime={SOON} ", "cancelled"),
        ("TERM", f"JobState=COMPLETING Restarts=1 EndTime={SOON} ", "preempted or requeued"),
        ("TERM", "JobState=CANCELLED Restarts=0 PreemptTime=2026 ", "cancelled"),
    ],
)
def test_the_cause_of_a_signal(tmp_path: Path, slurm: Slurm, number: str, about: str, cause: str) -> None:
    slurm.answers["show job"] = f"JobId=7 {about}"
    assert job_of(tmp_path).cause_of_signal(number, 120) == cause


def test_a_lost_node_is_the_cause_of_a_signal(tmp_path: Path, slurm: Slurm) -> None:
    job = job_of(tmp_path, start0="srun: error: Node failure on b\n")
    slurm.answers["show job"] = "JobState=COMPLETING Restarts=1 "
    assert job.cause_of_signal("TERM", 120) == "lost b"
    assert job.cause_of_signal("USR2", 120) == "asked by a signal"
    slurm.answers["show node"] = NODE.format("a", "DOWN*", SOON) + NODE.format("b", "MIXED", SOON)
    assert job_of(tmp_path, start0="").cause_of_signal("TERM", 120) == "lost a"


@pytest.mark.parametrize("state", ["DOWN", "DOWN*", "IDLE*", "FAIL", "MIXED+NOT_RESPONDING", "FAILING"])
def test_states_of_lost_nodes(slurm: Slurm, state: str) -> None:
    slurm.answers["show node"] = NODE.format("a", state, SOON) + NODE.format("b", "ALLOCATED+DRAIN", "Unknown")
    assert lost_by_state("a,b", causes.NEVER) == ["a"]


def test_a_node_whose_slurmd_has_begun_since_is_lost(slurm: Slurm) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    slurm.answers["show node"] = NODE.format("a", "IDLE", now) + NODE.format("b", "IDLE", SOON)
    assert lost_by_state("a,b", time.time() - 60) == ["a"]
    slurm.answers["show node"] = "scontrol says something else\n"
    assert lost_by_state("a,b", 0.0) == []


def test_what_srun_and_slurmstepd_write(slurm: Slurm) -> None:
    log = "x\nsrun: error: Node failure on c,b\nsrun: error: Node failure on b.\n x srun: error: Node failure on z\n"
    assert lost_by_log(log) == ["b", "b.", "c"]
    assert ended_by_log("slurmstepd: error: *** STEP 7.0 ON a CANCELLED AT 2026 DUE TO PREEMPTION ***") == "preempted"
    assert ended_by_log("*** STEP 7.0 ON a CANCELLED AT 2026 DUE TO JOB REQUEUE ***\n DUE TO PREEMPTION") == "requeued"
    assert ended_by_log("CANCELLED AT 2026\nDUE TO PREEMPTION") == "preempted or requeued"


BEGAN = "2026-11-22 23:00:00 job 7_3, start 1, on a,b\n"


@pytest.mark.parametrize(
    ("log", "known"),
    [
        ("", ("", "", "it could not begin")),
        (BEGAN, ("a,b", "", "exited without a final status")),
        (BEGAN + "2026-11-22 23:01:00 asked to stop: time limit\n", ("a,b", "", "time limit")),
        (BEGAN + "2026-11-22 23:01:00 asked to stop: lost b\n", ("a,b", "b", "lost b")),
        (BEGAN + "srun: error: Node failure on a\n", ("a,b", "a", "lost a")),
        (
            BEGAN + "2026-11-22 23:01:00 asked to stop: preempted or requeued\nx CANCELLED AT 2026 DUE TO JOB REQUEUE",
            ("a,b", "", "requeued"),
        ),
    ],
)
def test_the_cause_of_the_start_before(
    tmp_path: Path, slurm: Slurm, log: str, known: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert job_of(tmp_path, 1, start0=log).cause_before() == known
    assert main(["restart", str(tmp_path), "7_3", "1", "--max-restarts", "1"]) == 0
    assert capsys.readouterr().out == f"{known[0] or 'no node'}: {known[2]}\n"  # one line, which job.sh logs
    (restart,) = read_restarts(tmp_path)
    assert (restart.nodes, restart.lost, restart.cause) == known
    assert (restart.job, restart.start) == ("7_3", 2)
    assert main(["restart", str(tmp_path), "7_3", "1", "--max-restarts", "0"]) == 0
    assert capsys.readouterr().out.endswith("; not begun again, as max_restarts is 0\n")


def test_what_to_keep_away_from(tmp_path: Path, slurm: Slurm) -> None:
    job = job_of(tmp_path)
    assert job.avoided() == "" and job.avoided("b") == "b"
    now = time.time()
    lines = f"{now:.0f}\t7_3\t2\ta,b\tb\tlost b\n{now:.0f}\t7_3\t3\ta,c\t\ttime limit\nhalf a li"
    (tmp_path / "restarts.tsv").write_text(lines)
    assert job.avoided() == "b"
    assert job.revisited() == ["b"]
    assert last_lost(job.restarts(), now + 60) == ""
    with open(tmp_path / "events.jsonl", "w") as file:
        file.write('5\n{"event": "restart"}\n{"time": "yesterday", "event": "restart", "lost": "c"}\nhalf a li')
    job.record("restart", start=4, lost="a", cause="lost a")
    assert job.avoided() == "a"  # the last, over both records
    job.record("restart", start=5, lost="", cause="time limit")
    assert job.avoided() == "a"
    slurm.answers["sinfo"] = "a b"
    assert job.avoided() == ""  # one other node is too few for two
    assert job.revisited() == []


def test_commands_that_fail_or_hang_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert causes._ask("/nowhere/scontrol") == ""
    assert causes._ask("bash", "-c", "echo half; exit 1") == ""
    assert causes._ask("bash", "-c", "echo whole") == "whole\n"
    monkeypatch.setattr(causes, "TIMEOUT_S", 0.1)
    assert causes._ask("sleep", "10") == ""


def test_it_needs_one_file_and_an_old_python(tmp_path: Path) -> None:
    """Nodes of clusters come with Python 3.6, and the run's own may be in a container."""
    source = Path(causes.__file__)
    tree = ast.parse(source.read_text(), feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= sys.stdlib_module_names
    assert not any(isinstance(node, ast.ImportFrom) for node in ast.walk(tree))  # of __future__: 3.7
    (tmp_path / "launch" / "slurm").mkdir(parents=True)
    for name in ("launch/__init__.py", "launch/slurm/__init__.py", "launch/slurm/causes.py"):
        shutil.copy(source.parents[2] / name, tmp_path / name)
    command = [sys.executable, "-ESB", "-m", "launch.slurm.causes", "restart", str(tmp_path), "7", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("no node: it could not begin; not begun again, as max_restarts is 0\n", "")
