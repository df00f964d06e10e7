"""Runs of one sweep that ask for different resources, and options on jobs in the queue, on a real Slurm."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.devcluster import Site, live
from tests.support.process import eventually
from toolkit.rundir import RunDir, lock
from toolkit.rundir.status import read_status

MIXED = """
base: base.yaml
seeds: 2
list:
  - {name: digits, train.steps: 3}
  - {name: radar, train.steps: 200, resources: {time: 40, mem: 200M, partition: low, gpus_per_node: 1}}
"""


def job_of(run: Path) -> str:
    return str(lock.read_lock(run).get("job", "")).rpartition("_")[0]


def facts(site: Site, job: str) -> dict[str, str]:
    """Return what Slurm knows of a job."""
    text = site.cluster.run("scontrol", "--oneliner", "show", "job", job)
    return dict(re.findall(r"(\w+)=(\S+)", text.splitlines()[0]))


def test_each_run_has_its_own_request_also_after_a_requeue(site: Site) -> None:
    site.fakes.sweep_file(MIXED)
    output = site.submit()
    assert output.count("submitted 2 runs as array") == 2
    digits, radar = ([run for run in site.runs() if run.name.startswith(name)] for name in ("digits", "radar"))
    eventually(lambda: all(live(run) for run in radar), 60)
    asked = facts(site, job_of(radar[0]))
    assert (asked["TimeLimit"], asked["Partition"], asked["MinMemoryNode"]) == ("00:40:00", "low", "200M")
    assert asked["TresPerNode"].endswith("gpu:1") and asked["Restarts"] == "0"
    site.cluster.run("scontrol", "requeue", job_of(radar[0]))
    eventually(lambda: all(RunDir(run).done for run in (*digits, *radar)), 90)
    asked = facts(site, job_of(radar[0]))
    assert (asked["TimeLimit"], asked["Partition"], asked["Restarts"]) == ("00:40:00", "low", "1")
    plain = facts(site, job_of(digits[0]))
    assert (plain["TimeLimit"], plain["Partition"]) != ("00:40:00", "low")
    site.wait()
    assert site.starts() == [1, 1, 2, 1]
    assert "4 of 4 done, nothing to do" in site.submit()


def test_packed_jobs_of_two_requests(site: Site) -> None:
    text = MIXED.replace("train.steps: 3}", "train.steps: 3, resources: {pack: 2, gpus_per_node: 2}}")
    site.fakes.sweep_file(text.replace("train.steps: 200", "train.steps: 4"))
    output = site.submit("--jobs", "2", "--wait")
    assert re.search(
        r"submitted 2 runs as job \d+ of 1 job with 2 places; resources: gpus_per_node: 2, pack: 2", output
    )
    assert re.search(r"submitted 2 runs as array \d+; resources: gpus_per_node: 1, mem: 200M", output)
    assert "4 of 4 done" in output
    digits = [run for run in site.runs() if run.name.startswith("digits")]
    assert {(run / "gpus").read_text() for run in digits} == {"0", "1"}
    assert [read_status(RunDir(run)).state for run in site.runs()] == ["done"] * 4


def test_options_change_jobs_that_wait_and_leave_those_that_run(site: Site) -> None:
    site.fakes.sweep_file("base: base.yaml\nseeds: 3\nset: {train.steps: 6000}\n")
    site.submit("--jobs", "1")
    eventually(lambda: any(live(run) for run in site.runs()), 60)
    output = site.submit("--time", "50", "--partition", "low")
    base = next(job.partition("_")[0] for job in site.cluster.queue())
    assert f"job {base} in the queue: time 50 from now on (2 waiting; 1 that run keep theirs)" in output, output
    assert f"job {base} in the queue: partition low from now on (2 waiting; 1 that run keep theirs)" in output
    first, *others = (facts(site, f"{base}_{index}") for index in range(3))
    assert (first["TimeLimit"], first["Partition"]) == ("02:00:00", "main")
    assert [(one["TimeLimit"], one["Partition"]) for one in others] == [("00:50:00", "low")] * 2
    output = site.submit("--nodes", "2", "--ranks", "4", "--gpus-per-node", "2")
    assert re.search(rf"note: no effect on job {base} in the queue, which keeps .*nodes 1 \(now: 2\)", output), output
    assert "no longer" not in output and site.submit().count("is in the queue (PENDING)") == 2
    output = site.submit("--partition", "nowhere", "--no-report")
    assert re.search(rf"note: --partition has no effect on job {base} in the queue: scontrol: .*scancel", output), (
        output
    )


def test_the_whole_array_that_waits_is_changed(site: Site) -> None:
    held = site.folder / "held.yaml"
    held.write_text("gpus_per_node: 0\ncpus_per_task: 1\nsbatch: {hold: true}\n")
    site.submit("--profile", held)
    assert "time 45 from now on (3 waiting)" in site.submit("--profile", held, "--time", "45")
    names = site.cluster.queue()
    assert {facts(site, name)["TimeLimit"] for name in names} == {"00:45:00"}
    assert "from now on" not in site.submit("--profile", held, "--time", "45")
