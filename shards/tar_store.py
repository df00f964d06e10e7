"""The webdataset format: tars that webdataset and tar read, with an index beside each for random access.

`SPLIT/000000.tar` holds for every event `KEY.frames.npy` (npy 1.0, uint8 or little-endian uint16 [L, C, H, W], C order;
compressed it is `KEY.frames.npy.zst` or `.lz4`, see encoding.py) and then `KEY.json`, keys ascending; USTAR, owner 0,
mode 0644, time 0, so equal events give equal bytes. `SPLIT/000000.idx` is text: a JSON object (file, number of events,
columns), then one JSON list per event.

Raw frames begin at the index's `offset`, after the npy header, one after another: a window of frames is one slice of
the file. A compressed event is the `stored` bytes at `offset`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from shards.encoding import LARGEST_UNPACKED, SUFFIXES, decode, encode
from shards.errors import ContentError, StoreError, verify_hint
from shards.files import Files
from shards.manifest import Codes, FileInfo, FrameSpec, ShardInfo
from shards.store import Event, Store, is_sound
from shards.writer import HashedFile, ShardJob, ShardResult, StorePlan, Tick, WrittenEvent, read_event

if TYPE_CHECKING:
    from shards.sources.base import Source  # importing it imports every source, which readers needn't wait for

INDEX_FORMAT = "modernn shard index 1"
FRAMES_SUFFIX = ".frames.npy"
JSON_SUFFIX = ".json"
BLOCK = 512  # tar's unit: every header is one, every member is padded to whole ones
RECORD = tarfile.RECORDSIZE  # tar pads a whole archive to this


class IndexRow(NamedTuple):
    """One line of an .idx file. Offsets and sizes are bytes in the tar; CRCs are zlib's."""

    key: str
    length: int
    offset: int
    size: int
    crc32: int
    json_offset: int
    json_size: int
    json_crc32: int
    mode: str | None
    run: str
    run_offset: int
    start_time: str | None
    stored: int | None = None  # bytes in the tar of a compressed event; `size` is that of its frames always


class Location(NamedTuple):
    """Where an event lies: the shard's file below the store, and its row there."""

    file: str
    row: IndexRow


@dataclass(frozen=True)
class TarTable:
    """A split's events, their CRCs, and where each one lies."""

    events: list[Event]
    crc32: list[int]
    locations: list[Location]


def index_name(shard: str) -> str:
    """Return the index's file name for a shard's."""
    return shard.removesuffix(".tar") + ".idx"


def frames_name(key: str, encoding: str) -> str:
    """Return the member with the frames of an event."""
    return key + FRAMES_SUFFIX + SUFFIXES[encoding]


@lru_cache(maxsize=64)
def npy_header(length: int, spec: FrameSpec) -> bytes:
    """Return the npy 1.0 header of frames [length, C, H, W]."""
    buffer = io.BytesIO()
    header = {"descr": spec.code_type.str, "fortran_order": False, "shape": (length, *spec.shape)}
    npy_format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


@dataclass(frozen=True)
class TarWriter:
    """Writes stores of format `webdataset`."""

    plan: StorePlan

    def jobs(self) -> list[ShardJob]:
        """Fill shards with whole events up to the size asked for; a larger event has a shard of its own."""
        jobs = []
        for split, events in self.plan.splits.items():
            first, filled, number = 0, 0, 0
            for i, event in enumerate(events):
                size = event.length * self.plan.frames.bytes + 4 * BLOCK
                if i > first and filled + size > self.plan.shard_bytes:
                    jobs.append(ShardJob(split, number, first, i))
                    first, filled, number = i, 0, number + 1
                filled += size
            jobs.append(ShardJob(split, number, first, len(events)))
        return jobs

    def write(self, source: Source, job: ShardJob, tick: Tick) -> ShardResult:
        """Write one tar and its index."""
        name = f"{job.split}/{job.number:06d}.tar"
        plan = self.plan
        rows, written = [], []
        with HashedFile(plan.store / name, plan.work) as tar:
            for planned in plan.splits[job.split][job.first : job.last]:
                frames, event = read_event(source, planned, plan.frames, plan.scale)
                rows.append(_add_event(tar, frames, event, plan))
                written.append(event)
                tick(1, frames.nbytes)
            tar.write(bytes(-(-(tar.size + 2 * BLOCK) // RECORD) * RECORD - tar.size))  # two zero blocks end a tar
        header = {"format": INDEX_FORMAT, "shard": name.split("/")[1], "events": len(rows)}
        lines = [json.dumps({**header, "columns": IndexRow._fields})]
        lines += [json.dumps(row, ensure_ascii=False) for row in rows]
        with HashedFile(plan.store / index_name(name), plan.work) as index:
            index.write(("\n".join(lines) + "\n").encode())
        return ShardResult(job, ShardInfo(name, tar.size, len(rows), tar.digest, index.digest), tuple(written))

    def finish(self, results: Sequence[ShardResult]) -> tuple[FileInfo, ...]:
        """Write nothing more: every shard has its own index."""
        return ()


def _add_event(tar: HashedFile, frames: Codes, event: WrittenEvent, plan: StorePlan) -> IndexRow:
    """Append the two members of an event and say where they came to lie."""
    planned = event.planned
    name = frames_name(planned.key, plan.encoding)
    header = npy_header(planned.length, plan.frames)
    if plan.encoding == "raw":
        offset, stored = _add_member(tar, name, header, frames.data) + len(header), None
    else:
        packed = encode(plan.encoding, header + frames.tobytes())
        offset, stored = _add_member(tar, name, packed), len(packed)
    text = event.metadata.encode()
    json_offset = _add_member(tar, planned.key + JSON_SUFFIX, text)
    return IndexRow(
        key=planned.key,
        length=planned.length,
        offset=offset,
        size=frames.nbytes,
        crc32=event.crc32,
        json_offset=json_offset,
        json_size=len(text),
        json_crc32=zlib.crc32(text),
        mode=planned.mode,
        run=planned.run or planned.key,
        run_offset=planned.run_offset,
        start_time=planned.start_time,
        stored=stored,
    )


def _add_member(tar: HashedFile, name: str, *parts: bytes | memoryview) -> int:
    """Append a file that consists of `parts`; returns the offset of its payload."""
    info = tarfile.TarInfo(name)  # owner and group 0 without names, time 0, mode 0644: TarInfo's own defaults
    info.size = sum(memoryview(part).nbytes for part in parts)
    tar.write(info.tobuf(tarfile.USTAR_FORMAT))
    offset = tar.size
    for part in parts:
        tar.write(part)
    tar.write(bytes(-info.size % BLOCK))
    return offset


def parse_index(files: Files, shard: ShardInfo, spec: FrameSpec, encoding: str) -> list[IndexRow]:
    """Return the rows of a shard's .idx file, checked against its digest and the shard's size. Raises StoreError."""
    name = index_name(shard.file)
    where, hint = f"{files.where}/{name}", verify_hint(files.where)
    # A row has a key, a mode, a run and a dozen numbers; an event has at least four blocks in the tar.
    data = files.read_all(name, most=(1 << 16) + 4096 * min(shard.events, shard.bytes // BLOCK))
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise ContentError(f"{where}: not the index that was written (its SHA-256 differs); {hint}", shard=name)
    try:
        lines = data.decode("utf-8").split("\n")[1:-1]  # not splitlines: a text may hold U+2028
        rows = [IndexRow(*row) for row in json.loads("[" + ",".join(lines) + "]")]
        unfit = [row for row in rows if not _fits(row, shard, spec, encoding)]
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{where}: not an index ({error}); {hint}", shard=name) from None
    if len(rows) != shard.events:
        raise StoreError(f"{where}: lists {len(rows)} events, the manifest says {shard.events}; {hint}", shard=name)
    for row in unfit:
        raise StoreError(
            f"{where}: {str(row.key)[:80]!r} has {str(row.length)[:20]} frames of {spec.bytes} bytes, in "
            f"{str(row.size)[:20]} bytes at {str(row.offset)[:20]} of a shard of {shard.bytes}, or fields "
            f"of other types; {hint}",
            shard=shard.file,
            key=str(row.key)[:80],
        )
    return rows


def _fits(row: IndexRow, shard: ShardInfo, spec: FrameSpec, encoding: str) -> bool:
    """Return whether a row says what can be, with every field of its type."""
    numbers = (row.offset, row.size, row.crc32, row.json_offset, row.json_size, row.json_crc32, row.stored or 0)
    if any(type(number) is not int or not 0 <= number < 1 << 53 for number in numbers):
        return False
    if not is_sound(Event(row.key, 0, row.length, row.mode, row.run, row.run_offset, row.start_time)):
        return False
    if (row.stored is None) != (encoding == "raw"):
        return False
    stored = row.size if row.stored is None else row.stored
    if min(stored, row.json_size) < 1 or min(row.offset, row.json_offset) < BLOCK:
        return False
    inside = max(row.offset + stored, row.json_offset + row.json_size) <= shard.bytes
    bounded = row.stored is None or row.size <= LARGEST_UNPACKED
    return inside and bounded and row.size == row.length * spec.bytes


class TarStore(Store):
    """Reads stores of format `webdataset`."""

    def _load_table(self, split: str) -> TarTable:
        table = TarTable([], [], [])
        for shard in self.manifest.splits[split].shards:
            for row in parse_index(self.files, shard, self.manifest.frames, self.manifest.encoding):
                table.events.append(
                    Event(row.key, len(table.events), row.length, row.mode, row.run, row.run_offset, row.start_time)
                )
                table.crc32.append(row.crc32)
                table.locations.append(Location(shard.file, row))
        return table

    def _read(self, split: str, index: int, start: int, stop: int) -> Codes:
        file, row = self._table(split).locations[index]
        spec = self.manifest.frames
        if row.stored is not None:
            return self._unpacked(file, row)[start:stop].copy()
        frames: Codes = np.empty((stop - start, *spec.shape), dtype=spec.code_type)
        self.files.read_into(file, row.offset + start * spec.bytes, frames.view(np.uint8), row.key)
        return frames

    def _unpacked(self, file: str, row: IndexRow) -> Codes:
        """All frames of a compressed event."""
        assert row.stored is not None
        spec = self.manifest.frames
        header = npy_header(row.length, spec)
        packed = self.files.read_at(file, row.offset, row.stored, row.key)
        try:
            npy = decode(self.manifest.encoding, packed, len(header) + row.size)
            if npy[: len(header)].tobytes() != header:
                raise ValueError(f"doesn't begin as npy of {spec.dtype} {[row.length, *spec.shape]}")
        except ValueError as error:
            raise ContentError(
                f"{self.path}/{file}: the frames of {row.key} at byte {row.offset}: {error}; {verify_hint(self.path)}",
                shard=file,
                key=row.key,
                offset=row.offset,
            ) from None
        return npy[len(header) :].view(spec.code_type).reshape(row.length, *spec.shape)

    def locations(self, split: str) -> list[Location]:
        """Return where each event of `split` lies."""
        places: list[Location] = self._table(split).locations
        return places

    def shard(self, split: str, index: int) -> str:
        file: str = self._table(split).locations[index].file
        return file

    def locate(self, split: str, index: int) -> tuple[str, int]:
        file, row = self._table(split).locations[index]
        return file, row.offset

    def _metadata(self, split: str, index: int) -> str:
        file, row = self._table(split).locations[index]
        text = self.files.read_at(file, row.json_offset, row.json_size, row.key)
        if zlib.crc32(text.data) != row.json_crc32:
            raise ContentError(
                f"{self.path}/{file}: {row.key}{JSON_SUFFIX} at byte {row.json_offset} was changed (CRC); "
                + verify_hint(self.path),
                shard=file,
                key=row.key,
                offset=row.json_offset,
            )
        return text.tobytes().decode()
