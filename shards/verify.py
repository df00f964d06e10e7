"""Does a store hold what it says? Every difference is a `Problem` that names the file, and the event and byte where
known.

Quick: the manifest's own digest, absent and extra files, sizes, indexes and counts. Full (the default): also every
digest, every CRC, and for tars a walk over all headers that doesn't trust tarfile, which takes a damaged header for the
end.
"""

from __future__ import annotations

import json
import mmap
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.encoding import decode
from shards.errors import ContentError, StoreError, UsageError, printable
from shards.files import LocalFiles
from shards.manifest import MANIFEST_NAME, FrameSpec, Manifest, ShardInfo, manifest_digest
from shards.remote import location
from shards.store import Event
from shards.tar_store import BLOCK, JSON_SUFFIX, IndexRow, frames_name, index_name, npy_header, parse_index
from shards.writer import file_digest

if TYPE_CHECKING:
    from shards.zarr_store import ZarrStore


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be: in which file of the store, at which event and byte of that file."""

    file: str
    what: str
    key: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        place = [self.file]
        if self.key is not None:
            place.append(self.key)
        if self.offset is not None:
            place.append(f"byte {self.offset}")
        return printable(f"{', '.join(place)}: {self.what}")


def verify(path: str | Path, quick: bool = False) -> list[Problem]:
    """Return all problems of the store in folder `path`; none means that it is whole. Raises ManifestError if it has no
    manifest, UsageError for a URL.
    """
    folder = location(path)
    if not isinstance(folder, Path):
        raise UsageError(f"{path}: a store is verified where it lies; run there: python -m shards verify FOLDER")
    manifest = Manifest.load(folder, sealed=False)
    problems = list(_manifest_problems(folder, manifest))
    problems += [
        Problem(name, "is no part of the store (not in the manifest)") for name in stray_files(folder, manifest)
    ]
    for file in manifest.files:
        problems += _file_problems(folder, file.file, file.bytes, None if quick else file.sha256)
    keys: dict[str, str] = {}
    for split, info in manifest.splits.items():
        if manifest.format == "zarr":
            problems += _zarr_problems(folder, manifest, split, keys, quick)
        else:
            frames = 0
            for shard in info.shards:
                rows, found = _tar_problems(folder, shard, manifest, keys, quick)
                problems += found
                frames += sum(row.length for row in rows)
            if not problems and frames != info.frames:
                problems.append(Problem(MANIFEST_NAME, f"{split} has {frames} frames, the manifest says {info.frames}"))
    return problems


def stray_files(folder: Path, manifest: Manifest) -> list[str]:
    """List files below `folder` that the manifest doesn't know."""
    known = {MANIFEST_NAME, *(file.file for file in manifest.files)}
    for split in manifest.splits.values():
        for shard in split.shards:
            known.add(shard.file)
            if shard.index_sha256 is not None:
                known.add(index_name(shard.file))
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return [name for name in found if name not in known]


def _manifest_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    data = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    if data["digest"] != manifest_digest(data):
        yield Problem(MANIFEST_NAME, "was edited: its digest doesn't match its contents")
    for name, split in manifest.splits.items():
        total = sum(shard.events for shard in split.shards)
        if total != split.events:
            yield Problem(MANIFEST_NAME, f"{name} should have {split.events} events, its shards have {total}")


def _file_problems(folder: Path, name: str, size: int, sha256: str | None) -> list[Problem]:
    """Presence, size and, if a digest is given, contents of one file."""
    path = folder / name
    if not path.is_file():
        return [Problem(name, "is absent")]
    if path.stat().st_size != size:
        return [Problem(name, f"has {path.stat().st_size} bytes, the manifest says {size}")]
    if sha256 is not None and file_digest(path) != sha256:
        return [Problem(name, "was changed: its SHA-256 is not the manifest's")]
    return []


def _tar_problems(
    folder: Path, shard: ShardInfo, manifest: Manifest, keys: dict[str, str], quick: bool
) -> tuple[list[IndexRow], list[Problem]]:
    """Return the rows of a shard's index (none if it is damaged), and what is wrong with the shard."""
    index = index_name(shard.file)
    rows: list[IndexRow] = []
    problems: list[Problem] = []
    try:
        rows = parse_index(LocalFiles(folder), shard, manifest.frames, manifest.encoding)
    except StoreError as error:
        problems.append(Problem(index, _short(error, folder).removeprefix(f"{index}: ")))
    for row in rows:
        problems += _key_problems(row.key, shard.file, keys)
    changed = _file_problems(folder, shard.file, shard.bytes, None if quick else shard.sha256)
    finer: list[Problem] = []
    if not quick and (folder / shard.file).is_file() and (folder / shard.file).stat().st_size:
        with (folder / shard.file).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
            walk = TarWalk(tar, rows, shard.file, manifest.frames, manifest.encoding)
            finer = walk.problems()
    # The digest says only that something differs; where the walk found what, that is the better message.
    size_differs = changed and "bytes" in changed[0].what
    return rows, problems + (changed if size_differs or not finer else []) + finer


def _key_problems(key: str, file: str, keys: dict[str, str]) -> list[Problem]:
    if key in keys:
        return [Problem(file, f"the key occurs twice, first in {keys[key]}", key)]
    keys[key] = file
    return []


class TarWalk:
    """Goes through a tar block by block and compares it with its index."""

    def __init__(self, tar: mmap.mmap, rows: list[IndexRow], file: str, spec: FrameSpec, encoding: str) -> None:
        self.tar = tar
        self.file = file
        self.spec = spec
        self.encoding = encoding
        self.rows = {row.key: row for row in rows}
        self.members: dict[str, int] = {}  # name -> offset of the payload, in the index's view
        for row in rows:
            before = len(npy_header(row.length, spec)) if encoding == "raw" else 0
            self.members[frames_name(row.key, encoding)] = row.offset - before
            self.members[row.key + JSON_SUFFIX] = row.json_offset
        self.header_of = {payload - BLOCK: name for name, payload in self.members.items()}

    def problems(self) -> list[Problem]:
        """List everything wrong with headers, members and payloads."""
        found: list[Problem] = []
        met: dict[str, int] = {}
        at = 0
        while at < len(self.tar) and not self._ends(at):
            try:
                info = tarfile.TarInfo.frombuf(self.tar[at : at + BLOCK], "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                name = self.header_of.get(at)
                found.append(self._problem(f"damaged tar header ({error})", at, name))
                if name is not None:
                    met[name] = at + BLOCK
                later = [start for start in self.header_of if start > at]
                at = min(later, default=len(self.tar))  # the index knows where the next member begins
                continue
            payload = at + BLOCK
            if payload + info.size > len(self.tar):
                left = len(self.tar) - payload
                found.append(self._problem(f"cut off: needs {info.size} bytes, {left} are left", payload, info.name))
            elif info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                found.append(self._problem(f"{info.name!r} is not a regular file (type {info.type!r})", at, info.name))
            elif info.name in met:
                found.append(self._problem(f"the member {info.name} occurs twice", at, info.name))
            elif self.members and info.name not in self.members:
                found.append(self._problem(f"the member {info.name!r} is not in the index", at, None))
            else:
                found += self._payload_problems(info.name, payload, info.size)
            met.setdefault(info.name, payload)
            at = payload + -(-info.size // BLOCK) * BLOCK
        for name, payload in self.members.items():
            if name not in met:
                found.append(self._problem(f"the member {name} is missing", payload, name))
        if any(self.tar[-2 * BLOCK :]):
            found.append(
                Problem(self.file, "cut off: the two zero blocks that end a tar are missing", offset=len(self.tar))
            )
        return found

    def _payload_problems(self, name: str, payload: int, size: int) -> list[Problem]:
        """One member against its row in the index."""
        row = self.rows.get(name.split(".", 1)[0])
        if row is None:
            return []
        if payload != self.members[name]:
            return [
                self._problem(
                    f"the member {name} lies here, the index says at byte {self.members[name]}", payload, name
                )
            ]
        if name.endswith(JSON_SUFFIX):
            return self._json_problems(name, row, payload, size)
        header = npy_header(row.length, self.spec)
        if self.encoding == "raw":
            npy, room = self.tar[payload : payload + len(header) + row.size], len(header) + row.size
        else:
            room = row.stored or 0
            try:
                packed = np.frombuffer(self.tar[payload : payload + size], dtype=np.uint8)
                npy = decode(self.encoding, packed, len(header) + row.size).tobytes()
            except ValueError as error:
                return [self._problem(f"the contents of {name}: {error}", payload, name)]
        if size != room or npy[: len(header)] != header:
            shape = [row.length, *self.spec.shape]
            return [self._problem(f"{name} doesn't begin as npy of {self.spec.dtype} {shape}", payload, name)]
        if zlib.crc32(memoryview(npy)[len(header) :]) != row.crc32:
            return [self._problem(f"the contents of {name} were changed (CRC)", row.offset, name)]
        return []

    def _json_problems(self, name: str, row: IndexRow, payload: int, size: int) -> list[Problem]:
        text = self.tar[payload : payload + size]
        if size != row.json_size or zlib.crc32(text) != row.json_crc32:
            return [self._problem(f"the contents of {name} were changed (CRC)", payload, name)]
        try:
            said = dict(json.loads(text))
        except (ValueError, TypeError, RecursionError) as error:
            return [self._problem(f"{name} is not a JSON object ({error})", payload, name)]
        differ = [
            field for field in ("mode", "run", "run_offset", "start_time") if said.get(field) != getattr(row, field)
        ]
        if said.get("frames") != row.length:
            differ.append("frames")
        return [self._problem(f"{name} and the index disagree on {', '.join(differ)}", payload, name)] if differ else []

    def _ends(self, at: int) -> bool:
        """Return whether the tar ends here: a zero block ends it; where the index has a header, only if nothing else
        follows.
        """
        if any(self.tar[at : at + BLOCK]):
            return False
        return at not in self.header_of or not any(self.tar[at:])

    def _problem(self, what: str, offset: int, name: str | None) -> Problem:
        return Problem(self.file, what, None if name is None else name.split(".", 1)[0], offset)


def _zarr_problems(folder: Path, manifest: Manifest, split: str, keys: dict[str, str], quick: bool) -> list[Problem]:
    """Shard files, the table of events, and (full) every event's CRC."""
    from shards.zarr_store import ZarrStore  # imported for zarr stores only, as in store.py

    shards = manifest.splits[split].shards
    unfit = [problem for shard in shards for problem in _file_problems(folder, shard.file, shard.bytes, None)]
    if unfit:
        return unfit  # the frames can't be addressed at all
    changed = [] if quick else [p for s in shards for p in _file_problems(folder, s.file, s.bytes, s.sha256)]
    store = ZarrStore(LocalFiles(folder), manifest, "never")
    try:
        events = store.events(split)
    except StoreError as error:
        told = isinstance(error, ContentError) and not quick  # by the file's own digest
        return changed if told else [*changed, Problem(error.shard or split, _short(error, folder))]
    finer = [problem for event in events for problem in _key_problems(event.key, split, keys)]
    if not quick:
        finer += [problem for event in events for problem in _event_problems(store, split, event)]
    named = {problem.file for problem in finer}
    return [problem for problem in changed if problem.file not in named] + finer


def _event_problems(store: ZarrStore, split: str, event: Event) -> list[Problem]:
    try:
        store.check_event(split, event.index)
    except StoreError as error:
        file = error.shard or store.shard(split, event.index)
        return [Problem(file, _short(error, Path(store.path)), event.key, error.offset)]
    return []


def _short(error: StoreError, folder: Path) -> str:
    """Return the message without the store's path and the advice, which stand around it already."""
    return str(error).split("; run:")[0].replace(f"{folder}/", "")
