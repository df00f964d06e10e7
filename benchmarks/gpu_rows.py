"""Rows of benchmarks/gpu.py: what one case found, on the disk before the next case begins.

A part writes lines of JSON to a file of its own: `{"began": case}` before a case, its row after it. A part that died is
started again, leaves out what has begun, and says of the unfinished case that it died.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
LOST = 70  # the code with which a part ends whose device answers nothing but errors


@dataclass(frozen=True)
class Job:
    """What a part is told.

    Attributes:
        cuda: on the GPU, at full size; else on the CPU, at sizes that only show that it works.
        file: where its rows go.
        work: a folder for what is not kept.
        out: the folder of results.
        ends: time.time() at which it must have ended.
        predrnn_pytorch: a clone, or None.
        tests: which tests, as pytest's -k takes it; empty: all.
    """

    part: str
    cuda: bool
    file: Path
    work: Path
    out: Path
    ends: float
    predrnn_pytorch: str | None = None
    tests: str = ""

    @property
    def device(self) -> str:
        return "cuda" if self.cuda else "cpu"

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.time()


def read_rows(file: Path) -> list[Row]:
    """The rows of a part's file, and a row for each case that has begun and not ended; a half line is left out."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(ValueError):
            lines.append(json.loads(line))
    rows = [line for line in lines if "began" not in line]
    ended = [row.get("case") for row in rows]
    rows += [{**line["began"], "case": line["began"], "error": "not ended"} for line in lines if _open(line, ended)]
    return rows


def _open(line: Row, ended: list[Any]) -> bool:
    return "began" in line and line["began"] not in ended


class Rows:
    """The rows of a part, as it adds them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.found = [row for row in read_rows(job.file) if row.get("error") != "not ended"]
        for row in read_rows(job.file)[len(self.found) :]:  # of the process before this one
            self._write({**row, "error": "the process died, or was ended because it took too long"})

    def add(self, **row: Any) -> None:
        """A row without a case."""
        self.found.append(row)
        self._write(row)

    def each(self, cases: Iterable[Row], least: float = 3.0) -> Iterator[Row]:
        """The cases that have not begun yet, while more than `least` seconds are left."""
        done = [row.get("case") for row in read_rows(self.job.file)]
        waiting = [case for case in cases if case not in done]
        for place, case in enumerate(waiting):
            if self.job.left < least:
                self.add(skipped=f"{len(waiting) - place} cases: {self.job.left:.0f} s left", first=str(case))
                return
            self._write({"began": case})
            yield case

    @contextmanager
    def trying(self, **case: Any) -> Iterator[Row]:
        """A dict to put into what the case finds; its row, or that of its failure, is written at the end."""
        row: Row = {}
        began = time.time()
        try:
            yield row
        except Exception as error:
            said = str(error).strip().splitlines() or [""]
            row |= {"error": f"{type(error).__name__}: {said[0][:300]}", "trace": traceback.format_exc()[-3000:]}
        row = {**case, **row, "seconds": round(time.time() - began, 2), "case": case}
        self.found.append(row)
        self._write(row)
        if "error" in row:
            self._go_on()

    def _go_on(self) -> None:
        """After a failure: memory back; or the end, if the device is lost to this process."""
        if not self.job.cuda:
            return
        import torch

        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception:
            os._exit(LOST)

    def _write(self, line: Row) -> None:
        with open(self.job.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")


@contextmanager
def noted(row: Row, key: str) -> Iterator[None]:
    """A failure of what is not the case's main matter goes into its row under `key`, and the rest of the row stands."""
    try:
        yield
    except Exception as error:
        row[key] = f"{type(error).__name__}: {error}"[:300]


def milliseconds(work: Callable[[], object], cuda: bool, warm: int = 3, least: int = 5, lasting: float = 1.0) -> Row:
    """Median time of `work` by the device's own clock, after some calls that don't count.

    Args:
        least: calls at least.
        lasting: seconds that all of them take together, about.
    """
    import torch

    began = time.perf_counter()
    for _ in range(warm):
        work()
    if cuda:
        torch.cuda.synchronize()
    first = time.perf_counter() - began
    began = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    count = max(least, min(200, int(lasting / max(1e-6, time.perf_counter() - began))))
    times = []
    if cuda:
        events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(count)]
        for one, other in events:
            one.record()
            work()
            other.record()
        torch.cuda.synchronize()
        times = [one.elapsed_time(other) for one, other in events]
    else:
        for _ in range(count):
            began = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - began))
    spread = (max(times) - min(times)) / statistics.median(times)
    return {"ms": statistics.median(times), "spread": spread, "calls": count, "warm_s": first}


def kernels(work: Callable[[], object]) -> Row:
    """Kernels of one call, copies to the host, and milliseconds in which the device was busy."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as traced:
        work()
        torch.cuda.synchronize()
    events = [event for event in traced.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    events = [event for event in events if not getattr(event, "is_user_annotation", False)]  # an optimizer's name
    moves = [event for event in events if event.name.startswith(("Memcpy", "Memset"))]
    by: dict[str, list[float]] = {}
    for event in events:
        entry = by.setdefault(event.name[:70], [0, 0.0])
        entry[0] += 1
        entry[1] += event.device_time / 1e3
    top = sorted(by.items(), key=lambda item: -item[1][1])[:10]
    return {
        "kernels": len(events) - len(moves),
        "to_host": sum("DtoH" in event.name for event in moves),
        "busy_ms": sum(event.device_time for event in events) / 1e3,
        "top": [[name, int(count), round(ms, 3)] for name, (count, ms) in top],
    }
