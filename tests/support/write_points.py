"""`convert` in forked children, each of which meets a full disk or is killed at another of its writes.

    python -m tests.support.write_points FOLDER FORMAT FAULT MOST

FOLDER holds the archive `in` of images; FAULT is "full" (from the n-th call that makes, opens, flushes or renames
something, no such call succeeds), "once" (the n-th of them alone fails), "large" (no file may grow beyond n bytes, as
under a quota) or "kill" (SIGKILL before the n-th of those calls and removals). Printed is a JSON list of at most MOST
faults, evenly spaced over all of them, the rename that puts the new store in place always among them: {"at": n, "call":
the n-th call, "code": exit code, "said": what the command printed to stderr}, each with what was found afterwards and
after the same command was given again.
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
        self.folder, self.fault, self.at, self.calls = str(folder), fault, at, list[str]()

    def arm(self) -> None:
        if self.fault == "large":
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.at, resource.RLIM_INFINITY))
            return
        sys.addaudithook(self._hook)
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            self._count("os.fsync", self.folder)
            fsync(descriptor)

        os.fsync = counted

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in (ALL if self.fault == "kill" else MAKES) or not isinstance(args[0], (str, os.PathLike)):
            return
        if event != "open" or args[2] & WRITES:
            self._count(event, os.fspath(args[0]), *(args[1:2] if event == "os.rename" else ()))

    def _count(self, event: str, path: str, target: object = None) -> None:
        if not path.startswith(self.folder):
            return
        names = [os.path.relpath(str(name), self.folder) for name in (path, target) if name is not None]
        self.calls.append(f"{event} {' -> '.join(names)}")
        if self.at and (len(self.calls) == self.at or (self.fault == "full" and len(self.calls) > self.at)):
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


def spaced(points: list[int], most: int, always: list[int] | None = None) -> list[int]:
    """At most `most` of the points, evenly spaced, and those of `always`, which replace the nearest ones."""
    if len(points) <= most:
        return points
    chosen = [points[i * (len(points) - 1) // (most - 1)] for i in range(most)]
    for point in always or []:
        chosen[min(range(most), key=lambda i: abs(chosen[i] - point))] = point
    return chosen


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
            count.write_text(json.dumps(faults.calls))
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
    calls, points = [], sorted({max(len(data) - 1, 0) for data in whole.values()})
    if fault != "large":
        calls = json.loads(count.read_text())
        points = [*range(1, len(calls) + 1)]
    placed = [at for at, call in enumerate(calls, 1) if call.endswith("/store -> s")]
    assert len(placed) == (fault != "large")
    done = []
    for at in spaced(points, most, placed):
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
                "call": calls[at - 1] if calls else "",
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
