"""Heartbeats: what each rank last did, in `<run>/heartbeat/rank-N.json`. Does not import torch.

Written by the watchdog of each rank every few seconds (see watchdog.py), read by the other ranks' watchdogs, by jobs
and by `status`. A file is rewritten in place, at one size: a full disk doesn't silence a rank, and a reader who
meets half a record keeps the one before.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from toolkit.atomic import remove
from toolkit.rundir.records import Types, read_object

FOLDER = "heartbeat"
BEAT_S = 2.0
RECORD_BYTES = 8192
_NUMBERS = {**dict.fromkeys(("rank", "pid", "step", "marks"), int), **dict.fromkeys(("since", "time", "own_s"), float)}
TYPES: Types = {**_NUMBERS, **dict.fromkeys(("host", "phase", "training"), str)}  # of a record


@dataclass(frozen=True)
class Beat:
    """One record. `step` counts finished optimizer steps, `marks` what was begun since; times are UNIX times."""

    rank: int
    host: str
    pid: int
    step: int
    marks: int
    phase: str
    since: float  # when the phase began
    time: float
    own_s: float = 0.0  # a step's time that doesn't depend on other ranks: reading and forward
    ended: str | None = None  # how it ended, if it has
    code: int | None = None  # with which exit code
    verdict: str | None = None  # why all ranks have to end
    slow: str | None = None  # rank 0: which rank holds up the others
    training: str = ""  # names the training: a rank of an earlier one may be left over on a node that was given up

    @property
    def place(self) -> tuple[int, int]:
        """How far the rank is; all ranks pass the same places."""
        return self.step, self.marks

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host}; step {self.step}, phase {self.phase})"


def path_of(run: Path, rank: int) -> Path:
    return run / FOLDER / f"rank-{rank}.json"


def stacks_of(run: Path, rank: int) -> Path:
    """Return where a hung rank writes the stack traces of its threads."""
    return run / FOLDER / f"rank-{rank}.stacks"


def write_beat(run: Path, beat: Beat) -> None:
    """Rewrite a rank's record.

    Raises:
        OSError: the file system refuses.
    """
    values = asdict(beat)
    for name in ("ended", "verdict", "slow"):
        values[name] = values[name] and values[name][:600]
    text = json.dumps(values, ensure_ascii=False).encode()[:RECORD_BYTES].ljust(RECORD_BYTES)
    descriptor = os.open(path_of(run, beat.rank), os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, text, 0)
    finally:
        os.close(descriptor)


def read_beat(path: Path) -> Beat | None:
    """Return a record, or None where there is none, half a one or something else."""
    values = read_object(path, TYPES)
    try:
        return Beat(**{field.name: values[field.name] for field in fields(Beat)})
    except KeyError:
        return None


def beats_of(run: Path, training: str | None = None) -> dict[int, Beat]:
    """Return the last record of every rank of a run's present or last training, or of one that is named."""
    found = filter(None, (read_beat(path) for path in (run / FOLDER).glob("rank-*.json")))
    beats = (beat for beat in found if training in (None, beat.training))
    return {beat.rank: beat for beat in sorted(beats, key=lambda beat: beat.rank)}


def clear_beats(run: Path) -> None:
    """Remove the records of an earlier training's ranks; rank 0 calls it before any rank writes one."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    for pattern in ("rank-*.json", "rank-*.stacks"):
        for path in folder.glob(pattern):
            remove(path)
