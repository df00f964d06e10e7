"""What a sweep's folder holds: where planned runs go, one maker at a time, and the runs that are there."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from launch.jobs.run_status import find_runs
from launch.sweeps.spec import SweepPlan
from toolkit.rundir import RunDir
from toolkit.sweep_record import RECORD_NAME, RecordedRun, read_record


def place(root: Path, plan: SweepPlan) -> list[RunDir]:
    """The run directory of every planned run.

    A run that is there already under another name (the sweep has grown, and names say what differs) stays there.
    """
    present = {run.path.name[-8:]: run for run in find_runs(root)}
    return [present.get(planned.hash8) or RunDir(root / planned.folder) for planned in plan.runs]


@contextlib.contextmanager
def preparing(root: Path) -> Iterator[None]:
    """Make run directories and the record one sweep.py at a time: a second one waits, then finds them made."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".preparing", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def in_sweep(run: Path) -> bool:
    """Whether a run directory lies in a sweep's folder: what comes next is then the sweep's business."""
    return (run.parent / RECORD_NAME).exists()


def read_runs(folder: Path) -> list[RecordedRun]:
    """The runs of a sweep directory in the sweep's order, then those that lie there besides.

    Raises:
        ConfigError: when the record can't be read.
    """
    recorded = read_record(folder)[1] if (folder / RECORD_NAME).exists() else []
    known = {item.run.path for item in recorded}
    return recorded + [RecordedRun(run, run.path.name) for run in find_runs(folder) if run.path not in known]
