"""The files of a nowcast page.

    page.json                    settings of the forecasts, those of the next ones while there are none; a folder that
                                 has it belongs to a page
    page.lock                    locked by the process that writes here
    index.html, latest.nc, latest.png
    forecasts/forecast-TIME.json     record: written first, names the other files
    forecasts/forecast-TIME-*.png    frames
    forecasts/forecast-TIME.npz      fields that are verified later (fields.py), until all lead times are
    forecasts/forecast-TIME.nc       written last: a record without it is of a process that was killed

Files are deleted only if a record names them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shards.filelock import lock_file
from toolkit.atomic import FileWriteError, clear_leftovers, write_atomic
from toolkit.errors import ConfigError
from toolkit.rundir.records import object_fault, read_object
from toolkit.wording import count, some

logger = logging.getLogger(__name__)

SETTINGS, LOCK, FORECASTS, STEM = "page.json", "page.lock", "forecasts", "forecast"
LAYOUT = 1
STAMP = re.compile(r"\d{8}T\d{6}Z")
Columns = dict[str, float | None]  # of a score table; None: undefined
TYPES = {"stamp": str, "made": str, "shown": list, "members": int, "thresholds": list, "files": list, "scores": dict}


@dataclass
class Entry:
    """The record of one forecast.

    Attributes:
        stamp: time of the last observation, 20160711T220000Z.
        made: when the forecast was made, UTC.
        shown: lead times, in steps, that have pictures.
        members: members that have pictures; 0 for a single forecast.
        thresholds: that have pictures of the probability of reaching them.
        files: names of its files, in `FORECASTS`.
        scores: columns of a score table by method and lead time in steps.
    """

    stamp: str
    made: str
    shown: list[int]
    members: int
    thresholds: list[float]
    files: list[str]
    scores: dict[str, dict[str, Columns]] = field(default_factory=dict)

    def name(self, what: str) -> str:
        """Return the name of one of its files: `.nc`, `-observation-03.png`."""
        return f"{STEM}-{self.stamp}{what}"

    def scored(self) -> set[int]:
        """Return the lead times, in steps, that are verified."""
        return {int(lead) for lead in next(iter(self.scores.values()), {})}


class PageFolder:
    """The folder of a page, locked for this process.

    Attributes:
        damaged: records that can't be read; their files are kept.
        unlock: call it before the end of the process.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """
        Args:
            settings: what all forecasts of a page have in common.

        Raises:
            ConfigError: it holds something else, a page of other settings, or another process writes to it.
        """
        self.path, self.forecasts = path, path / FORECASTS
        self.damaged: dict[str, str] = {}
        self._check_ours()
        try:
            self.forecasts.mkdir(parents=True, exist_ok=True)
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise FileWriteError(error, path) from None
        self.unlock = weakref.finalize(self, os.close, lock)
        try:
            self._acquire(lock)
            left = [*clear_leftovers(path), *clear_leftovers(self.forecasts)]
            if left:
                logger.info("%s: removed %s of a killed process", path, count(len(left), "temporary file"))
            self.entries = self._read()
            self._compare_settings({"layout": LAYOUT, **settings})
        except BaseException:
            self.unlock()
            raise

    def _check_ours(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"--page {self.path}: is a file: choose a folder")
        inside = sorted(item.name for item in self.path.iterdir()) if self.path.exists() else []
        if SETTINGS not in inside:
            strangers = [name for name in inside if name not in (LOCK, FORECASTS) and not name.endswith(".tmp")]
            if strangers or (FORECASTS in inside and any(self.forecasts.iterdir())):
                raise ConfigError(
                    f"--page {self.path}: holds {some(strangers or [FORECASTS])} and no {SETTINGS}, so it is not the "
                    "folder of a page: choose an empty one"
                )
            return
        file = self.path / SETTINGS
        fault = object_fault(file)
        if fault is None and (layout := read_object(file).get("layout")) != LAYOUT:
            fault = f"layout is {layout!r}, pages have {LAYOUT}"
        if fault is not None:
            raise ConfigError(f"--page {file}: {fault}: choose another folder")

    def _compare_settings(self, settings: Mapping[str, Any]) -> None:
        """Compare the settings with those of the forecasts that are here; without any, they are replaced."""
        file = self.path / SETTINGS
        there, wanted = read_object(file), json.loads(json.dumps(settings))
        if self.entries or self.damaged:
            differing = [key for key in sorted(there) if there[key] != wanted.get(key)]
            if differing:
                told = "; ".join(f"{key} is {there[key]!r}, this command has {wanted.get(key)!r}" for key in differing)
                raise ConfigError(
                    f"--page {self.path}: shows other forecasts, whose scores can't be pooled with these: {told}: "
                    f"choose another folder, or delete {self.forecasts}"
                )
            if unknown := sorted(wanted.keys() - there.keys()):  # of an earlier version
                logger.warning("%s: has no %s: taken to be as in this command", file, ", ".join(unknown))
        if there != wanted:
            write_atomic(file, json.dumps(wanted, indent=1) + "\n")

    def _acquire(self, lock: int) -> None:
        try:
            if not lock_file(lock):
                raise ConfigError(f"--page {self.path}: another process writes to it: stop that one first")
        except OSError as error:
            logger.warning("%s: no lock (%s): start no second process on this folder", self.path, error.strerror)

    def _read(self) -> dict[str, Entry]:
        """Return the complete forecasts by stamp, in order of time; remove incomplete ones."""
        found: dict[str, Entry] = {}
        for file in sorted(self.forecasts.glob(f"{STEM}-*.json")):
            entry = _entry(file)
            if entry is None:
                self.damaged[file.name] = object_fault(file) or "is not the record of a forecast"
                logger.warning("%s: %s; its files are kept but not shown", file, self.damaged[file.name])
            elif (self.forecasts / entry.name(".nc")).exists():
                found[entry.stamp] = entry
            else:
                logger.info("%s: removed, its forecast was not completed", file)
                self.delete(entry)
        return found

    def save(self, entry: Entry) -> None:
        """Write the record of a forecast."""
        write_atomic(self.forecasts / entry.name(".json"), json.dumps(asdict(entry), indent=1) + "\n")

    def delete(self, entry: Entry) -> None:
        """Delete the files of a forecast, the record last."""
        for name in (entry.name(".nc"), *entry.files, entry.name(".json")):
            try:
                (self.forecasts / name).unlink(missing_ok=True)
            except OSError as error:
                raise FileWriteError(error, self.forecasts / name) from error

    def prune(self, keep: int) -> None:
        """Delete all but the newest forecasts."""
        for stamp in sorted(self.entries)[:-keep]:
            self.delete(self.entries[stamp])
            del self.entries[stamp]


def _entry(file: Path) -> Entry | None:
    """Return a record; None for a file that is none, or names files that aren't of its forecast."""
    read = read_object(file, TYPES)
    if set(read) != {known.name for known in fields(Entry)}:
        return None
    entry = Entry(**read)
    mine = re.compile(rf"{STEM}-{re.escape(entry.stamp)}(-[a-z]+[0-9-]*)?\.(npz|png)")
    proper = STAMP.fullmatch(entry.stamp) and file.name == entry.name(".json")
    return entry if proper and all(isinstance(name, str) and mine.fullmatch(name) for name in entry.files) else None
