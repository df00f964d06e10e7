"""Writing the zarr format (zarr_store.py says what it is): shard files by zarr_shard.py, everything else by zarr.
Metadata are consolidated, so opening costs one file.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shards.encoding import BLOSC_LEVEL, ZSTD_LEVEL
from shards.errors import UsageError
from shards.manifest import FileInfo, Scale, ShardInfo
from shards.writer import HashedFile, ShardJob, ShardResult, StorePlan, Tick, WrittenEvent, file_digest, read_event
from shards.zarr_shard import ShardWriter
from shards.zarr_store import SplitLayout, shard_name

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
            shard = ShardWriter(file, layout.chunks_per_shard, (layout.chunk, *spec.shape), self.plan.encoding)
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
            events = [event for result in results if result.job.split == split for event in result.events]
            _write_tables(group, events, self.plan.step_seconds)
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
        codecs: dict[str, Any] = {
            "raw": None,
            "zstd": ZstdCodec(level=ZSTD_LEVEL),
            "lz4": BloscCodec(typesize=1, cname="lz4", clevel=BLOSC_LEVEL, shuffle="noshuffle"),
        }
        group.create_array(
            "frames",
            shape=(layout.frames, *spec.shape),
            chunks=(layout.chunk, *spec.shape),
            shards=(layout.shard, *spec.shape),
            dtype="uint8",
            compressors=codecs[self.plan.encoding],
            fill_value=0,
            dimension_names=DIMENSIONS,
            attributes=cf_attributes(self.plan.scale),
        )


def _remove_others(folder: Path, shards: set[str]) -> None:
    """Take away what an interrupted call to `finish` left between the shards."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder).as_posix() not in shards:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def cf_attributes(scale: Scale) -> dict[str, Any]:
    """Return the CF attributes that turn codes into values: value = add_offset + scale_factor * code."""
    attributes: dict[str, object] = {
        "long_name": scale.quantity,
        "units": scale.unit,
        "scale_factor": scale.gain,
        "add_offset": scale.offset,
        "valid_max": scale.max_code,
    }
    if scale.missing_code is not None:
        attributes["_FillValue"] = scale.missing_code
    return attributes


def _write_tables(group: zarr.Group, events: Sequence[WrittenEvent], step_seconds: float | None) -> None:
    """Everything of a split but its frames."""
    planned = [event.planned for event in events]
    lengths = np.array([event.length for event in planned], dtype=np.int32)
    number = np.repeat(np.arange(len(planned), dtype=np.int32), lengths)
    _put(group, "event", number, "time", {"long_name": "index of the frame's event in the split"})
    stamps = [_frame_times(event, step_seconds) for event in planned]
    if planned and all(stamp is not None for stamp in stamps):
        seconds = np.concatenate([stamp for stamp in stamps if stamp is not None])
        attributes = {"standard_name": "time", "units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
        _put(group, "time", seconds, "time", attributes)
    first = np.cumsum(lengths, dtype=np.int64) - lengths
    _put(group, "event_first", first, "event", {"long_name": "index of the event's first frame along time"})
    _put(group, "event_length", lengths, "event", {"long_name": "frames of the event"})
    crc = np.array([event.crc32 for event in events], dtype=np.uint32)
    _put(group, "event_crc32", crc, "event", {"long_name": "zlib.crc32 of the event's frames"})
    offsets = np.array([event.run_offset for event in planned], dtype=np.int64)
    _put(group, "event_run_offset", offsets, "event", {"long_name": "index of the first frame in the unbroken run"})
    texts = {
        "event_key": [event.key for event in planned],
        "event_mode": [event.mode or "" for event in planned],
        "event_run": [event.run or event.key for event in planned],
        "event_start_time": [event.start_time or "" for event in planned],
        "event_metadata": [event.metadata for event in events],
    }
    for name, column in texts.items():
        _put(group, name, np.array(column, dtype=object), "event", {})


def _put(group: zarr.Group, name: str, values: npt.NDArray[Any], dimension: str, attributes: dict[str, Any]) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=values.shape,
        dtype="string" if values.dtype == object else values.dtype,
        compressors=None,
        dimension_names=(dimension,),
        attributes=attributes,
    )
    array[:] = values


def _frame_times(event: PlannedEvent, step_seconds: float | None) -> npt.NDArray[np.int64] | None:
    """Seconds since 1970 of every frame, or None without a clock."""
    if event.times is not None:
        return np.array([round(_moment(text).timestamp()) for text in event.times], dtype=np.int64)
    if event.start_time is None or step_seconds is None:
        return None
    start = _moment(event.start_time)
    return np.array(
        [round((start + timedelta(seconds=step_seconds * i)).timestamp()) for i in range(event.length)], dtype=np.int64
    )


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=timezone.utc)
