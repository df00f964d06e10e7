"""What both formats' writers share: the job of writing one shard, how an event becomes bytes, and how a shard is known
to be finished.

The jobs follow from the plan and the shard size alone, so shards can be written by any number of processes in any
order, and by two at once: each writes a file of its own, which takes the shard's place when it is whole. A writer
travels to the processes by pickle.

Memory. A process holds one event as the source gives it, what encoding adds (a compressed event; for zarr, a chunk) and
the plan: about four events and 1 kB for each event of the archive, whatever the size of shards and archive.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError
from shards.georeference import Grid
from shards.manifest import Codes, FileInfo, FrameSpec, Scale, ShardInfo, rounded_share
from shards.writing import FileWriteError

if TYPE_CHECKING:
    from shards.sources.base import PlannedEvent, RawEvent, Source

Tick = Callable[[int, int], None]  # called with (events, bytes) as they are written


@dataclass(frozen=True)
class StorePlan:
    """What is to be written, and where: `folder` holds the unfinished store and what is needed to resume it."""

    folder: Path
    frames: FrameSpec
    scale: Scale
    step_seconds: float | None
    splits: Mapping[str, Sequence[PlannedEvent]]
    shard_bytes: int
    encoding: str
    grid: Grid | None = None

    @property
    def store(self) -> Path:
        """The store to be."""
        return self.folder / "store"

    @property
    def work(self) -> Path:
        """Files that somebody is writing."""
        return self.folder / "work"

    @property
    def done(self) -> Path:
        """A record per finished shard."""
        return self.folder / "done"


@dataclass(frozen=True)
class ShardJob:
    """Shard `number` of `split`; it holds events [first, last), of which a zarr shard may hold the outer two in
    part.
    """

    split: str
    number: int
    first: int
    last: int


@dataclass(frozen=True)
class WrittenEvent:
    """What is known of an event once it is read."""

    planned: PlannedEvent
    metadata: str  # the text of KEY.json
    crc32: int  # of the frames' bytes


@dataclass(frozen=True)
class ShardResult:
    """A finished shard, and the events that begin in it: the last ones of the job's."""

    job: ShardJob
    info: ShardInfo
    events: tuple[WrittenEvent, ...]


class StoreWriter(Protocol):
    """One format. `jobs` and `finish` run in the parent; `write` anywhere."""

    @property
    def plan(self) -> StorePlan:
        """What it writes."""

    def jobs(self) -> list[ShardJob]:
        """List every shard of the store."""

    def write(self, source: Source, job: ShardJob, tick: Tick) -> ShardResult:
        """Read the job's events and write its file."""

    def finish(self, results: Sequence[ShardResult]) -> tuple[FileInfo, ...]:
        """Write what needs all shards, and list the files that are neither shards nor their indexes. An earlier call
        may have been interrupted.
        """


def write_or_recall(writer: StoreWriter, source: Source, job: ShardJob, tick: Tick, recalled: Tick) -> ShardResult:
    """Return the job's result: taken over from an earlier call that finished it, or written now. Calls `recalled` for
    the former and `tick` for the latter.
    """
    result = recall(writer.plan, job)
    if result is not None:
        planned = [event.planned for event in result.events]
        recalled(len(planned), sum(event.length for event in planned) * writer.plan.frames.bytes)
        return result
    result = writer.write(source, job, tick)
    record(writer.plan, result)
    return result


def record(plan: StorePlan, result: ShardResult) -> None:
    """Note that a shard is finished; its files are in their places."""
    data = {"info": asdict(result.info), "events": [[event.crc32, event.metadata] for event in result.events]}
    with HashedFile(_record_path(plan, result.job), plan.work) as file:
        file.write(json.dumps(data).encode())


def recall(plan: StorePlan, job: ShardJob, compare: bool = True) -> ShardResult | None:
    """Return the result of a job that was finished; None if it has to be done.

    Args:
        compare: its files with their digests, as is due when they were written by an earlier call.
    """
    try:
        data = json.loads(_record_path(plan, job).read_text(encoding="utf-8"))
        info = ShardInfo(**data["info"])
        planned = plan.splits[job.split][job.last - len(data["events"]) : job.last]
        events = [WrittenEvent(p, metadata, crc) for p, (crc, metadata) in zip(planned, data["events"], strict=True)]
        files = {info.file: info.sha256}
        if info.index_sha256 is not None:
            files[str(Path(info.file).with_suffix(".idx"))] = info.index_sha256
        whole = not compare or all(file_digest(plan.store / file) == digest for file, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None  # never written, or cut off by a failing machine
    return ShardResult(job, info, tuple(events)) if whole else None


def recorded(plan: StorePlan, job: ShardJob) -> bool:
    """Return whether a job has been finished, its files not looked at."""
    return _record_path(plan, job).exists()


def _record_path(plan: StorePlan, job: ShardJob) -> Path:
    return plan.done / f"{job.split}-{job.number:06d}.json"


class HashedFile:
    """A file of the store, written under another name and put in its place when it is whole; `digest` and `size` are
    computed on the way, so that nothing is read again.
    """

    def __init__(self, path: Path, work: Path) -> None:
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()
        self._temporary = work / uuid.uuid4().hex
        try:
            self._file = self._temporary.open("xb", buffering=0)  # a new file, never through a link
        except OSError as error:
            raise FileWriteError(error, path) from error

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises FileWriteError."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.size += view.nbytes
        try:
            while view.nbytes:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise FileWriteError(error, self.path, self.size - view.nbytes) from error

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal."""
        return self._hash.hexdigest()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._temporary, self.path)
        except OSError as error:
            self._temporary.unlink(missing_ok=True)
            raise FileWriteError(error, self.path, self.size) from error


def read_event(source: Source, planned: PlannedEvent, spec: FrameSpec, scale: Scale) -> tuple[Codes, WrittenEvent]:
    """Return the frames [L, C, H, W], contiguous, and the record of one event. Raises SourceError if they aren't what
    was planned.
    """
    raw = source.read(planned)
    expected = (planned.length, *spec.shape)
    if raw.frames.dtype != spec.code_type or raw.frames.shape != expected:
        raise SourceError(
            f"event {planned.key}: the source gave {raw.frames.dtype} {list(raw.frames.shape)}, "
            f"planned were {spec.dtype} {list(expected)}; repair the source"
        )
    frames = np.ascontiguousarray(raw.frames)
    largest = np.iinfo(spec.code_type).max
    above_all = largest - (scale.missing_code == largest)
    any_code_stands_for_something = scale.max_code >= above_all
    missing = changes = 0
    before: npt.NDArray[np.bool_] | None = None
    for frame in frames:  # one at a time: a mask of a whole event would be as large as the event
        absent = 0
        if scale.missing_code is not None:
            mask = frame == scale.missing_code
            missing += (absent := int(np.count_nonzero(mask)))
            changes += 0 if before is None else int(np.count_nonzero(mask != before))
            before = mask
        if any_code_stands_for_something:
            continue
        above = int(np.count_nonzero(frame > scale.max_code))
        if above > (absent if (scale.missing_code or 0) > scale.max_code else 0):
            raise SourceError(
                f"event {planned.key}: codes above the scale's greatest, {scale.max_code}; repair the source"
            )
    shares = {}
    if scale.missing_code is not None:
        shares["missing"] = missing / frames.size
        if changes:
            shares["mask_changes"] = changes / (frames.size - frames[0].size)
    metadata = _metadata(planned, raw, shares)
    return frames, WrittenEvent(planned, metadata, zlib.crc32(frames.data))


def _metadata(planned: PlannedEvent, raw: RawEvent, shares: Mapping[str, float]) -> str:
    """KEY.json: one line of JSON. `shares` are those of the pixels that are missing, and that change from missing to
    observed or back between frames.
    """
    data: dict[str, object] = {
        "frames": planned.length,
        "mode": planned.mode,
        "run": planned.run or planned.key,
        "run_offset": planned.run_offset,
        "start_time": planned.start_time,
    }
    if planned.times is not None:
        data["times"] = planned.times
    data.update((name, rounded_share(share)) for name, share in shares.items())
    if raw.details:
        data["details"] = dict(raw.details)
    return json.dumps(data, ensure_ascii=False)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
