"""Every start of a run's training, a line each in `<run>/starts.jsonl`: what its hours went to is computed from that.

Nothing is written at an end, which a killed job could not do: each start notes how far the one before had come. Does
not import torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from toolkit.distributed import slurm
from toolkit.rundir import RunDir
from toolkit.rundir.lock import read_lock
from toolkit.rundir.metrics import read_lines

NAME = "starts.jsonl"


@dataclass(frozen=True)
class Start:
    """One line. Times are UNIX times."""

    job: str | None
    host: str
    ranks: int
    gpus: int
    batch: int  # sequences per step
    began: float  # the job, or the training by hand
    ready: float  # all is loaded, the first step can begin
    step: int  # it goes on from
    submitted: float | None  # when it entered the queue; None: not known, or it was requeued
    last_step: int | None  # how far the start before had come
    last_time: float | None  # and when it was last heard of


def note_start(run: RunDir, step: int, batch: int, ranks: int, gpus: int) -> None:
    """Append this start, before it writes its first state. Rank 0 only."""
    now = time.time()
    record = read_lock(run.path)
    try:
        before = run.read_state()
    except ValueError:
        before = {}
    job = record.get("job")
    start = Start(
        job=job,
        host=socket.gethostname(),
        ranks=ranks,
        gpus=gpus,
        batch=batch,
        began=float(record.get("started", now)),
        ready=now,
        step=step,
        submitted=_submitted(run, job),
        last_step=before.get("step"),
        last_time=before.get("updated"),
    )
    with open(run.path / NAME, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(start)) + "\n")


def _submitted(run: RunDir, job: str | None) -> float | None:
    """When this job's text was written, which is when it was submitted."""
    if job is None or job != slurm.job_name() or os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        return None
    try:
        return (run.path / "submit.sbatch").stat().st_mtime
    except OSError:
        return None


def read_starts(run: RunDir) -> list[Start]:
    """All starts in order; a line that a kill cut short is left out."""
    found = []
    for values in read_lines(run.path / NAME):
        with contextlib.suppress(KeyError):
            found.append(Start(**{field.name: values[field.name] for field in fields(Start)}))
    return found


RESTARTS = "restarts.tsv"


@dataclass(frozen=True)
class Restart:
    """One line."""

    time: float
    job: str
    start: int  # 2 for the first restart
    nodes: str  # as Slurm writes lists of them
    lost: str  # with commas
    cause: str


def restarts_of(run: Path) -> list[Restart]:
    """All restarts of a run, oldest first; a line that a kill left half is no restart that is known."""
    restarts: list[Restart] = []
    with contextlib.suppress(FileNotFoundError):
        for line in (run / RESTARTS).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                when, job, start, nodes, lost, cause = line.split("\t")
                restarts.append(Restart(float(when), job, int(start), nodes, lost, cause))
    return restarts
