"""Parts of benchmarks/gpu.py that measure: milliseconds of an optimizer step by its forms, memory by recomputation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks import switched
from benchmarks.gpu_rows import Job, Row, Rows, kernels, milliseconds, noted

FORMS = ("plain", "eager", "graph", "graph+deferred", "graph+compiled", "compiled")
DEFAULT = "graph+deferred"  # with changes behind commas, to see what the defaults are worth
CHANGES = (
    "torch kernels",
    "other layout",
    "cuDNN convolutions",
    "cuDNN benchmark",
    "Triton for grouped convolutions",
    "Triton for fp32 convolutions",
)
PRECISIONS = ("fp32", "TF32", "bf16")
OTHERS = ("modernn_released", "convlstm", "predrnn")
PEER = "predrnn-pytorch"
PAPER_BATCH = 8
POLICIES = ("step+layers", "step", "recursive+layers", "segment", "none")


def settings_of(form: str, precision: str) -> dict[str, object]:
    """Settings of `train` that make this form."""
    return {
        "graph": "on" if "graph" in form else "off",
        "defer_weight_gradients": "on" if "deferred" in form else "off",
        "compile": "default" if "compiled" in form else "none",
        "precision": "bf16" if precision == "bf16" else "fp32",
        "tf32": precision == "TF32",
    }


def config_of(job: Job, name: str, train: dict[str, object]) -> Any:
    """The paper's sizes; tiny on a CPU."""
    from toolkit.config import make_config

    tree: dict[str, Any] = {"model": {"name": name}, "train": dict(train)}
    if not job.cuda:
        tree["model"] |= {"layers": 1, "hidden": 8}
        tree["data"] = {"context": 2, "horizon": 2}
    return make_config(tree, "benchmark")


def side(job: Job) -> int:
    return 64 if job.cuda else 16


def trainer(job: Job, config: Any, size: int) -> Callable[[], object]:
    """One optimizer step by the toolkit's engine, on random frames, as a function."""
    import torch

    from shards.manifest import FrameSpec, Scale
    from toolkit.checkpoint.weights import untrained_model
    from toolkit.data.batches import Batch
    from toolkit.distributed.world import init_world
    from toolkit.train.build import build_engine
    from toolkit.train.loss import TrainingLoss

    world = init_world(config.train, group=True)
    torch.manual_seed(0)
    model = untrained_model(config, FrameSpec(1, size, size))
    shape = (config.train.batch, config.data.context + config.data.horizon, 1, size, size)
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    codes = codes.pin_memory() if job.cuda else codes
    batch = Batch(codes, list(range(shape[0])), ["-"] * shape[0], [])
    engine = build_engine(model, config, world, None)
    loss = TrainingLoss(config, Scale("intensity", "1", 0.0, 1 / 255), world.device, engine.forward)
    return lambda: engine.step([batch], loss, False)


def plain_trainer(job: Job, config: Any, size: int, precision: str) -> Callable[[], object]:
    """The same with the plain form of the model (benchmarks/plain.py) and no DeepSpeed.

    In bf16 the passes are in bf16, weights and Adam in fp32.
    """
    import copy

    import torch

    from benchmarks.plain import plain_model
    from shards.manifest import FrameSpec
    from toolkit.checkpoint.weights import untrained_model
    from toolkit.models.base import Noise, Sampling, StepSequence

    torch.manual_seed(0)
    ours = untrained_model(config, FrameSpec(1, size, size))
    assert isinstance(ours, StepSequence)
    master = plain_model(ours).to(job.device)
    model = copy.deepcopy(master).bfloat16() if precision == "bf16" else master
    adam = torch.optim.Adam(master.parameters(), lr=3e-4, fused=True)
    own, exact = list(model.parameters()), list(master.parameters())
    count, length = config.train.batch, config.data.context + config.data.horizon
    frames = torch.rand(count, length, 1, size, size, device=job.device)
    teacher = torch.rand(count, config.data.horizon - 1, device=job.device) < 0.5

    def step() -> float:
        noise = Noise(range(count), job.device)
        losses = model(frames, config.data.context, Sampling(teacher=teacher, noise=noise)).losses
        loss = torch.stack(list(losses.values())).sum()
        loss.backward()
        if model is not master:
            for mine, other in zip(own, exact, strict=True):
                other.grad = None if mine.grad is None else mine.grad.float()
                mine.grad = None
        adam.step()
        adam.zero_grad()
        if model is not master:
            with torch.no_grad():
                torch._foreach_copy_(own, exact)
        return float(loss.detach())

    return step


def peer_trainer(job: Job, config: Any, size: int) -> Callable[[], object]:
    """The same with predrnn-pytorch's own PredRNN, from a clone."""
    import torch

    from benchmarks.peer import training_step
    from shards.manifest import FrameSpec
    from toolkit.checkpoint.weights import untrained_model
    from toolkit.models.base import StepSequence

    assert job.predrnn_pytorch is not None
    ours = untrained_model(config, FrameSpec(1, size, size)).to(job.device)
    assert isinstance(ours, StepSequence)
    length = config.data.context + config.data.horizon
    frames = torch.rand(config.train.batch, length, 1, size, size, device=job.device)
    step = training_step(Path(job.predrnn_pytorch), config, ours, size, length)
    return lambda: step(frames)


def cases(job: Job) -> Iterator[Row]:
    """What is measured, what matters most first, each once."""
    seen = set()
    for case in _cases(job):
        if (text := json.dumps(case)) not in seen:
            seen.add(text)
            yield case


def _cases(job: Job) -> Iterator[Row]:
    def case(model: str, form: str, precision: str, batch: int) -> Row:
        return {"model": model, "form": form, "precision": precision, "batch": batch}

    if not job.cuda:
        yield from (case("modernn", form, p, 2) for form, p in itertools.product(FORMS[:4], ("fp32", "bf16")))
        yield from (case("predrnn", form, "fp32", 2) for form in (PEER, "eager") if job.predrnn_pytorch)
        return
    kernels, layout, cudnn, _, grouped, single = (f"{DEFAULT}, {change}" for change in CHANGES)
    yield case("modernn", DEFAULT, "bf16", 8)
    yield from (case("modernn", form, p, 8) for p in ("fp32", "TF32") for form in (DEFAULT, single))
    yield from (case("modernn", DEFAULT, "bf16", batch) for batch in (32, 64))
    yield from (case("modernn_released", form, "fp32", 8) for form in (DEFAULT, layout))
    yield from (case("predrnn", form, "bf16", 8) for form in (DEFAULT, cudnn))
    yield from (case("modernn", form, "bf16", 8) for form in (cudnn, grouped, f"{cudnn}, {CHANGES[3]}"))
    yield from (case("modernn", layout, p, 8) for p in ("fp32", "TF32"))
    yield from (case("modernn", form, p, 8) for p in ("bf16", "fp32", "TF32") for form in ("graph", "eager", "plain"))
    yield from (case("modernn", form, "bf16", 8) for form in (kernels, layout))
    yield from (case("modernn", form, "bf16", 8) for form in ("graph+compiled", "compiled"))
    yield from (case("modernn", form, "bf16", batch) for batch in (32, 64) for form in ("graph+deferred", "eager"))
    if job.predrnn_pytorch:
        yield from (case("predrnn", form, p, 8) for p in ("fp32", "TF32") for form in (PEER, *FORMS[1:4]))
    for name in OTHERS:
        yield from (case(name, form, "bf16", 8) for form in FORMS[:4])
    for name in OTHERS if not job.predrnn_pytorch else OTHERS[:2]:
        yield from (case(name, form, "fp32", 8) for form in FORMS[:4])
    yield from (case("modernn", "graph+compiled", p, 8) for p in ("fp32", "TF32"))
    yield from (case("modernn", form, p, b) for b in (32, 64) for p in ("fp32", "TF32") for form in FORMS[2:4])
    yield from (case(name, "graph+compiled", "bf16", 8) for name in OTHERS)


def built(job: Job, case: Row) -> Callable[[], object]:
    """One step of a case, as a function."""
    ours = case["form"].split(",")[0] in FORMS[1:]
    train = settings_of(case["form"], case["precision"]) if ours else {}
    config = config_of(job, case["model"], {**train, "batch": case["batch"]})
    if ours:
        return trainer(job, config, side(job))
    if case["form"] == PEER:
        return peer_trainer(job, config, side(job))
    return plain_trainer(job, config, side(job), case["precision"])


def rates(job: Job) -> None:
    """Milliseconds, kernels and memory of an optimizer step, by model, form, precision and batch."""
    import torch

    rows = Rows(job)
    for case in rows.each(cases(job), least=8 if job.cuda else 2):
        torch._dynamo.reset()
        ours = case["form"].split(",")[0] in FORMS[1:]
        arithmetic = nullcontext() if ours else switched(tf32=case["precision"] == "TF32")
        with rows.trying(**case) as row, arithmetic, changed(case["form"], case["precision"]):
            _forget(job)
            step = built(job, case)
            row |= milliseconds(step, job.cuda, least=4, lasting=0.6)
            hours = row["ms"] * 80 / 3600 if case["batch"] == PAPER_BATCH else None
            row |= {"sequences_per_s": 1e3 * case["batch"] / row["ms"], "hours_of_80000": hours}
            if job.cuda:
                row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
                with noted(row, "profiler"):
                    row |= kernels(step)
            del step


@contextmanager
def changed(form: str, precision: str) -> Iterator[None]:
    """Some of the defaults changed: others' kernels instead of Triton's, maps in the other memory layout."""
    import torch

    from toolkit.models import fused
    from toolkit.models.base import StepSequence
    from toolkit.train import deferred

    changes = form.split(", ")[1:]
    assert set(changes) <= set(CHANGES), form
    other = torch.contiguous_format if precision == "bf16" else torch.channels_last
    cudnn = torch.backends.cudnn
    before = fused.TRITON, deferred.TRITON_CONVOLUTIONS, deferred.TRITON_DTYPES, cudnn.benchmark
    try:
        if CHANGES[0] in changes:
            fused.TRITON = False
        if CHANGES[1] in changes:
            StepSequence.layout = other
        if CHANGES[2] in changes:
            deferred.TRITON_CONVOLUTIONS = "none"
        if CHANGES[4] in changes:
            deferred.TRITON_CONVOLUTIONS = "grouped"
        if CHANGES[5] in changes:
            deferred.TRITON_DTYPES = (torch.bfloat16, torch.float32)
        cudnn.benchmark = CHANGES[3] in changes
        yield
    finally:
        fused.TRITON, deferred.TRITON_CONVOLUTIONS, deferred.TRITON_DTYPES, cudnn.benchmark = before
        StepSequence.layout = None


def with_ratios(found: list[Row]) -> list[Row]:
    """The rows of `rates`, with how many times as fast each is as the plain form and as predrnn-pytorch."""
    times = {json.dumps(row["case"], sort_keys=True): row["ms"] for row in found if "ms" in row}

    def ratio(row: Row, form: str) -> float | None:
        other = times.get(json.dumps({**row["case"], "form": form}, sort_keys=True))
        return None if other is None else other / row["ms"]

    return [
        {**row, "x_plain": ratio(row, "plain"), "x_peer": ratio(row, PEER)} if "ms" in row else row for row in found
    ]


def _forget(job: Job) -> None:
    """What the case before has left."""
    import gc

    import torch

    gc.collect()
    if job.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def compilation(job: Job) -> None:
    """The first steps of the compiled forms; what Inductor makes is found again by the part `rates`."""
    rows = Rows(job)
    if not job.cuda:
        rows.add(skipped="on a CPU: a minute of compiling")
        return
    precisions = ("bf16", "fp32")
    forms = {"model": "modernn", "form": "graph+compiled", "batch": 8}
    for case in rows.each({**forms, "precision": precision} for precision in precisions):
        with rows.trying(**case):
            built(job, case)()


def memory(job: Job) -> None:
    """Peak memory and milliseconds of a step on 384 x 384 frames, by what is recomputed, beside the prediction."""
    import torch

    from toolkit.plan import cost as costs

    rows = Rows(job)
    size, batch = (384, 8) if job.cuda else (32, 1)
    precisions = ("bf16", "fp32") if job.cuda else ("fp32",)
    for case in rows.each({"policy": policy, "precision": p} for policy in POLICIES for p in precisions):
        with rows.trying(**case) as row:
            _forget(job)
            base = config_of(job, "modernn", {"batch": batch, "precision": case["precision"]})
            config = costs.under(base, case["policy"])
            with noted(row, "prediction"):  # the planner knows no model as small as a CPU's
                row["predicted_gib"] = predicted(config, case["policy"], size) / 2**30 if job.cuda else None
            step = trainer(job, config, size)
            row["ms"] = milliseconds(step, job.cuda, warm=1, least=1, lasting=0.0)["ms"]
            if job.cuda:
                row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
            del step


def predicted(config: Any, policy: str, size: int) -> int:
    """Bytes, by the planner."""
    from toolkit.plan import cost as costs
    from toolkit.plan.predict import Machine, memory_of

    cost = costs.find(config, 1)
    if cost is None:
        raise LookupError("the planner knows no cost of this model")
    area = costs.area_of(config, size, size)
    return memory_of(config, cost, policy, config.train.batch, area, Machine(1, 0)).total
