"""Trainings in real processes of their own that start in a blink: forked from one that has done the imports.

As a script it reads requests from stdin, one JSON line each, forks a process per request that runs the main of
launch/train.py, or of another module, with those arguments, and answers with the process ids and, later, with how they
ended. `ProcessPool` is its client; `shared_pool` is one for calls that need no pool of their own.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.process import PATIENCE_S, ROOT

TRAIN = "launch.train"


class ProcessPool:
    """Starts trainings; use as a context. A process's code is as in subprocess: negative for a signal."""

    def __enter__(self) -> ProcessPool:
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.process_pool"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.codes: dict[int, int] = {}
        self.pids: list[int] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.pids:
            self.send(pid, signal.SIGKILL)
        assert self.server.stdin and self.server.stdout
        self.server.stdin.close()
        self.server.wait(PATIENCE_S)
        self._reader.join(10)
        self.server.stdout.close()

    def start(
        self,
        arguments: Sequence[object],
        log: Path,
        fault: str = "",
        module: str = TRAIN,
        errors: Path | None = None,
        **environment: object,
    ) -> int:
        """Start launch/train.py or the main of another module; returns its process id. `fault`: see `_break`.

        errors: where stderr goes, instead of into the log.
        """
        request = {
            "module": module,
            "arguments": [str(value) for value in arguments],
            "log": str(log),
            "errors": str(errors or log),
            "fault": fault,
            "environment": {key: str(value) for key, value in environment.items()},
        }
        assert self.server.stdin
        known = len(self.pids)
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        with self._news:
            assert self._news.wait_for(lambda: len(self.pids) > known, PATIENCE_S)
        return self.pids[-1]

    def ranks(
        self,
        count: int,
        port: int,
        arguments: Sequence[object],
        log: Path,
        fault: str = "",
        module: str = TRAIN,
        rendezvous_s: int = 20,
    ) -> list[int]:
        """Start `count` ranks; rank N logs to `log`.N."""
        return [
            self.start(
                arguments,
                log.with_name(f"{log.name}.{rank}"),
                fault,
                module,
                RANK=rank,
                LOCAL_RANK=rank,
                WORLD_SIZE=count,
                LOCAL_WORLD_SIZE=count,
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                MODERNN_RENDEZVOUS_S=rendezvous_s,  # only this ends a rank whose peer is killed before it comes
            )
            for rank in range(count)
        ]

    def wait(self, pid: int, timeout: float = PATIENCE_S) -> int:
        with self._news:
            assert self._news.wait_for(lambda: pid in self.codes, timeout), f"process {pid} goes on"
        return self.codes[pid]

    def run(self, arguments: Sequence[object], log: Path, fault: str = "", **environment: object) -> int:
        return self.wait(self.start(arguments, log, fault, **environment))

    def send(self, pid: int, number: int) -> None:
        """Send a signal to a process, if it has not ended; its code may still be on the way here."""
        if pid not in self.codes:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _read(self) -> None:
        assert self.server.stdout
        for line in self.server.stdout:
            news = json.loads(line)
            with self._news:
                if "code" in news:
                    self.codes[news["pid"]] = news["code"]
                else:
                    self.codes.pop(news["pid"], None)  # of an earlier process: numbers are used again
                    self.pids.append(news["pid"])
                self._news.notify_all()


@functools.cache
def shared_pool() -> ProcessPool:
    """Return the pool of this test run, started at the first call."""
    pool = ProcessPool().__enter__()
    atexit.register(pool.__exit__)
    return pool


def forked(
    arguments: Sequence[object], module: str = TRAIN, timeout: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run a main in a process of the shared pool, with this process's environment."""
    pool = shared_pool()
    with tempfile.TemporaryDirectory(prefix="forked-") as name:
        out, errors = Path(name) / "out", Path(name) / "errors"
        code = pool.wait(pool.start(arguments, out, module=module, errors=errors, **os.environ), timeout)
        return subprocess.CompletedProcess([module, *map(str, arguments)], code, out.read_text(), errors.read_text())


def forked_ranks(
    count: int, module: str, *arguments: object, timeout: float = PATIENCE_S
) -> subprocess.CompletedProcess[str]:
    """Run a main on so many ranks, as torchrun does, in the shared pool; the first failure ends the others."""
    pool = shared_pool()
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        log = Path(name) / "log"
        pids = pool.ranks(count, free_port(), arguments, log, module=module, rendezvous_s=120)
        deadline = time.monotonic() + timeout
        while len(codes := {pid: pool.codes[pid] for pid in pids if pid in pool.codes}) < count:
            if any(codes.values()) or time.monotonic() > deadline:
                for pid in pids:
                    pool.send(pid, signal.SIGKILL)
            time.sleep(0.02)
        told = "".join(f"rank {rank}:\n{log.with_name(f'log.{rank}').read_text()}" for rank in range(count))
        code = next((code for code in codes.values() if code), 0)
        return subprocess.CompletedProcess([module, *map(str, arguments)], code, "", told)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _break(fault: str) -> None:
    """Make this training misbehave: `KIND RANK STEP [AMOUNT]`, in the forward of step STEP on rank RANK.

    stall (each read takes AMOUNT seconds from STEP on), damage (no window can be read from STEP on), stall-val
    (each read of the validation's windows takes AMOUNT seconds), damage-val;
    sleep (for AMOUNT seconds), until (the file AMOUNT exists), slow (AMOUNT seconds in every step), kill, error;
    validate (AMOUNT seconds in each forecast of a validation, from STEP on, on all ranks); loss, gradient: not finite
    in AMOUNT steps from STEP on.
    """
    if not fault:
        return
    import torch

    from toolkit.evaluate import run
    from toolkit.train import loss

    kind, rank, step, *rest = fault.split()
    seconds = float(rest[0]) if rest and kind != "until" else 0.0
    draw = loss.draw_teacher

    def faulty(seed: int, positions: Any, at: int, *more: Any) -> Any:
        mine = os.environ.get("RANK", "0") == rank
        if mine and kind == "slow":
            time.sleep(seconds)
        if mine and at == int(step):
            if kind == "sleep":
                time.sleep(seconds)
            elif kind == "until":
                while not Path(rest[0]).exists():
                    time.sleep(0.02)
            elif kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif kind == "error":
                raise KeyError("a bug")
        return draw(seed, positions, at, *more)

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
            return loss * (float("nan") if kind == "loss" else 1.0)

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * float("inf")

    compute = loss.TrainingLoss.compute

    def poisoned(self: Any, *more: Any) -> Any:  # what both engines call, the graphed one on a CPU too
        mine = os.environ.get("RANK", "0") == rank and kind in ("loss", "gradient")
        hit = mine and int(step) <= self.step < int(step) + (seconds or 1)
        return Poison.apply(compute(self, *more)) if hit else compute(self, *more)

    predict = run.predict

    def tardy(*more: Any, **named: Any) -> Any:
        if kind == "validate":
            time.sleep(seconds)
        return predict(*more, **named)

    _break_data(kind, rank, int(step), seconds)
    loss.draw_teacher, run.predict = faulty, tardy
    loss.TrainingLoss.compute = poisoned  # type: ignore[method-assign]


def _break_data(kind: str, rank: str, step: int, seconds: float) -> None:
    """Make reads of this training stall or fail, from STEP on."""
    from shards import StoreError
    from toolkit.data import windows
    from toolkit.train import feed

    fetch, read, reached = feed.Feed.fetch, windows.WindowSet.__getitem__, [False]

    def fetching(self: Any, at: int) -> Any:
        reached[0] = at >= step
        return fetch(self, at)

    def reading(self: Any, index: int) -> Any:
        mine = os.environ.get("RANK", "0") == rank and reached[0]
        if mine and kind == ("stall-val" if self.split == "val" else "stall"):
            time.sleep(seconds)
        if mine and kind == ("damage-val" if self.split == "val" else "damage"):
            raise StoreError("000000.tar: damaged by the test")
        return read(self, index)

    feed.Feed.fetch, windows.WindowSet.__getitem__ = fetching, reading  # type: ignore[method-assign]


def _child(request: Mapping[str, Any]) -> int:
    os.setsid()
    for number, file in ((1, request["log"]), (2, request["errors"])):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ.update(request["environment"])
    sys.argv = [f"{request['module'].replace('.', '/')}.py", *request["arguments"]]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    import torch

    from launch.cli.parser import run_script

    _break(request["fault"])
    try:
        run_script(importlib.import_module(request["module"]).main)
    except SystemExit as end:
        assert not torch.distributed.is_initialized(), "it ended in its process group, where gloo may abort it"
        return int(end.code or 0)


def _serve() -> None:
    import deepspeed  # noqa: F401
    import numcodecs  # noqa: F401
    import setuptools  # noqa: F401  DeepSpeed's operators import it
    import torch._dynamo  # Adam imports it, which takes longer than a tiny run
    import torch.utils.tensorboard  # noqa: F401

    import launch.train  # noqa: F401
    import toolkit.train.loop  # noqa: F401

    def say(**news: int) -> None:
        with lock:
            print(json.dumps(news), flush=True)

    def reap(pid: int) -> None:
        say(pid=pid, code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    lock = threading.Lock()
    for line in sys.stdin:
        request = json.loads(line)
        with lock:
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = _child(request)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        say(pid=pid)
        threading.Thread(target=reap, args=(pid,), daemon=True).start()


if __name__ == "__main__":
    _serve()
