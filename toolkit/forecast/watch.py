"""Watch a folder, and make one forecast per new frame.

The folder is checked every few seconds. The forecast of a frame is made once size and modification time of its file are
unchanged between two checks and the file can be read; a file that stays unreadable is retried for `patience` seconds,
then reported and skipped. Forecasts are named by the time of their last observation, and a frame that has a forecast is
not forecast again, also after a restart. The first forecast is for the newest frame at the start. After a gap, no
forecast is made until the context is complete again; this is logged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shards.errors import ShardError, UsageError
from shards.recent import Archive, Frame
from toolkit.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass
class Watch:
    """The state of a watched folder.

    Attributes:
        open_archive: opens the archive again, with the frames it has now.
        make: makes and writes the forecast for a frame.
        is_written: whether the forecast of a frame exists.
        should_stop: becomes true when the process is asked to stop.
        every: seconds between checks.
        patience: seconds to retry a file that cannot be read.
    """

    open_archive: Callable[[], Archive]
    make: Callable[[Archive, Frame], None]
    is_written: Callable[[Frame], bool]
    should_stop: Callable[[], bool]
    every: float
    patience: float
    _last_stat: dict[str, tuple[int, int]] = field(default_factory=dict)  # size and mtime at the last check
    _failing_since: dict[str, float] = field(default_factory=dict)
    _last_done: Frame | None = None  # the newest frame that was forecast or skipped
    _last_message: str = ""

    def run(self) -> int:
        """Watch until asked to stop; return the number of forecasts made."""
        made = 0
        while not self.should_stop():
            made += self._check()
            until = time.monotonic() + self.every
            while not self.should_stop() and time.monotonic() < until:
                time.sleep(min(0.2, self.every))
        return made

    def _check(self) -> int:
        try:
            archive = self.open_archive()
            series = archive.series()
        except ShardError as error:  # still empty, or a file that is being written
            self._log_once(f"waiting: {error}")
            return 0
        try:
            return self._forecast_new(archive, series)
        finally:
            archive.close()

    def _forecast_new(self, archive: Archive, series: tuple[Frame, ...]) -> int:
        made = 0
        for frame in self._new(series):
            if self.should_stop() or not self._is_complete(frame):
                break
            if not self.is_written(frame):
                try:
                    self.make(archive, frame)
                    made += 1
                except UsageError as error:  # too few frames, or a gap among them
                    logger.warning("%s: skipped: %s", frame, error)
                except ShardError as error:
                    if not self._gave_up(frame, error):
                        break
            self._last_done = frame
        return made

    def _new(self, series: tuple[Frame, ...]) -> list[Frame]:
        """Return the frames after the last one that was forecast or skipped, oldest first."""
        if series[-1].time is None:
            raise ConfigError("--watch: this archive has no time stamps, so new frames cannot be detected")
        if self._last_done is None:
            return [series[-1]]
        newest = self._last_done.time
        return [frame for frame in series if frame.time is not None and newest is not None and frame.time > newest]

    def _is_complete(self, frame: Frame) -> bool:
        """Return whether the file is unchanged since the last check."""
        if frame.file is None:
            return True
        try:
            stat = frame.file.stat()
        except FileNotFoundError:
            return False
        now = (stat.st_size, stat.st_mtime_ns)
        before = self._last_stat.get(str(frame))
        self._last_stat = {str(frame): now}
        return before == now

    def _gave_up(self, frame: Frame, error: ShardError) -> bool:
        since = self._failing_since.setdefault(str(frame), time.monotonic())
        if time.monotonic() - since < self.patience:
            self._log_once(f"waiting: {error}")
            return False
        logger.warning("%s: skipped, unreadable for %g s: %s", frame, self.patience, error)
        return True

    def _log_once(self, text: str) -> None:
        if text != self._last_message:
            logger.info("%s", text)
        self._last_message = text
