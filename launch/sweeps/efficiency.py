"""What the hours of runs were spent on, from their directories: events.jsonl, metrics.jsonl, state.json, job.lock.

A run's time is that of its jobs, from the first moment to the last sign of life. Of it, `steps` is what the steps took
that count; `repeated` steps were lost with a job that ended after its last checkpoint; `start-up` is imports, loading
and the like; the rest is validation, checkpoints and scoring. Times between starts cost nobody hours, only patience.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.cli.table import render
from launch.jobs.pack import find_pack
from launch.slurm.queue import SUBMISSIONS
from toolkit.rundir import RunDir, lock
from toolkit.rundir.events import StartEvent, read_starts
from toolkit.rundir.status import RunView
from toolkit.wording import count, duration

HEADER = ("run", "starts", "hours", "steps", "data wait", "repeated", "start-up", "rest", "between", "queued")


@dataclass(frozen=True)
class Use:
    """One run; seconds of wall time, but for `hours`, which are of all its ranks together."""

    name: str
    starts: int
    on_gpus: bool
    hours: float
    wall: float
    steps: float
    data_wait: float  # of `steps`
    repeated: float
    start_up: float
    between: float  # from the end of one start to the beginning of the next
    queued: float | None  # from submission to the first start, where it is known
    spans: tuple[tuple[str, float, float], ...] = ()  # of each start: job, from when, until when (UNIX times)

    @property
    def rest(self) -> float:
        return max(0.0, self.wall - self.steps - self.repeated - self.start_up)


def use_of(view: RunView, now: float | None = None) -> Use | None:
    """Return how the time of a run was spent; None without a record of its starts."""
    run = RunDir(Path(view.path))
    starts = read_starts(run.path)
    if not starts:
        return None
    now = time.time() if now is None else now
    ends = [_end(start, follower.last_time) for start, follower in itertools.pairwise(starts)]
    ends.append(_last_end(run, view, starts[-1], now))
    lines, rate = run.logged_steps(), run.rate()
    step_s = starts[-1].batch / rate if rate else 0.0
    walls = [end - start.began for start, end in zip(starts, ends, strict=True)]
    lost = [max(0, (start.last_step or 0) - start.step) for start in starts[1:]]
    steps, waited = _useful(lines, starts[-1].batch)
    known = [start.began - start.submitted for start in starts if start.submitted is not None]
    start_up = sum(min(start.ready, end) - start.began for start, end in zip(starts, ends, strict=True))
    repeated = sum(lost) * step_s
    room = max(0.0, sum(walls) - start_up - repeated)  # rates are means: they may claim a little more than there was
    return Use(
        name=view.name,
        starts=len(starts),
        on_gpus=all(start.gpus for start in starts),
        hours=sum(start.ranks * wall for start, wall in zip(starts, walls, strict=True)) / 3600,
        wall=sum(walls),
        steps=min(steps, room),
        data_wait=waited * (min(steps, room) / steps if steps else 0.0),
        repeated=repeated,
        start_up=start_up,
        between=sum(max(0.0, start.began - end) for start, end in zip(starts[1:], ends, strict=False)),
        queued=sum(max(0.0, wait) for wait in known) if known else None,
        spans=tuple((str(start.job), start.began, end) for start, end in zip(starts, ends, strict=True)),
    )


def efficiency(views: Sequence[RunView], width: int | None) -> list[str]:
    """Return a table of runs, and how the time of all of them was spent."""
    uses = [use for use in map(use_of, views) if use is not None]
    if not uses:
        return [f"{count(len(views), 'run')} without a record of starts ({NOTHING})"]
    unit = "GPU-hours" if all(use.on_gpus for use in uses) else "rank-hours"
    header = [unit if name == "hours" else name for name in HEADER]
    without = len(views) - len(uses)
    more = [f"{without} more without a record of their starts ({NOTHING})"] if without else []
    packed = _packed({Path(view.path).parent for view in views}, uses)
    return [*render(header, [_row(use) for use in uses], width), "", *_total(uses, unit), *packed, *more]


def _packed(roots: Iterable[Path], uses: Sequence[Use]) -> list[str]:
    """Return how much of the places of packed jobs was used, from the first run of a start to the end of its last."""
    packs = {
        file.read_text(encoding="utf-8").strip(): pack
        for root in roots
        for file in (root / SUBMISSIONS).glob("*/job")
        if (pack := find_pack(file.parent))
    }
    jobs: dict[str, list[tuple[float, float]]] = {}
    for job, began, end in (span for use in uses for span in use.spans):
        if job.partition("_")[0] in packs:
            jobs.setdefault(job, []).append((began, end))
    if not jobs:
        return []
    places = {job: packs[job.partition("_")[0]] for job in jobs}
    held = {job: max(end for _, end in spans) - min(began for began, _ in spans) for job, spans in jobs.items()}
    used = sum(end - began for spans in jobs.values() for began, end in spans)
    there = sum(places[job].places * held[job] for job in jobs)
    gpus = sum(places[job].gpus * held[job] for job in jobs) / 3600
    what = f"{used / there:.1%} of their places were used" if there else "no time yet"
    return [
        f"packed: {count(len(jobs), 'start')} of jobs with several runs: {what}"
        + (f", {gpus:,.2f} GPU-hours held" if gpus else "")
    ]


NOTHING = "not begun, or begun by an earlier version"


def _row(use: Use) -> list[str]:
    def share(seconds: float) -> str:
        return f"{seconds / use.wall:.0%}" if use.wall else ""

    return [
        use.name,
        str(use.starts),
        f"{use.hours:,.2f}",
        share(use.steps),
        share(use.data_wait),
        share(use.repeated),
        share(use.start_up),
        share(use.rest),
        duration(use.between) if use.between else "",
        "" if use.queued is None else duration(use.queued),
    ]


def _total(uses: Sequence[Use], unit: str) -> list[str]:
    hours = sum(use.hours for use in uses)

    def share(part: str) -> str:
        """Of the hours: a run counts by its ranks."""
        spent = sum(use.hours * float(getattr(use, part)) / use.wall for use in uses if use.wall)
        return f"{spent / hours:.1%}" if hours else "0%"

    queued = [use.queued for use in uses if use.queued is not None]
    waits = [f"{duration(sum(use.between for use in uses))} between starts"]
    waits += [f"{duration(sum(queued))} in the queue before the first ({count(len(queued), 'run')})"] if queued else []
    return [
        f"{hours:,.2f} {unit}, {count(sum(use.starts for use in uses), 'start')} of {count(len(uses), 'run')}: "
        f"{share('steps')} steps ({share('data_wait')} waiting for data), "
        f"{share('repeated')} steps lost to restarts and repeated, {share('start_up')} start-up, "
        f"{share('rest')} validation, checkpoints, scoring",
        f"waited: {', '.join(waits)}",
    ]


def _end(start: StartEvent, last_update: float | None) -> float:
    return max(start.ready, last_update or start.ready)


def _last_end(run: RunDir, view: RunView, start: StartEvent, now: float) -> float:
    """When the last start ended; now, while it runs."""
    if view.held or view.live:
        return now
    record = lock.read_lock(run.path)
    if abs(record.get("started", 0.0) - start.began) < 1e-3 and record.get("ended"):  # times are written in ms
        return float(record["ended"])
    return _end(start, view.updated)


def _useful(lines: Sequence[dict[str, Any]], batch: int) -> tuple[float, float]:
    """Seconds that the logged steps took, and of these the wait for data."""
    seconds = waited = 0.0
    last = 0
    for line in lines:
        took = (int(line["step"]) - last) * batch / float(line["seq_per_s"])
        seconds += took
        waited += took * float(line.get("data_wait", 0.0))
        last = int(line["step"])
    return seconds, waited
