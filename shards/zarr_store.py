"""The zarr format: zarr v3, one group per split, which `xarray.open_zarr(store, group=split)` shows with time, scale
and units. Here it is read; zarr_writer.py writes it.

Variables of a split (CF 1.10 attributes; `xarray` decodes codes to physical values and dates):

- `frames` (time, channel, y, x), uint8 or uint16: all events one after another. A chunk has the frames of one event
  (of the commonest length, where lengths differ), raw or compressed (encoding.py); many chunks lie in one shard file.
- `time` (time): seconds since 1970, where the frames have a clock. `event` (time): which event a frame belongs to.
- `x`, `y` and `spatial_ref`: coordinates of pixel centres, and the projection (CRS as WKT, CF's parameters), where the
  archive knows its grid.
- `event_first`, `event_length`, `event_crc32`, `event_key`, `event_mode` ("" for none), `event_run`,
  `event_run_offset`, `event_start_time` and `event_metadata` (the text of KEY.json): the table of events.

Reading needs no zarr: shard files are read by zarr_shard.py, and the tables that say where frames lie by
zarr_metadata.py, which compares them with their digests in the manifest before they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.encoding import decode_chunk
from shards.errors import ContentError, StoreError, verify_hint
from shards.files import Bytes
from shards.manifest import Codes
from shards.store import Event, Store, is_sound
from shards.zarr_metadata import FIRST_COLUMN, ZarrMetadata, read_column, read_metadata
from shards.zarr_shard import ABSENT, Index, index_bytes, parse_shard_index


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


def shard_name(split: str, number: int) -> str:
    """Return the file of a shard of `frames`, below the store."""
    return f"{split}/frames/c/{number}/0/0/0"


@dataclass(frozen=True)
class ZarrTable:
    """A split's events, their CRCs, and how they lie in the array."""

    events: list[Event]
    crc32: list[int]
    layout: SplitLayout


class ZarrStore(Store):
    """Reads stores of format `zarr`."""

    def _load_table(self, split: str) -> ZarrTable:
        metadata = read_metadata(self.files, self.manifest, split)
        table = self._parse_table(metadata, split)
        self._tables[f" arrays {split}"] = metadata
        return table

    def _parse_table(self, metadata: ZarrMetadata, split: str) -> ZarrTable:
        def column(name: str) -> list[Any]:
            return read_column(self.files, self.manifest, split, metadata, f"event_{name}")

        info = self.manifest.splits[split]
        lengths = read_column(self.files, self.manifest, split, metadata, FIRST_COLUMN)
        starts = np.cumsum([0, *lengths], dtype=np.int64)
        fits = min(lengths, default=1) > 0 and metadata.chunk <= max(lengths, default=0)
        if (len(lengths), int(starts[-1]), column("first"), fits) != (
            *(info.events, info.frames),
            *(starts[:-1].tolist(), True),
        ):
            raise StoreError(
                f"{self.path}/{split}: has {len(lengths)} events of {starts[-1]} frames in chunks of {metadata.chunk}, "
                f"the manifest says {info.events} of {info.frames}; {verify_hint(self.path)}"
            )
        names = ("key", "mode", "run", "run_offset", "start_time")
        events = [
            Event(key, i, lengths[i], mode or None, run, offset, start or None)
            for i, (key, mode, run, offset, start) in enumerate(zip(*map(column, names), strict=True))
        ]
        for event in events:
            if not is_sound(event):
                raise StoreError(
                    f"{self.path}/{split}: event {event.index} can't be ({ascii(event)[:200]}); "
                    + verify_hint(self.path),
                    key=event.key[:80],
                )
        return ZarrTable(events, column("crc32"), SplitLayout(starts, metadata.chunk, metadata.shard))

    def _read(self, split: str, index: int, start: int, stop: int) -> Codes:
        table: ZarrTable = self._table(split)
        first, chunk = int(table.layout.starts[index]), table.layout.chunk
        spec = self.manifest.frames
        frames: Codes = np.empty((stop - start, *spec.shape), dtype=spec.code_type)
        out = frames.view(np.uint8).reshape(len(frames), spec.bytes)
        at = start
        while at < stop:
            number, inside = divmod(first + at, chunk)
            fits = min(stop - at, chunk - inside)
            self._read_chunk(split, number, inside, out[at - start : at - start + fits], table.events[index].key)
            at += fits
        return frames

    def _read_chunk(self, split: str, number: int, first: int, out: Bytes, key: str) -> None:
        """Fill `out` [N, bytes of a frame] with the frames of chunk `number` from `first` on."""
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
            frames = decode_chunk(encoding, data, layout.chunk * frame).reshape(layout.chunk, frame)
        except ValueError as error:
            if isinstance(error, StoreError):
                raise
            raise self._error(str(error), file, key, offset) from None
        out[:] = frames[first : first + len(out)]

    def _index(self, split: str, shard: int, key: str) -> Index:
        """Return where the chunks of a shard lie."""
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
        """Return where an event begins in `frames`."""
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
            self._table(split)
            metadata: ZarrMetadata = self._tables[f" arrays {split}"]
            texts = read_column(self.files, self.manifest, split, metadata, "event_metadata")
            self._tables[f" metadata {split}"] = texts
        return texts[index]
