"""The zarr format: zarr v3, one group per split, which `xarray.open_zarr(store, group=split)` shows with time, scale
and units.

Variables of a split (CF 1.10 attributes; `xarray` decodes codes to physical values and dates):

- `frames` (time, channel, y, x) uint8: all events one after another. A chunk has the frames of one event (of the
  commonest length, where lengths differ), raw or compressed (encoding.py), and many chunks lie in one shard file.
- `time` (time): seconds since 1970, where the frames have a clock. `event` (time): which event a frame belongs to.
- `x`, `y` and `spatial_ref`: coordinates of pixel centres, and the projection (CRS as WKT, CF's parameters), where the
  archive knows its grid.
- `event_first`, `event_length`, `event_crc32`, `event_key`, `event_mode` ("" for none), `event_run`,
  `event_run_offset`, `event_start_time` and `event_metadata` (the text of KEY.json): the table of events.

Shard files are written and read by zarr_shard.py; zarr itself writes and reads the rest. The tables that say where
frames lie are compared with their digests in the manifest before they are used. Metadata are consolidated, so opening
costs one file.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shards.encoding import BLOSC_LEVEL, ZSTD_LEVEL, decode_chunk
from shards.errors import ContentError, StoreError, UsageError, verify_hint
from shards.georeference import MAPPING
from shards.manifest import Codes, FileInfo, ShardInfo
from shards.store import Event, Store
from shards.writer import HashedFile, ShardJob, ShardResult, StorePlan, Tick, file_digest, read_event
from shards.zarr_shard import ABSENT, Index, ShardWriter, index_bytes, parse_shard_index
from shards.zarr_tables import cf_attributes, write_grid, write_tables

try:
    import zarr
    from zarr.buffer.cpu import Buffer
    from zarr.codecs import BloscCodec, ZstdCodec
    from zarr.storage import MemoryStore
except ImportError as error:  # the one dependency that there isn't for Python 3.10
    raise UsageError(
        f"a zarr store needs the package zarr of version 3 ({error}): pip install 'zarr>=3.1', which wants Python 3.11 "
        "or later; with an older Python keep events in tars (--format webdataset)"
    ) from None

if TYPE_CHECKING:
    from shards.sources.base import PlannedEvent, Source

DIMENSIONS = ("time", "channel", "y", "x")


@dataclass(frozen=True)
class SplitLayout:
    """How a split lies in its array: event i has the frames [starts[i], starts[i + 1])."""

    starts: npt.NDArray[np.int64]
    chunk: int  # frames
    shard: int  # frames, a multiple of chunk

    @property
    def frames(self) -> int:
        return int(self.starts[-1])

    @property
    def chunks_per_shard(self) -> int:
        return self.shard // self.chunk


def split_layout(events: Sequence[PlannedEvent], frame_bytes: int, shard_bytes: int) -> SplitLayout:
    """Chunks of the commonest event length (the longer of two as common), and as many of them as fit a shard."""
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
        """One job per shard file; the outer events of a job may lie in its neighbours too."""
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
        """The groups and arrays, coordinates and event tables, then the consolidated metadata."""
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
        """The array's metadata; its shards are there already."""
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
            attributes={
                **cf_attributes(self.plan.scale),
                "coordinates": "event",  # so that xarray groups by it
                **({"grid_mapping": MAPPING} if self.plan.grid else {}),
            },
        )


def shard_name(split: str, number: int) -> str:
    """The file of a shard of `frames`, below the store."""
    return f"{split}/frames/c/{number}/0/0/0"


def _remove_others(folder: Path, shards: set[str]) -> None:
    """Take away what an interrupted call to `finish` left between the shards."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(folder).as_posix() not in shards:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()


@dataclass(frozen=True)
class ZarrTable:
    """A split's events, their CRCs, and how they lie in the array."""

    events: list[Event]
    crc32: list[int]
    layout: SplitLayout


class ZarrStore(Store):
    """Reads stores of format `zarr`."""

    def _load_table(self, split: str) -> ZarrTable:
        names = ("first", "length", "crc32", "key", "mode", "run", "run_offset", "start_time")
        group = self._group(split, names)
        try:
            return self._parse_table(group, split)
        except StoreError:
            raise
        except Exception as error:  # zarr raises a different one for every kind of damage
            raise StoreError(f"{self.path}/{split}: no event table ({error}); {verify_hint(self.path)}") from error

    def _group(self, split: str, tables: Sequence[str]) -> zarr.Group:
        """The split's group in memory, with some of its event tables: what it is made of is the manifest's, byte for
        byte.
        """
        arrays = [f"{split}/event_{name}/" for name in tables]
        contents: dict[str, Any] = {}
        for info in self.manifest.files:
            if info.file == f"{split}/zarr.json" or any(info.file.startswith(f"{array}c/") for array in arrays):
                data = self.files.read_all(info.file, info.bytes)
                if hashlib.sha256(data).hexdigest() != info.sha256:
                    raise ContentError(
                        f"{self.path}/{info.file}: was changed (SHA-256); {verify_hint(self.path)}", shard=info.file
                    )
                contents[info.file.removeprefix(f"{split}/")] = Buffer.from_bytes(data)
        return zarr.open_group(MemoryStore(contents, read_only=True), mode="r")

    def _parse_table(self, group: zarr.Group, split: str) -> ZarrTable:
        def column(name: str) -> list[Any]:
            array = group[f"event_{name}"]
            assert isinstance(array, zarr.Array)
            return list(np.asarray(array[:]).tolist())

        expected = self.manifest.splits[split]
        frames = group["frames"]
        assert isinstance(frames, zarr.Array) and frames.shards is not None
        length = column("length")
        starts = np.cumsum([0, *length], dtype=np.int64)
        told = len(length), int(starts[-1]), column("first"), frames.shape, min(length, default=1) > 0
        spec = self.manifest.frames.shape
        if told != (expected.events, expected.frames, starts[:-1].tolist(), (expected.frames, *spec), True):
            raise StoreError(
                f"{self.path}/{split}: has {len(length)} events of {starts[-1]} frames in an array {frames.shape}, "
                f"the manifest says {expected.events} of {expected.frames}; {verify_hint(self.path)}"
            )
        names = ("key", "mode", "run", "run_offset", "start_time")
        events = [
            Event(key, i, length[i], mode or None, run, offset, start or None)
            for i, (key, mode, run, offset, start) in enumerate(zip(*map(column, names), strict=True))
        ]
        return ZarrTable(events, column("crc32"), SplitLayout(starts, frames.chunks[0], frames.shards[0]))

    def _read(self, split: str, index: int, start: int, stop: int) -> Codes:
        table: ZarrTable = self._table(split)
        first, chunk = int(table.layout.starts[index]), table.layout.chunk
        out = np.empty((stop - start, *self.manifest.frames.shape), dtype=np.uint8)
        at = start
        while at < stop:
            number, inside = divmod(first + at, chunk)
            fits = min(stop - at, chunk - inside)
            self._read_chunk(split, number, inside, out[at - start : at - start + fits], table.events[index].key)
            at += fits
        return out

    def _read_chunk(self, split: str, number: int, first: int, out: Codes, key: str) -> None:
        """Fill `out` with the frames of chunk `number` from `first` on."""
        layout: SplitLayout = self._table(split).layout
        shard, place = divmod(number, layout.chunks_per_shard)
        file = shard_name(split, shard)
        offset, stored = (int(value) for value in self._index(split, shard, key)[place])
        frame, encoding = self.manifest.frames.bytes, self.manifest.encoding
        try:
            if offset == ABSENT or (encoding == "raw" and stored != layout.chunk * frame):
                raise ValueError(f"chunk {place} of the shard has {stored} bytes of {layout.chunk * frame}")
            if encoding == "raw":
                self.files.read_into(file, offset + first * frame, out, key)
                return
            data = self.files.read_at(file, offset, stored, key)
            frames = decode_chunk(encoding, data, layout.chunk * frame).reshape(layout.chunk, *out.shape[1:])
        except ValueError as error:
            if isinstance(error, StoreError):
                raise
            raise self._error(str(error), file, key, offset) from None
        out[:] = frames[first : first + len(out)]

    def _index(self, split: str, shard: int, key: str) -> Index:
        """Where the chunks of a shard lie."""
        layout: SplitLayout = self._table(split).layout
        known: dict[tuple[str, int], Index] = self._tables.setdefault(" shard indexes", {})
        if (split, shard) not in known:
            info = self.manifest.splits[split].shards[shard]
            size = index_bytes(layout.chunks_per_shard)
            offset = max(0, info.bytes - size)
            try:
                data = self.files.read_at(info.file, offset, size, key).tobytes()
                known[split, shard] = parse_shard_index(data, info.bytes)
            except ValueError as error:
                if isinstance(error, StoreError):
                    raise
                raise self._error(str(error), info.file, key, offset) from None
        return known[split, shard]

    def _error(self, what: str, file: str, key: str, offset: int) -> ContentError:
        return ContentError(
            f"{self.path}/{file}: {key} at byte {offset}: {what}; {verify_hint(self.path)}",
            shard=file,
            key=key,
            offset=offset,
        )

    def first_frame(self, split: str, index: int) -> int:
        """Where an event begins in `frames`."""
        return int(self._table(split).layout.starts[index])

    def shard(self, split: str, index: int) -> str:
        layout: SplitLayout = self._table(split).layout
        return shard_name(split, int(layout.starts[index]) // layout.shard)

    def locate(self, split: str, index: int) -> tuple[str, int]:
        layout: SplitLayout = self._table(split).layout
        number, inside = divmod(int(layout.starts[index]), layout.chunk)
        shard, place = divmod(number, layout.chunks_per_shard)
        offset = int(self._index(split, shard, self._table(split).events[index].key)[place][0])
        raw = self.manifest.encoding == "raw"
        return shard_name(split, shard), offset + (inside * self.manifest.frames.bytes if raw else 0)

    def _metadata(self, split: str, index: int) -> str:
        texts: list[str] | None = self._tables.get(f" metadata {split}")
        if texts is None:
            array = self._group(split, ["metadata"])["event_metadata"]
            assert isinstance(array, zarr.Array)
            texts = self._tables[f" metadata {split}"] = np.asarray(array[:]).tolist()
        return texts[index]
