"""`--watch` on archives whose frames arrive late, out of order, half written, or with a time of the year 2099."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shards.errors import SourceError
from shards.recent import Archive, Frame
from shards.sources import PlannedEvent
from toolkit.atomic import FileWriteError, replacing
from toolkit.forecast.watch import Watch

START, STEP, CONTEXT = datetime(2016, 7, 11, 21), timedelta(minutes=5), 3


@dataclass
class Station:
    """A folder of files named by minutes; each holds "whole" or something else. Checks happen when the test says so."""

    folder: Path
    made: list[int] = field(default_factory=list)
    fault: Exception | None = None  # of the disk that forecasts are written to
    clock: float = 0.0

    def __post_init__(self) -> None:
        (self.folder / "in").mkdir()
        self.watch = Watch(self.open, self.make, self.is_written, lambda: False, 1.0, 10.0, CONTEXT)

    def put(self, *numbers: int, text: str = "whole") -> None:
        for number in numbers:
            (self.folder / "in" / f"{number:05d}").write_text(text)

    def open(self) -> Archive:
        frames = []
        for file in sorted((self.folder / "in").iterdir()):
            if file.read_text() == "blocks":
                raise KeyError("Unable to open object")  # as h5py does
            time = datetime(2099, 1, 1) if file.name == "99999" else START + int(file.name) * STEP
            frames.append(Frame(time, "", PlannedEvent(file.name, 1), 0, file))
        return Archive("in", None, tuple(frames), lambda event: None)  # type: ignore[arg-type]

    def make(self, archive: Archive, frame: Frame) -> None:
        for shown in archive.up_to(frame, CONTEXT, STEP.total_seconds()):
            assert shown.file is not None
            if shown.file.read_text() != "whole":
                raise SourceError(f"{shown.file}: cut off")
        if self.fault is not None:
            raise self.fault
        with replacing(self.folder / "out" / frame.key) as file:
            file.write(b"forecast")
        self.made.append(int(frame.key))

    def is_written(self, frame: Frame) -> bool:
        return (self.folder / "out" / frame.key).exists()

    def check(self, times: int = 2) -> list[int]:
        """Look so often; return what was made since the last time."""
        before = len(self.made)
        for _ in range(times):
            self.watch._check()
        return self.made[before:]


@pytest.fixture
def station(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Station:
    made = Station(tmp_path)
    monkeypatch.setattr("toolkit.forecast.watch.time.monotonic", lambda: made.clock)
    return made


def test_a_frame_of_2099_holds_up_nothing(station: Station) -> None:
    station.put(0, 1, 2, 99999)
    assert station.check(4) == [2]  # of those at the start, the newest that can be
    station.put(3)
    assert station.check() == [3]
    station.put(4)
    station.put(5)
    assert station.check() == [4, 5]


def test_frames_that_arrive_late_and_those_after_them_are_forecast(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    station.put(0, 1, 2)
    assert station.check() == [2]
    station.put(4)
    assert station.check(5) == []
    station.put(5)
    assert station.check(5) == []
    told = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert [text.partition(": ")[0] for text in told] == ["2016-07-11T21:20:00Z", "2016-07-11T21:25:00Z"]  # each once
    station.put(3)
    assert station.check() == [3, 4, 5]
    assert station.check(5) == []


@pytest.mark.parametrize("text", ["half", "blocks"])
def test_a_file_that_is_still_being_written_is_waited_for(station: Station, text: str) -> None:
    station.put(0, 1, 2)
    station.check()
    station.put(3, text=text)
    assert station.check(5) == []
    station.clock = 5.0
    station.put(3)
    assert station.check() == [3]


def test_a_file_that_is_finished_after_it_was_given_up(station: Station) -> None:
    station.put(0, 1, 2)
    station.check()
    station.put(3, text="half")
    station.put(4)
    assert station.check(3) == []
    station.clock = 11.0
    assert station.check(3) == []
    station.put(3)
    assert station.check(3) == [3, 4]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_forecast_that_can_not_be_written_is_tried_again(
    station: Station, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    station.put(0, 1, 2)
    station.fault = FileWriteError(OSError(code, os.strerror(code)), station.folder / "out" / "00002", 7)
    assert station.check(9) == []
    told = [record.getMessage() for record in caplog.records if "not written" in record.getMessage()]
    assert len(told) == 1
    assert f"{station.folder}/out/00002" in told[0] and os.strerror(code) in told[0]
    assert (" belongs to " if code == errno.EACCES else "bytes are free") in told[0]
    station.fault = None
    assert station.check() == [2]


def test_what_has_a_forecast_gets_no_other_after_a_restart(station: Station) -> None:
    station.put(0, 1, 2)
    assert station.check() == [2]
    again = Watch(station.open, station.make, station.is_written, lambda: False, 1.0, 10.0, CONTEXT)
    station.watch = again
    assert station.check(3) == []
    station.put(3)
    assert station.check() == [3]


def test_two_reasons_to_wait_are_logged_once_each(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    station.put(0, 1, 2)
    station.check()
    station.put(3, 6, text="half")
    station.put(4, 5)
    with caplog.at_level("INFO"):
        station.check(6)
    texts = [record.getMessage() for record in caplog.records if "waiting" in record.getMessage()]
    assert len(texts) == len(set(texts)) and {"00003", "00006"} <= {text.rpartition("/")[2][:5] for text in texts}, (
        texts
    )


def test_frames_that_were_deleted_are_forgotten(station: Station) -> None:
    for number in range(40):
        station.put(number, text="half" if number % 10 == 9 else "whole")
        station.check()
        station.clock += 11
        station.check()
        (station.folder / "in" / f"{number - 5:05d}").unlink(missing_ok=True)
    made = list(station.made)
    for known in (station.watch._done, station.watch._skipped, station.watch._failing_since):
        assert len(known) <= 6
    station.put(30)  # an old frame again: it has its forecast
    assert station.check(4) == [] and station.made == made


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_full_disk_at_any_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target: Callable[..., Any] | str = "builtins.open" if call == "open" else f"os.{call}"
    monkeypatch.setattr(target, full)
    what = r"file: not written: No space left on device.*bytes are free"
    with pytest.raises(FileWriteError, match=what) as caught, replacing(path) as file:
        file.write(b"after")
    monkeypatch.undo()
    assert caught.value.exit_code == 1
    assert path.read_text() == "before" and [item.name for item in tmp_path.iterdir()] == ["file"]
