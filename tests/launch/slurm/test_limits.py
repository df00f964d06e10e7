"""Times as sbatch has them, and what small jobs ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.slurm.limits import own_file_system, seconds_of
from launch.slurm.profile import Light, Profile, overridden, read_profile
from launch.slurm.refusals import explain
from launch.slurm.request import Request
from launch.slurm.script import Shape, array_text
from launch.slurm.submission import check_apart, evaluation_of
from launch.slurm.variables import KNOWN, faults_of, misspelled
from toolkit.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1", 60),
        ("90", 5400),
        ("10:30", 630),
        ("1:00:00", 3600),
        ("2-00:00:00", 172_800),
        ("1-12", 129_600),
        ("1-2:30", 95_400),
        ("UNLIMITED", None),
    ],
)
def test_times(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


def test_the_report_of_whole_nodes_asks_for_little() -> None:
    light = read_profile("gpu").light_request("60")
    assert (light.gpus_per_node, light.nodes, light.mem, light.time, light.constraint) == (0, 1, None, "60", None)
    assert light.sbatch == {"mail-type": "FAIL"}
    assert (light.account, light.partition, light.modules) == ("weather", "gpu", read_profile("gpu").modules)
    own = Profile(gpus_per_node=4, light={"partition": "cpu", "time": "5", "sbatch": {"nice": "1"}})  # type: ignore[arg-type]
    assert own.light_request("60").partition == "cpu"
    assert own.light_request("60").time == "5"
    kept = Profile(gpus_per_node=0, constraint="ib", mem="16G", sbatch={"licenses": "x", "exclusive": "true"})
    assert kept.light_request("9").sbatch == {"licenses": "x"}
    assert (kept.light_request("9").mem, kept.light_request("9").constraint) == ("16G", "ib")


def test_the_command_line_comes_before_the_profile() -> None:
    assert overridden(Profile(time="60", mem="4G"), {"time": "2:00:00", "qos": None}).time == "2:00:00"
    with pytest.raises(ConfigError, match="--time: write minutes"):
        overridden(Profile(), {"time": "noon"})


VIOLATES = (
    "\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
)
VIOLATES += "and/or time limits)"


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit" + VIOLATES, "--keep-submitted N"),
        ("sbatch: error: AssocMaxSubmitJobLimit" + VIOLATES, "--keep-submitted N"),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit" + VIOLATES, "Lower `time`"),
        ("sbatch: error: QOSMaxGRESPerUser" + VIOLATES, "lower --nodes, --gpus-per-node"),
        ("sbatch: error: QOSMaxCpuPerUserLimit" + VIOLATES, "lower --nodes, --gpus-per-node"),
        ("sbatch: error: Unknown" + VIOLATES, "limit of your account or QOS"),
        ("sbatch: unrecognized option '--no-such=1'", "an option of the profile's `sbatch`"),
        ("sbatch: error: Requested reservation is invalid", "`reservation`"),
    ],
)
def test_a_limit_is_named_as_what_it_is(message: str, hint: str) -> None:
    assert hint in explain("sbatch", message)


def test_a_folder_of_this_machine_alone_is_noticed(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "nas:/ / nfs rw 0 0\n/dev/vda /var xfs rw 0 0\ntmpfs /tmp tmpfs rw 0 0\nnas:/x /tmp/far nfs4 rw 0 0\n"
    )
    assert own_file_system(Path("/tmp/runs"), mounts) == "tmpfs"
    assert own_file_system(Path("/var/runs"), mounts) == "xfs"
    assert own_file_system(Path("/tmp/far/runs"), mounts) is None
    assert own_file_system(Path("/home/runs"), mounts) is None
    assert own_file_system(Path("/home/runs"), tmp_path / "absent") is None


def test_an_evaluation_apart_asks_for_one_gpu_of_the_trainings_nodes_or_none() -> None:
    shipped = read_profile("gpu")
    request = shipped.evaluation_request(gpu=True)
    assert (request.partition, request.constraint, request.gpus_per_node, request.nodes) == ("gpu", "h100", 1, 1)
    assert (request.mem, request.time, request.cpus_per_task) == (None, "1-00:00:00", 12)
    assert request.sbatch == {"mail-type": "FAIL"}  # not exclusive
    small = shipped.model_copy(update={"light": Light(partition="cpu", time="30", mem="8G", cpus_per_task=2)})
    request = small.evaluation_request(gpu=False)
    assert (request.partition, request.gpus_per_node, request.mem) == ("cpu", 0, "8G")
    assert request.time == "1-00:00:00"  # of the report's 30 minutes an evaluation could take more


def test_packed_runs_are_not_evaluated_apart() -> None:
    with pytest.raises(ConfigError, match=r"a packed run is evaluated in its place.*leave one of them out"):
        check_apart(Request(Profile(gpus_per_node=4), Shape(1, 4, 1, 4)))


def test_an_evaluation_waits_for_its_own_training_alone(tmp_path: Path) -> None:
    evaluation = evaluation_of(Request(Profile(gpus_per_node=4, nodes=2), Shape(2, 4, 8)))
    assert (evaluation.text, evaluation.options) == ("evaluate.sbatch", ["--only", "evaluate"])
    assert evaluation.shape == Shape(1, 1, 1)
    for array, kind in (("0-3", "aftercorr"), (None, "afterok")):
        options = (array, ["12"], tmp_path, tmp_path, (), evaluation.text, "4711")
        text = array_text(evaluation.profile, evaluation.shape, tmp_path, tmp_path, "demo-evaluation1a", *options)
        assert f"#SBATCH --dependency={kind}:4711,afterany:12\n" in text
        assert "#SBATCH --kill-on-invalid-dep=yes\n" in text
        assert 'exec bash "$run/evaluate.sbatch"' in text


def test_names_that_cannot_be_variables_are_all_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("env: {1ST: a, NCCL-DEBUG: b, 'A B': c, MASTER_PORT: 1, FINE: d}\n")
    with pytest.raises(ConfigError) as caught:
        read_profile(str(file))
    text = str(caught.value)
    assert all(f"{name!r} is no name of a variable" in text for name in ("1ST", "NCCL-DEBUG", "A B"))
    assert "MASTER_PORT is set by the launcher for each rank" in text
    assert "FINE" not in text.partition("got")[0]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("OMP_NUM_THREAD", "OMP_NUM_THREADS"),
        ("OMP_NUM_THRAEDS", "OMP_NUM_THREADS"),
        ("omp_num_threads", "OMP_NUM_THREADS"),
        ("NCCL_SOCKET_IFNAMES", "NCCL_SOCKET_IFNAME"),
        ("NCLL_DEBUG", "NCCL_DEBUG"),
        ("CUDA_VISIBLE_DEVICE", "CUDA_VISIBLE_DEVICES"),
        ("TORCH_DISTRIBUTE_DEBUG", "TORCH_DISTRIBUTED_DEBUG"),
        ("PYTORCH_CUDA_ALOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
        ("MODERN_TRITON", "MODERNN_TRITON"),
        ("MODERNN_RENDEZVOUS", "MODERNN_RENDEZVOUS_S"),
        ("MODERNN_THREADS", "the toolkit reads MODERNN_ALEXNET, "),
    ],
)
def test_a_misspelled_variable_is_reported_with_the_near_one(
    name: str, near: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"env: {{{name}: 1, NCCL_DEBUG: INFO, http_proxy: x, MY_LAB_SCRATCH: y, NCCL_FANCY_NEW: z}}\n")
    with caplog.at_level("WARNING", "launch"):
        assert read_profile(str(file)).env[name] == "1"
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{file}: env: {name}: ") and near in message


# Of the manuals of NCCL, PyTorch, CUDA, OpenMP, UCX, libfabric, AWS, Weights & Biases, MLflow, Python and others.
REAL = Path(__file__).with_name("variables.txt").read_text().split()


def test_real_variables_are_not_taken_for_others() -> None:
    assert len(REAL) > 300 and not {*REAL} & {*KNOWN}
    assert misspelled([*REAL, *KNOWN]) == []
    assert faults_of([*REAL, *KNOWN]) == []


def test_every_misspelling_by_one_letter_is_reported() -> None:
    for name in [name for name in KNOWN if len(name) > 8]:
        swaps = {name[:at] + name[at + 1] + name[at] + name[at + 2 :] for at in range(len(name) - 1)}
        wrong = {f"{name[:at]}Q{name[at + 1 :]}" for at in range(len(name))}
        others = {name[:at] + name[at + 1 :] for at in range(len(name))} | {f"{name}S", f"X{name}", name.lower()}
        faulty = sorted((swaps | wrong | others) - {*KNOWN, "http_proxy", "https_proxy"})
        assert [note.partition(":")[0] for note in misspelled(faulty)] == faulty
