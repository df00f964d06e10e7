"""Packed jobs on a real Slurm, with stand-ins for the training: places, stealing, failures, requeues, cancelling."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.devcluster import Site, live
from tests.support.process import eventually
from toolkit.rundir import RunDir, lock
from toolkit.rundir.events import read_restarts
from toolkit.rundir.lock import read_lock


def job_of(run: Path) -> str:
    return str(read_lock(run).get("job", ""))


def test_two_runs_share_a_job_and_free_places_take_what_waits(site: Site) -> None:
    site.sweep_of(7, steps=20)
    code, output = site.sweep("--pack", "2", "--gpus-per-node", "2", "--jobs", "2", "--wait")
    assert code == 0, output
    assert re.search(r"submitted 7 runs as array \d+ of 4 jobs with 2 places\n", output)
    assert "7 of 7 done" in output
    assert site.starts() == [1] * 7
    for run in site.runs():
        assert list(run.glob(f"logs/{job_of(run)}_0.log"))
    gpus = [(run / "gpus").read_text() for run in site.runs()]
    assert set(gpus) == {"0", "1"}
    site.wait()
    assert "7 of 7 done, nothing to do" in site.sweep("--pack", "2", "--gpus-per-node", "2")[1]


def test_jobs_for_which_no_run_waits_leave_the_queue(site: Site) -> None:
    site.sweep_of(6, steps=20)
    hold = site.folder / "first.yaml"
    hold.write_text("gpus_per_node: 0\ncpus_per_task: 1\nsbatch: {nodelist: node1, exclusive: true}\n")
    site.submit("--profile", hold, "--pack", "2")
    eventually(lambda: all(RunDir(run).done for run in site.runs()), 60)
    site.wait()
    logs = sorted(site.folder.glob("runs/demo/slurm/*/logs/*_batch.log"))
    assert len(logs) == 1, "".join(log.read_text() for log in logs)
    assert "no run waits any more: 2 jobs of this array need not begin" in logs[0].read_text()
    assert site.starts() == [1] * 6


def test_a_failing_run_takes_no_other_with_it_and_is_retried_while_the_others_go_on(site: Site) -> None:
    script = site.fakes.scripts / "train.py"
    broken = (
        "if 'seed: 2' in config and not (run / 'repaired').exists(): os.kill(os.getpid(), signal.SIGKILL)\nwhile step"
    )
    script.write_text(script.read_text().replace("while step", broken, 1))
    site.sweep_of(4, steps=400)
    pack = ("--pack", "2", "--gpus-per-node", "2")
    site.submit(*pack)
    runs = site.runs()
    eventually(lambda: (runs[1] / "FAILED").exists() and all(live(run) for run in (runs[0], *runs[2:])))
    assert "killed by SIGKILL" in (runs[1] / "FAILED").read_text()
    shown = site.status()
    assert shown.count("running") == 3 + 1 and "killed" in shown, shown  # and the line of counts
    (runs[1] / "repaired").touch()
    assert "submitted 1 run as job" in site.submit(*pack, "--retry", "failed")
    eventually(lambda: all(RunDir(run).done for run in runs), 90)
    site.wait()
    assert site.starts() == [1, 2, 1, 1]
    assert not (runs[1] / "FAILED").exists()


def test_asked_to_stop_the_job_requeues_itself_and_only_the_unfinished_go_on(site: Site) -> None:
    site.sweep_of(3, steps=150)
    short = site.fakes.scripts / "train.py"
    short.write_text(
        short.read_text().replace("while step", "steps = 5 if 'seed: 1' in config else steps\nwhile step", 1)
    )
    site.submit("--pack", "3", "--gpus-per-node", "0")
    one, *others = site.runs()
    eventually(lambda: RunDir(one).done and all(live(run) for run in others))
    (job,) = site.cluster.queue()
    site.cluster.run("scancel", "--signal=USR2", "--batch", job)
    eventually(lambda: all(RunDir(run).done for run in others), 60)
    site.wait()
    assert site.starts() == [1, 2, 2]
    assert all((run / "checkpoint").exists() for run in others)
    (restart,) = read_restarts(others[0])
    assert (restart.job, restart.start, restart.cause) == (job, 2, "asked by a signal")
    assert re.match(r"node\d$", restart.nodes)
    assert read_restarts(one) == []
    assert job_of(others[1]) == f"{job}_1"
    assert len(re.findall(r"done +150/150 .* 1$", site.status(), re.MULTILINE)) == 2


def test_a_lost_node_gives_its_runs_to_another(site: Site) -> None:
    site.sweep_of(2, steps=400)
    site.submit("--pack", "2", "--gpus-per-node", "2")
    eventually(lambda: all(live(run) for run in site.runs()))
    (node,) = site.cluster.run("squeue", "--noheader", "--format=%N").split()
    site.cluster.call("crash", node)
    try:
        eventually(lambda: all(RunDir(run).done for run in site.runs()), 120)
    finally:
        site.cluster.call("start", node)
    assert [read_restarts(run)[0].cause for run in site.runs()] == [f"lost {node}"] * 2
    site.wait()


def test_a_place_takes_over_what_another_job_left(site: Site) -> None:
    """One job of the array is cancelled by hand: its runs write their checkpoints, and the others take them."""
    site.sweep_of(4, steps=150)
    site.submit("--pack", "2", "--gpus-per-node", "0")
    runs = site.runs()
    eventually(lambda: all(live(run) for run in runs))
    site.cluster.run("scancel", job_of(runs[0]).rpartition("_")[0])
    eventually(lambda: all(RunDir(run).done for run in runs), 90)
    site.wait()
    assert {job_of(run) for run in runs} == {job_of(runs[2])}
    assert re.fullmatch(r"job \d+_0 did not finish it", read_restarts(runs[0])[0].cause)


def test_what_waits_for_a_place_is_shown_and_cancel_ends_all(site: Site) -> None:
    site.sweep_of(5, steps=3000)
    pack = ("--pack", "2", "--gpus-per-node", "0", "--jobs", "2")
    site.submit(*pack)
    eventually(lambda: sum(live(run) for run in site.runs()) == 2)
    shown = site.status()
    assert len(re.findall(r"queued", shown)) == 3 + 1, shown
    assert len(re.findall(r"wait: job \d+_\d is in the queue", site.sweep(*pack)[1])) == 3
    output = site.sweep("--cancel")[1]
    assert re.fullmatch(r"cancelled job \d+: 2 runs ran, 3 runs waited\nwhat ran writes a checkpoint.*\n", output), (
        output
    )
    site.wait()
    assert sum((run / "checkpoint").exists() for run in site.runs()) == 2
    assert [lock.holder(run) for run in site.runs()] == [None] * 5


def test_a_line_of_setup_that_fails_is_the_reason_of_the_runs(site: Site) -> None:
    site.sweep_of(2)
    file = site.folder / "mine.yaml"
    file.write_text("gpus_per_node: 0\ncpus_per_task: 1\nsetup: ['true', 'exit 4']\n")
    code, output = site.sweep("--profile", file, "--pack", "2", "--wait")
    assert code != 0
    why = r"job \d+: setup: 'exit 4' ended the job on node node\d"
    assert len(re.findall(rf"killed: .*\({why}\)", output)) == 2, output
    site.wait()
    assert len(re.findall(rf"{why}; run the sweep again to resume", site.status())) == 2
    assert site.starts() == [0, 0]
    site.submit("--pack", "2", "--gpus-per-node", "0", "--wait")


def test_jobs_that_were_there_are_followed_and_limited_in_runs(site: Site) -> None:
    site.sweep_of(6, steps=400)
    pack = ("--pack", "2", "--gpus-per-node", "0", "--jobs", "2")
    site.submit(*pack)
    eventually(lambda: sum(live(run) for run in site.runs()) == 2)
    with site.start("--wait", "--jobs", "4") as process:  # without --pack: the queue knows its places
        eventually(lambda: sum(live(run) for run in site.runs()) == 4, 60)
        site.sweep("--cancel")
        output, _ = process.communicate(timeout=90)
    assert re.search(r"array \d+ in the queue: 4 runs at a time from now on \(--jobs\), in 2 jobs of 2", output), output
    assert len(set(re.findall(r"(modernn-\S+): running  step", output))) >= 2, output
    site.wait()
