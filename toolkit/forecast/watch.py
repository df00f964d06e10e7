"""Watch a folder, and make one forecast per new frame.

The folder is checked every few seconds. The forecast of a frame is made once size and modification time of its file are
unchanged between two checks and the frames of its context can be read; files that stay unreadable are retried for
`patience` seconds, then reported and skipped. A frame that was skipped, because frames before it are missing or can't
be read, is tried again when one of them arrives or changes: so frames may arrive late and in any order, and a file with
a time far in the future holds up nothing. Forecasts are named by the time of their last observation, and a frame that
has a forecast is not forecast again, also after a restart. Of the frames that are there at the start, the newest one
with a complete context is forecast. A forecast that can't be written (a full disk) is tried again at the next check.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from shards.errors import ShardError, UsageError
from shards.recent import Archive, Frame
from toolkit.atomic import FileWriteError
from toolkit.errors import ConfigError

logger = logging.getLogger(__name__)

MOST_AT_START = 10  # frames that are tried at the start until one has a complete context
Stat = tuple[int, int] | None  # size and modification time of a file; None: it is gone
Signature = tuple[tuple[str, Stat], ...]  # of the frames of a context


@dataclass(frozen=True)
class Feed:
    """The state of an archive at a check.

    Attributes:
        archive, frames: None and empty where it can't be opened.
        waiting: what is waited for.
        skipped: why frames have no forecast, by frame.
        is_settled: whether the file of a frame is unchanged since the check before this one.
    """

    archive: Archive | None
    frames: tuple[Frame, ...]
    waiting: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    is_settled: Callable[[Frame], bool] = lambda _: True


@dataclass
class Watch:
    """The state of a watched folder.

    Attributes:
        open_archive: opens the archive again, with the frames it has now.
        make: makes and writes the forecast for a frame.
        is_written: whether the forecast of a frame exists.
        should_stop: becomes true when the process is asked to stop.
        every: seconds between checks.
        patience: seconds to retry files that cannot be read.
        context: frames that a forecast is made from.
        on_check: is called after each check.
    """

    open_archive: Callable[[], Archive]
    make: Callable[[Archive, Frame], None]
    is_written: Callable[[Frame], bool]
    should_stop: Callable[[], bool]
    every: float
    patience: float
    context: int
    on_check: Callable[[Feed], None] = lambda _: None
    _done: dict[str, datetime | None] = field(default_factory=dict)  # times of frames with a forecast, or passed over
    _skipped: dict[str, Signature] = field(default_factory=dict)  # what their context was when they were tried
    _reasons: dict[str, str] = field(default_factory=dict)  # why they were skipped
    _before: dict[str, Stat] = field(default_factory=dict)  # what files were at the check before this one
    _now: dict[str, Stat] = field(default_factory=dict)  # and are at this one
    _failing_since: dict[str, float] = field(default_factory=dict)
    _started: bool = False
    _made: int = 0
    _logged: set[str] = field(default_factory=set)  # at the check before this one, and not again at this one
    _messages: set[str] = field(default_factory=set)  # of this check

    def run(self) -> int:
        """Watch until asked to stop; return the number of forecasts made."""
        while not self.should_stop():
            self._check()
            until = time.monotonic() + self.every
            while not self.should_stop() and time.monotonic() < until:
                time.sleep(min(0.2, self.every))
        return self._made

    def _check(self) -> None:
        self._logged, self._messages = self._messages, set()
        archive, series = self._open()
        try:
            if archive is not None:
                self._forecast_new(archive, series)
            waiting = sorted(text.removeprefix("waiting: ") for text in self._messages)
            self.on_check(Feed(archive, series, tuple(waiting), dict(self._reasons), self._is_settled))
        except FileWriteError as error:
            self._log_once(f"waiting: {error}", key=f"{error.filename}: {error.errno}")  # free bytes vary
        finally:
            if archive is not None:
                archive.close()

    def _open(self) -> tuple[Archive | None, tuple[Frame, ...]]:
        """Return the archive and its frames; None and no frames where it can't be opened."""
        try:
            archive = self.open_archive()
            return archive, archive.series()
        except ConfigError:
            raise
        except ShardError as error:  # still empty, or a file that is being written
            self._log_once(f"waiting: {error}")
        except Exception as error:  # of a library that reads such a file
            self._log_once(f"waiting: the archive can't be opened ({type(error).__name__}: {error})")
        return None, ()

    def _forecast_new(self, archive: Archive, series: tuple[Frame, ...]) -> None:
        if series[-1].time is None:
            raise ConfigError("--watch: this archive has no time stamps, so new frames cannot be detected")
        self._before, self._now = self._now, {}
        self._forget(series)
        if not self._started:
            self._start(archive, series)
            return
        for place, frame in enumerate(series):
            name = str(frame)
            if self.should_stop():
                break
            if name in self._done:
                continue
            context = self._look(series, place)
            if context is not None and self._skipped.get(name) != context:
                self._try(archive, frame, context)

    def _start(self, archive: Archive, series: tuple[Frame, ...]) -> None:
        """Forecast the newest frame that can be; the others count as done."""
        for back in range(min(MOST_AT_START, len(series))):
            place = len(series) - 1 - back
            name, context = str(series[place]), self._look(series, place)
            if context is None:
                self._log_once(f"waiting: files of {name} or before it may still be being written")
                return
            self._try(archive, series[place], context)
            if name not in self._done and name not in self._skipped:
                return  # it can't be read yet
            if name in self._done:
                break
        self._started = True
        self._done |= {str(frame): frame.time for frame in series if str(frame) not in self._skipped}

    def _try(self, archive: Archive, frame: Frame, context: Signature) -> None:
        """Make the forecast of a frame, unless it is there."""
        name = str(frame)
        if not self.is_written(frame):
            try:
                self.make(archive, frame)
                self._made += 1
            except UsageError as error:  # too few frames, or a gap among them
                if name not in self._skipped:
                    logger.warning("%s: skipped until its context is complete: %s", frame, error)
                self._skipped[name], self._reasons[name] = context, str(error)
                return
            except ShardError as error:
                if self._gave_up(frame, error):
                    self._skipped[name], self._reasons[name] = context, str(error)
                    self._failing_since.pop(name)
                return
        self._done[name] = frame.time
        for known in (self._skipped, self._reasons, self._failing_since):
            known.pop(name, None)

    def _forget(self, series: tuple[Frame, ...]) -> None:
        """Drop what is known of frames that were deleted: those before the first one that is there."""
        first, there = series[0].time, {str(frame) for frame in series}
        self._done = {
            name: time for name, time in self._done.items() if name in there or (time and first and time > first)
        }
        for known in (self._skipped, self._reasons, self._failing_since):
            for name in known.keys() - there:
                known.pop(name)

    def _look(self, series: tuple[Frame, ...], place: int) -> Signature | None:
        """Return what the context of a frame is; None where one of its files has changed since the last check."""
        context = series[max(0, place + 1 - self.context) : place + 1]
        settled = [self._is_settled(frame) for frame in context]  # of all: each is compared at the next check
        return tuple((str(frame), self._now[str(frame)]) for frame in context) if all(settled) else None

    def _is_settled(self, frame: Frame) -> bool:
        """Return whether the file of a frame is as it was at the check before this one."""
        stat = self._now.setdefault(str(frame), _stat(frame))
        return self._before.get(str(frame), ()) == stat

    def _gave_up(self, frame: Frame, error: ShardError) -> bool:
        since = self._failing_since.setdefault(str(frame), time.monotonic())
        if time.monotonic() - since < self.patience:
            self._log_once(f"waiting: {error}")
            return False
        logger.warning("%s: skipped until a file changes, unreadable for %g s: %s", frame, self.patience, error)
        return True

    def _log_once(self, text: str, key: str = "") -> None:
        if (key or text) not in self._logged | self._messages:
            logger.info("%s", text)
        self._messages.add(key or text)


def _stat(frame: Frame) -> Stat:
    if frame.file is None:  # it has no file of its own
        return (0, 0)
    try:
        stat = frame.file.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
