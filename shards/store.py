"""Reading a store: `open_store`, and what all formats have in common.

    store = open_store("stores/mmnist")
    event = store.events("train")[7]
    frames = store.read("train", event.index, 0, 10)    # codes [10, C, H, W]

A store may be handed to other processes, by fork or pickle: each opens its own files, when it first needs them.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from shards.clock import times_of_frames
from shards.errors import ContentError, ManifestError, StoreError, TransportError, UsageError, printable, verify_hint
from shards.fields import Fields, parse_json
from shards.files import Files, LocalFiles
from shards.manifest import KEY_PATTERN, MANIFEST_NAME, Codes, Manifest, SplitInfo
from shards.remote import CACHE_VARIABLE, CachedFiles, Expected, HttpFiles, Retry, location

Check = Literal["first", "never"]
Faults = Literal["opening", "reading"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a split: `index` is its place there, `length` its number of frames.

    `run` names the unbroken run that it is part of, and `run_offset` its first frame's index in that run: an event
    continues in the next one if that has the same run and the offset run_offset + length. `start_time` is ISO-8601 UTC.
    """

    key: str
    index: int
    length: int
    mode: str | None
    run: str
    run_offset: int
    start_time: str | None


def is_sound(event: Event) -> bool:
    """Return whether every field of an event that a file describes has its type, and a value that can be."""
    numbers = (event.length, event.run_offset)
    texts = (event.key, event.run, *(text for text in (event.mode, event.start_time) if text is not None))
    if any(type(number) is not int or not 0 <= number < 1 << 53 for number in numbers) or event.length < 1:
        return False
    if any(not isinstance(text, str) or len(text) > 1000 or printable(text) != text for text in texts):
        return False
    return KEY_PATTERN.fullmatch(event.key) is not None and (event.start_time is None or _is_moment(event.start_time))


def _is_moment(text: object) -> bool:
    """Return whether it is an ISO-8601 time of UTC, without another offset."""
    try:
        return isinstance(text, str) and datetime.fromisoformat(text.removesuffix("Z")).tzinfo is None
    except ValueError:
        return False


class Store(ABC):
    """An open store; `path` is its folder or URL.

    With check="first" an event's CRC is compared when this process first touches it, and at every read where what was
    read once may be other bytes later (from a network, or a cache of files from there): what is read is what was
    written, or a StoreError. With faults="opening" a shard that is absent or cut is reported before the first frame is
    read; with faults="reading", by the StoreError of each event that lies in it, so that the others can be used.
    """

    def __init__(self, files: Files, manifest: Manifest, check: Check = "first", faults: Faults = "opening") -> None:
        self.files = files
        self.path = files.where
        self.manifest = manifest
        self.check = check
        self.faults = faults
        self._tables: dict[str, Any] = {}
        self._checked: set[tuple[str, int]] = set()  # split and index of events

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": {}, "_checked": set()}  # small to send, and each process checks for itself

    @property
    def splits(self) -> Mapping[str, SplitInfo]:
        """Split name -> counts and shards."""
        return self.manifest.splits

    def events(self, split: str) -> list[Event]:
        """Return all events of `split`, in stored order. Raises UsageError for an unknown split, StoreError for a
        damaged index.
        """
        events: list[Event] = self._table(split).events
        return events

    def read(self, split: str, index: int, start: int, stop: int) -> Codes:
        """Read frames [start, stop) of event `index` of `split`: codes [stop - start, C, H, W], contiguous, a copy.

        Raises UsageError for frames that aren't there, and StoreError, naming shard, key and byte, where the bytes
        aren't those that were written.
        """
        events = self._table(split).events
        if not 0 <= index < len(events):
            raise UsageError(f"{self.path}: {split} has {len(events)} events, asked for number {index}")
        event: Event = events[index]
        if not 0 <= start < stop <= event.length:
            raise UsageError(
                f"{self.path}: {split} event {event.key} has {event.length} frames, asked for {start}:{stop}"
            )
        if self.check == "never" or (self.files.fixed and (split, index) in self._checked):
            return self._read(split, index, start, stop)
        whole = self._checked_event(split, index)
        self._checked.add((split, index))
        return whole if stop - start == event.length else whole[start:stop].copy()

    def crc32(self, split: str, index: int) -> int:
        """Return zlib's CRC of an event's frames, as recorded when it was written."""
        recorded: int = self._table(split).crc32[index]
        return recorded

    def check_event(self, split: str, index: int) -> None:
        """Compare the CRC of an event's frames with the one that was written. Raises StoreError."""
        self._checked_event(split, index)

    def _checked_event(self, split: str, index: int) -> Codes:
        """All frames of an event, compared with its CRC."""
        table = self._table(split)
        event: Event = table.events[index]

        def read() -> Codes:
            frames = self._read(split, index, 0, event.length)
            found = zlib.crc32(frames.data)
            if found == table.crc32[index]:
                return frames
            shard, offset = self.locate(split, index)
            raise ContentError(
                f"{self.path}/{shard}: the frames of {event.key} at byte {offset} have CRC {found:#010x}, "
                f"{table.crc32[index]:#010x} was written; {verify_hint(self.path)}",
                shard=shard,
                key=event.key,
                offset=offset,
            )

        return self._insist(read)

    def _insist(self, read: Callable[[], _T]) -> _T:
        """Return what `read` gives. What a network delivered is fetched again before it is called damaged."""
        for _ in range(self.files.attempts - 1):
            try:
                return read()
            except ContentError as error:
                if error.shard is not None:
                    self.files.forget(error.shard)
        return read()

    @abstractmethod
    def shard(self, split: str, index: int) -> str:
        """Return the file below the store in which an event begins."""

    @abstractmethod
    def locate(self, split: str, index: int) -> tuple[str, int]:
        """Return that file, and the byte there where the event's frames begin (where compressed: their chunk)."""

    def metadata(self, split: str, index: int) -> dict[str, Any]:
        """Return everything that KEY.json says of an event, such as the missing share and the source's own details.
        Raises StoreError.
        """
        text = self._insist(lambda: self._metadata(split, index))
        where = f"{self.path}: the metadata of event {index} of {split}"
        try:
            fields = Fields(parse_json(text, where), where)
            found = fields.data
            times = found.get("times")
            length = self._table(split).events[index].length
            if not isinstance(found.get("details", {}), dict):
                raise ManifestError(f"{where}: details should be an object")
            if times is not None and not (
                isinstance(times, list) and len(times) == length and all(map(_is_moment, times))
            ):
                raise ManifestError(f"{where}: times should be {length} of UTC, found {ascii(times)[:100]}")
            return found
        except ManifestError as error:
            what = str(error).replace("; convert the archive again", "")
            raise StoreError(f"{what}; {verify_hint(self.path)}", shard=self.shard(split, index)) from None

    def times(self, split: str, index: int) -> list[datetime] | None:
        """Return the time of every frame of an event, UTC without a zone; None without a clock. Raises StoreError."""
        event = self.events(split)[index]
        if event.start_time is None:
            return None
        try:
            own = self.metadata(split, index).get("times")
            return times_of_frames(event.length, event.start_time, own, self.manifest.step_seconds)
        except ValueError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(
                f"{self.path}: event {event.key} of {split}: {error}; {verify_hint(self.path)}",
                shard=self.shard(split, index),
                key=event.key,
            ) from None

    @abstractmethod
    def _metadata(self, split: str, index: int) -> str:
        """Return the text of KEY.json, checked."""

    def _table(self, split: str) -> Any:
        """Return the format's table of a split's events, loaded once per process; it has at least `events`."""
        table = self._tables.get(split)
        if table is None:
            if split not in self.manifest.splits:
                raise UsageError(f"{self.path} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
            if self.faults == "opening":
                self._check_sizes(split)
            table = self._tables[split] = self._insist(lambda: self._load_table(split))
        return table

    def _check_sizes(self, split: str) -> None:
        """Raise StoreError for a shard that is absent or cut off, before the first frame is read."""
        for shard in self.manifest.splits[split].shards:
            found = self.files.size(shard.file)
            if found is None:
                raise StoreError(
                    f"{self.path}/{shard.file}: this shard is absent; {verify_hint(self.path)}", shard=shard.file
                )
            if found not in (shard.bytes, -1):
                raise StoreError(
                    f"{self.path}/{shard.file}: {found} bytes, the manifest says {shard.bytes}; "
                    + verify_hint(self.path),
                    shard=shard.file,
                    offset=min(found, shard.bytes),
                )

    @abstractmethod
    def _load_table(self, split: str) -> object: ...

    @abstractmethod
    def _read(self, split: str, index: int, start: int, stop: int) -> Codes:
        """Frames of an event as they lie there, unchecked, in an array of their own."""


def open_store(
    path: str | Path,
    *,
    check: Check = "first",
    faults: Faults = "opening",
    cache: str | Path | None = None,
    retry: Retry | None = None,
) -> Store:
    """Open the store in a folder, or behind an http(s)://, s3:// or file:// URL (see remote.py).

    `cache` is a folder for shards fetched from a URL (default: what SHARDS_CACHE says; none: every read is a request
    for its whole event), `retry` how long to insist. Raises ManifestError if there is no store, UsageError for another
    kind of URL.
    """
    place = location(path)
    if isinstance(place, Path):
        manifest = Manifest.load(place)
        files: Files = LocalFiles(place)
    else:
        remote = HttpFiles(place, retry)
        manifest = _remote_manifest(remote)
        folder = cache or os.environ.get(CACHE_VARIABLE)
        name = hashlib.sha256(manifest.to_json().encode()).hexdigest()[:16]  # one folder per store, wherever it lies
        files = CachedFiles(remote, Path(folder) / name) if folder else remote
    if manifest.format == "zarr":
        from shards.zarr_store import ZarrStore

        return ZarrStore(files, manifest, check, faults)
    from shards.tar_store import TarStore

    return TarStore(files, manifest, check, faults)


def _remote_manifest(files: HttpFiles) -> Manifest:
    """Return the manifest behind a URL; from then on, `files` knows what to expect."""
    try:
        text = files.read_all(MANIFEST_NAME).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{files.where}/{MANIFEST_NAME}: not UTF-8 text ({error}); check the URL") from None
    except TransportError:
        raise
    except StoreError as error:
        raise ManifestError(f"{files.where} is not a store: {error}") from None
    manifest = Manifest.from_json(text, f"{files.where}/{MANIFEST_NAME}")
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    files.expected = {
        **{info.file: Expected(info.bytes, info.sha256) for info in manifest.files},
        **{info.file: Expected(info.bytes, info.sha256) for info in shards},
    }
    return manifest
