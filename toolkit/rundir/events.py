"""events.jsonl: what happened to a run, one JSON object a line. Does not import torch.

    {"time": "2026-11-26T18:05:12.345Z", "event": "start", "host": "node1", "job": "4711_3_0", "step": 0, ...}
    {"time": "2026-11-26T19:00:00.120Z", "event": "stop", "host": "node1", "job": "4711_3_0", "step": 812, ...}
    {"time": "2026-11-26T19:04:51Z", "event": "restart", "host": "node2", "job": "4711_3", "cause": "time limit", ...}

- `start`: a training began. It notes how far the one before had come, which a killed one could not do itself.
- `stop`: asked to stop; `step` is that of its checkpoint. `fail`: an error; `cause` is its text. `done`: trained. Each
  has the `exit_code` (toolkit/errors.py) where it is known.
- `restart`: Slurm began the run's job again; written on the node by the job itself.

Times are UTC in ISO 8601. The last release wrote starts.jsonl and restarts.tsv instead, which are read too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from toolkit.rundir.lock import read_lock
from toolkit.rundir.records import Types, keep_typed, read_lines, read_object, read_text

NAME = "events.jsonl"
OLD_STARTS, OLD_RESTARTS = "starts.jsonl", "restarts.tsv"
MOMENTS = ("began", "ready", "submitted", "last_time")  # fields of a start that are times
START_TYPES: Types = {
    **dict.fromkeys(("ranks", "gpus", "batch", "step", "last_step"), int),
    **dict.fromkeys(MOMENTS, float),
}
logger = logging.getLogger(__name__)
_unwritten: dict[Path, list[bytes]] = {}  # lines that the disk has refused, oldest first


@dataclass(frozen=True)
class StartEvent:
    """A start of the training. Times are UNIX times."""

    job: str | None
    host: str
    ranks: int
    gpus: int
    batch: int  # sequences per step
    began: float  # the job, or the training by hand
    ready: float  # all is loaded, the first step can begin
    step: int  # that it resumes from
    submitted: float | None  # when it entered the queue; None: not known, or it was requeued
    last_step: int | None  # how far the start before had come
    last_time: float | None  # and when it was last heard of


@dataclass(frozen=True)
class RestartEvent:
    """A job that Slurm has begun again."""

    time: float
    job: str
    start: int  # 2 for the first restart
    nodes: str  # of the start before, as Slurm writes lists of them
    lost: str  # those of them that were lost, with commas
    cause: str


def timestamp(seconds: float | None = None) -> str:
    """Return a UNIX time, or the present, as UTC in ISO 8601 with milliseconds."""
    moment = datetime.fromtimestamp(time.time() if seconds is None else seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> float:
    """Return the UNIX time of a time stamp. Raises ValueError where it is none."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def append_event(run: Path, event: str, **values: object) -> None:
    """Append an event with time, host and job to a run's record; values that are None are left out.

    A disk that refuses it ends no run: it is logged, and tried again with the next event of this process.
    """
    record = {"time": timestamp(), "event": event, "host": socket.gethostname(), "job": read_lock(run).get("job")}
    known = {key: value for key, value in {**record, **values}.items() if value is not None}
    lines = _unwritten.setdefault(run, [])
    lines.append(json.dumps(known).encode() + b"\n")
    try:
        append_line(run / NAME, b"".join(lines))
        lines.clear()
    except OSError as error:
        logger.warning("%s: can't be written (%s); %s is kept for the next try", run / NAME, error.strerror, event)


def append_line(path: Path, line: bytes) -> None:
    """Append to a file in one write, on a line of its own even where a kill has left half a line."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[os.write(descriptor, line) :]
    finally:
        os.close(descriptor)


def note_start(run: Path, step: int, batch: int, ranks: int, gpus: int) -> None:
    """Record this start of the training, before it writes its first state. Rank 0 only."""
    now, lock, before = time.time(), read_lock(run), read_object(run / "state.json", {"step": int, "updated": float})
    moments = {"began": lock.get("started", now), "ready": now, "submitted": lock.get("submitted")}
    moments["last_time"] = before.get("updated")
    append_event(
        run,
        "start",
        ranks=ranks,
        gpus=gpus,
        batch=batch,
        step=step,
        last_step=before.get("step"),
        **{name: None if moments[name] is None else timestamp(float(moments[name])) for name in MOMENTS},
    )


def read_events(run: Path, *names: str) -> Iterator[dict[str, Any]]:
    """Yield the events of a run by name, oldest first; `at` is added, the time as UNIX seconds.

    Lines without a name or a time are left out.
    """
    for record in read_lines(run / NAME):
        with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError, OverflowError):
            if record["event"] in names:
                yield {**record, "at": parse_time(record["time"])}


def read_starts(run: Path) -> list[StartEvent]:
    """Return all starts of a run's training, oldest first."""
    found = []
    for values in read_lines(run / OLD_STARTS):
        with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
            found.append(_start(values))
    for record in read_events(run, "start"):
        with contextlib.suppress(KeyError, ValueError, TypeError, AttributeError, OverflowError):
            moments = {name: parse_time(record[name]) for name in MOMENTS if record.get(name) is not None}
            found.append(_start({**record, **moments}))
    return found


def _start(values: dict[str, Any]) -> StartEvent:
    """Return the event of a record. Raises KeyError for what is missing or no number."""
    known = keep_typed(values, START_TYPES)
    optional: dict[str, Any] = {name: known.get(name) for name in ("submitted", "last_step", "last_time")}
    job = None if values.get("job") is None else str(values["job"])
    required: dict[str, Any] = {name: known[name] for name in ("ranks", "gpus", "batch", "began", "ready", "step")}
    return StartEvent(job=job, host=str(values["host"]), **required, **optional)


def read_restarts(run: Path) -> list[RestartEvent]:
    """Return all restarts of a run's jobs by Slurm, oldest first."""
    restarts: list[RestartEvent] = []
    for line in read_text(run / OLD_RESTARTS).splitlines():
        with contextlib.suppress(ValueError):
            when, job, start, nodes, lost, cause = line.split("\t")
            restarts.append(RestartEvent(float(when), job, int(start), nodes, lost, cause))
    for record in read_events(run, "restart"):
        with contextlib.suppress(KeyError, ValueError, TypeError):
            nodes, lost = (str(record.get(name, "")) for name in ("nodes", "lost"))
            cause = str(record.get("cause", "not known"))
            restarts.append(RestartEvent(record["at"], str(record["job"]), int(record["start"]), nodes, lost, cause))
    return restarts
