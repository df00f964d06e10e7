"""What can happen to a job on a cluster, to real trainings on a real Slurm: each ends as the undisturbed one, to the
last bit, its restarts counted and their cause written down.

All of them are under way at once, each on nodes of its own, so that the time is that of the longest.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import slurm_faults
from tests.support.devcluster import DevCluster
from tests.support.process import eventually
from tests.support.slurm_trials import PARKED_S, PacedSweeps, Trial
from tests.support.training_faults import STEPS, difference
from toolkit.rundir import lock
from toolkit.rundir.events import read_restarts
from toolkit.rundir.status import read_status

WIDE = ("--nodes", 2, "--ranks", 2)


def requeue(trial: Trial) -> None:
    trial.scontrol("requeue", trial.job)


def run_out_of_time(trial: Trial) -> None:
    (log,) = trial.run.logs.glob("*_0_batch.log")
    trial.wait(lambda: "asked to stop: time limit" in log.read_text())
    trial.go()


def preempt(trial: Trial) -> None:
    """A job of partition high takes the node for a second."""
    (node,) = trial.nodes(0)
    options = ["--partition=high", f"--nodelist={node}", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    trial.sweeps.cluster.run("sbatch", *options)
    trial.go()


def take_node_down(trial: Trial) -> None:
    """For a moment: the cluster takes it back as soon as its slurmd answers."""
    node = trial.nodes(0)[1]
    trial.scontrol("update", f"nodename={node}", "state=down", "reason=test")
    trial.at_work(start=1, steps=0)
    assert node not in trial.nodes(trial.start)  # where Slurm took it again, the job has moved on before it began


def crash_node(trial: Trial) -> None:
    """The node is back soon, and then left out for a while: the next start doesn't take it either."""
    node = trial.nodes(0)[0]
    trial.sweeps.cluster.call("crash", node)
    trial.at_work(start=1, steps=0)
    assert node not in trial.nodes(1)
    trial.sweeps.cluster.call("start", node)
    trial.wait(lambda: trial.sweeps.cluster.run("sinfo", "-h", "-p", "main", "-n", node, "-o", "%T").strip() == "idle")
    trial.sweeps.cluster.run("scancel", "--signal=USR2", "--batch", trial.job)
    trial.go()
    trial.at_work(start=2, steps=0)
    assert node not in trial.nodes(2)


def kill_slurmd(trial: Trial) -> None:
    node = trial.nodes(0)[1]
    trial.sweeps.cluster.call("stopd", node)
    trial.at_work(start=1, steps=0)
    assert node not in trial.nodes(1)
    trial.sweeps.cluster.call("start", node)


def orphan(trial: Trial) -> None:
    """Slurm thinks the node dead and runs the job a second time, but the first start is alive and goes on."""
    (node,) = trial.nodes(0)
    before = lock.read_lock(trial.run.path)
    trial.sweeps.cluster.call("stopd", node)
    trial.wait(lambda: list(trial.run.logs.glob("*_1_batch.log")))
    assert lock.read_lock(trial.run.path)["pid"] == before["pid"]
    trial.finish()
    trial.sweeps.cluster.call("start", node)


@dataclass(frozen=True)
class Scenario:
    """A run and what happens to it. `nodes` are its own; so many starts; why the second one."""

    nodes: str
    deed: Callable[[Trial], None] | None
    cause: str = ""
    options: tuple[object, ...] = ()
    profile: dict[str, Any] = field(default_factory=dict)
    starts: int = 2
    partition: str = "PriorityTier=10 PreemptMode=OFF"


MEEK = "PriorityTier=1 PreemptMode=REQUEUE"
SCENARIOS = {
    "undisturbed": Scenario("1-2", None, starts=1),
    "undisturbed-wide": Scenario("1-2", None, options=WIDE, starts=1),
    "requeue": Scenario("1-2", requeue, "requeued", WIDE),
    "time-limit": Scenario("1-2", run_out_of_time, "time limit", profile={"time": 2, "signal_s": 60}),
    "preempted": Scenario("3", preempt, "preempted", partition=f"{MEEK} GraceTime=0"),
    "preempted-with-grace": Scenario("4", preempt, "preempted", partition=f"{MEEK} GraceTime=20"),
    "node-down": Scenario("5-7", take_node_down, "lost node[5-7]", WIDE),
    "node-crash": Scenario("8-10", crash_node, "lost node(8|9|10)", WIDE, starts=3),
    "slurmd": Scenario("11-13", kill_slurmd, "lost node1[1-3]", WIDE),
    "orphan": Scenario("14-15", orphan, "lost node1[45]"),
}


class Fleet:
    """All runs at once; the controller is restarted while all are at work."""

    def __init__(self, sweeps: PacedSweeps) -> None:
        self.sweeps = sweeps
        self._all_at_work = threading.Barrier(len(SCENARIOS), self._restart_controller)

    def start(self, pool: ThreadPoolExecutor) -> dict[str, Future[Trial]]:
        return {name: pool.submit(self._live, name, scenario) for name, scenario in SCENARIOS.items()}

    def _restart_controller(self) -> None:
        cluster = self.sweeps.cluster
        cluster.call("stopctld")
        cluster.call("startctld")
        eventually(lambda: cluster.run("squeue", check=False))

    def _live(self, name: str, scenario: Scenario) -> Trial:
        try:
            profile = {"partition": name, **scenario.profile}
            (trial,) = self.sweeps.submit(name, *scenario.options, pace=0.3 if scenario.deed else 0.0, **profile)
            trial.at_work()
            self.sweeps.pace(name, PARKED_S if scenario.deed else 0.0)
            self._all_at_work.wait(120)
            if scenario.deed:
                scenario.deed(trial)
                trial.wait(lambda: trial.run.done or trial.started(scenario.starts - 1))
        except BaseException:
            self._all_at_work.abort()
            raise
        trial.finish()
        return trial


@pytest.fixture(scope="module")
def fleet(new_cluster: Callable[..., DevCluster], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    lines = [
        f"PartitionName={name} Nodes=node[{scenario.nodes}] DefaultTime=60 {scenario.partition}"
        for name, scenario in SCENARIOS.items()
    ]
    cluster = new_cluster(NODES="15", CONF="\n".join(lines))
    sweeps = PacedSweeps.prepare(cluster, tmp_path_factory.mktemp("life"))
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield Fleet(sweeps).start(pool)


def scores(trial: Trial) -> list[object]:
    """What the evaluation of a run found."""
    return [json.loads(file.read_text())["overall"] for file in trial.run.scores().values()]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_ends_as_the_undisturbed_one(fleet: dict[str, Any], name: str) -> None:
    scenario = SCENARIOS[name]
    trial = fleet[name].result()
    whole = fleet["undisturbed-wide" if scenario.options == WIDE else "undisturbed"].result()
    assert difference(whole.run.path, trial.run.path, STEPS) is None
    said = read_restarts(trial.run.path)
    assert len(said) == read_status(trial.run).restarts, trial.tell()
    assert len(said) == scenario.starts - 1 or (name in ("time-limit", "node-down") and len(said) > 1), trial.tell()
    assert scores(trial) == scores(whole)
    assert trial.run.failure() is None
    if said:
        assert re.fullmatch(scenario.cause, said[0].cause), said


@pytest.mark.slow
def test_a_dead_node_that_slurm_believes_in_for_longer_than_the_ranks(
    new_cluster: Callable[..., DevCluster], tmp_path: Path
) -> None:
    """As on most clusters: the ranks fail of it first, which is not the end of the run."""
    sweeps = PacedSweeps.prepare(new_cluster(NODES="3", CONF="SlurmdTimeout=60"), tmp_path)
    (whole,) = sweeps.submit("whole", *WIDE)
    whole.finish()
    (trial,) = sweeps.submit("dead", *WIDE, pace=0.3)
    trial.at_work()
    sweeps.pace("dead", PARKED_S)
    node = trial.nodes(0)[1]
    sweeps.cluster.call("crash", node)
    trial.wait(lambda: trial.run.failure() is not None)
    assert "silent" in str(trial.run.failure())
    trial.wait(lambda: trial.started(1), 240)
    assert node not in trial.nodes(1)
    trial.finish()
    assert difference(whole.run.path, trial.run.path, STEPS) is None
    assert [restart.cause for restart in read_restarts(trial.run.path)] == [f"lost {node}"]
    assert trial.run.failure() is None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_disturbed_twenty_times(new_cluster: Callable[..., DevCluster], tmp_path: Path) -> None:
    said: list[str] = []
    disturbed = slurm_faults.FaultInjection(
        PacedSweeps.prepare(new_cluster(NODES=str(slurm_faults.NODES)), tmp_path), seed=2, say=said.append
    )
    disturbed.run(20)
    assert sum(disturbed.counts[deed] for deed in slurm_faults.DEEDS) == 20, said
