"""Repacking: a store in, the same events out in another format, shard size or encoding.

A store is read as a source like any archive, so repacking is as parallel and as restartable as a conversion. The
manifest keeps the record of the original conversion, apart from what was changed: repacking to another format and back
gives the first store's files again, byte for byte.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.cluster import Cluster
from shards.convert import Outcome, convert
from shards.manifest import Manifest
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent
from shards.store import Event, Store, open_store

# What `convert` itself puts into the record of a conversion.
_OWN = ("format", "name", "shard_mb", "encoding", "plan_sha256")


@dataclass(frozen=True)
class StoreSource:
    """A store as a source of events, by its path: each process opens it for itself."""

    path: str

    @property
    def store(self) -> Store:
        """Return the open store."""
        return _opened(self.path)

    def describe(self) -> Description:
        """Return what the manifest says."""
        manifest = self.store.manifest
        return Description(
            name=manifest.name,
            frames=manifest.frames,
            step_seconds=manifest.step_seconds,
            scale=manifest.scale,
            modes=manifest.modes,
            source=manifest.source,
            grid=manifest.grid,
        )

    def plan(self) -> Plan:
        """List every event of the store. The CRCs are in the recipes: a store with other frames is another archive."""
        splits = {
            split: [self._planned(split, event) for event in self.store.events(split)] for split in self.store.splits
        }
        return Plan(splits)

    def _planned(self, split: str, event: Event) -> PlannedEvent:
        times = self.store.metadata(split, event.index).get("times")
        return PlannedEvent(
            key=event.key,
            length=event.length,
            mode=event.mode,
            run=event.run,
            run_offset=event.run_offset,
            start_time=event.start_time,
            times=None if times is None else tuple(times),
            recipe=(split, event.index, self.store.crc32(split, event.index)),
        )

    def read(self, event: PlannedEvent) -> RawEvent:
        """Return the frames, checked, and what the archive records of them."""
        split, index, _ = event.recipe
        details = self.store.metadata(split, index).get("details", {})
        return RawEvent(self.store.read(split, index, 0, event.length), details)


@functools.lru_cache(maxsize=2)
def _opened(path: str) -> Store:
    return open_store(path)


def repack(
    path: str | Path,
    output: Path,
    *,
    format: str | None = None,
    shard_mb: float | None = None,
    encoding: str | None = None,
    workers: int = 1,
    cluster: Cluster | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Outcome:
    """Write the events of the store at `path` (a folder or URL) into a new store in folder `output`. What isn't given
    stays as it is. Raises ShardErrors.
    """
    _opened.cache_clear()  # it may be another store than at the last call
    manifest: Manifest = _opened(str(path)).manifest
    recorded = manifest.conversion
    return convert(
        StoreSource(str(path)),
        output,
        format=format or manifest.format,
        encoding=encoding or manifest.encoding,
        arguments={key: value for key, value in recorded.items() if key not in _OWN},
        shard_mb=shard_mb or float(recorded["shard_mb"]),
        workers=workers,
        cluster=cluster,
        overwrite=overwrite,
        plan_sha256=str(recorded["plan_sha256"]),
        report=report,
    )
