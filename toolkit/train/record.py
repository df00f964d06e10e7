"""Metrics logging: metrics.jsonl, experiment trackers, state.json and the log. Rank 0 only."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import time
from collections.abc import Mapping
from typing import Any

import torch

from shards.fsync import flush
from toolkit.errors import EXIT_REQUEUE
from toolkit.rundir import RunDir
from toolkit.rundir.events import append_event, append_line, read_starts
from toolkit.rundir.metrics import forget_after
from toolkit.trackers import Status, open_trackers
from toolkit.trackers.base import Picture
from toolkit.wording import count, duration, speed

STATE_EVERY_S = 2.0
LOG_EVERY_S = 30.0
logger = logging.getLogger(__name__)


class Meter:
    """Rate, share of time spent waiting for data, and time left, over a sliding exponential mean."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.seconds: float | None = None
        self.waiting = 0.0

    def add(self, seconds: float, waiting: float) -> None:
        """One optimizer step's wall time and the part of it spent waiting for data."""
        keep = 0.0 if self.seconds is None else 0.95
        self.seconds = keep * (self.seconds or 0.0) + (1 - keep) * seconds
        self.waiting = keep * self.waiting + (1 - keep) * waiting

    @property
    def sequences_per_s(self) -> float:
        return self.batch / self.seconds if self.seconds else 0.0

    @property
    def data_wait(self) -> float:
        return self.waiting / self.seconds if self.seconds else 0.0

    def eta_s(self, steps: int) -> float:
        """Seconds for the given number of steps."""
        return steps * (self.seconds or 0.0)


class ForwardTimer:
    """Measure the forward passes of a step on this rank; on a GPU by CUDA events, as the host runs ahead of it."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._began: Any = None

    def reset(self) -> None:
        """Start a new step."""
        self._spans = []

    def begin(self) -> None:
        """Start a forward pass."""
        self._began = self._tick()

    def end(self) -> None:
        """End a forward pass."""
        self._spans.append((self._began, self._tick()))

    def seconds(self) -> float:
        """Return their sum; call it after the step, when the GPU has passed them."""
        if self.cuda:
            return sum(began.elapsed_time(ended) for began, ended in self._spans) / 1000.0
        return sum(ended - began for began, ended in self._spans)

    def _tick(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def peak_memory() -> int:
    """Bytes at the peak so far: allocated on the GPU, or of this process."""
    if torch.cuda.is_initialized():  # not so where `train.device: cpu` leaves a GPU alone
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Recorder:
    """Writes a run's records; a resumed run continues at its step without a doubled line.

    A disk that refuses a record ends no training: it is logged, kept, and written with the next one.
    """

    def __init__(self, run: RunDir, step: int, steps: int, batch: int, best_by: str = "mse") -> None:
        self.run, self.steps, self.best_by = run, steps, best_by
        self.meter = Meter(batch)
        forget_after(run.metrics_file, step)
        self.trackers = open_trackers(run, step)
        self._status: Status = "failed"  # unless it ends otherwise
        self._unwritten: list[bytes] = []
        self._state_at = 0.0
        self._logged_at = time.monotonic()
        restarts = max(0, len(read_starts(run.path)) - 1)
        self.state: dict[str, object] = {"restarts": restarts, "started": time.time(), "steps": steps}
        self.put_state("training", step)

    def train(self, step: int, values: Mapping[str, float], samples: str | None) -> None:
        """After an optimizer step: a line and points of curves if there is a fingerprint, and the state now and then.

        Args:
            samples: fingerprint of the global batch; equal ones mean the same samples in any number of ranks.
        """
        self.state["loss"] = values["loss"]
        rates = {"seq_per_s": self.meter.sequences_per_s, "data_wait": self.meter.data_wait}
        if samples is not None:
            self._line(step, "train", {**values, **rates}, samples=samples)
        # Steps that take minutes are logged as they come: a log that stands still looks like a hang.
        if samples is not None or time.monotonic() - self._logged_at > LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.info(
                f"step {step:>{len(str(self.steps))}}/{self.steps}  loss {values['loss']:.5f}  "
                f"|grad| {values['grad_norm']:.3g}  {speed(rates['seq_per_s'])} seq/s  "
                f"data wait {100 * rates['data_wait']:.0f}%  ETA {duration(self.meter.eta_s(self.steps - step))}"
            )
        if samples is not None or time.time() - self._state_at > STATE_EVERY_S:
            self.put_state("training", step)

    def skipped(self, step: int, fault: str, skipped: int) -> None:
        """After a step without an update, because something was not finite."""
        self.state["skipped"] = skipped
        self._line(step, "skipped", {"skipped": skipped})
        self.put_state("training", step)
        logger.warning("%s: this step is skipped; %s in this run", fault, count(skipped, "skipped step"))

    def validation(self, step: int, scores: Mapping[str, float], is_best: bool) -> None:
        """After a validation."""
        self._line(step, "val", {**scores, "best": float(is_best)})
        self.state["val"] = dict(scores)
        self.put_state("training", step)
        shown = "  ".join(f"{name} {value:.5g}" for name, value in scores.items())
        logger.info(
            f"step {step:>{len(str(self.steps))}}/{self.steps}  validation: {shown}"
            + (f"  (best {self.best_by})" if is_best else "")
        )

    def image(self, step: int, name: str, picture: Picture) -> None:
        """Log a picture, uint8 [H, W, 3]."""
        for tracker in self.trackers:
            tracker.image(name, picture, step)

    def put_state(self, phase: str, step: int) -> None:
        """Rewrite state.json."""
        self._state_at = time.time()
        self.run.write_state(
            **self.state,
            phase=phase,
            step=step,
            seq_per_s=self.meter.sequences_per_s,
            data_wait=self.meter.data_wait,
            eta_s=self.meter.eta_s(self.steps - step),
            peak_memory=peak_memory(),
        )

    def trained(self, step: int, best: Mapping[str, Any] | None) -> None:
        """After the last checkpoint of a complete training; `best`: step and score of its best validation."""
        self.put_state("trained", step)
        final = {} if best is None else {f"best_{self.best_by}": float(best["score"]), "best_step": float(best["step"])}
        for tracker in self.trackers:
            tracker.summary(final, step)
        self._status = "finished"

    def stopped(self, step: int) -> None:
        """After the last checkpoint of a training that was asked to stop."""
        self.put_state("stopped", step)
        self._status = "stopped"
        append_event(self.run.path, "stop", step=step, exit_code=EXIT_REQUEUE)

    def sync(self) -> None:
        """Bring all lines and event files to the disk: a checkpoint must not outlive the records that lead to it."""
        self._write()
        with contextlib.suppress(OSError):
            flush(self.run.metrics_file)
        for tracker in self.trackers:
            tracker.flush()

    def close(self) -> None:
        self._write()
        for tracker in self.trackers:
            tracker.close(self._status)

    def _write(self) -> None:
        if not self._unwritten:
            return
        try:
            append_line(self.run.metrics_file, b"".join(self._unwritten))
        except OSError as error:
            lines = count(len(self._unwritten), "line")
            logger.warning("%s: can't be written (%s); %s kept", self.run.metrics_file, error.strerror, lines)
        else:
            self._unwritten.clear()

    def _line(self, step: int, kind: str, values: Mapping[str, float], **more: str) -> None:
        line = {"step": step, "kind": kind, **values, **more, "time": round(time.time(), 3)}
        self._unwritten.append(json.dumps(line).encode() + b"\n")
        self._write()
        for tracker in self.trackers:
            tracker.scalars({f"{kind}/{name}": value for name, value in values.items()}, step)
