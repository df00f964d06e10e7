"""Which device a rank takes, what it is refused, and what the switches of arithmetic set."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed as torch_distributed
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.models import TRAINED
from tests.support.precision import gradients
from tests.support.process import PATIENCE_S, ROOT, asks_for_gpus
from toolkit.config import make_config
from toolkit.distributed import device as devices
from toolkit.distributed import world as world_module
from toolkit.distributed.device import Seat, check_seats, choose, facts, fault_of, set_arithmetic
from toolkit.errors import EXIT_USAGE, ConfigError, ToolkitError
from toolkit.models import trajgru
from toolkit.train.deepspeed_settings import check_precision
from toolkit.wording import computed_on

CPU = torch.device("cpu")


def config(**train: object) -> types.SimpleNamespace:
    return make_config({"train": train}, "test").train


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """gpus(uuids): torch sees GPUs of these UUIDs."""

    def see(*uuids: str, capability: tuple[int, int] = (9, 0)) -> None:
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: bool(uuids))
        monkeypatch.setattr(cuda, "device_count", lambda: len(uuids))
        monkeypatch.setattr(cuda, "set_device", lambda index: uuids[torch.device("cuda", index).index])
        monkeypatch.setattr(
            cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid=uuids[device.index])
        )
        monkeypatch.setattr(cuda, "get_device_name", lambda device=None: "A card")
        monkeypatch.setattr(cuda, "get_device_capability", lambda device: capability)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return see


def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_it_sees(gpus: Callable[..., None]) -> None:
    gpus("a", "b")
    assert [choose("auto", rank).index for rank in (0, 1)] == [0, 1]
    assert choose("cpu", 1) == CPU
    gpus("b")
    assert choose("cuda", 3) == torch.device("cuda", 0)  # --gpus-per-task, --gpu-bind=single:1, MIG
    gpus()
    assert choose("auto", 0) == CPU
    with pytest.raises(ConfigError, match=rf"train\.device cuda: on {socket.gethostname()} torch .* use a machine"):
        choose("cuda", 0)


def seat(gpu: str | None, host: str = "n1", visible: int = 1) -> Seat:
    return Seat(host, gpu, visible if gpu else 0)


def test_each_rank_with_a_gpu_of_its_own_or_all_on_cpus_are_right() -> None:
    assert fault_of([seat("a"), seat("b")]) is None  # each sees its own as number 0
    assert fault_of([seat("a", visible=2), seat("b", visible=2)]) is None
    assert fault_of([seat("a"), seat("a", "n2")]) is None  # virtual machines may number alike
    assert fault_of([seat(None), seat(None)]) is None


def test_more_ranks_than_gpus_are_refused_with_both_numbers() -> None:
    fault = fault_of([seat(gpu, host, 2) for host in ("n1", "n2") for gpu in ("a", "b", "a", "b")])
    assert fault is not None
    assert fault.startswith("n1: 4 ranks and 2 GPUs visible: ranks 0, 2 would share a, and NCCL takes one rank per GPU")
    assert "Start 2 ranks on this machine" in fault and "train.device=cpu" in fault
    assert "n1: 2 ranks and 1 GPU visible" in str(fault_of([seat("a"), seat("a")]))


def test_ranks_that_do_not_know_their_number_are_told_so() -> None:
    fault = str(fault_of([seat("a", visible=2), seat("a", visible=2)]))
    assert "n1: 2 ranks and 2 GPUs visible" in fault and "LOCAL_RANK" in fault and "Start" not in fault


def test_ranks_on_different_kinds_of_device_are_named() -> None:
    fault = str(fault_of([seat("a"), seat(None, "n2"), seat("b")]))
    assert fault.startswith("1 of 3 ranks would compute on the CPU and the others on GPUs: rank 1 on n2.")


def test_a_part_of_a_card_is_known_by_its_own_name(gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpus("the-whole-card")
    assert Seat.of(torch.device("cuda", 0)) == Seat(socket.gethostname(), "the-whole-card", 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert Seat.of(torch.device("cuda", 0)).gpu == "MIG-1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert Seat.of(torch.device("cuda", 0)).gpu == "the-whole-card"
    assert Seat.of(CPU) == Seat(socket.gethostname(), None, 0)


@pytest.mark.parametrize("uuids", [("a", "a"), ("a", "b")])
def test_ranks_compare_their_gpus_when_they_have_met(
    uuids: tuple[str, ...], gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks, as threads, through a real store."""
    gpus("a")
    seats = {f"rank-{rank}": Seat("n1", uuid, 1) for rank, uuid in enumerate(uuids)}
    monkeypatch.setattr(Seat, "of", staticmethod(lambda device: seats[threading.current_thread().name]))
    limit = timedelta(seconds=20)
    served = torch_distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    said: dict[int, str] = {}

    def rank(number: int) -> None:
        client = torch_distributed.TCPStore("127.0.0.1", served.port, is_master=False, timeout=limit)
        try:
            check_seats(torch_distributed.PrefixStore("x", client), number, 2, torch.device("cuda", 0), 20)
        except ConfigError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=rank, args=(number,), name=f"rank-{number}") for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(said) == ([0, 1] if uuids == ("a", "a") else [])
    assert len(set(said.values())) == len(set(uuids)) % 2  # the same words on both, or none


SHARE = """
import sys, types, torch
cuda = torch.cuda
cuda.is_available, cuda.device_count, cuda.set_device = lambda: True, lambda: 1, lambda index: None
cuda.get_device_properties = lambda device: types.SimpleNamespace(uuid="GPU-1")
cuda.device = lambda device: __import__("contextlib").nullcontext()
from launch.cli.parser import run_script
from toolkit.distributed.world import init_world
run_script(lambda: init_world().rank)
"""


def test_two_processes_on_one_gpu_are_refused_before_nccl_is_called(tmp_path: Path) -> None:
    (tmp_path / "share.py").write_text(SHARE)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MODERNN_RENDEZVOUS_S": "60"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "share.py")],
            env={**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, told = rank.communicate(timeout=PATIENCE_S)
        assert rank.returncode == EXIT_USAGE, told
        assert "2 ranks and 1 GPU visible: ranks 0, 1 would share GPU-1, and NCCL takes one rank per GPU" in told


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_deepspeed_is_told_the_number_of_the_device_not_of_the_rank() -> None:
    """In a process of its own, as DeepSpeed chooses its accelerator once."""
    code = (
        "import os, torch\n"
        "from toolkit.distributed.world import World\n"
        "from toolkit.train.deepspeed_settings import import_deepspeed\n"
        "world = World(3, 4, 3, torch.device('cuda', 0))\n"
        "package = import_deepspeed(world)\n"
        "kind = package.accelerator.get_accelerator().device_name()\n"
        "print('found', kind, os.environ['LOCAL_RANK'], world.local_rank)\n"
        "import_deepspeed(World(0, 1, 0, torch.device('cpu')))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "LOCAL_RANK": "3", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert "found cuda 0 3" in done.stdout, done.stderr
    assert "this process computes on cpu, but imported DeepSpeed before, which then chose cuda" in done.stderr


@pytest.fixture
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    set_arithmetic(config())


@pytest.mark.usefixtures("_restored")
@pytest.mark.filterwarnings("ignore:Please use the new API settings")  # torch 2.9 to 2.11, to this test's own access
@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_on_where_it_is_asked_for_by_all_names(tf32: bool) -> None:
    torch.backends.cudnn.allow_tf32 = True  # as torch starts
    set_arithmetic(config(tf32=tf32))
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (tf32, tf32)
    assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    for new in (torch.backends.cuda.matmul, torch.backends.cudnn.conv):
        assert (new.fp32_precision == "tf32") == tf32


@pytest.mark.usefixtures("_restored")
def test_deterministic_sets_all_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    set_arithmetic(config(deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    set_arithmetic(config())
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ConfigError, match="CUBLAS_WORKSPACE_CONFIG is ':0:0'"):
        set_arithmetic(config(deterministic=True))


# From torch's documentation of `use_deterministic_algorithms`: what raises on CUDA, as aten names it.
UNORDERED = {
    "adaptive_avg_pool2d_backward", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward",
    "avg_pool3d_backward", "_ctc_loss_backward", "_embedding_bag_dense_backward", "fractional_max_pool2d_backward",
    "grid_sampler_2d_backward", "grid_sampler_3d_backward", "histc", "kthvalue", "max_unpool2d", "median",
    "max_pool3d_with_indices_backward", "nll_loss2d_backward", "put_", "reflection_pad1d_backward",
    "reflection_pad2d_backward", "replication_pad2d_backward", "resize_", "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward", "upsample_linear1d_backward", "upsample_trilinear3d_backward",
}  # fmt: skip


class Names(TorchDispatchMode):
    """The operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def ordered_warp(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """As `warp` reads on CUDA under `train.deterministic`."""
    height, width = image.shape[-2:]
    right, below = torch.arange(width) + flow[:, :, 0], torch.arange(height).unsqueeze(1) + flow[:, :, 1]
    return trajgru.gathered(image, right, below)


@pytest.mark.parametrize("name", TRAINED)
def test_no_model_needs_an_operator_without_a_deterministic_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Names() as names:
        plain = gradients(name, "cpu", torch.float64)
    assert (names.seen & UNORDERED) == ({"grid_sampler_2d_backward"} if name == "trajgru" else set())
    if name == "trajgru":
        monkeypatch.setattr(trajgru, "warp", ordered_warp)
        with Names() as names:
            found = gradients(name, "cpu", torch.float64)
        assert "index_put" in " ".join(names.seen) and not names.seen & UNORDERED
        for key, value in plain.items():
            assert torch.allclose(found[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 4)])
def test_gathers_read_and_differentiate_as_grid_sample(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    flow = (3 * torch.randn(2, 4, 2, *size, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(2, 3, 4, *size, dtype=torch.float64)
    results = []
    for read in (trajgru.warp, ordered_warp):
        out = read(image, flow)
        results.append((out, *torch.autograd.grad((out * weights).sum(), (image, flow))))
    for own, other in zip(*results, strict=True):
        assert torch.allclose(own, other, rtol=1e-10, atol=1e-12)


def test_gathers_stay_inside_wherever_the_flow_leads() -> None:
    for strange in (float("nan"), float("inf"), -1e30, 1e30):
        read = ordered_warp(torch.ones(1, 1, 3, 3), torch.full((1, 1, 2, 3, 3), strange))
        assert torch.equal(read, torch.zeros(1, 1, 1, 3, 3))


def test_the_run_says_what_it_was_computed_on(gpus: Callable[..., None]) -> None:
    gpus("a")
    found = facts(config(tf32=True), torch.device("cuda", 0))
    assert computed_on(found) == "A card, TF32 on, deterministic off"
    assert computed_on(facts(config(), CPU)) == "CPU"


def test_tf32_is_refused_where_there_is_none(gpus: Callable[..., None]) -> None:
    with pytest.raises(ConfigError, match="this run computes on the CPU"):
        check_precision(config(tf32=True), CPU)
    gpus("a", capability=(7, 5))
    with pytest.raises(ConfigError, match=r"A card \(compute capability 7\.5\) has no TF32"):
        check_precision(config(tf32=True), torch.device("cuda", 0))
    with pytest.raises(ConfigError, match=r"train\.precision is bf16"):
        config(tf32=True, precision="bf16")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "NCCL error: unhandled system error\nLast error:\nconnect to 10.0.0.1 failed\nException raised from x",
            "10.0",
        ),
        (None, "no answer within 0.2 s (MODERNN_RENDEZVOUS_S)"),
    ],
)
def test_ranks_that_meet_but_can_not_be_connected(
    said: str | None, told: str, monkeypatch: pytest.MonkeyPatch, gpus: Callable[..., None]
) -> None:
    """NCCL's words, and its silence: in ours, with the rank, the host and the variable that names the interface."""
    gpus("a")
    silence = threading.Event()

    def connect(*_: object, **__: object) -> None:
        if said is None:
            silence.wait(30)
        raise torch_distributed.DistBackendError(said)

    monkeypatch.setenv("MODERNN_RENDEZVOUS_S", "0.2")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")
    monkeypatch.setattr(torch_distributed, "init_process_group", connect)
    monkeypatch.setattr(devices, "check_seats", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    with pytest.raises(ToolkitError) as error:
        world_module._join(1, 2, torch.device("cuda", 0), None, timedelta(seconds=60))
    silence.set()
    text = str(error.value)
    assert text.startswith(f"rank 1 of 2 on {socket.gethostname()}: the ranks found each other, but nccl can't connect")
    assert told in text and "NCCL_SOCKET_IFNAME (now eth7)" in text and "Exception raised" not in text


@pytest.mark.parametrize(
    ("expression", "asked"),
    [("", False), ("not slow and not gpu", False), ("gpu", True), ("slow or gpu", True), ("slurm", False)],
)
def test_gpus_are_hidden_from_tests_that_are_not_of_gpus(expression: str, asked: bool) -> None:
    assert asks_for_gpus(expression) == asked
    if "-m" not in sys.argv:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
