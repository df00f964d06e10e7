"""slurm/devcluster: comes up, does what a cluster does, heals, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.devcluster import DevCluster, missing
from tests.support.process import eventually

NewCluster = Callable[..., DevCluster]


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nodes_have_names_and_gpus_of_their_own(cluster: DevCluster) -> None:
    command = "srun -N2 --ntasks-per-node=2 --gpus-per-node=2 bash -c 'echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES'"
    assert sorted(cluster.run("bash", "-c", command).split("\n")) == ["", *["node1 0,1"] * 2, *["node2 0,1"] * 2]
    assert cluster.run("pwd").strip() == os.getcwd()


def test_up_again_does_nothing(cluster: DevCluster) -> None:
    before = cluster.daemons()
    assert "already up" in cluster.call("up").stderr
    assert cluster.daemons() == before


def test_a_node_that_lost_power_comes_back(cluster: DevCluster) -> None:
    cluster.call("crash", 4)
    assert cluster.daemons()["node4"] == "not running"
    cluster.call("start", 4)
    eventually(lambda: cluster.run("sinfo", "-h", "-p", "main", "-n", "node4", "-o", "%T").strip() == "idle")
    assert cluster.run("srun", "-w", "node4", "true") == ""
    assert "name a node: node1 to node4" in cluster.call("crash", 5, check=False).stderr


def test_down_ends_jobs_and_daemons_and_up_heals_after_a_kill(new_cluster: NewCluster, tmp_path: Path) -> None:
    cluster = new_cluster(NODES="1")
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\necho $$ > {tmp_path}/began\nexec sleep 600\n")
    cluster.run("sbatch", "-o", "/dev/null", script)
    eventually((tmp_path / "began").exists)
    for name, pid in cluster.daemons().items():
        if name != "head":
            os.kill(int(pid), signal.SIGKILL)
    cluster.call("up")
    assert cluster.run("squeue", "-h") == ""
    daemons = cluster.daemons()
    cluster.call("down")
    assert not [pid for pid in daemons.values() if alive(pid)]
    assert "not up" in cluster.call("status", check=False).stderr


def test_a_bad_setting_is_said_and_nothing_stays(new_cluster: NewCluster) -> None:
    with pytest.raises(AssertionError, match="unrecognized key: Nonsense"):
        new_cluster(NODES="1", CONF="Nonsense=1")
    listing = subprocess.run(["pgrep", "-af", "slurmctld"], capture_output=True, text=True, check=False).stdout
    assert "unrecognized" not in listing


def test_it_ends_with_its_owner(new_cluster: NewCluster) -> None:
    cluster = new_cluster(NODES="1")
    cluster.call("down")
    owner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    cluster.call("up", NODES="1", OWNER=str(owner.pid))
    daemons = cluster.daemons()
    owner.kill()
    owner.wait()
    eventually(lambda: not [pid for pid in daemons.values() if alive(pid)])


@pytest.mark.parametrize("network", ["host", "plain"])
def test_without_the_right_to_make_networks(new_cluster: NewCluster, network: str) -> None:
    if network == "host" and subprocess.run(["unshare", "--uts", "true"], check=False).returncode:
        pytest.skip("no right to make namespaces")
    cluster = new_cluster(NODES="2", NET=network)
    assert cluster.run("srun", "-N2", "bash", "-c", "echo $SLURMD_NODENAME").split() in (
        ["node1", "node2"],
        ["node2", "node1"],
    )
    cluster.call("down")


def test_accounting(new_cluster: NewCluster) -> None:
    if lacking := missing("slurmdbd", "mariadbd"):
        pytest.skip(f"needs {', '.join(lacking)}: slurm/devcluster/cluster install")
    cluster = new_cluster(NODES="1", ACCT="dbd")
    cluster.run("srun", "--job-name=counted", "true")
    eventually(lambda: "counted|COMPLETED" in cluster.run("sacct", "-X", "-P", "-o", "JobName,State"))
    cluster.call("down")
