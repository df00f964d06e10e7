"""What sbatch and squeue may say on somebody's cluster, by stand-ins: the sweep's jobs are known all the same."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch import sweep
from launch.jobs.local import JobState
from launch.jobs.snapshot import Snapshot
from launch.slurm import client, queue
from launch.slurm import submitter as slurm_submitter
from launch.slurm.client import SlurmError
from launch.slurm.profile import Profile
from launch.slurm.request import Requests
from launch.slurm.submitter import SlurmSubmitter
from tests.support.fakes import Fakes
from tests.support.process import SLURM_TOOLS
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir


@dataclass(frozen=True)
class Site:
    """Stand-ins for Slurm, and a sweep of three runs."""

    folder: Path
    runs: list[Path]

    def set(self, tool: str, text: str) -> None:
        """Change what sbatch or squeue does: bash that tests/support/slurm_tools reads."""
        (self.folder / f"{tool}.sh").write_text(text + "\n")

    def submitter(self) -> SlurmSubmitter:
        made = SlurmSubmitter(self.folder / "runs" / "demo", Requests(Profile()))
        made.check()
        return made

    def folders(self) -> list[Path]:
        return list(self.folder.glob("runs/demo/slurm/*"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    tools = tmp_path / "bin"
    shutil.copytree(SLURM_TOOLS, tools, ignore=shutil.ignore_patterns("sinfo", "srun"))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(slurm_submitter.snapshot, "take", lambda sweep: Snapshot(tmp_path / "code", (), None))
    monkeypatch.setattr(slurm_submitter, "POLL_S", 0.0)
    runs = [tmp_path / "runs" / "demo" / f"modernn-seed{seed}-1a2b3c4d" for seed in (1, 2, 3)]
    for run in runs:
        run.mkdir(parents=True)
    made = Site(tmp_path, runs)
    made.set("sbatch", "accept 4711; echo Submitted batch job 4711")
    made.set("squeue", "")
    return made


@pytest.mark.parametrize(
    "answer",
    [
        "echo 'sbatch: warning: 3 of your jobs wait' >&2; echo Submitted batch job 4711",
        "echo 'You have used 12 of 100 hours'; echo 'job 3 of this month'; echo Submitted batch job 4711",
        "echo 4711",
        "echo '4711;moon'",
        "echo Submitted batch job 4711 on cluster moon",
        "echo 'it is in the queue'",  # then the queue is asked
        "",
        "exit 1",  # the answer was lost on its way, not the job
        "exec sleep 3",
    ],
)
def test_what_sbatch_answers(site: Site, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    if answer.startswith("exec sleep"):
        monkeypatch.setattr(client, "TIMEOUT_S", 0.5)
    site.set("sbatch", f"accept 4711\n{answer}")
    submitter = site.submitter()
    assert len(submitter.submit(site.runs)) == 3
    assert {run: job.name for run, job in submitter.queued().items()} == {
        run: f"4711_{index}" for index, run in enumerate(site.runs)
    }
    (folder,) = site.folders()
    assert (folder / "job").read_text() == "4711\n"


@pytest.mark.parametrize("answer", ["", "echo it is in the queue", "echo no >&2; exit 1"])
def test_what_was_not_accepted_leaves_nothing(site: Site, answer: str) -> None:
    site.set("sbatch", answer)
    with pytest.raises(SlurmError, match=r"sbatch: (names no job in its answer|no)"):
        site.submitter().submit(site.runs)
    assert site.folders() == []


def test_not_knowing_whether_it_was_accepted_keeps_what_finds_it_later(site: Site) -> None:
    """sbatch's answer is lost, and squeue doesn't answer either: the next call finds the jobs."""
    site.set("sbatch", "accept 4711; exit 1")
    site.set("squeue", "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"squeue: slurm_load_jobs error: Socket timed out.*\nThe controller doesn't"):
        site.submitter().submit(site.runs)
    site.set("squeue", "")
    assert len(site.submitter().queued()) == 3


def test_a_squeue_that_fails_ends_no_job(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    submitter = site.submitter()
    submitter.submit(site.runs)
    queue = (site.folder / "queue").read_text()
    site.set("squeue", "echo 'slurm_load_jobs error: rate limit' >&2; exit 1")
    for _ in range(3):
        assert set(submitter.poll().values()) == {JobState.QUEUED}
    assert "asking again" in capsys.readouterr().err
    site.set("squeue", "echo 'squeue: this cluster is drained on Monday'")
    rows = zip(("RUNNING", "PREEMPTED", "REQUEUE_HOLD"), queue.splitlines(), strict=True)
    (site.folder / "queue").write_text("".join(re.sub("PENDING", state, row) + "\n" for state, row in rows))
    states = [JobState.RUNNING, JobState.RUNNING, JobState.QUEUED]
    assert list(submitter.poll().values()) == states
    (site.folder / "queue").write_text("")
    assert list(submitter.poll().values()) == states  # gone once: what it wrote last may not be seen yet
    assert list(submitter.poll().values()) == [JobState.ENDED] * 3


def test_arrays_that_are_shown_as_one(site: Site) -> None:
    submitter = site.submitter()
    submitter.submit(site.runs)
    queue = (site.folder / "queue").read_text().splitlines()
    (site.folder / "queue").write_text(queue[0].replace("4711_0", "4711_[0,2%1]") + "\n" + queue[1] + "\n")
    assert [job.name for job in submitter.queued().values()] == ["4711_0", "4711_2", "4711_1"]


@pytest.mark.parametrize("gone", ["sbatch", "squeue", "scontrol"])
def test_a_tool_that_is_not_on_the_path(site: Site, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    (site.folder / "bin" / gone).unlink()
    monkeypatch.setenv("PATH", str(site.folder / "bin"))
    with pytest.raises(
        SlurmError, match=f"--cluster slurm: {gone} not found here. On a cluster, submit from its login"
    ):
        site.submitter()
    assert site.folders() == []


def test_no_slurm_here(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.sweep_file("base: base.yaml\n")
    monkeypatch.chdir(fakes.folder)
    monkeypatch.setenv("PATH", str(fakes.folder))
    with pytest.raises(SlurmError, match=r"sbatch, squeue, scontrol not found here.* --cluster local runs on this"):
        sweep.main(["demo.yaml", "--cluster", "slurm"])
    assert not (fakes.folder / "runs").exists()


def test_the_end_of_a_packed_job_is_that_of_the_job_that_took_the_run(site: Site) -> None:
    submitter = SlurmSubmitter(site.folder / "runs" / "demo", Requests(Profile(gpus_per_node=0, pack="1")))
    submitter.check()
    first, second, _ = submitter.submit(site.runs)
    (site.folder / "job").write_text("JobId=1 JobState=FAILED Reason=NonZeroExitCode ExitCode=1:0 NodeList=n1\n")
    logs = site.folders()[0] / "logs"
    (logs / "4711_2.failed").write_text("job 4711_2: setup: 'false' returned 1 on node n1\n")
    (first.run / "job.lock").write_text('{"job": "4711_2_0"}')
    assert submitter.exit_reason(first) == "job 4711_2: setup: 'false' returned 1 on node n1"
    assert submitter.exit_reason(second) == "FAILED, NonZeroExitCode, exit code 1:0, on n1"


def test_jobs_of_a_packed_sweep_in_the_queue_are_limited_by_their_own_places(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    root, profile = site.folder / "runs" / "demo", Profile(gpus_per_node=0)
    for run in site.runs:
        (run / "config.yaml").write_text("seed: 1")
    packed = SlurmSubmitter(root, Requests(profile, {"pack": "2"}))
    packed.check()
    packed.submit(site.runs)
    for throttle, jobs, runs in ((5, 2, 4), (1, 1, 2)):
        single = SlurmSubmitter(root, Requests(profile), throttle)  # called without --pack
        single.check()
        single.adopt({run: job.name for run, job in single.queued().items()})
        assert (site.folder / "calls").read_text().endswith(f"update jobid=4711 arraytaskthrottle={jobs}\n")
        text = f"array 4711 in the queue: {runs} runs at a time from now on (--jobs), in {jobs} job"
        assert text in capsys.readouterr().out


def test_a_limit_below_a_packed_job_gives_numbers_that_fit(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"--jobs 2 is fewer .* of --pack 4 has: give --jobs 4 or more, or pack"):
        SlurmSubmitter(site.folder / "runs" / "demo", Requests(Profile(gpus_per_node=4, pack="4")), 2).check()


def test_an_sbatch_that_only_tests_and_does_not_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"PATH": f"{site.folder}/bin"}
    monkeypatch.setenv("PATH", environ["PATH"])
    (site.folder / "bin" / "sbatch").write_text("#!/bin/bash\nexec /bin/sleep 5\n")
    monkeypatch.setattr(client, "TIMEOUT_S", 0.3)
    with pytest.raises(SlurmError, match=r"sbatch: no answer within 0.3 s"):
        client.sbatch_test("text", environ)
    (site.folder / "bin" / "sbatch").write_text("#!/bin/bash\necho 'sbatch: Job 5 to start at noon' >&2\n")
    assert client.sbatch_test("text", environ) == "sbatch: Job 5 to start at noon"
    (site.folder / "bin" / "sbatch").write_text("#!/bin/bash\nexit 1\n")
    with pytest.raises(SlurmError, match="sbatch: exit code 1"):
        client.sbatch_test("text", environ)
    (site.folder / "bin" / "sbatch").unlink()
    with pytest.raises(SlurmError, match="sbatch: No such file or directory: not on this machine's PATH"):
        client.sbatch_test("text", environ)


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("No username set")])
def test_a_user_without_a_name(site: Site, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr(client.getpass, "getuser", fail)
    assert queue.owners(site.folder).split(",") == [str(os.getuid())]
    assert site.submitter().queued() == {}


def test_the_end_of_a_trained_run_is_that_of_its_evaluation(site: Site) -> None:
    site.set("sbatch", "id=$((4710 + $(ls -d runs/demo/slurm/*/ | wc -l))); accept $id; echo Submitted batch job $id")
    submitter = SlurmSubmitter(site.folder / "runs" / "demo", Requests(Profile()), evaluate_apart=True)
    submitter.check()
    trained, killed, taken = submitter.submit(site.runs)
    tool = site.folder / "bin" / "scontrol"
    tool.write_text(tool.read_text().replace("cat job", 'echo "JobState=${@: -1} ExitCode=1:0"'))
    RunDir(trained.run).mark_done()
    (trained.run / "job.lock").write_text('{"job": "4711_0_0"}')
    (killed.run / "job.lock").write_text('{"job": "4711_1_0"}')
    (taken.run / "job.lock").write_text('{"job": "4712_2_1"}')
    for job, name in ((trained, "4712_0"), (killed, "4711_1"), (taken, "4712_2")):
        assert str(submitter.exit_reason(job)).startswith(name)
