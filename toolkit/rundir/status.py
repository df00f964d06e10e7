"""How a run stands, from its directory alone: what the tables of sweep.py and status.py show.

States: `new` (nothing began), `starting` (a job has it, no step yet), `running`, `validating`, `evaluating`,
`interrupted` (began, nobody works on it), `failed`, `trained` (scores are missing), `done` (trained and scored).
Some have kinds, which people are shown instead: `first step` of running (it may compile for long), `stopped` of
interrupted (asked to, with a checkpoint; else it was killed), and by exit code `hung`, `not finite`, `bad data`,
`killed`, `out of memory` of failed. Where a scheduler was asked there is also `queued`, and there
are kinds that only it knows.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.atomic import alive
from toolkit.errors import EXIT_DATA, EXIT_HANG, EXIT_NONFINITE
from toolkit.rundir import RunDir, lock
from toolkit.rundir.events import NAME as EVENTS
from toolkit.rundir.events import RestartEvent, read_restarts
from toolkit.rundir.records import keep_typed, object_fault

KINDS = {EXIT_NONFINITE: "not finite", EXIT_DATA: "bad data", EXIT_HANG: "hung"}
LIVE_STATES = ("starting", "running", "validating", "evaluating")
STALE_AFTER_S = 120.0  # a live run rewrites state.json at least every few seconds
NO_MEMORY = r"MemoryShortageError|OUT_OF_MEMORY|oom.kill"


@dataclass(frozen=True)
class RunView:
    """One row: a run as it stands now. Numbers are None where the run did not write them."""

    name: str
    path: str
    state: str
    step: int | None = None
    steps: int | None = None
    rate: float | None = None  # sequences per second
    eta_s: float | None = None
    data_wait: float | None = None  # share of the time, 0..1
    loss: float | None = None
    val: Mapping[str, float] = field(default_factory=dict)
    host: str | None = None
    restarts: int | None = None
    reason: str | None = None
    log: str | None = None
    kind: str | None = None  # of the state
    job: str | None = None  # that has or had it last: 4711_3_0 (Slurm, with the number of restarts), local-4711, ...
    held: bool = False  # somebody works on it, as its lock shows
    updated: float | None = None  # when it last wrote its state, UNIX time

    @property
    def label(self) -> str:
        """The state as shown in tables: the kind where there is one."""
        return self.kind or self.state

    @property
    def live(self) -> bool:
        return self.state in LIVE_STATES


def missing_scores(run: RunDir, split: str | None = None) -> list[str]:
    """Return the names of results in eval/ that are absent or older than the end of training.

    There is one for each scored checkpoint, and for each request of another scoring. `split` None: of any split.
    """
    scorings = [split or "*", *run.requests()]
    wanted = [f"{scoring}-{which}" for scoring in scorings for which in run.scored_checkpoints]
    try:
        trained = (run.path / "DONE").stat().st_mtime
    except FileNotFoundError:
        return wanted
    return [name for name in wanted if not any(at >= trained for at in _times(run, name))]


def _times(run: RunDir, name: str) -> Iterator[float]:
    """Yield the times of the results of a name; `*` stands for any split of the run's own scoring."""
    for file in run.eval.glob(f"{name}.json"):
        if "*" not in name or "+" not in file.stem:
            yield file.stat().st_mtime


def read_status(run: RunDir, name: str | None = None, split: str | None = None, now: float | None = None) -> RunView:
    """Return how a run stands; never raises for what a run may have left half done, or what became of its files."""
    record = lock.read_lock(run.path)
    job = lock.holder(run.path)
    state = run.read_state()
    standing = _standing(run, state, now)
    if job is None and standing == "running" and record.get("ended", 0.0) >= state.get("updated", 0.0):
        standing = "interrupted"  # its job has recorded its end: no silence is needed to know
    if job is not None and state.get("updated", 0.0) < record.get("started", 0.0):
        standing = "interrupted"  # this start has written nothing yet: speed and ETA are of the one before
    word = _word(run, standing, state, job is not None, split)
    training = word in ("running", "validating") and bool(state.get("seq_per_s"))  # 0 before the first step
    failure = run.failure() if word == "failed" else None
    restarts = read_restarts(run.path)
    reasons = [failure or _slow(state, training) or _why(word, state, restarts), *_damaged(run)]
    return RunView(
        name=name or run.path.name,
        path=str(run.path),
        state=word,
        step=state.get("step"),
        steps=state.get("steps"),
        rate=state.get("seq_per_s") if training else None,
        eta_s=state.get("eta_s") if training else None,
        data_wait=state.get("data_wait") if training else None,
        loss=_number(state.get("loss")),
        val={str(key): known for key, value in state.get("val", {}).items() if (known := _number(value)) is not None},
        host=(job or {}).get("host") or state.get("host"),
        restarts=max(state.get("restarts", 0), len(restarts)) if "restarts" in state or restarts else None,
        reason="; ".join(reason for reason in reasons if reason) or None,
        log=record.get("log"),
        kind=_kind(word, state, failure),
        job=record.get("job"),
        held=job is not None,
        updated=state.get("updated"),
    )


def _standing(run: RunDir, state: Mapping[str, Any], now: float | None) -> str:
    """`done`, `failed`, `running`, `interrupted` (began, silent for two minutes) or `new`, by its own files."""
    if run.done:
        return "done"
    if run.failure() is not None:
        return "failed"
    if "updated" not in state:
        return "interrupted" if os.path.lexists(run.path / "state.json") else "new"
    silent = (time.time() if now is None else now) - float(state["updated"])
    return "running" if silent < STALE_AFTER_S else "interrupted"


def _damaged(run: RunDir) -> Iterator[str]:
    """Name the damaged files of a run that are read for its status; its next start repairs them."""
    for name in ("state.json", lock.LOCK_NAME):
        if fault := object_fault(run.path / name):
            yield f"{name} {fault}; it is rebuilt at the next start"
    for name in ("DONE", "FAILED", EVENTS):
        path = run.path / name
        if os.path.lexists(path) and not path.is_file():
            yield f"{name} is no regular file; it is moved aside at the next start"


def _number(value: object) -> float | None:
    """Return a score, which may be NaN or infinite."""
    return keep_typed({"value": value}, {"value": float}).get("value", value if isinstance(value, float) else None)


def _kind(word: str, state: Mapping[str, object], failure: str | None) -> str | None:
    if word == "running" and state.get("phase") == "training" and not state.get("seq_per_s"):
        return "first step"
    if word == "interrupted" and state.get("phase") == "stopped":
        return "stopped"
    if failure is None:
        return None
    if re.search(NO_MEMORY, failure):
        return "out of memory"
    if found := re.search(r"exit code (\d+) \(", failure):
        return KINDS.get(int(found[1]))
    return "killed" if "killed by SIG" in failure else None


def _slow(state: Mapping[str, object], training: bool) -> str | None:
    return f"slow: {state['slow']}" if training and state.get("slow") else None


def _word(run: RunDir, standing: str, state: Mapping[str, object], has_job: bool, split: str | None) -> str:
    if has_job:
        if run.done:
            return "evaluating"
        fresh = standing == "running" and _alive(state)
        return {"validating": "validating"}.get(str(state.get("phase")), "running") if fresh else "starting"
    if run.failure() is not None:  # also after DONE: then the evaluation failed
        return "failed"
    if run.done:
        return "trained" if missing_scores(run, split) else "done"
    if standing == "running":
        # Silence is needed to call a far process dead; one of this machine can be asked for.
        return "running" if _alive(state) else "interrupted"
    return standing


def _alive(state: Mapping[str, Any]) -> bool:
    try:
        return alive(str(state["host"]), int(state["pid"])) is not False
    except (KeyError, TypeError, ValueError):
        return True


def _why(word: str, state: Mapping[str, object], restarts: Sequence[RestartEvent]) -> str | None:
    last = f"restart {restarts[-1].start - 1}: {restarts[-1].cause}" if restarts else None
    if word in LIVE_STATES:
        return last
    why = _why_not_live(word, state)
    return f"{why} ({last})" if word == "interrupted" and last else why


def _why_not_live(word: str, state: Mapping[str, object]) -> str | None:
    if word == "interrupted" and state.get("phase") == "stopped":
        saved = f"with a checkpoint at step {state['step']}" if state.get("step") else "before the first step"
        return f"stopped {saved}; run it again to resume"
    return {
        "interrupted": "killed, or its machine lost: it stopped before the end; run the sweep again to resume",
        "trained": "not evaluated yet",
    }.get(word)
