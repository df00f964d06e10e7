"""Parts of benchmarks/gpu.py that ask whether it is right: the machine, the tests for a GPU, the models' numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any

from benchmarks.gpu_rows import Job, Row, Rows, milliseconds
from benchmarks.report import ROOT

PACKAGES = ("torch", "triton", "deepspeed", "numpy", "pydantic", "zarr", "webdataset", "submitit", "pytest")


def environment(job: Job) -> None:
    """The machine, its two ceilings, DeepSpeed, the first collective."""
    import torch

    rows = Rows(job)
    facts: Row = {"python": sys.version.split()[0], "cores": len(os.sched_getaffinity(0))}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            facts[name] = metadata.version(name)
    rows.add(what="versions", **facts)
    if job.cuda:
        asked = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,memory.total", "--format=csv,noheader"]
        rows.add(
            what="card",
            name=torch.cuda.get_device_name(),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            nccl=".".join(map(str, torch.cuda.nccl.version())),
            driver_clocks_memory=subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip(),
            conv_tf32=torch.backends.cudnn.allow_tf32,
            matmul_tf32=torch.backends.cuda.matmul.allow_tf32,
        )
    _ceilings(job, rows)
    with rows.trying(what="import deepspeed, join a process group") as row:
        from toolkit.distributed.world import init_world
        from toolkit.train.deepspeed_settings import import_deepspeed

        world = init_world(group=True)
        import_deepspeed(world)
        row["device"] = str(world.device)
    for what in ("first collective", "second collective"):
        with rows.trying(what=what) as row:
            began = time.perf_counter()
            value = torch.ones(1, device=job.device)
            torch.distributed.all_reduce(value)
            row |= {"sum": float(value), "ms": 1e3 * (time.perf_counter() - began)}


def _ceilings(job: Job, rows: Rows) -> None:
    """TB/s of a copy, TFLOP/s of products of random matrices, microseconds of a launch."""
    import torch

    count, side, launches = (1 << 29, 8192, 4000) if job.cuda else (1 << 22, 512, 400)
    with rows.trying(what="copy") as row:
        source, target = (torch.rand(count, device=job.device) for _ in range(2))
        row["tb_per_s"] = 8 * count / milliseconds(lambda: target.copy_(source), job.cuda)["ms"] / 1e9
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("fp32", torch.float32, False),
        ("TF32", torch.float32, True),
    ):
        with rows.trying(what=f"product of {side} x {side}, {name}") as row, switched(tf32=tf32):
            a, b = (torch.randn(side, side, device=job.device, dtype=dtype) for _ in range(2))
            found = milliseconds(lambda a=a, b=b: a @ b, job.cuda, least=10, lasting=0.5)
            row |= {"tflop_per_s": 2 * side**3 / found["ms"] / 1e9, "spread": found["spread"]}
    with rows.trying(what="launch of a small kernel") as row:
        small = torch.zeros(64, device=job.device)
        small.add_(1)
        began = time.perf_counter()
        for _ in range(launches):
            small.add_(1)
        if job.cuda:
            torch.cuda.synchronize()
        row["us"] = 1e6 * (time.perf_counter() - began) / launches


@contextmanager
def switched(tf32: bool = False, cudnn: bool = False, algorithms: bool = False) -> Iterator[None]:
    """With TF32 in products and convolutions or without; cuDNN, or all of torch, asked to be deterministic.

    Afterwards all is as torch has it at first.
    """
    import torch

    def switch(matmul: bool, convolution: bool, cudnn: bool, algorithms: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.backends.cudnn.allow_tf32 = convolution
        torch.backends.cudnn.deterministic = cudnn
        torch.use_deterministic_algorithms(algorithms)

    switch(tf32, tf32, cudnn, algorithms)
    try:
        yield
    finally:
        switch(False, True, False, False)


class Told:
    """A plugin of pytest: a row for each test as soon as it has ended."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._add(report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._add(report)

    def _add(self, report: Any) -> None:
        name = report.nodeid.rpartition("/")[2]
        row: Row = {"test": name, "outcome": report.outcome, "seconds": round(getattr(report, "duration", 0.0), 1)}
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = (crash.message if crash else report.longreprtext).strip().splitlines() or [""]
            row |= {"error": " ".join(said)[:300], "trace": report.longreprtext[-3000:]}
        self.rows.add(**row)


def tests(job: Job) -> None:
    """`pytest -m gpu`, of the files in which a test is marked so: the others may want what this machine lacks."""
    import pytest

    files = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [file for file in files if "pytest.mark.gpu" in file.read_text()]
    rows = Rows(job)
    options = [
        "-m",
        "gpu",
        "-k",
        job.tests,
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        "-o",
        f"timeout={max(30, int(job.left / 2))}",
    ]
    code = pytest.main([*options, f"--rootdir={ROOT}", *map(str, marked)], plugins=[Told(rows)])
    outcomes = [row["outcome"] for row in rows.found]
    counts = {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "skipped")}
    rows.add(what="pytest -m gpu", code=int(code), **counts)


def small(name: str) -> Any:
    """The config of a small model."""
    from toolkit.config import make_config

    options: dict[str, Any] = {"layers": 2, "hidden": 24 if name == "rim" else 16}
    if name == "trajgru":
        options = {"hidden": [8, 12], "flows": [5, 5], "strides": [4, 2], "stem": 4, "flow_hidden": 8}
    elif name == "svg_lp":
        options = {"size": 32, "width": 8, "latent": 32, "rnn": 32, "z": 8}
    elif name == "simvp":
        options = {"frames": 3, "spatial_hidden": 8, "spatial_layers": 2, "hidden": 16, "layers": 2, "mlp_ratio": 2}
    return make_config({"model": {"name": name, **options}, "data": {"context": 3, "horizon": 3}}, "benchmark")


class Drawn:
    """Noise that is the same numbers on every device and in every precision, and each time after `restart`."""

    def __init__(self, batch: int, device: str, dtype: Any) -> None:
        self.batch, self.device, self.dtype, self.place = batch, device, dtype, 0

    def normal(self, *shape: int) -> Any:
        import torch

        self.place += 1
        generator = torch.Generator().manual_seed(1000 + self.place)
        return torch.randn(self.batch, *shape, generator=generator).to(self.device, self.dtype)


def gradient(config: Any, size: int, batch: int, device: str, dtype: Any) -> tuple[float, Any]:
    """Loss and gradient, flat and in float64, of a model with seeded weights on seeded frames."""
    import torch

    from shards.manifest import FrameSpec
    from toolkit.models.base import Sampling, build_model

    torch.manual_seed(0)
    model = build_model(config.model, FrameSpec(1, size, size)).to(device, dtype)
    context, horizon = config.data.context, config.data.horizon
    generator = torch.Generator().manual_seed(1)
    frames = torch.rand(batch, context + horizon, 1, size, size, generator=generator)
    teacher = torch.rand(batch, horizon - 1, generator=generator) < 0.5
    sampling = Sampling(teacher=teacher.to(device), noise=Drawn(batch, device, dtype))  # type: ignore[arg-type]
    rollout = model(frames.to(device, torch.float64 if dtype == torch.float64 else None), context, sampling)
    loss = torch.stack([value.double() for value in rollout.losses.values()]).sum()
    loss.backward()
    parts = [parameter.grad.flatten().double() for parameter in model.parameters() if parameter.grad is not None]
    return float(loss.detach()), torch.cat(parts)


def repeated(work: Any, tf32: bool, times: int = 2) -> Row:
    """Is the gradient the same to the last bit when it is computed again, and if not, by which switch?"""
    import torch

    def equal(**switches: bool) -> bool | str:
        try:
            with switched(tf32=tf32, **switches):
                first = work()[1]
                return all(torch.equal(first, work()[1]) for _ in range(times - 1))
        except RuntimeError as error:  # an operation that has no deterministic form
            return str(error).splitlines()[0][:120]

    row: Row = {"repeats": equal()}
    if row["repeats"] is not True:
        row["repeats_cudnn"] = equal(cudnn=True)
        row["repeats_all"] = equal(cudnn=True, algorithms=True)
    return row


def numbers(job: Job) -> None:
    """Ten models in three precisions against float64 on the CPU; and the paper's ModeRNN at its full size again."""
    import torch

    from toolkit.config import make_config
    from toolkit.models.registry import MODELS

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch's deterministic algorithms ask for
    rows = Rows(job)
    names = [name for name, entry in MODELS.items() if entry.trained][: None if job.cuda else 2]
    forms = {"fp32": (torch.float32, False), "TF32": (torch.float32, True), "bf16": (torch.bfloat16, False)}
    exact: dict[str, Any] = {}
    for case in rows.each({"model": name, "form": form} for name in names for form in forms):
        name = case["model"]
        dtype, tf32 = forms[case["form"]]
        with rows.trying(**case) as row, switched(tf32=tf32):
            if name not in exact:
                exact = {name: gradient(small(name), 32, 4, "cpu", torch.float64)}
            loss, own = gradient(small(name), 32, 4, job.device, dtype)
            right_loss, right = exact[name]
            row |= {"loss_off": abs(loss / right_loss - 1), "gradient_off": relative(own.cpu(), right)}
            row |= repeated(lambda name=name, dtype=dtype: gradient(small(name), 32, 4, job.device, dtype), tf32)
    whole = make_config({"model": {"name": "modernn"}} if job.cuda else small("modernn").model_dump(), "benchmark")
    size, batch = (64, 8) if job.cuda else (32, 2)
    for case in rows.each({"model": "modernn, 4x64, 64x64, batch 8", "form": form} for form in forms):
        dtype, tf32 = forms[case["form"]]
        with rows.trying(**case) as row, switched(tf32=tf32):
            row |= repeated(lambda dtype=dtype: gradient(whole, size, batch, job.device, dtype), tf32, times=4)


def relative(found: Any, right: Any) -> float:
    """Distance of two vectors by the length of the second."""
    return float((found - right).norm() / right.norm())
