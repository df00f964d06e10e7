"""The log files of the jobs of a run: find, show and follow them across restarts.

<run>/logs/4711_3_0_batch.log        output of Slurm and the batch script in job 4711_3, first start
<run>/logs/4711_3_1_2.log            output of rank 2 of the training in its second start
<run>/logs/4711_3_1_evaluate.log     output of the evaluation
<run>/logs/local-4711_0.log          rank 0 of a job of this machine
<run>/logs/submitit/4711_0_log.out   output on this machine before the log of the run begins
<sweep>/slurm/<key>/4711_3.log       the same on a cluster
<sweep>/slurm/<key>/logs/4711_3_0_batch.log   output of the batch script of a packed job
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from launch.cli.table import render
from launch.slurm.queue import SUBMISSIONS, submitted_jobs
from toolkit.rundir import RunDir, lock
from toolkit.rundir.status import read_status

POLL_S = 0.5
BEFORE, BATCH, EVALUATE = "before", "batch", "evaluate"


@dataclass(frozen=True)
class Log:
    """One file. `part` is `batch`, `evaluate`, `before` (the run's own log began) or a rank's number."""

    start: str
    part: str
    path: Path


@dataclass(frozen=True)
class Start:
    """The files of one start of a run's job, in the order in which they are written."""

    name: str
    logs: tuple[Log, ...]

    @property
    def at(self) -> float:
        """When something was last written."""
        return max(_written(log.path) for log in self.logs)


def starts_of(run: RunDir) -> list[Start]:
    """All starts that left logs, the oldest first."""
    found: dict[str, list[Log]] = {}
    for path in run.logs.glob("*.log"):
        name, _, part = path.stem.rpartition("_")
        if path.stem.startswith("sbatch-"):  # of a text submitted by hand
            name, part = f"{path.stem.removeprefix('sbatch-')}_0", BEFORE
        found.setdefault(name, []).append(Log(name, part, path))
    for path in (run.logs / "submitit").glob("*_log.out"):
        name = f"local-{path.name.partition('_')[0]}"
        found.setdefault(name, []).append(Log(name, BEFORE, path))
    for evaluations in (False, True):
        if (meant := submitted_jobs(run.path.resolve().parent, evaluations).get(run.path.resolve())) is None:
            continue
        # Of a packed submission another job of the array may have taken the run.
        starts = (*found, str(lock.read_lock(run.path).get("job")))
        array = {name.rpartition("_")[0] for name in starts if name.partition("_")[0] == meant.partition("_")[0]}
        for job in array or {meant}:
            for path in (run.path.parent / SUBMISSIONS).glob(f"*/{job}.log"):
                found.setdefault(f"{job}_0", []).append(Log(f"{job}_0", BEFORE, path))
    for name, logs in found.items():  # what a packed job said is in the folder of its submission
        paths = (run.path.parent / SUBMISSIONS).glob(f"*/logs/{name}_{BATCH}.log")
        logs += [Log(name, BATCH, path) for path in paths]
    left = []
    for name, logs in found.items():
        said = [log for log in logs if log.path.stat().st_size or log.part not in (BEFORE, BATCH)]
        if said:
            left.append(Start(name, tuple(sorted(said, key=_order))))
    return sorted(left, key=lambda start: (start.at, start.name))


def chosen(start: Start, rank: int | None) -> list[Log]:
    """Of a start: one rank's log, or what a person reads first: batch, rank 0, scoring."""
    if rank is not None:
        return [log for log in start.logs if log.part == str(rank)]
    shown = [log for log in start.logs if log.part in (BATCH, "0", EVALUATE)]
    return shown or [log for log in start.logs if log.part == BEFORE]  # it never came to a log of its own


def listing(starts: Sequence[Start]) -> list[str]:
    """Return one line for each file."""
    rows = []
    for number, start in enumerate(starts, 1):
        for log in start.logs:
            when = time.strftime("%m-%d %H:%M:%S", time.localtime(_written(log.path)))
            size = f"{log.path.stat().st_size:,}"
            rows.append([str(number), start.name, log.part, when, size, str(log.path)])
    return render(("start", "job", "part", "written", "bytes", "file"), rows)


class Reader:
    """Shows files as `tail` does, each once and from where it was left, with a heading when the file changes."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self._places: dict[Path, int] = {}
        self._shown: Path | None = None
        self._ended = True

    def show(self, log: Log, lines: int = 0) -> bool:
        """Print what is new in a file, at most the last `lines` of a new one (0: all). Return whether there was any."""
        place = self._places.get(log.path, 0)
        try:
            with open(log.path, "rb") as file:
                file.seek(place)
                data = file.read()
        except FileNotFoundError:
            return False
        self._places[log.path] = place + len(data)
        if lines and not place:
            data = b"".join(data.splitlines(keepends=True)[-lines:])
        if not data:
            return False
        if self._shown != log.path:
            print(f"{'' if self._ended else chr(10)}==> {log.path} <==", file=self.out)
            self._shown = log.path
        self.out.write(data.decode("utf-8", errors="replace"))
        self.out.flush()
        self._ended = data.endswith(b"\n")
        return True


def follow(run: RunDir, rank: int | None, reader: Reader, first: Sequence[Log]) -> None:
    """Show what is written from now on, in this start and in those to come, until the run is done or has failed."""
    # Files that were there and are not shown belong to earlier starts.
    old = {log.path for start in starts_of(run) for log in chosen(start, rank)} - {log.path for log in first}
    ended = False
    while True:
        state = read_status(run).state  # before the logs: what was written until then is shown below
        for start in starts_of(run):
            for log in chosen(start, rank):
                if log.path not in old:
                    reader.show(log)
        if ended:
            return
        ended = state in ("done", "failed") and lock.holder(run.path) is None  # once more: the batch script speaks last
        time.sleep(POLL_S)


def _order(log: Log) -> tuple[int, int]:
    places = {BEFORE: 0, BATCH: 1, EVALUATE: 3}
    return places.get(log.part, 2), int(log.part) if log.part.isdigit() else 0


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
