"""`convert` in forked children, each of which meets a full disk or is killed at another of its writes.

    python -m tests.support.write_points FOLDER FORMAT FAULT MOST

FOLDER holds the archive `in` of images; FAULT is "full" (from the n-th call that makes, opens or renames something, no
such call succeeds), "large" (no file may grow beyond n bytes, as under a quota) or "kill" (SIGKILL before the n-th of
those calls, removals and flushes). Printed is a JSON list of at most MOST faults, evenly spaced over all of them:
{"at": n, "code": exit code, "said": what the command printed to stderr}, each with what was found afterwards and after
the same command was given again.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards.cli import main
from tests.support.clips import tree

if sys.version_info >= (3, 11):
    import shards.zarr_writer  # noqa: F401  imported once, not by each child

MAKES = ("open", "os.mkdir", "os.rename")
ALL = (*MAKES, "os.remove", "os.rmdir")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Faults:
    """Counts calls that change what lies in `folder`, by Python's audit events; at the n-th one the fault begins."""

    def __init__(self, folder: Path, fault: str, at: int) -> None:
        self.folder, self.fault, self.at, self.calls = str(folder), fault, at, 0

    def arm(self) -> None:
        if self.fault == "large":
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.at, resource.RLIM_INFINITY))
            return
        sys.addaudithook(self._hook)
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            self._count(self.folder)
            fsync(descriptor)

        os.fsync = counted

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in (MAKES if self.fault == "full" else ALL) or not isinstance(args[0], (str, os.PathLike)):
            return
        if event != "open" or args[2] & WRITES:
            self._count(os.fspath(args[0]))

    def _count(self, path: str) -> None:
        if not path.startswith(self.folder):
            return
        self.calls += 1
        if self.at and self.calls >= self.at:
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def in_child(work: Callable[[], int]) -> tuple[int, str]:
    """Run `work` in a forked child; its exit code (negative for a signal), and what it printed to stderr."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        os.dup2(writing, 2)
        sys.stderr = os.fdopen(2, "w")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        try:
            code = work()
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def spaced(points: list[int], most: int) -> list[int]:
    return points if len(points) <= most else [points[i * (len(points) - 1) // (most - 1)] for i in range(most)]


def report() -> list[dict[str, Any]]:
    folder, format, fault, most = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    below = folder / "stores"
    below.mkdir()
    words = ["convert", "images", str(folder / "in"), str(below / "s"), "--format", format, "--shard-mb", "0.0005"]
    words += ["--event-frames", "3", "--val-fraction", "0", "--test-fraction", "0.3"]
    first = [*words, "--name", "before"]
    count = folder / "count"

    def convert(arguments: list[str], at: int | None) -> int:
        faults = Faults(below, fault, at or 0)
        if at is not None:
            faults.arm()
        code = main(arguments)
        if at == 0:
            count.write_text(str(faults.calls))
        return code

    def run(arguments: list[str], at: int | None = None) -> tuple[int, str]:
        return in_child(lambda: convert(arguments, at))

    assert run(first)[0] == 0
    before = tree(below / "s")
    shutil.copytree(below / "s", folder / "before")
    again = [*words, "--overwrite"]
    code, said = run(again, 0 if fault != "large" else None)
    assert code == 0, said
    whole = tree(below / "s")
    points = [*range(1, int(count.read_text()) + 1)] if fault != "large" else []
    if fault == "large":
        points = sorted({max(len(data) - 1, 0) for data in whole.values()})
    done = []
    for at in spaced(points, most):
        shutil.rmtree(below)
        shutil.copytree(folder / "before", below / "s")
        code, said = run(again, at)
        there = tree(below / "s") if (below / "s").exists() else None
        aside = [tree(path) for path in below.glob(".s.partial-*/replaced")]
        left = sorted(path.name for path in below.iterdir())
        left += [f"work/{path.name}" for path in below.glob(".s.partial-*/work/*")]
        names = {"before": there == before, "whole": there == whole, "aside": there is None and aside == [before]}
        second, said_again = run(again)
        done.append(
            {
                "at": at,
                "code": code,
                "said": said,
                "left": left,
                "there": [name for name, is_so in names.items() if is_so],
                "again": second,
                "said_again": said_again,
                "same": tree(below / "s") == whole,
                "left_again": sorted(path.name for path in below.iterdir()),
            }
        )
    return done


if __name__ == "__main__":
    print(json.dumps(report()))
