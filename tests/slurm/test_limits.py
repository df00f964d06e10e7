"""What a cluster's limits, a cancelled sweep and the caller's shell mean for a submission, on a real Slurm."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.devcluster import DevCluster, Site, live, missing
from tests.support.process import ROOT, eventually
from toolkit.rundir import RunDir
from toolkit.rundir.status import read_status


def profile(site: Site, text: str) -> Path:
    file = site.folder / "mine.yaml"
    file.write_text(f"gpus_per_node: 0\ncpus_per_task: 1\n{text}\n")
    return file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("time: 1", r"`time` in the profile is 1 \(60 s\), and `signal_s` is 120: .*Give more time \(--time 13\)"),
        (
            "partition: brief",
            r"partition brief gives a job that names none is 00:01:00 \(60 s\), and `signal_s` is 120",
        ),
    ],
)
def test_a_time_in_which_no_step_fits_is_refused(site: Site, text: str, said: str) -> None:
    code, output = site.sweep("--profile", profile(site, text))
    assert code == 2
    assert re.search(said, output), output
    assert site.cluster.queue() == []
    site.submit("--profile", profile(site, text), "--time", "20")


def test_cancelled_and_submitted_again_at_once(site: Site) -> None:
    """The jobs that are ending don't count as work to come; the new ones wait for them."""
    script = site.fakes.scripts / "train.py"
    script.write_text(script.read_text().replace("if stop:", "if stop and not time.sleep(2):"))
    site.fakes.sweep_file("base: base.yaml\nseeds: 2\nset: {train.steps: 500}\n")
    site.submit()
    one, other = site.runs()
    eventually(lambda: live(one) and live(other))
    would = site.submit("--cancel", "--dry-run")
    assert re.fullmatch(r"would cancel job \d+: 2 runs ran\n", would)
    assert live(one)
    assert "2 runs ran" in site.submit("--cancel")
    output = site.submit()
    assert "submitted 2 runs as array" in output
    site.wait()
    assert [read_status(RunDir(run)).state for run in (one, other)] == ["done", "done"]
    assert (one / "checkpoint").exists()


def test_cancel_finds_a_text_submitted_by_hand_and_jobs_whose_folder_is_gone(site: Site) -> None:
    held = profile(site, "sbatch: {hold: true}")
    site.submit("--profile", held)
    run = site.runs()[0]
    site.cluster.run("sbatch", run / "submit.sbatch")
    assert len(site.cluster.queue()) == 4
    (site.folder / "runs" / "demo").rename(site.folder / "elsewhere")
    output = site.submit("--cancel")
    assert output.count("cancelled job") == 2, output
    eventually(lambda: site.cluster.queue() == [])


def test_the_callers_shell_does_not_change_what_is_asked(site: Site) -> None:
    held = profile(site, "sbatch: {hold: true}")
    shell = {"SQUEUE_STATES": "RUNNING", "SQUEUE_FORMAT": "%A", "SQUEUE_USERS": "nobody", "SCANCEL_STATE": "RUNNING"}
    site.submit("--profile", held, **shell)
    assert site.submit("--profile", held, **shell).count("is in the queue (PENDING)") == 3
    assert len(site.cluster.queue()) == 3
    assert "3 runs waited" in site.submit("--cancel", **shell)
    eventually(lambda: site.cluster.queue() == [])


def test_jobs_applies_to_what_is_queued(site: Site) -> None:
    held = profile(site, "sbatch: {hold: true}")
    site.submit("--profile", held)
    assert re.search(
        r"array \d+ in the queue: 2 runs at a time from now on", site.submit("--profile", held, "--jobs", 2)
    )
    (base,) = {job.partition("_")[0] for job in site.cluster.queue()}
    assert "ArrayTaskThrottle=2" in site.cluster.run("scontrol", "show", "job", base)


def test_after_another_job_and_what_sbatch_would_say(site: Site) -> None:
    job = site.cluster.run("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip()
    output = site.submit("--dry-run", "--show", "--test", "--after", job)
    assert output.count("#SBATCH --array=0-2") == 1
    assert re.search(r"Job \d+ to start at ", output)
    assert "dry run: nothing was made or submitted" in output
    site.submit("--after", job)
    assert f"afterany:{job}" in site.cluster.run("squeue", "--noheader", "--format=%E")
    assert site.submit("--dry-run").count("wait: job") == 3
    assert "wait: job" not in site.submit("--dry-run", "--no-queue")


REFUSED = [
    ("exclude: moon", r"`exclude` in the profile, or `nodelist` in its `sbatch`, names a node that isn't there"),
    ("sbatch: {reservation: spring}", r"`reservation` in the profile's `sbatch`: `scontrol show reservation`"),
    ("sbatch: {no-such: 1}", r"This sbatch doesn't take an option of the profile's `sbatch`"),
    ("mem: 900G", r"`mem` in the profile is more than a node has\. Nodes: node1: 8 CPUs, 4000 MB"),
]


@pytest.mark.parametrize(("text", "said"), [*REFUSED, ("gpus_per_node: 1\ngpu_type: h900", "`gpu_type`")])
def test_a_refusal_names_the_key(site: Site, text: str, said: str) -> None:
    file = site.folder / "mine.yaml"
    file.write_text(f"cpus_per_task: 1\n{text}\n")
    code, output = site.sweep("--profile", file)
    assert code == 2, output
    assert re.search(said, output), output
    assert site.cluster.queue() == []


@pytest.fixture(scope="module")
def limited(new_cluster: Callable[..., DevCluster]) -> DevCluster:
    """A cluster with accounting on which nobody has more than 4 jobs in the queue."""
    if lacking := missing("slurmdbd", "mariadbd"):
        pytest.skip(f"needs {', '.join(lacking)}: slurm/devcluster/cluster install")
    return new_cluster(ACCT="dbd", QOS="MaxSubmitJobsPerUser=4", NODES="2")


def test_more_runs_than_one_may_submit(limited: DevCluster, site: Site) -> None:
    there = Site(limited, site.fakes)
    site.fakes.sweep_file("base: base.yaml\nseeds: 6\n")
    code, output = there.sweep()
    assert code == 2
    assert "QOSMaxSubmitJobPerUserLimit" in output
    assert "--limit N submits N runs at most, --keep-submitted N" in output
    assert "`time`" not in output
    output = there.submit("--limit", 2)
    assert "submitted 2 runs" in output and output.count("later: --limit") == 4
    script = site.fakes.scripts / "fake_sweep.py"
    script.write_text("from launch import sweep\nsweep.FEED_S = 1.0\n" + script.read_text())
    there.submit("--keep-submitted", 3, "--wait")
    assert all(RunDir(run).done for run in there.runs())
    assert there.starts() == [1] * 6


def test_nodes_that_are_given_whole(new_cluster: Callable[..., DevCluster], site: Site) -> None:
    """select/linear starts no step of a job that asks for GPUs; a packed job shares those of its node out."""
    there = Site(new_cluster(SELECT="linear", GPUS="4", NODES="2"), site.fakes)
    site.fakes.sweep_file("base: base.yaml\nseeds: 6\nset: {train.steps: 40}\n")
    file = site.folder / "whole.yaml"
    file.write_text("gpus_per_node: 4\ncpus_per_task: 1\npack: auto\ncontainer: env CUDA_VISIBLE_DEVICES=0,1,2,3\n")
    output = there.submit("--profile", file)
    assert "this cluster gives nodes whole (select/linear)" in output
    assert "of 2 jobs with 4 places" in output
    there.wait()
    logs = "".join(file.read_text() for file in site.folder.glob("runs/demo/slurm/*/**/*.log"))
    assert [read_status(RunDir(run)).state for run in there.runs()] == ["done"] * 6, logs
    used = {(run / "gpus").read_text() for run in there.runs()}
    assert {"0", "1", "2"} <= used <= {"0", "1", "2", "3"}  # jobs that begin together take three runs each


def test_a_gpu_that_torch_cannot_use_ends_the_job_and_names_the_node(site: Site) -> None:
    """The devcluster's GPUs are pretended, and torch is built for CPUs or finds no driver."""
    code = (
        "from toolkit.distributed.device import choose\n"
        "try:\n    print(choose('auto', 0))\n"
        "except ValueError as error:\n    print(error)\n"
    )
    command = ["env", f"PYTHONPATH={ROOT}", "srun", "--gpus-per-node=1", "--nodelist=node2", sys.executable, "-c", code]
    assert re.match(r"can't use the GPUs of this job \(\d\) on node node2: torch ", site.cluster.run(*command))
    command = [word for word in command if word != "--gpus-per-node=1"]
    assert site.cluster.run(*command) == "cpu\n"
