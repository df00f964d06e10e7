"""launch/sweep.py --cluster slurm on a real Slurm, with stand-ins for the training."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from launch import status
from tests.support.devcluster import Site, live, starts
from tests.support.process import eventually
from toolkit.rundir import RunDir, lock
from toolkit.rundir.events import read_restarts
from toolkit.rundir.status import read_status

SLOW = "base: base.yaml\nset: {train.steps: 3000}\n"


def log_of(run: Path, name: str) -> str:
    return "".join(file.read_text() for file in sorted(run.glob(f"logs/{name}")))


def test_a_sweep_is_one_array_and_the_second_call_has_nothing_to_do(site: Site) -> None:
    code, output = site.sweep("--jobs", "2")
    assert code == 0, output
    assert re.search(r"submitted 3 runs as array \d+\n", output)
    assert "Watch: python launch/status.py runs/demo" in output
    names = site.cluster.run("squeue", "--noheader", "--format=%j").split()
    assert all(re.fullmatch("demo-[0-9a-f]{8}", name) for name in names)
    site.wait()
    code, output = site.sweep()
    assert code == 0
    assert "3 of 3 done, nothing to do" in output
    assert site.starts() == [1, 1, 1]
    for run in site.runs():
        (record,) = run.glob("logs/*_0_batch.log")
        assert "srun returned 0" in record.read_text()
        assert lock.read_lock(run)["job"] == record.name.removesuffix("_batch.log")
        assert (run / "code" / "COMPLETE").exists()
    assert status.main([str(site.folder / "runs" / "demo")]) == 0


def test_wait_follows_to_the_end(site: Site) -> None:
    code, output = site.sweep("--wait")
    assert code == 0, output
    assert "3 of 3 done\nThe report: python launch/report.py runs/demo" in output


def test_ctrl_c_leaves_the_jobs_to_the_cluster(site: Site) -> None:
    site.fakes.sweep_file("base: base.yaml\nset: {train.steps: 200}\n")
    with site.start("--wait") as process:
        eventually(lambda: [run for run in site.runs() if live(run)])
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "left: the jobs continue without this command" in output
    site.wait()
    assert "1 of 1 done" in site.sweep()[1]


def test_what_is_in_the_queue_is_not_submitted_again(site: Site) -> None:
    hold = site.folder / "held.yaml"
    hold.write_text("cpus_per_task: 1\nsbatch: {hold: true}\n")
    assert site.sweep("--profile", hold)[0] == 0
    code, output = site.sweep()
    assert code == 0
    assert len(re.findall(r"wait: job \d+_\d is in the queue \(PENDING\)", output)) == 3
    assert len(site.cluster.queue()) == 3
    site.fakes.sweep_file("base: base.yaml\nseeds: 4\n")  # the sweep grows: only the new one goes
    assert "submitted 1 run as job" in site.sweep()[1]
    assert len(site.cluster.queue()) >= 3


def test_two_shells_at_the_same_instant_make_one_job_per_run(site: Site) -> None:
    with site.start() as one, site.start() as two:
        outputs = [process.communicate(timeout=60)[0] for process in (one, two)]
    assert [one.returncode, two.returncode] == [0, 0], outputs
    assert sum("submitted 3 runs" in output for output in outputs) == 1
    site.wait()
    assert site.starts() == [1, 1, 1]


def test_killed_after_sbatch_the_next_call_finds_the_jobs(site: Site) -> None:
    real = site.cluster.run("which", "sbatch").strip()
    fake = site.folder / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/bash\n{real} --hold "$@" >/dev/null && kill -KILL $PPID\n')
    fake.chmod(0o755)
    code, _ = site.sweep(PATH=f"{fake.parent}:{os.environ['PATH']}")
    assert code == -signal.SIGKILL
    assert not list(site.folder.glob("runs/demo/slurm/*/job"))
    code, output = site.sweep()
    assert code == 0
    assert output.count("is in the queue") == 3
    assert len(site.cluster.queue()) == 3


def test_a_sweep_larger_than_an_array_keeps_its_throttle(site: Site) -> None:
    site.fakes.sweep_file("base: base.yaml\nseeds: 8\n")
    code, output = site.sweep("--jobs", "3")
    assert code == 0, output
    first, second = re.search(r"submitted 8 runs as arrays (\d+), (\d+)", output).groups()  # type: ignore[union-attr]
    waiting = site.cluster.run("squeue", "--noheader", f"--jobs={second}", "--format=%E")
    assert waiting.startswith(f"afterany:{first}")
    texts = {file.parent: file.read_text() for file in site.folder.glob("runs/demo/slurm/*/submit.sbatch")}
    assert sorted(re.search("--array=(.*)", text)[1] for text in texts.values()) == ["0-1%3", "0-5%3"]  # type: ignore[index]
    site.wait()
    assert site.starts() == [1] * 8


def test_a_runs_own_text_can_be_submitted_by_hand(site: Site) -> None:
    site.fakes.sweep_file(SLOW)
    site.sweep("--profile", "devcluster")
    (run,) = site.runs()
    eventually(lambda: live(run))
    answer = site.cluster.run("sbatch", "--wait", "--parsable", run / "submit.sbatch", check=False)
    assert "srun returned 7" in log_of(run, f"{answer.strip()}_0_batch.log")  # busy: the other job has it
    assert len(starts(run)) == 1
    site.cluster.run("scancel", "--name", run.name)


@pytest.mark.parametrize("batch", [True, False])
def test_asked_to_stop_it_requeues_itself_and_goes_on(site: Site, batch: bool) -> None:
    site.fakes.sweep_file("base: base.yaml\nseeds: 2\nset: {train.steps: 150}\n")
    site.sweep()
    one, other = site.runs()
    eventually(lambda: live(one))
    (name,) = [job for job in site.cluster.queue() if lock.read_lock(one)["job"] == f"{job}_0"]
    site.cluster.run("scancel", "--signal=USR2", *(["--batch"] if batch else []), name)
    eventually(lambda: "requeued" in log_of(one, "*_0_batch.log"))
    site.wait()
    assert RunDir(one).done
    assert len(starts(one)) == 2
    assert len(starts(other)) == 1
    assert lock.read_lock(one)["job"] == f"{name}_1"


def test_restarts_are_bounded(site: Site) -> None:
    profile = site.folder / "once.yaml"
    profile.write_text("cpus_per_task: 1\nmax_restarts: 0\n")
    site.fakes.sweep_file(SLOW)
    site.sweep("--profile", profile)
    (run,) = site.runs()
    eventually(lambda: live(run))
    site.cluster.run("scancel", "--signal=USR2", site.cluster.queue()[0])
    site.wait()
    assert "not requeued after start 1: max_restarts is 0" in log_of(run, "*_batch.log")
    assert "interrupted" in site.sweep("--dry-run")[1]


def test_restarts_by_slurm_are_bounded_too(site: Site) -> None:
    profile = site.folder / "once.yaml"
    profile.write_text("cpus_per_task: 1\nmax_restarts: 0\n")
    site.fakes.sweep_file(SLOW)
    site.sweep("--profile", profile)
    (run,) = site.runs()
    eventually(lambda: live(run))
    (job,) = site.cluster.queue()
    site.cluster.run("scontrol", "requeue", job)
    site.wait()
    (restart,) = read_restarts(run)
    assert restart.cause == "requeued; not begun again, as max_restarts is 0"
    assert (restart.job, restart.start) == (job, 2)
    assert len(starts(run)) == 1
    assert restart.cause in str(read_status(RunDir(run)).reason)


def test_a_cancelled_job_writes_its_checkpoint_and_does_not_come_back(site: Site) -> None:
    site.fakes.sweep_file(SLOW)
    site.sweep()
    (run,) = site.runs()
    eventually(lambda: live(run))
    site.cluster.run("scancel", site.cluster.queue()[0])
    site.wait()
    assert (run / "checkpoint").exists()
    assert "requeued" not in log_of(run, "*_batch.log").replace("not requeued", "")
    assert len(starts(run)) == 1


def test_two_nodes_of_two_ranks(site: Site) -> None:
    site.fakes.sweep_file("base: base.yaml\nset: {train.steps: 150}\n")  # long enough for all to come
    code, output = site.sweep("--nodes", "2", "--gpus-per-node", "2", "--wait")
    assert code == 0, output
    (run,) = site.runs()
    assert sorted(line.split()[1] for line in starts(run)) == ["0", "1", "2", "3"]
    assert len(list(run.glob("logs/*_0_[0-3].log"))) == 4


def test_a_failed_rank_is_named_and_ends_the_others(site: Site) -> None:
    script = site.fakes.scripts / "train.py"
    broken = "if os.environ.get('RANK') == '3': os.kill(os.getpid(), signal.SIGKILL)\nwhile step"
    script.write_text(script.read_text().replace("while step", broken, 1))
    site.fakes.sweep_file(SLOW)
    code, output = site.sweep("--nodes", "2", "--gpus-per-node", "2", "--wait")
    assert code == 1
    assert re.search(r"failed: .*: train: rank 3 on \w+: killed by SIGKILL \(out of memory\?\); see /.*_3.log", output)
    assert site.cluster.queue() == []


def test_a_dry_run_tells_the_arrays(site: Site) -> None:
    site.fakes.sweep_file("base: base.yaml\nseeds: [1, 2, 3]\n")
    code, output = site.sweep("--dry-run", "--nodes", "2")
    assert code == 0, output
    assert re.search(r"\n3 runs in 1 array \(of at most \d+\), a run on 2 nodes with .*\n3 runs to do: ", output)
    assert not list((site.folder / "runs").glob("*/*/config.yaml"))


def test_submitted_from_inside_a_job(site: Site) -> None:
    """The environment of the outer job, torchrun's variables among it, makes no difference."""
    site.fakes.sweep_file("base: base.yaml\n")
    wrapped = " ".join(["env", "RANK=1", "WORLD_SIZE=2", "SBATCH_ARRAY_INX=0-3", *site.command("--wait")[2:]])
    output = site.cluster.run("srun", "-n1", "--chdir", site.folder, "bash", "-c", wrapped)
    assert "1 of 1 done" in output
    (run,) = site.runs()
    assert [line.split()[1] for line in starts(run)] == ["alone"]


def test_a_run_that_a_node_cannot_see(site: Site) -> None:
    site.fakes.sweep_file("base: base.yaml\n")
    hidden = site.folder / "runs"
    hidden.mkdir()
    for node in range(1, 5):
        site.cluster.call("node", node, "mount", "-t", "tmpfs", "none", hidden)
    try:
        code, output = site.sweep("--wait")
    finally:
        for node in range(1, 5):
            site.cluster.call("node", node, "umount", hidden)
    assert code == 1
    assert "can't write the job's log: it doesn't see this folder" in output


def test_a_snapshot_that_is_gone_is_said(site: Site) -> None:
    site.fakes.sweep_file("base: base.yaml\n")
    hold = site.folder / "held.yaml"
    hold.write_text("cpus_per_task: 1\nsbatch: {hold: true}\n")
    site.sweep("--profile", hold)
    (run,) = site.runs()
    (run / "code" / "COMPLETE").unlink()
    site.cluster.run("scontrol", "release", site.cluster.queue()[0])
    site.wait()
    assert "can't see the code in" in (run / "FAILED").read_text()


REFUSALS = [
    (["--gpus-per-node", "8"], "", r"No node has as many GPUs .*Nodes: node1: 8 CPUs, 4000 MB, gpu:2"),
    (["--nodes", "8"], "", "fewer nodes than --nodes"),
    (["--profile", "gpux"], "", r"profiles there: .*devcluster"),
    ([], "partition: moon", r"Set `partition` in the profile to one of: main; low"),
    ([], "partitoin: main", r"partitoin: unknown key; did you mean partition\?\n.*Known keys: partition, account"),
    ([], "time: noon", "write minutes, HH:MM:SS or D-HH:MM:SS, got 'noon'"),
    ([], "sbatch: {array: 0-3}", "array is set by the toolkit"),
    ([], "mem: 900G", "`mem` in the profile is more than a node has"),
]


@pytest.mark.parametrize(("options", "profile", "message"), REFUSALS)
def test_a_refusal_says_what_to_do_and_nothing_is_submitted(
    site: Site, options: list[str], profile: str, message: str
) -> None:
    if profile:
        (site.folder / "mine.yaml").write_text(profile + "\n")
        options = [*options, "--profile", str(site.folder / "mine.yaml")]
    code, output = site.sweep(*options)
    assert code == 2
    assert re.search(message, output), output
    assert "Traceback" not in output
    assert site.cluster.queue() == []
    assert not list(site.folder.glob("runs/demo/slurm/*"))


def test_what_was_submitted_before_a_refusal_is_taken_back(site: Site) -> None:
    real = site.cluster.run("which", "sbatch").strip()
    fake = site.folder / "bin" / "sbatch"
    fake.parent.mkdir()
    again = "echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1"
    fake.write_text(
        f'#!/bin/bash\n[ -e {site.folder}/once ] && {{ {again}; }}\ntouch {site.folder}/once\n{real} "$@"\n'
    )
    fake.chmod(0o755)
    site.fakes.sweep_file("base: base.yaml\nseeds: 8\nset: {train.steps: 3000}\n")
    code, output = site.sweep(PATH=f"{fake.parent}:{os.environ['PATH']}")
    assert code == 2
    assert "--limit N submits N runs at most" in output
    site.wait()


def test_no_munge(site: Site) -> None:
    text = (site.cluster.folder / "etc" / "slurm.conf").read_text()
    conf = site.folder / "slurm.conf"
    conf.write_text(text.replace("munge.socket,", "nowhere.socket,"))
    script = ["env", f"SLURM_CONF={conf}", *site.command()[2:]]
    done = site.cluster.call("exec", "env", "-C", site.folder, *script, check=False)
    assert done.returncode == 2
    assert "Munge, which proves to Slurm who you are, doesn't run on this machine" in done.stderr
    assert not (site.folder / "runs").exists()


def test_two_hundred_runs_are_one_call(site: Site) -> None:
    """By a stand-in for Slurm: what is counted is what we ask of it."""
    tools = site.folder / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/bash\necho 'MaxArraySize            = 1001'\n")
    (tools / "squeue").write_text(f"#!/bin/bash\necho squeue >> {site.folder}/calls\n")
    (tools / "sbatch").write_text(f"#!/bin/bash\necho sbatch >> {site.folder}/calls\necho Submitted batch job 7\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    site.fakes.sweep_file("base: base.yaml\nseeds: 200\n")
    code, output = site.sweep(PATH=f"{tools}:{os.environ['PATH']}")
    assert code == 0, output
    assert "submitted 200 runs as array 7" in output
    assert (site.folder / "calls").read_text().split() == ["squeue", "sbatch"]
    (runs,) = site.folder.glob("runs/demo/slurm/*/runs.txt")
    assert len(runs.read_text().splitlines()) == 200


def test_login_nodes_need_no_torch(site: Site) -> None:
    code = (
        "import sys; sys.argv[0] = 'sweep'; from launch import sweep; "
        "assert sweep.main(['demo.yaml', '--cluster', 'slurm', '--profile', 'devcluster']) == 0; "
        "heavy = {'torch', 'deepspeed'} & set(sys.modules); assert not heavy, heavy"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = ["env", "-C", site.folder, *(f"{key}={value}" for key, value in environment.items())]
    site.cluster.run(*command, sys.executable, "-c", code)
    jobs = json.dumps(site.cluster.queue())
    site.cluster.run("scancel", *json.loads(jobs))
