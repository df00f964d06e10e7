"""A service that is fed from a thread: nothing twice, nothing lost, and no training that waits or ends for it."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.config import RunConfig
from toolkit.rundir import RunDir
from toolkit.rundir.metrics import forget_after
from toolkit.trackers import background
from toolkit.trackers.background import Background
from toolkit.trackers.base import Picture, Scored, Status

PICTURE = np.zeros((2, 2, 3), np.uint8)
SCORED = Scored("test-best", "ab", 6, {"mse": 1.0}, {"mse": [1.0, None]}, "frames", 1)


class Kept:
    """A service that keeps what it gets, over restarts; `refused`: it raises so often."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.ids: list[str] = []
        self.refused = 0
        self.does_not_close = False
        self.hangs: threading.Event | None = None

    def connect(self, run: RunDir, config: RunConfig, record: dict[str, Any]) -> Kept:
        self._may_fail()
        self.ids.append(record.setdefault("id", f"id{len(self.ids)}"))
        return self

    def _may_fail(self) -> None:
        if self.hangs:
            self.hangs.wait(60)
        if self.refused:
            self.refused -= 1
            raise ConnectionError("no route to https://me:hunter2@host: token-of-mine\nmore")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._may_fail()
        self.got.append((step, dict(values)))

    def image(self, name: str, picture: Picture, step: int) -> None:
        self._may_fail()
        self.got.append((step, name))

    def summary(self, values: Mapping[str, float], step: int) -> None:
        self.got.append((f"summary of {step}", dict(values)))

    def scores(self, scored: Scored) -> None:
        self._may_fail()
        self.got.append((scored.step, scored.name))

    def close(self, status: Status) -> None:
        if self.does_not_close:
            raise ConnectionError("no route to host")
        self.got.append(status)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "sweep" / "run", RunConfig())


def write(run: RunDir, *steps: int) -> None:
    with run.metrics_file.open("a") as file:
        for step in steps:
            file.write(
                json.dumps({"step": step, "kind": "train", "loss": step / 10, "samples": "0f", "time": 1.0}) + "\n"
            )


def steps_of(service: Kept) -> list[int]:
    return [
        item[0]
        for item in service.got
        if isinstance(item, tuple) and isinstance(item[0], int) and isinstance(item[1], dict)
    ]


def test_a_resumed_run_continues_its_id_and_sends_no_step_again(run: RunDir) -> None:
    service = Kept()
    first = Background("fake", run, service.connect)
    for step in range(1, 6):
        write(run, step)
        first.scalars({"train/loss": step / 10}, step)
    first.close("stopped")  # what follows is as after a kill: from the checkpoint of step 3 on
    forget_after(run.metrics_file, 3)
    second = Background("fake", run, service.connect)
    for step in range(4, 9):
        write(run, step)
        second.scalars({"train/loss": step / 10}, step)
    second.close("finished")
    assert steps_of(service) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert service.got[0] == (1, {"train/loss": 0.1}), "neither fingerprint nor time"
    assert service.ids == ["id0", "id0"]
    assert [item for item in service.got if isinstance(item, str)] == ["stopped", "finished"]


def test_half_a_line_waits_for_its_end_and_a_damaged_one_counts_for_nothing(run: RunDir) -> None:
    service = Kept()
    tracker = Background("fake", run, service.connect)
    run.metrics_file.write_bytes(b'{"step": 1, "kind": "train", "loss": 1}\n{"step": 2, "ki\n[]\n{"step": 3, "kind": ')
    tracker.scalars({}, 1)
    tracker.close("stopped")
    assert steps_of(service) == [1]
    forget_after(run.metrics_file, 3)
    write(run, 2)
    again = Background("fake", run, service.connect)
    again.scalars({}, 2)
    again.close("finished")
    assert steps_of(service) == [1, 2]


def test_a_service_that_fails_is_logged_once_and_gets_all_records_later(
    run: RunDir, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token-of-mine")
    service = Kept()
    service.refused = 1_000
    write(run, 1, 2, 3)
    with run.metrics_file.open("a") as file:
        file.write(
            '{"step": 3, "kind": "val", "mse": 0.5, "best": 1.0}\n{"step": 6, "kind": "val", "mse": 2, "best": 0.0}\n'
        )
    tracker = Background("fake", run, service.connect)
    tracker.scalars({}, 3)
    tracker.image("val/0", PICTURE, 3)
    tracker.close("finished")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert warnings[0].startswith(
        "fake: ConnectionError: no route to https://***@host: $MLFLOW_TRACKING_TOKEN; left out"
    )
    assert "5 records of metrics.jsonl not sent, 1 picture left out" in warnings[1]
    service.refused = 0
    caplog.clear()
    for _ in range(2):
        again = Background("fake", run, service.connect)
        again.close("finished")
    assert steps_of(service) == [1, 2, 3, 3, 6]
    assert service.got[-2:] == [("summary of 3", {"best_mse": 0.5, "best_step": 3.0}), "finished"]
    assert not caplog.records


def test_an_outage_in_between_loses_no_record(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RETRY_S", 0.0)
    service = Kept()
    tracker = Background("fake", run, service.connect)
    write(run, 1)
    tracker.scalars({}, 1)
    for step in range(2, 30):
        if step % 5 == 0:
            service.refused = 2
        write(run, step)
        tracker.scalars({}, step)
    tracker.close("finished")
    assert steps_of(service) == list(range(1, 30))


def test_a_service_that_hangs_is_not_waited_for(
    run: RunDir, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(background.CLOSE_S, "finished", 0.2)
    monkeypatch.setattr(background, "MOST_WAITING", 3)
    service = Kept()
    service.hangs = threading.Event()
    tracker = Background("fake", run, service.connect)
    write(run, 1, 2)
    for _ in range(6):
        tracker.image("val/0", PICTURE, 2)
    tracker.close("finished")
    assert "still busy after 0.2 s" in caplog.text
    assert "2 records of metrics.jsonl not sent" in caplog.text
    service.hangs.set()
    tracker._thread.join(60)


def test_a_service_with_nothing_to_get_is_not_called(run: RunDir) -> None:
    service = Kept()
    for _ in range(2):
        tracker = Background("fake", run, service.connect)
        tracker.config(RunConfig())
        tracker.scores(SCORED)
        tracker.close("finished")
    assert service.got == [(6, "test-best"), "finished"]


def test_scores_follow_all_records(run: RunDir) -> None:
    """As W&B wants it, also where a training could not send anything and the evaluation is the first that can."""
    service = Kept()
    write(run, 1, 2, 3)
    tracker = Background("fake", run, service.connect)
    tracker.scores(SCORED)
    tracker.close("finished")
    assert steps_of(service) == [1, 2, 3] and service.got[3:] == [(6, "test-best"), "finished"]


def test_scores_that_are_refused_are_sent_at_the_end_or_reported(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    service = Kept()
    service.refused = 1  # the connection; the next try is at the end
    write(run, 1)
    tracker = Background("fake", run, service.connect)
    tracker.scores(SCORED)
    tracker.close("finished")
    assert steps_of(service) == [1] and service.got[1:] == [(6, "test-best"), "finished"]
    caplog.clear()
    service.refused = 1_000
    tracker = Background("fake", run, service.connect)
    tracker.scores(dataclasses.replace(SCORED, digest="cd"))
    tracker.close("finished")
    assert "fake: 1 evaluation not sent. The next evaluation of this run sends them" in caplog.text
    assert "records" not in caplog.text.partition("fake: 1 evaluation")[2]


def test_scores_that_a_service_may_have_held_back_are_sent_again(run: RunDir) -> None:
    service = Kept()
    for fails in (True, False, False):
        service.does_not_close = fails
        tracker = Background("fake", run, service.connect)
        tracker.scores(SCORED)
        tracker.close("finished")
    assert service.got == [(6, "test-best"), (6, "test-best"), "finished"]


def test_a_disk_that_is_full_ends_nothing(
    run: RunDir, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(background, "write_atomic", full)
    service = Kept()
    tracker = Background("fake", run, service.connect)
    write(run, 1)
    tracker.scalars({}, 1)
    tracker.close("finished")
    assert "No space left on device" in caplog.text
