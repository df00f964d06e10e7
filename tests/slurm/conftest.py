"""One real Slurm for all tests of this folder, on this machine; it is taken down whatever becomes of the tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.devcluster import DevCluster, Site, missing
from tests.support.fakes import Fakes
from tests.support.process import eventually

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def new_cluster() -> Iterator[Callable[..., DevCluster]]:
    """Make a cluster with settings; all are taken down at the end, and by themselves should pytest be killed."""
    if lacking := missing(*NEEDED):
        pytest.skip(f"needs Slurm ({', '.join(lacking)} not found): slurm/devcluster/cluster install")
    made: list[DevCluster] = []

    def make(**settings: str) -> DevCluster:
        # In /tmp by name: the path of a socket may have no more than 107 characters.
        cluster = DevCluster(Path(tempfile.mkdtemp(prefix="devcluster-", dir="/tmp")))
        made.append(cluster)
        cluster.call("up", OWNER=str(os.getpid()), **settings)
        return cluster

    try:
        yield make
    finally:
        for cluster in made:
            cluster.call("down", check=False)
            shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(new_cluster: Callable[..., DevCluster]) -> DevCluster:
    """Four nodes of 8 CPUs and 2 pretended GPUs; an array has at most 6 tasks."""
    return new_cluster(CONF="MaxArraySize=6")


@pytest.fixture
def site(cluster: DevCluster, fakes: Fakes) -> Iterator[Site]:
    fakes.sweep_file("base: base.yaml\nseeds: 3\n")
    script = fakes.scripts / "fake_sweep.py"
    script.write_text("from launch.slurm import submitter\nsubmitter.POLL_S = 0.5\n" + script.read_text())
    yield Site(cluster, fakes)
    cluster.run("scancel", "--user=root" if os.getuid() == 0 else f"--user={os.getuid()}")
    eventually(lambda: not cluster.queue(), 60)
