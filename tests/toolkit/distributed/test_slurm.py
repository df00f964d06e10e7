"""Who a process is in a step of Slurm, from variables as srun sets them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.distributed.slurm import hosts, is_earlier_start, job_name, task, tasks_per_node
from toolkit.errors import ConfigError

# As Slurm 22.05 set them for `srun` in `sbatch --nodes=2 --ntasks-per-node=2`, in task 3.
STEP = {
    "SLURM_JOB_ID": "55376141",
    "SLURM_JOB_NODELIST": "localhost,node[2-3]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.77.0.1",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "localhost,node2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("n[08-10,12]", ["n08", "n09", "n10", "n12"]),
        ("a[1-2]-ib,b", ["a1-ib", "a2-ib", "b"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("gpu-a.site,gpu-b.site", ["gpu-a.site", "gpu-b.site"]),
    ],
)
def test_lists_of_nodes(nodelist: str, names: list[str]) -> None:
    assert hosts(nodelist) == names


@pytest.mark.parametrize("nodelist", ["", "n[1-", "n[a-b]"])
def test_what_is_no_list_is_an_error(nodelist: str) -> None:
    with pytest.raises(ValueError):
        hosts(nodelist)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=12))
def test_tasks_per_node_as_slurm_writes_them(counts: list[int]) -> None:
    parts: list[list[int]] = []
    for count in counts:
        if parts and parts[-1][0] == count:
            parts[-1][1] += 1
        else:
            parts.append([count, 1])
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in parts)
    assert tasks_per_node(text) == counts


def test_a_rank_of_a_step() -> None:
    found = task(STEP)
    assert found is not None
    assert found.environment == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(12_000 + 55376141 % 20_000),
    }


def test_a_name_that_means_nothing_here_becomes_the_launching_nodes_address() -> None:
    found = task({**STEP, "SLURM_STEP_NODELIST": "no-such-node.invalid,node2"})
    assert found is not None
    assert found.address == "10.77.0.1"


@pytest.mark.parametrize(
    "change", [{"SLURM_NTASKS": "1"}, {"SLURM_PTY_PORT": "4000"}, {"SLURM_STEP_ID": None}], ids=str
)
def test_a_single_process(change: dict[str, str | None]) -> None:
    environ = {key: value for key, value in {**STEP, **change}.items() if value is not None}
    assert task(environ) is None


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID"])
def test_half_a_step_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"step of 4 tasks.*{name}"):
        task({key: value for key, value in STEP.items() if key != name})


def test_names_of_jobs() -> None:
    assert job_name({}) is None
    assert job_name({"SLURM_JOB_ID": "7"}) == "7_0"
    array = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}
    assert job_name(array) == "7_3_2"
    names = ("7_3_1", "7_3_2", "7_2_1", "8_1", "local-7", None)
    assert [is_earlier_start(name, array) for name in names] == [True, False, False, False, False, False]
    assert not is_earlier_start("7_0", {})
