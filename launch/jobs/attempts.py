"""Starts without progress: those at which a run gains no step, and runs that fail as soon as they begin.

A job that requeues itself could do so permanently, for example where `time` is too short for a first step. So a start
that ends at the step at which it began is counted in the run's lock, and after STARTS of them in a row the run fails.
Starts that something outside ended (preemption, a lost node, a requeue) do not count.

A failure within EARLY_S of the start is also noted in `<sweep>/early_failures.tsv`: UNIX time, node, run, reason. Jobs
leave out a node on which two runs failed so (launch/slurm/causes.py); and where the first FIRST_RUNS runs of a sweep
all failed in the same way, and no run did better, the sweep stops: `<sweep>/STOPPED` says why, and until sweep.py is
called again no run begins that has no checkpoint yet.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.atomic import write_atomic
from toolkit.distributed import slurm
from toolkit.rundir import RunDir
from toolkit.rundir.events import append_line, read_restarts
from toolkit.rundir.lock import read_lock
from toolkit.rundir.records import read_text
from toolkit.rundir.sweep import find_runs, in_sweep
from toolkit.wording import first_line

logger = logging.getLogger(__name__)

STARTS = 3
EARLY_S = 60.0
FIRST_RUNS = 3
TAB = "\t"
EARLY_FAILURES = "early_failures.tsv"
STOPPED = "STOPPED"
OUTSIDE = ("preempted", "requeued", "lost ", "on a node", "no step could", "cancelled")  # causes of restarts


def latest_step(run: RunDir) -> int:
    """Return the step of the newest checkpoint, from which a start resumes; 0 without one."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if match := re.fullmatch(r"step-(\d+)", (run.checkpoints / "latest").read_text().strip()):
            return int(match[1])
    return 0


def count_starts(run: RunDir, before: Mapping[str, Any]) -> dict[str, int]:
    """Return what the run's lock records of its starts: the step of this one, and how many before gained none.

    Args:
        before: the record of the start before; one of another job does not count: somebody submitted it again.
    """
    step = latest_step(run)
    this, job = slurm.job_name(), str(before.get("job", ""))
    if this is None or job.partition("_")[0] != this.partition("_")[0] or step > int(before.get("from_step", -1)):
        return {"from_step": step, "idle_starts": 0}
    idle = int(before.get("idle_starts", 0))
    causes = [restart.cause for restart in read_restarts(run.path) if restart.time >= before.get("started", 0.0)]
    if "from_step" in before and not (causes and causes[-1].startswith(OUTSIDE)):
        idle += 1
    return {"from_step": step, "idle_starts": idle}


def going_in_circles(run: RunDir, counted: Mapping[str, int]) -> str | None:
    """Return why a run is not begun again after STARTS starts without a step; None: it may begin."""
    if counted["idle_starts"] < STARTS:
        return None
    causes = [restart.cause for restart in read_restarts(run.path)]
    last = f"; the last ended by: {causes[-1]}" if causes else ""
    step = counted["from_step"]
    return (
        f"{STARTS} starts, no step: each began at step {step} and ended at step {step}{last}. Give it more `time` in "
        "the profile (or the partition), or lower `signal_s`: a step and a checkpoint must fit between start and signal"
    )


def note_early_failure(run: RunDir, began: float) -> None:
    """Note a failure of a run of a sweep, if it came soon after `began`; stop the sweep if it is one of many alike."""
    reason = run.failure()
    if reason is None or time.time() - began > EARLY_S or not in_sweep(run.path):
        return
    root = run.path.parent
    one_node = os.environ.get("SLURM_JOB_NUM_NODES", "1") == "1"
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname()) if one_node else ""
    line = f"{time.time():.0f}\t{node}\t{run.path.name}\t{first_line(reason).replace(TAB, ' ')}\n"
    try:
        append_line(root / EARLY_FAILURES, line.encode())
        if why := _alike(root):
            write_atomic(root / STOPPED, why + "\n")
    except OSError as error:
        logger.warning("%s: can't be written (%s)", root / EARLY_FAILURES, error.strerror)


def _alike(root: Path) -> str | None:
    """Return what the first runs of a sweep failed of, if they failed alike and no other run does better."""
    lines = [line.split(TAB) for line in read_text(root / EARLY_FAILURES).splitlines()]
    reasons = {line[2]: line[3] for line in lines if len(line) == 4}  # not half a line, which a full disk leaves
    kinds = {re.sub(r"/\S+|\d+|\bnode\S*", "#", reason) for reason in reasons.values()}
    if len(reasons) < FIRST_RUNS or len(kinds) > 1:
        return None
    if any(run.path.name not in reasons and _does_well(run) for run in find_runs(root)):
        return None
    return (
        f"the first {len(reasons)} runs of this sweep failed within {EARLY_S:.0f} s, all in the same way, so that no "
        f"more are begun: {next(iter(reasons.values()))}"
    )


def _does_well(run: RunDir) -> bool:
    record = read_lock(run.path)
    lasted = float(record.get("ended", time.time())) - float(record.get("started", time.time()))
    return run.done or (run.failure() is None and lasted > EARLY_S)


def why_stopped(root: Path) -> str | None:
    """Return why a sweep begins no more runs; None: it does."""
    with contextlib.suppress(OSError):
        return (root / STOPPED).read_text(encoding="utf-8", errors="replace").strip()
    return None


def why_not_begun(run: RunDir) -> str | None:
    """Return why its sweep, which has stopped, does not begin a run; None: it does, or the run only resumes."""
    return None if run.done or latest_step(run) else why_stopped(run.path.parent)


def begin_anew(root: Path) -> None:
    """Forget early failures: somebody submits the sweep."""
    for name in (STOPPED, EARLY_FAILURES):
        (root / name).unlink(missing_ok=True)
