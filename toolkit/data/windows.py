"""Windows: runs of T consecutive frames, cut from a store's events when they are read.

Events of one continuous run follow each other, so a window may begin in one event and end in the next; overlap needs no
space. Mode labels select events and group scores; models never see them. Does not import torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards import Event, Scale, ShardError, Store, StoreError, TransportError, open_store
from shards.manifest import Codes, FrameSpec
from toolkit.config import RunConfig
from toolkit.config.channels import choose_channels, input_frames
from toolkit.config.data import DataConfig
from toolkit.errors import ConfigError, StoreReplacedError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Window:
    """One sample: frames of codes [T, C, H, W] of the inputs, a key unique in its store, and the label of its mode."""

    frames: Codes
    key: str
    mode: str | None
    targets: tuple[int, ...] | None = None  # channels that are predicted; None: all

    @property
    def observations(self) -> Codes:
        """Return what is predicted and scored, [T, C of the targets, H, W]."""
        return self.frames if self.targets is None else self.frames[:, self.targets]


class WindowSet:
    """All windows of one split, in a fixed order (by run, then by time).

    Attributes:
        channels: the choice of the run; None: all channels of the store, as they are.
    """

    def __init__(
        self,
        store: Store,
        split: str,
        length: int,
        stride: int | None = None,
        modes: Sequence[str] | None = None,
        data: DataConfig | None = None,
    ) -> None:
        """Cut all windows of a split.

        Args:
            length: T, frames per window.
            stride: frames between the starts of consecutive windows; None: T, no overlap.
            modes: use only events of these modes.
            data: of a config that may choose channels.

        Raises:
            ConfigError: an unknown split, mode or channel, or no run is as long as a window.
        """
        self.store, self.split, self.length = store, split, length
        self.scale: Scale = store.manifest.scale
        self.channels = None if data is None else choose_channels(data, store.manifest.frames, str(store.path))
        self._data = data
        if split not in store.splits:
            raise ConfigError(f"{store.path}: no split {split!r}; it has {', '.join(store.splits)}")
        self._events = [event for event in store.events(split) if modes is None or event.mode in modes]
        if not self._events:
            known = sorted({event.mode for event in store.events(split) if event.mode})
            raise ConfigError(
                f"{store.path}: split {split!r} has no event of mode {', '.join(modes or ())!s}; it has "
                f"{', '.join(known) or 'no labelled events'} (data.modes)"
            )
        self._after = {(event.run, event.run_offset): event for event in self._events}
        self._starts = self._cut(length, stride or length)

    @property
    def frames(self) -> FrameSpec:
        """Return the frames of the windows: those of the store with the channels that are read."""
        frames = self.store.manifest.frames
        return frames if self._data is None else input_frames(self._data, frames)

    def _cut(self, length: int, stride: int) -> list[tuple[int, int]]:
        """Return (index in self._events, first frame) of every window."""
        starts: list[tuple[int, int]] = []
        longest = 0
        for run in self._runs():
            lengths = [self._events[place].length for place in run]
            ends = np.cumsum(lengths)
            longest = max(longest, int(ends[-1]))
            for first in range(0, int(ends[-1]) - length + 1, stride):
                part = int(np.searchsorted(ends, first, side="right"))
                starts.append((run[part], first - int(ends[part]) + lengths[part]))
        if not starts:
            raise ConfigError(
                f"{self.store.path}: split {self.split!r}: windows of {length} frames (data.context + data.horizon) "
                f"are longer than the longest run without a gap, {longest} frames: choose a shorter context "
                f"or horizon, or other splits (python -m shards info {self.store.path})"
            )
        return starts

    def _runs(self) -> list[list[int]]:
        """Return the indices in self._events of each run without a gap, in time order."""
        by_run: dict[str, list[int]] = defaultdict(list)
        for place, event in enumerate(self._events):
            by_run[event.run].append(place)
        runs = []
        for places in by_run.values():
            places.sort(key=lambda place: self._events[place].run_offset)
            part = [places[0]]
            for place in places[1:]:
                before = self._events[part[-1]]
                if self._events[place].run_offset == before.run_offset + before.length:
                    part.append(place)
                else:  # the event in between is in another split or mode
                    runs.append(part)
                    part = [place]
            runs.append(part)
        return runs

    def __len__(self) -> int:
        return len(self._starts)

    def spread(self, most: int) -> list[int]:
        """Return the indices of at most `most` windows, evenly spaced."""
        number = min(most, len(self))
        return [place * len(self) // number for place in range(number)]

    def mode(self, index: int) -> str | None:
        """Return the label of a window's mode, without reading the window."""
        return self._events[self._starts[index][0]].mode

    def __getitem__(self, index: int) -> Window:
        place, first = self._starts[index]
        event = self._events[place]
        parts = []
        missing, start, at = self.length, first, event
        while missing:
            stop = min(at.length, start + missing)
            parts.append(self._read(at, start, stop))
            missing -= stop - start
            if missing:
                at, start = self._after[at.run, at.run_offset + at.length], 0
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
        key = f"{event.key}@{first:04d}"
        if self.channels is None:
            return Window(frames, key, event.mode)
        return Window(frames[:, self.channels.inputs], key, event.mode, self.channels.targets)

    def _read(self, event: Event, start: int, stop: int) -> Codes:
        """Return frames of an event.

        Raises:
            StoreReplacedError: they can't be read, and another store has taken the place of the one opened.
        """
        try:
            return self.store.read(self.split, event.index, start, stop)
        except TransportError:
            raise
        except StoreError as error:
            try:
                there = open_store(self.store.path).manifest.digest
            except ShardError:
                raise error from None
            opened = self.store.manifest.digest
            if there == opened:
                raise
            raise StoreReplacedError(
                f"{self.store.path}: the store was replaced while it was read: its manifest had the digest {opened}, "
                f"now it has {there}. Put the store back that this run was started on, then run the same command "
                f"again. What could not be read: {error}"
            ) from None

    def time(self, index: int) -> str | None:
        """Return when the first frame of a window was taken, ISO-8601 UTC; None where the store has no clock.

        It is the frame's own time where the store keeps them, else that of the event's beginning and the time step.
        """
        place, frame = self._starts[index]
        event: Event = self._events[place]
        if event.start_time is None or not (step := self.store.manifest.step_seconds):
            return None
        times = self.store.metadata(self.split, event.index).get("times")
        if times is not None:
            return str(times[frame])
        begin = datetime.fromisoformat(event.start_time.removesuffix("Z"))
        return (begin + timedelta(seconds=step * frame)).isoformat(timespec="seconds") + "Z"


def open_windows(config: RunConfig, split: str) -> WindowSet:
    """Return the windows of a split of the run's store, as used for scoring.

    Raises:
        ConfigError: no store, an unknown split, or windows longer than any event.
    """
    data = config.data
    store = open_store(store_of(config))
    return WindowSet(store, split, data.context + data.horizon, data.eval_stride, data=data)


def store_of(config: RunConfig) -> str:
    """Return where the run's data lie.

    Raises:
        ConfigError: `data.store` is not set, or a relative path that leads to no folder from here.
    """
    store = config.data.store
    if not store:
        raise ConfigError("data.store is not set: name a folder made by `python -m shards convert`")
    if "://" not in store and not Path(store).is_absolute() and not Path(store).exists():
        raise ConfigError(
            f"data.store {store}: no such folder in the working directory, {Path.cwd()}, which a relative path is "
            "relative to: change to its folder, or write the whole path"
        )
    return store


def numbers(codes: torch.Tensor) -> torch.Tensor:
    """Return codes in a type that PyTorch compares: uint8, or int32 for uint16, which it only copies and converts."""
    return codes if codes.dtype.itemsize == 1 else codes.int()


def observed(codes: torch.Tensor, scale: Scale) -> torch.Tensor | None:
    """Return a mask: True for observed, False for missing pixels; None if the scale has no missing code."""
    return None if scale.missing_code is None else numbers(codes) != scale.missing_code


def to_unit(codes: torch.Tensor, scale: Scale) -> torch.Tensor:
    """Convert codes to float32 in 0..1 (code / max_code); missing pixels become 0."""
    values = codes.float() / scale.max_code
    seen = observed(codes, scale)
    return values if seen is None else values.masked_fill(~seen, 0.0)
