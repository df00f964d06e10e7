"""A source of noise and small archives to convert."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from shards.convert import convert
from shards.errors import SourceError
from shards.manifest import FrameSpec, Scale, SourceInfo
from shards.sources import Description, Plan, PlannedEvent, RawEvent
from shards.store import Store, open_store

FORMATS = ("webdataset", "zarr")


@dataclass(frozen=True)
class Clips:
    """A source as a user would write one: noise in events of given lengths, keyed a0000, a0001, ..."""

    lengths: dict[str, tuple[int, ...]] = field(default_factory=lambda: {"train": (5, 7, 5), "test": (3, 5)})
    size: tuple[int, int, int] = (2, 6, 4)
    runs: tuple[str, ...] = ()
    broken_at: str | None = None

    def describe(self) -> Description:
        scale = Scale("noise", "K", offset=-3.0, gain=0.5, max_code=254, missing_code=255)
        return Description(
            "clips", FrameSpec(*self.size), 60.0, scale, ("odd", "even"), SourceInfo("me", "CC0", "-", "-")
        )

    def plan(self) -> Plan:
        splits = {}
        for split, lengths in self.lengths.items():
            offset = 0
            events = []
            for i, length in enumerate(lengths):
                time = datetime(2020, 1, 1) + timedelta(minutes=offset)
                run = self.runs[i] if self.runs else ""
                events.append(
                    PlannedEvent(
                        f"{split}-{i:04d}",
                        length,
                        ("even", "odd")[i % 2],
                        run,
                        offset if run else 0,
                        f"{time:%Y-%m-%dT%H:%M:%SZ}",
                        recipe=(split, i),
                    )
                )
                offset += length
            splits[split] = events
        return Plan(splits)

    def read(self, event: PlannedEvent) -> RawEvent:
        if event.key == self.broken_at:
            raise SourceError(f"{event.key}: unreadable; mend it")
        return RawEvent(self.frames(event), {"draw": event.recipe[1]})

    def frames(self, event: PlannedEvent) -> np.ndarray:
        rng = np.random.default_rng([len(event.recipe[0]), event.recipe[1]])
        return rng.integers(0, 256, (event.length, *self.size), dtype=np.uint8)


def make_store(folder: Path, format: str, source: Clips | None = None, **options) -> Store:
    convert(
        source or Clips(), folder, format=format, arguments={"source": "clips"}, report=lambda text: None, **options
    )
    return open_store(folder)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_idx(path: Path, images: np.ndarray) -> None:
    data = struct.pack(">IIII", 0x803, *images.shape) + images.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
