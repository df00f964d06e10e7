"""Writing the zarr format (zarr_store.py says what it is): shard files by zarr_shard.py, everything else by zarr.
Metadata are consolidated, so opening costs one file.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shards.encoding import BLOSC_LEVEL, ZSTD_LEVEL
from shards.errors import UsageError
from shards.georeference import MAPPING
from shards.manifest import FileInfo, ShardInfo
from shards.writer import HashedFile, ShardJob, ShardResult, StorePlan, Tick, file_digest, read_event
from shards.zarr_shard import ShardWriter
from shards.zarr_store import SplitLayout, shard_name
from shards.zarr_tables import cf_attributes, write_grid, write_tables

try:
    import zarr
    from zarr.codecs import BloscCodec, ZstdCodec
except ImportError as error:  # the one dependency that there isn't for Python 3.10
    raise UsageError(
        f"writing a zarr store needs the package zarr of version 3 ({error}): pip install 'zarr>=3.1', which wants "
        "Python 3.11 or later; with an older Python keep events in tars (--format webdataset)"
    ) from None

if TYPE_CHECKING:
    from shards.sources.base import PlannedEvent, Source

DIMENSIONS = ("time", "channel", "y", "x")


def split_layout(events: Sequence[PlannedEvent], frame_bytes: int, shard_bytes: int) -> SplitLayout:
    """Return chunks of the commonest event length (the longer of two as common), and as many of them as fit a shard."""
    counts = Counter(event.length for event in events)
    chunk = max(counts, key=lambda length: (counts[length], length))
    starts = np.cumsum([0, *(event.length for event in events)], dtype=np.int64)
    most = -(-int(starts[-1]) // chunk)
    chunks = min(most, max(1, shard_bytes // (chunk * frame_bytes)))
    return SplitLayout(starts, chunk, chunk * chunks)


@dataclass(frozen=True)
class ZarrWriter:
    """Writes stores of format `zarr`."""

    plan: StorePlan

    def _layout(self, split: str) -> SplitLayout:
        return split_layout(self.plan.splits[split], self.plan.frames.bytes, self.plan.shard_bytes)

    def jobs(self) -> list[ShardJob]:
        """Return one job per shard file; the outer events of a job may lie in its neighbours too."""
        jobs = []
        for split in self.plan.splits:
            layout = self._layout(split)
            for number, begin in enumerate(range(0, layout.frames, layout.shard)):
                end = min(begin + layout.shard, layout.frames)
                first = int(np.searchsorted(layout.starts, begin, side="right")) - 1
                last = int(np.searchsorted(layout.starts, end, side="left"))
                jobs.append(ShardJob(split, number, first, last))
        return jobs

    def write(self, source: Source, job: ShardJob, tick: Tick) -> ShardResult:
        """Write one shard file, chunk by chunk."""
        layout, spec = self._layout(job.split), self.plan.frames
        begin = job.number * layout.shard
        end = min(begin + layout.shard, layout.frames)
        written = []
        name = shard_name(job.split, job.number)
        with HashedFile(self.plan.store / name, self.plan.work) as file:
            shard = ShardWriter(file, layout.chunks_per_shard, layout.chunk, spec, self.plan.encoding)
            for i in range(job.first, job.last):
                frames, event = read_event(source, self.plan.splits[job.split][i], spec, self.plan.scale)
                start, stop = int(layout.starts[i]), int(layout.starts[i + 1])
                shard.add(frames[max(start, begin) - start : min(stop, end) - start])
                if start >= begin:
                    written.append(event)
                    tick(1, frames.nbytes)
            shard.finish()
        return ShardResult(job, ShardInfo(name, file.size, len(written), file.digest), tuple(written))

    def finish(self, results: Sequence[ShardResult]) -> tuple[FileInfo, ...]:
        """Write the groups and arrays, coordinates and event tables, then the consolidated metadata."""
        folder = self.plan.store
        shards = {result.info.file for result in results}
        _remove_others(folder, shards)
        root = zarr.create_group(folder, zarr_format=3, attributes={"Conventions": "CF-1.10"})
        for split in self.plan.splits:
            group = root.create_group(split, attributes={"Conventions": "CF-1.10"})
            self._create_frames(group, split)
            write_grid(group, self.plan.grid)
            events = [event for result in results if result.job.split == split for event in result.events]
            write_tables(group, events, self.plan.step_seconds)
        with warnings.catch_warnings():
            # zarr v3's text doesn't have consolidated metadata yet; zarr, xarray and others read it, and none must.
            warnings.filterwarnings(
                "ignore", message="Consolidated metadata is currently not part", category=UserWarning
            )
            for split in self.plan.splits:
                zarr.consolidate_metadata(str(folder), path=split)
            zarr.consolidate_metadata(str(folder))
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        return tuple(
            FileInfo(name, (folder / name).stat().st_size, file_digest(folder / name))
            for name in names
            if name not in shards
        )

    def _create_frames(self, group: zarr.Group, split: str) -> None:
        """Write the array's metadata; its shards are there already."""
        layout, spec = self._layout(split), self.plan.frames
        width = spec.code_type.itemsize
        codecs: dict[str, Any] = {
            "raw": None,
            "zstd": ZstdCodec(level=ZSTD_LEVEL),
            "lz4": BloscCodec(
                typesize=width, cname="lz4", clevel=BLOSC_LEVEL, shuffle="shuffle" if width > 1 else "noshuffle"
            ),
        }
        group.create_array(
            "frames",
            shape=(layout.frames, *spec.shape),
            chunks=(layout.chunk, *spec.shape),
            shards=(layout.shard, *spec.shape),
            dtype=spec.dtype,
            compressors=codecs[self.plan.encoding],
            fill_value=0,
            dimension_names=DIMENSIONS,
            attributes={
                **cf_attributes(self.plan.scale),
                "coordinates": "event",  # so that xarray groups by it
                **({"grid_mapping": MAPPING} if self.plan.grid else {}),
            },
        )


def _remove_others(folder: Path, shards: set[str]) -> None:
    """Take away what an interrupted call to `finish` left between the shards."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder).as_posix() not in shards:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
