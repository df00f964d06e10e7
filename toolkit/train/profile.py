"""Where a training step goes: `train --profile-steps N`.

After a warm-up N steps are timed and traced; training continues unchanged. A run that is not profiled has no overhead:
the engine's methods are replaced by timed ones only here. On a GPU every phase waits for the device, so that its time
is its own; a step is that much slower than otherwise.

    profile/trace-NNNNNNNN.json.gz   Chrome trace of rank 0 (chrome://tracing, ui.perfetto.dev)
    profile/summary-NNNNNNNN.json    the printed figures
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from shards.manifest import FrameSpec
from toolkit.atomic import write_atomic
from toolkit.config import RunConfig
from toolkit.distributed.world import World
from toolkit.models.cost import count_macs
from toolkit.rundir import RunDir
from toolkit.train.engine import Engine
from toolkit.wording import speed

logger = logging.getLogger(__name__)

WARM_UP = 3  # steps; the first ones compile, allocate and fill caches
Item = TypeVar("Item")


class Profiler:
    """Times the phases of some steps and writes them down; every rank has one, rank 0 traces and reports.

    Args:
        engine: methods that are its phases are replaced by timed ones until the end.
        shape: of the frames, by which the model's multiply-accumulates are counted.
        steps: how many steps, after the warm-up.
    """

    def __init__(
        self, run: RunDir, config: RunConfig, shape: FrameSpec, engine: Engine, world: World, steps: int
    ) -> None:
        self.run, self.config, self.shape, self.world = run, config, shape, world
        self.steps = steps
        self.seen = 0  # steps that ended
        self.active = False
        self.began = self.whole = 0.0
        self.spans: list[tuple[str, float, float]] = []  # phase, from, to: seconds of time.perf_counter
        self.tracer: Any = None
        self.timed, self.replaced = engine.phases()
        for method, phase in self.replaced.items():
            setattr(self.timed, method, self._timed(phase, getattr(self.timed, method)))

    def watch(self, batches: Iterator[Item]) -> Iterator[Item]:
        """Yield the same batches; a step begins with its first batch."""
        while True:
            if not self.began:
                self._begin()
            with self._phase("data wait"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch

    def step(self, number: int) -> None:
        """Optimizer step `number` is done."""
        self._wait()
        if self.active:
            self.whole += time.perf_counter() - self.began
        self.began = 0.0
        self.seen += 1
        if self.seen == WARM_UP + self.steps:
            self._end(number)

    def close(self) -> None:
        """Training ended; before the profile did, if it was short."""
        if self.seen < WARM_UP + self.steps:
            self._restore()
            if self.tracer:
                self.tracer.stop()
            if self.world.is_main:
                logger.warning(
                    f"profile: training ended after {self.seen} steps, {WARM_UP} to warm up and {self.steps} to "
                    "profile were asked for: raise train.steps or profile fewer"
                )

    def _begin(self) -> None:
        if self.seen == WARM_UP:
            self.active = True
            if self.world.is_main:
                os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints marks of its own
                cuda = [ProfilerActivity.CUDA] if self.world.device.type == "cuda" else []
                self.tracer = profile(activities=[ProfilerActivity.CPU, *cuda])
                self.tracer.start()
        self.began = time.perf_counter()

    def _timed(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._phase(phase):
                return method(*args, **kwargs)

        return timed

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        if not self.active:
            yield
            return
        began = time.perf_counter()
        with torch.profiler.record_function(f"phase: {name}"):
            yield
            self._wait()
        self.spans.append((name, began, time.perf_counter()))

    def _wait(self) -> None:
        if self.active and self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)

    def _restore(self) -> None:
        self.active = False
        for method in self.replaced:
            delattr(self.timed, method)  # the class's own shows again

    def _end(self, number: int) -> None:
        self._restore()
        if not self.world.is_main:
            return
        self.tracer.stop()
        folder = self.run.path / "profile"
        folder.mkdir(exist_ok=True)
        trace = folder / f"trace-{number:08d}.json.gz"
        self.tracer.export_chrome_trace(str(trace))
        summary = self._summary(trace)
        write_atomic(folder / f"summary-{number:08d}.json", json.dumps(summary, indent=1) + "\n")
        print("\n".join([*format_summary(summary), f"trace: {trace}"]), flush=True)

    def _summary(self, trace: Path) -> dict[str, Any]:
        """Milliseconds a step by phase; communication is taken out of the phases that it lies in."""
        exchange = communication(trace)
        seconds = {
            phase: sum(end - begin for name, begin, end in self.spans if name == phase)
            for phase in ("data wait", *self.replaced.values())
        }
        for phase, shared in exchange.items():
            seconds[phase] -= shared
        seconds["communication"] = sum(exchange.values())
        seconds["other"] = self.whole - sum(seconds.values())
        train = self.config.train
        sequences = train.batch // self.world.world_size
        data = self.config.data
        macs = count_macs(self.config.model, self.shape, data.context, data.horizon)
        useful = 3 * 2 * macs * sequences  # backward is twice the forward's work
        reached = useful * self.steps / self.whole
        best = matmul_flops(self.world.device, torch.bfloat16 if train.precision == "bf16" else torch.float32)
        return {
            "steps": self.steps,
            "step_ms": 1e3 * self.whole / self.steps,
            "phases_ms": {name: 1e3 * value / self.steps for name, value in seconds.items()},
            "sequences_per_s": train.batch * self.steps / self.whole,
            "model_tflops": reached / 1e12,
            "matmul_tflops": best / 1e12,
            "achieved_over_peak": reached / best,
        }


def communication(trace: Path) -> dict[str, float]:
    """Seconds in which a collective ran, by the phase it lies in, from a Chrome trace."""
    with gzip.open(trace, "rt", encoding="utf-8") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    phases = [(e["name"].removeprefix("phase: "), *_span(e)) for e in events if e["name"].startswith("phase: ")]
    ran = [_span(e) for e in events if e["name"].startswith(("gloo:", "nccl:", "ncclDevKernel", "ncclKernel"))]
    found: dict[str, float] = {}
    for begin, end in merged(ran):
        for name, first, last in set(phases):
            shared = min(end, last) - max(begin, first)
            if shared > 0:
                found[name] = found.get(name, 0.0) + shared / 1e6
    return found


def _span(event: Mapping[str, Any]) -> tuple[float, float]:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the union of spans as spans that do not overlap."""
    union: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if union and begin <= union[-1][1]:
            union[-1] = union[-1][0], max(end, union[-1][1])
        else:
            union.append((begin, end))
    return union


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product on this device now: the peak that programs reach, not a data sheet's."""
    side, repeats = (8192, 10) if device.type == "cuda" else (1024, 5)
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def format_summary(summary: Mapping[str, Any]) -> list[str]:
    """Return the summary as text."""
    whole = summary["step_ms"]
    lines = [
        f"profile of {summary['steps']} steps: {whole:.1f} ms a step, {speed(summary['sequences_per_s'])} sequences/s"
    ]
    lines += [f"  {name:<14} {value:9.1f} ms  {value / whole:6.1%}" for name, value in summary["phases_ms"].items()]
    lines.append(
        f"  model {summary['model_tflops']:.3g} TFLOP/s a rank (3 x forward, recomputation not counted) of "
        f"{summary['matmul_tflops']:.3g} in a matrix product: {summary['achieved_over_peak']:.1%} of the peak"
    )
    return lines
