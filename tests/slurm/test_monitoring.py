"""Looking at sweeps, ending them, and what depends on them, on a real Slurm."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.devcluster import SCRIPT, DevCluster, Site, live, starts
from tests.support.process import ROOT, eventually
from toolkit.rundir import lock

LAUNCH = ROOT / "launch"


def hold(site: Site) -> Path:
    profile = site.folder / "held.yaml"
    profile.write_text("cpus_per_task: 1\nsbatch: {hold: true}\n")
    return profile


def test_what_waits_is_shown_with_its_reason_and_cancelled_once(site: Site) -> None:
    assert site.sweep("--profile", hold(site))[0] == 0
    shown = site.status()
    assert len(re.findall(r"queued +job \d+_\d: JobHeldUser \(held; scontrol release lets it go\)", shown)) == 3
    for file in site.folder.glob("runs/demo/slurm/*/job"):  # killed between sbatch and its record
        file.unlink()
    code, output = site.sweep("--cancel")
    assert code == 0, output
    assert re.fullmatch(r"cancelled job \d+: 3 runs waited\n", output)
    assert site.cluster.queue() == []
    assert site.sweep("--cancel") == (0, "runs/demo: no live job; nothing to cancel\n")
    assert "3 runs: 3 new" in site.status()


def test_running_jobs_are_cancelled_with_a_checkpoint_and_their_end_is_told(site: Site) -> None:
    site.fakes.sweep_file("base: base.yaml\nset: {train.steps: 3000}\n")
    site.sweep()
    (run,) = site.runs()
    eventually(lambda: live(run))
    assert re.search(r"running +\d+/3000", site.status())
    assert "1 run ran\nwhat ran writes a checkpoint" in site.sweep("--cancel")[1]
    site.wait()
    assert (run / "checkpoint").exists()
    shown = site.status()
    assert "interrupted" in shown
    assert "no accounting on this cluster" in shown


def test_logs_are_followed_across_a_requeue(site: Site) -> None:
    site.fakes.sweep_file("base: base.yaml\nset: {train.steps: 200}\n")
    site.sweep()
    (run,) = site.runs()
    command = [sys.executable, str(LAUNCH / "logs.py"), str(run), "-f", "--lines", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        eventually(lambda: live(run))
        site.cluster.run("scancel", "--signal=USR2", site.cluster.queue()[0])
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(r"start 1, on node\d.* requeued\n.*start 2, on node\d.*step 200\n.*done\n$", output, re.DOTALL)
    steps = [int(step) for step in re.findall(r"^step (\d+)$", output, re.MULTILINE)]
    assert steps == list(range(1, 201))  # each line once
    assert len(starts(run)) == 2


def test_the_report_waits_for_all_and_there_is_one(site: Site) -> None:
    told = Site(site.cluster, site.fakes, report=True)
    site.fakes.sweep_file("base: base.yaml\nseeds: 1\nset: {train.steps: 150}\n")
    assert "makes the report when all have ended" in told.sweep()[1]
    (first,) = site.cluster.run("squeue", "--noheader", "--name=demo-report", "--format=%i|%E").split()
    site.fakes.sweep_file("base: base.yaml\nseeds: 2\nset: {train.steps: 150}\n")
    told.sweep()
    (second,) = site.cluster.run("squeue", "--noheader", "--name=demo-report", "--format=%i|%E").split()
    assert first.split("|")[0] != second.split("|")[0]
    assert "makes the report" not in told.sweep()[1]  # nothing new: the one that waits will do
    assert second.count("afterany:") == 2
    eventually(lambda: live(site.runs()[1]))
    site.cluster.run("scontrol", "requeue", str(lock.read_lock(site.runs()[1])["job"]).removesuffix("_0"))
    report = site.cluster.run("scontrol", "show", "job", second.split("|")[0])
    assert "JobState=PENDING Reason=Dependency" in report
    site.wait()
    log = site.folder / "runs/demo/slurm/report" / f"{second.split('|')[0]}.log"
    eventually(log.exists)
    # It ran after both: what it says of stand-ins without scores doesn't matter here.
    assert log.stat().st_mtime >= max((run / "DONE").stat().st_mtime for run in site.runs())
    assert "demo" in log.read_text()


def test_interrupted_while_submitting_nothing_is_left(site: Site) -> None:
    real = site.cluster.run("which", "sbatch").strip()
    fake = site.folder / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/bash\n{real} --hold "$@" >/dev/null\nkill -INT $PPID\nsleep 5\n')
    fake.chmod(0o755)
    code, _ = site.sweep(PATH=f"{fake.parent}:{os.environ['PATH']}")
    assert code == 130
    assert site.cluster.queue() == []
    assert not list(site.folder.glob("runs/demo/slurm/*/submit.sbatch"))
    assert "submitted 3 runs" in site.sweep("--profile", hold(site))[1]


def convert(site: Site, store: str, *options: object) -> list[str]:
    source = ["moving-mnist", str(site.folder / store), "--train", "12", "--val", "2", "--test", "2", "--size", "32"]
    return [sys.executable, "-m", "shards", "convert", *source, "--shard-mb", "0.2", *map(str, options)]


def files(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def call(cluster: DevCluster, *command: str) -> subprocess.CompletedProcess[str]:
    return cluster.call("exec", "env", f"PYTHONPATH={ROOT}", *command, check=False)


def test_shards_are_written_by_an_array_of_jobs(site: Site) -> None:
    done = call(site.cluster, *convert(site, "wide", "--cluster", "slurm", "--jobs", 3, "--profile", "devcluster"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"submitted array of 3 \d+; its logs: ", done.stderr)
    subprocess.run(convert(site, "alone"), check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert files(site.folder / "wide") == files(site.folder / "alone")
    assert not list(site.folder.glob(".wide.partial-*"))
    refused = call(site.cluster, *convert(site, "other", "--cluster", "slurm", "--jobs", 7, "--profile", "devcluster"))
    assert refused.returncode == 2
    assert "7 jobs: this cluster takes arrays of at most 6; ask for fewer" in refused.stderr
    assert "nothing was written: the cluster took no job (see above)" in refused.stderr


BROKEN = """\
import os
from pathlib import Path
import numpy as np
from shards.sources import Description, FrameSpec, PlannedEvent, Scale, SourceInfo

DESCRIPTION = Description(
    "mine", FrameSpec(1, 8, 8), None, Scale("x", "1", 0.0, 1.0, 255, None), (), SourceInfo("mine", "-", "-", "-")
)

def events(archive):
    for number in range(6):
        yield "train", PlannedEvent(key=f"e{number}", length=2)

def read(archive, event):
    if event.key == "e5":
        state = (archive / "state").read_text()
        if state == "sleep":
            (archive / "sleeping").touch()
            import time; time.sleep(600)
        if state == "die":
            os.kill(os.getpid(), 9)
    return np.zeros((2, 1, 8, 8), np.uint8)
"""


def test_a_range_that_fails_is_said_and_the_same_command_goes_on(site: Site) -> None:
    archive = site.folder / "archive"
    archive.mkdir()
    (site.folder / "mine.py").write_text(BROKEN)
    source = [str(site.folder / "mine.py"), str(archive), str(site.folder / "made"), "--shard-mb", "0.0001"]
    options = ["--cluster", "slurm", "--jobs", "2", "--profile", "devcluster"]
    command = [sys.executable, "-m", "shards", "convert", *source, *options]
    (archive / "state").write_text("die")
    done = call(site.cluster, *command)
    assert done.returncode == 1, done.stderr
    assert re.search(r"job \d+_1 failed \(FAILED, .*\); its log: /", done.stderr)
    assert "1 of 2 jobs did not finish their shards" in done.stderr
    assert "Finished shards are kept" in done.stderr
    # Interrupted: the jobs end with it.
    (archive / "state").write_text("sleep")
    environment = {**os.environ, "DEVCLUSTER": str(site.cluster.folder), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [str(SCRIPT), "exec", *command], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        eventually((archive / "sleeping").exists)
        process.send_signal(signal.SIGINT)
        assert "interrupted; the same command resumes" in process.communicate(timeout=30)[1]
    site.wait()
    (archive / "state").write_text("well")
    done = call(site.cluster, *command)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resuming: \d of \d shards were finished by an earlier call", done.stderr)
    assert len(list((site.folder / "made" / "train").glob("*.tar"))) > 1


@pytest.mark.parametrize(
    ("options", "message"), [(["--profile", "gpux"], "no file .*gpux.yaml; profiles there: .*gpu")]
)
def test_a_wrong_profile_is_said_by_convert_too(site: Site, options: list[str], message: str) -> None:
    done = call(site.cluster, *convert(site, "none", "--cluster", "slurm", *options))
    assert done.returncode == 2
    assert re.search(message, done.stderr)
