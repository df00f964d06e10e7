"""Feed a tracking service from a thread: a network that is slow or gone neither delays nor ends a training.

`<run>/<service>.json` holds the id of the run there, so that a resumed training continues it, and how many records of
metrics.jsonl it has. Records are sent from that file: those of a time without network follow later, by the same process
or by the next start or evaluation of the run, and steps that are made again after a kill are not sent again, as records
depend on the step alone. Scores are sent after all records, and again by the next evaluation unless the service was
closed after them. Pictures are sent once or not at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from toolkit.atomic import write_atomic
from toolkit.config import RunConfig
from toolkit.rundir import RunDir
from toolkit.rundir.metrics import read_metrics
from toolkit.rundir.records import keep_typed, read_object
from toolkit.trackers.base import Picture, Scored, Status, without_secrets
from toolkit.wording import count, first_line

logger = logging.getLogger(__name__)
RETRY_S = 60.0  # after the service has refused something
CLOSE_S: dict[Status, float] = {"finished": 20.0, "stopped": 5.0, "failed": 5.0}  # a stopped job has half a minute
MOST_WAITING = 1_000  # tasks; more are left out
NOT_VALUES = ("step", "kind", "samples", "time")
TYPES = {"id": str, "records": int, "closed": int, "scores": dict}


class Service(Protocol):
    """A tracking service. Every method may take long, and raise anything."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...
    def image(self, name: str, picture: Picture, step: int) -> None: ...
    def summary(self, values: Mapping[str, float], step: int) -> None: ...
    def scores(self, scored: Scored) -> None: ...
    def close(self, status: Status) -> None: ...


# Connects to the run of a record, or to a new one, whose id it puts there; the record is saved after each task.
Connect = Callable[[RunDir, RunConfig, dict[str, Any]], Service]
Task = Callable[[Service], None]


class Background:
    """A `Tracker` that hands everything to a service in another thread."""

    def __init__(self, name: str, run: RunDir, connect: Connect) -> None:
        self.name, self.run = name, run
        self.file = run.path / f"{name}.json"
        self.record = {"records": 0, **keep_typed(read_object(self.file), TYPES)}
        self._connect = connect
        self._config: RunConfig = run.config()
        self._service: Service | None = None
        self._tasks: queue.Queue[tuple[Task, bool] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._metrics = MetricsTail(run)
        self._scores: list[Scored] = []  # not sent yet
        self._sent: dict[str, str] = {}  # digests of scores, since this process is connected
        self._status: Status = "failed"
        self._failed, self._retry_at, self._left_out = False, 0.0, 0
        self._abandoned = False

    def config(self, config: RunConfig) -> None:
        """Do nothing: the service gets it when it is connected."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send what metrics.jsonl has and the service has not."""
        self._submit(self._catch_up, lost=False)

    def image(self, name: str, picture: Picture, step: int) -> None:
        """Send a picture."""
        self._submit(lambda service: service.image(name, picture, step))

    def summary(self, values: Mapping[str, float], step: int) -> None:
        """Do nothing: `close` sends them from metrics.jsonl, or the next one."""

    def scores(self, scored: Scored) -> None:
        """Send an evaluation, unless the service has these very scores."""
        if self.record.get("scores", {}).get(scored.name) != scored.digest:
            self._scores.append(scored)
            self._submit(self._send_scores, lost=False)

    def flush(self) -> None:
        """Do nothing: metrics.jsonl is on the disk."""

    def close(self, status: Status) -> None:
        """Wait a while for what is left; where nothing is to be sent, the service isn't called."""
        self._status = status
        if self._thread.ident is None:
            if not self._metrics.behind(self.record["records"]):
                return
            self._thread.start()
        end = time.monotonic() + CLOSE_S[status]
        with contextlib.suppress(queue.Full):
            self._tasks.put(None, timeout=CLOSE_S[status])
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._abandoned = True
            logger.warning(
                "%s: still busy after %g s, and not waited for: %s",
                *(self.name, CLOSE_S[status], self._unsent() or "everything is handed over, but not confirmed"),
            )

    def _submit(self, task: Task, lost: bool = True) -> None:
        """Queue a task; `lost`: what it sends can't be sent later."""
        if self._thread.ident is None:
            self._thread.start()
        try:
            self._tasks.put_nowait((task, lost))
        except queue.Full:
            self._left_out += lost

    def _work(self) -> None:
        while (item := self._tasks.get()) is not None:
            task, lost = item
            if time.monotonic() < self._retry_at or not self._try(task):
                self._left_out += lost
        self._try(self._send_scores)
        if self._status == "finished":
            self._try(self._summarise)
        self._try(self._end)
        if self._failed and not self._abandoned and (unsent := self._unsent()):
            logger.warning("%s: %s", self.name, unsent)

    def _unsent(self) -> str:
        """Return what the service has not got, and what sends it; empty where it has everything."""
        records, scores = self._metrics.behind(self.record["records"]), len(self._scores)
        told = [f"{count(records, 'record')} of {self.run.metrics_file.name} not sent"] if records else []
        told += [f"{count(scores, 'evaluation')} not sent"] if scores else []
        told += [f"{count(self._left_out, 'picture')} left out"] if self._left_out else []
        by = "evaluation" if scores else "start or evaluation"
        return ", ".join(told) + (f". The next {by} of this run sends them" if records or scores else "")

    def _try(self, task: Task) -> bool:
        """Call the service; return whether it took the task. What it raises is logged once for a training."""
        try:
            if self._service is None:
                self._service = self._connect(self.run, self._config, self.record)
                self._save()
            task(self._service)
            self._save()
        except (Exception, SystemExit) as error:
            level = logging.DEBUG if self._failed else logging.WARNING
            logger.log(
                level,
                "%s: %s: %s; left out, and tried again every %g s",
                *(self.name, type(error).__name__, without_secrets(first_line(error)), RETRY_S),
            )
            self._failed, self._retry_at = True, time.monotonic() + RETRY_S
            return False
        return True

    def _catch_up(self, service: Service) -> None:
        for record in self._metrics.after(self.record["records"]):
            values = {f"{record['kind']}/{key}": value for key, value in record.items() if key not in NOT_VALUES}
            service.scalars(values, record["step"])
            self.record["records"] += 1
            self._save()

    def _send_scores(self, service: Service) -> None:
        """Send records first: W&B drops rows whose number is lower than that of a row it has."""
        self._catch_up(service)
        while self._scores:
            service.scores(self._scores[0])
            scored = self._scores.pop(0)
            self._sent[scored.name] = scored.digest

    def _end(self, service: Service) -> None:
        """Close the service; scores count as sent from here on, as W&B may have held them back until now."""
        service.close(self._status)
        self.record["scores"] = {**self.record.get("scores", {}), **self._sent}

    def _summarise(self, service: Service) -> None:
        """Send the best validation, once."""
        by = self._config.train.best_by
        best = None if self.record.get("summarised") else self._metrics.best(by)
        if best:
            service.summary({f"best_{by}": float(best[by]), "best_step": float(best["step"])}, best["step"])
            self.record["summarised"] = True

    def _save(self) -> None:
        write_atomic(self.file, json.dumps(self.record) + "\n")


class MetricsTail:
    """The records of a run's metrics.jsonl, which only grows while a training writes it."""

    def __init__(self, run: RunDir) -> None:
        self.path = run.metrics_file
        self._offset = self._number = 0  # of the first record that was not taken

    def after(self, sent: int) -> Iterator[dict[str, Any]]:
        """Yield the records from number `sent` on; one whose taker raises is yielded again by the next call."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                record = _parse(line)
                if record and self._number >= sent:
                    yield record
                self._offset += len(line)
                self._number += bool(record)

    def best(self, by: str) -> dict[str, Any] | None:
        """Return the last validation that was better than all before by a score."""
        found = [record for record in read_metrics(self.path) if record["kind"] == "val" and record.get("best")]
        return found[-1] if found and isinstance(found[-1].get(by), int | float) else None

    def behind(self, sent: int) -> int:
        """Return how many records there are beyond the first `sent`."""
        return max(0, sum(1 for _ in read_metrics(self.path)) - sent)


def _parse(line: bytes) -> dict[str, Any]:
    """Return the record in a line; empty where `read_metrics` leaves it out."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    found = keep_typed(record, {"step": int, "kind": str}) if isinstance(record, dict) else {}
    return found if "step" in found and "kind" in found else {}
