"""Real deaths at chosen moments, in forked children, so that torch and DeepSpeed are imported once.

    python -m tests.support.crash JOBS.json RESULTS.json

JOBS.json: [{"config": path, "set": [...], "run": path, "ranks": 1, "zero": 0, "kill_at_write": n, "kill_at_step": n,
"full_until_step": n}, ...], one after the other; kills are optional: rank 0 at its n-th write of a checkpoint, all
ranks after step n. Until `full_until_step` no file can grow beyond FULL_BYTES, as under a quota.
RESULTS.json: [{"codes": one per rank, "writes": how many rank 0 made, or null if it was killed}, ...].
"""

from __future__ import annotations

import builtins
import errno
import json
import os
import re
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

FULL_BYTES = 100_000  # less than the weights of the tests' model, more than any other file of a run
WRITES = ("open", "mkdir", "fsync", "rename", "replace", "unlink", "rmdir")


class Countdown:
    """Counts calls that change files in `folder`'s tree; the n-th kills the process before it is done.

    full: it finds the disk full instead, and so do all after it.
    """

    def __init__(self, folder: Path, kill_at: int = 0, full: bool = False) -> None:
        self.folder, self.kill_at, self.full, self.calls = str(folder), kill_at, full, 0

    def arm(self) -> None:
        from toolkit.checkpoint import commit

        for name in WRITES:
            setattr(os, name, self._counted(getattr(os, name)))
        builtins.open = self._counted(builtins.open)
        commit._Sink.write = self._counted(commit._Sink.write)

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._is_write(call.__name__, args):
                self.calls += 1
                removes = call.__name__ in ("unlink", "rmdir")
                if self.full and self.kill_at and self.calls >= self.kill_at and not removes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
                if self.calls == self.kill_at and not self.full:
                    os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        counted.__name__ = call.__name__
        return counted

    def _is_write(self, name: str, args: tuple[Any, ...]) -> bool:
        if name == "open":
            reads = len(args) < 2 or args[1] == "rb" or (isinstance(args[1], int) and not args[1] & os.O_CREAT)
            return not reads and self.folder in str(args[0])
        if name == "fsync":
            return self.folder in os.readlink(f"/proc/self/fd/{args[0]}")
        if name == "write":  # of a checkpoint's file: the first, and one of each 16 KiB
            before = args[0].bytes
            return before == 0 or before >> 14 != (before + len(args[1])) >> 14
        return self.folder in str(args[0]) or not os.path.isabs(str(args[0]))


def start(work: Callable[[], int | None]) -> int:
    """Begin `work` in a forked child; its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def train_rank(job: dict[str, Any], rank: int, port: int, told: Path) -> int:
    from toolkit.config import load_config
    from toolkit.distributed.world import init_world
    from toolkit.rundir import RunDir
    from toolkit.signals import StopRequest
    from toolkit.train.engine import Engine
    from toolkit.train.loop import train

    ranks = job.get("ranks", 1)
    if ranks > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    path = Path(job["run"])
    world = init_world(group=True)
    if rank == 0:
        if not (path / "config.yaml").exists():
            RunDir.create(path, load_config(job["config"], job.get("set", [])))
        if "zero" in job:
            file = RunDir(path).config_file
            file.write_text(re.sub(r"zero: \d", f"zero: {job['zero']}", file.read_text()))
    world.barrier()
    countdown = Countdown(path / "checkpoints", job.get("kill_at_write", 0))
    if rank == 0:
        countdown.arm()
    if "full_until_step" in job:
        limit_files(FULL_BYTES)
    step = Engine.step

    def killing_step(engine: Engine, *args: Any) -> Any:
        if engine.step_count == job.get("kill_at_step"):
            os.kill(os.getpid(), signal.SIGKILL)
        if engine.step_count == job.get("full_until_step"):
            limit_files(resource.RLIM_INFINITY)
        return step(engine, *args)

    Engine.step = killing_step  # type: ignore[method-assign]
    code = train(RunDir(path), world, job.get("resume", "auto"), StopRequest())
    if rank == 0:
        told.write_text(str(countdown.calls))
    world.close()
    return code


def perform(job: dict[str, Any], told: Path) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    told.unlink(missing_ok=True)
    pids = [start(partial(train_rank, job, rank, port, told)) for rank in range(job.get("ranks", 1))]
    codes = [ended(pid) for pid in pids]
    return {"codes": codes, "writes": int(told.read_text()) if told.exists() else None}


def main() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401
    import torch._dynamo  # noqa: F401  Adam imports it, which takes longer than a tiny run

    import toolkit.train.loop  # noqa: F401

    jobs, results = Path(sys.argv[1]), Path(sys.argv[2])
    done = [perform(job, results.with_suffix(".writes")) for job in json.loads(jobs.read_text())]
    results.write_text(json.dumps(done))


if __name__ == "__main__":
    main()
