"""A forecast for every frame that arrives, in a folder that fills as a radar scans.

The folder is looked at every few seconds. A frame's forecast is made once its file has the size and time that it had at
the look before and can be read; a file that stays unreadable is waited for `patience` seconds, then told and passed
over. Forecasts are named by the time of their last observation, and what has one isn't forecast again, by this process
or by a later one. The first frame that gets one is the newest that is there at the start. Nothing is made of a frame
after a gap until the context is unbroken again; this is told too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shards.errors import ShardError, UsageError
from shards.recent import Archive, Frame
from toolkit.errors import ConfigError

Say = Callable[[str], None]


@dataclass
class Watch:
    """
    Attributes:
        look: opens the archive anew.
        make: makes and writes the forecast that begins with a frame.
        written: whether a frame's forecast stands there already.
        stop: becomes true when the process is asked to end.
    """

    look: Callable[[], Archive]
    make: Callable[[Archive, Frame], None]
    written: Callable[[Frame], bool]
    stop: Callable[[], bool]
    say: Say
    every: float
    patience: float
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # size and mtime at the last look
    _failing: dict[str, float] = field(default_factory=dict)  # since when a frame can't be read
    _passed: Frame | None = None  # the newest frame that is dealt with
    _said: str = ""

    def run(self) -> int:
        """Until asked to stop; returns how many forecasts were made."""
        made = 0
        while not self.stop():
            made += self._round()
            until = time.monotonic() + self.every
            while not self.stop() and time.monotonic() < until:
                time.sleep(min(0.2, self.every))
        return made

    def _round(self) -> int:
        try:
            archive = self.look()
            series = archive.series()
        except ShardError as error:  # nothing there yet, or a file that is being written
            self._once(f"waiting: {error}")
            return 0
        try:
            return self._forecast_new(archive, series)
        finally:
            archive.close()

    def _forecast_new(self, archive: Archive, series: tuple[Frame, ...]) -> int:
        made = 0
        for frame in self._new(series):
            if self.stop() or not self._settled(frame):
                break
            if not self.written(frame):
                try:
                    self.make(archive, frame)
                    made += 1
                except UsageError as error:  # too few frames, or a gap among them
                    self.say(f"{frame}: no forecast: {error}")
                except ShardError as error:
                    if not self._given_up(frame, error):
                        break
            self._passed = frame
        return made

    def _new(self, series: tuple[Frame, ...]) -> list[Frame]:
        """Frames after the last that is dealt with, oldest first."""
        if series[-1].time is None:
            raise ConfigError("--watch: this archive has no clock, so no frame is newer than another")
        if self._passed is None:
            return [series[-1]]
        newest = self._passed.time
        return [frame for frame in series if frame.time is not None and newest is not None and frame.time > newest]

    def _settled(self, frame: Frame) -> bool:
        """Its file is as it was at the last look."""
        if frame.file is None:
            return True
        try:
            stat = frame.file.stat()
        except FileNotFoundError:
            return False
        now = (stat.st_size, stat.st_mtime_ns)
        before = self._seen.get(str(frame))
        self._seen = {str(frame): now}
        return before == now

    def _given_up(self, frame: Frame, error: ShardError) -> bool:
        since = self._failing.setdefault(str(frame), time.monotonic())
        if time.monotonic() - since < self.patience:
            self._once(f"waiting: {error}")
            return False
        self.say(f"{frame}: no forecast, unreadable for {self.patience:g} s: {error}")
        return True

    def _once(self, text: str) -> None:
        if text != self._said:
            self.say(text)
        self._said = text
