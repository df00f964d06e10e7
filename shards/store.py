"""Reading a store: `open_store`, and what all formats have in common.

    store = open_store("stores/mmnist")
    event = store.events("train")[7]
    frames = store.read("train", event.index, 0, 10)    # uint8 [10, C, H, W]

A store may be handed to other processes, by fork or pickle: each opens its own files, when it first needs them.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from shards.errors import ContentError, ManifestError, StoreError, TransportError, UsageError, verify_hint
from shards.files import Files, LocalFiles
from shards.manifest import MANIFEST_NAME, Codes, Manifest, SplitInfo
from shards.remote import CACHE_VARIABLE, CachedFiles, Expected, HttpFiles, Retry, location

Check = Literal["first", "never"]
Faults = Literal["opening", "reading"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a split: `index` is its place there, `length` its number of frames.

    `run` names the unbroken run that it is part of, and `run_offset` its first frame's index in that run: an event goes
    on in the next one if that has the same run and the offset run_offset + length. `start_time` is ISO-8601 UTC.
    """

    key: str
    index: int
    length: int
    mode: str | None
    run: str
    run_offset: int
    start_time: str | None


class Store(ABC):
    """An open store; `path` is its folder or URL.

    With check="first" an event's CRC is compared when this process first touches it: what is read is what was written,
    or a StoreError. With faults="opening" a shard that is absent or cut is told before the first frame is read; with
    faults="reading", by the StoreError of each event that lies in it, so that the others can be used.
    """

    def __init__(self, files: Files, manifest: Manifest, check: Check = "first", faults: Faults = "opening") -> None:
        self.files = files
        self.path = files.where
        self.manifest = manifest
        self.check = check
        self.faults = faults
        self._tables: dict[str, Any] = {}
        self._checked: dict[tuple[str, int], int] = {}  # -> the version of the shard

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": {}, "_checked": {}}  # small to send, and each process checks for itself

    @property
    def splits(self) -> Mapping[str, SplitInfo]:
        """Split name -> counts and shards."""
        return self.manifest.splits

    def events(self, split: str) -> list[Event]:
        """All events of `split`, in stored order. Raises UsageError for an unknown split, StoreError for a damaged
        index.
        """
        events: list[Event] = self._table(split).events
        return events

    def read(self, split: str, index: int, start: int, stop: int) -> Codes:
        """Frames [start, stop) of event `index` of `split`: uint8 [stop - start, C, H, W], an own and contiguous copy.

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
        version = -1 if self.check == "never" else self._checked.get((split, index))
        if version is not None:
            frames = self._read(split, index, start, stop)
            if version < 0 or self.files.fixed or version == self.files.version(self.shard(split, index)):
                return frames
        whole = self._checked_event(split, index)
        self._checked[split, index] = self.files.version(self.shard(split, index))
        return whole if stop - start == event.length else whole[start:stop].copy()

    def crc32(self, split: str, index: int) -> int:
        """zlib's CRC of an event's frames, as recorded when it was written."""
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
        """What `read` gives. What came over a network is fetched again before it is called damaged."""
        for _ in range(self.files.attempts - 1):
            with suppress(ContentError):
                return read()
        return read()

    @abstractmethod
    def shard(self, split: str, index: int) -> str:
        """The file below the store in which an event begins."""

    @abstractmethod
    def locate(self, split: str, index: int) -> tuple[str, int]:
        """That file, and the byte there where the event's frames begin (for a compressed zarr chunk: the chunk)."""

    def metadata(self, split: str, index: int) -> dict[str, Any]:
        """Everything that KEY.json says of an event, such as the missing share and the source's own details."""
        data: dict[str, object] = json.loads(self._insist(lambda: self._metadata(split, index)))
        return data

    @abstractmethod
    def _metadata(self, split: str, index: int) -> str:
        """The text of KEY.json, checked."""

    def _table(self, split: str) -> Any:
        """The format's table of a split's events, loaded once per process; it has at least `events`."""
        table = self._tables.get(split)
        if table is None:
            if split not in self.manifest.splits:
                raise UsageError(f"{self.path} has no split {split!r}; it has {', '.join(self.manifest.splits)}")
            if self.faults == "opening":
                self._check_sizes(split)
            table = self._tables[split] = self._insist(lambda: self._load_table(split))
        return table

    def _check_sizes(self, split: str) -> None:
        """A shard that is absent or cut off is told before the first frame is read."""
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

    `cache` is a folder for shards fetched from a URL (default: what SHARDS_CACHE says; none: every window is a
    request), `retry` how long to insist. Raises ManifestError if there is no store, UsageError for another kind of URL.
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
        from shards.zarr_store import ZarrStore  # half a second of imports that readers of tars needn't wait for

        return ZarrStore(files, manifest, check, faults)
    from shards.tar_store import TarStore

    return TarStore(files, manifest, check, faults)


def _remote_manifest(files: HttpFiles) -> Manifest:
    """The manifest behind a URL; from then on, `files` knows what to expect."""
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
