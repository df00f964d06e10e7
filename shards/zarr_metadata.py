"""The table of a split's events in a zarr store, read without zarr: metadata and arrays are those that ZarrWriter
writes, and nothing else, so that no file decides what is allocated, decoded or imported.

The arrays are one-dimensional, in one chunk, not compressed: little-endian numbers, or zarr's `vlen-utf8` (how many
texts, then each one's length and bytes). A chunk that isn't there is all fill values: zeros, or empty texts.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards.errors import ContentError, ManifestError, StoreError, verify_hint
from shards.fields import Fields, parse_json
from shards.files import Files
from shards.manifest import FileInfo, Manifest

_CODECS = {"raw": ["bytes"], "zstd": ["bytes", "zstd"], "lz4": ["bytes", "blosc"]}
_NUMBERS = {"int32": "<i4", "int64": "<i8", "uint32": "<u4"}
FIRST_COLUMN = "event_length"  # its file proves the number of events, which other columns may leave out
_SIZE = struct.Struct("<I")


@dataclass(frozen=True)
class ZarrMetadata:
    """What SPLIT/zarr.json says of a split: frames of a chunk and of a shard, and its arrays by name."""

    chunk: int
    shard: int
    arrays: dict[str, Any]


def read_metadata(files: Files, manifest: Manifest, split: str) -> ZarrMetadata:
    """Read the metadata of a split, and check them. Raises StoreError."""
    name = f"{split}/zarr.json"
    where = f"{files.where}/{name}"
    try:
        text = _contents(files, manifest, name).decode("utf-8")
        group = Fields(parse_json(text, where), where)
        if group.take("node_type", str) != "group":
            raise ManifestError(f"{where}: no zarr group")
        arrays = group.inner("consolidated_metadata").inner("metadata").data
        return _frames_layout(Fields(arrays.get("frames"), f"{where}: frames"), manifest, split, arrays)
    except (ManifestError, UnicodeDecodeError) as error:
        what = str(error).replace("; convert the archive again", "").removeprefix(f"{where}: ")
        raise StoreError(f"{where}: {what}; {verify_hint(files.where)}", shard=name) from None


def _frames_layout(frames: Fields, manifest: Manifest, split: str, arrays: dict[str, Any]) -> ZarrMetadata:
    """Take the layout of the array of frames. Raises ManifestError where it can't be one of ours."""
    info, spec = manifest.splits[split], manifest.frames
    kind = (frames.take("node_type", str), frames.take("data_type", str))
    shape = frames.take("shape", list)
    grid = frames.inner("chunk_grid").inner("configuration").take("chunk_shape", list)
    codecs = frames.items("codecs")
    sharding = codecs[0].inner("configuration") if codecs else frames.inner("codecs")
    chunks = sharding.take("chunk_shape", list)
    inner = [codec.take("name", str) for codec in sharding.items("codecs")]
    place = sharding.take("index_location", str)
    told = (kind, shape, grid[1:], chunks[1:], inner, place, [codec.take("name", str) for codec in codecs])
    sides = list(spec.shape)
    expected = (
        ("array", spec.dtype),
        [info.frames, *sides],
        sides,
        sides,
        _CODECS[manifest.encoding],
        "end",
        ["sharding_indexed"],
    )
    if told != expected:
        raise ManifestError(f"{frames.where}: says {str(told)[:200]}, the manifest {expected}")
    shard, chunk = grid[0], chunks[0]
    fits = type(shard) is int and type(chunk) is int and 1 <= chunk <= info.frames and shard % chunk == 0
    if not fits or shard < chunk or -(-info.frames // shard) != len(info.shards):
        raise ManifestError(
            f"{frames.where}: {len(info.shards)} shards of {str(shard)[:20]} frames, in chunks of {str(chunk)[:20]}, "
            f"can't hold {info.frames}"
        )
    return ZarrMetadata(chunk, shard, arrays)


def read_column(files: Files, manifest: Manifest, split: str, metadata: ZarrMetadata, name: str) -> list[Any]:
    """Read an array of one value per event: ints, or texts. FIRST_COLUMN is to be read first. Raises StoreError."""
    count = manifest.splits[split].events
    file = f"{split}/{name}/c/0"
    where = f"{files.where}/{split}/zarr.json: {name}"
    try:
        array = Fields(metadata.arrays.get(name), where)
        kind = array.take("data_type", str)
        chunks = array.inner("chunk_grid").inner("configuration").take("chunk_shape", list)
        codecs = [codec.take("name", str) for codec in array.items("codecs")]
        told = (array.take("node_type", str), array.take("shape", list), chunks, codecs)
        expected = ("array", [count], [count], ["vlen-utf8" if kind == "string" else "bytes"])
        if told != expected or kind not in (*_NUMBERS, "string"):
            raise ManifestError(f"{where}: {kind} and {str(told)[:200]}, expected {expected}")
    except ManifestError as error:
        what = str(error).replace("; convert the archive again", "")
        raise StoreError(f"{what}; {verify_hint(files.where)}", shard=f"{split}/zarr.json") from None
    if not any(info.file == file for info in manifest.files):
        if name == FIRST_COLUMN and count:  # an event has a frame: it is in a file, and that bounds what is allocated
            raise StoreError(f"{files.where}/{file}: absent; {verify_hint(files.where)}", shard=file)
        return [""] * count if kind == "string" else [0] * count
    data = _contents(files, manifest, file)
    try:
        if kind == "string":
            return _texts(data, count)
        numbers = np.frombuffer(data, dtype=_NUMBERS[kind])
        if len(numbers) != count:
            raise ValueError(f"{len(numbers)} numbers, expected {count}")
        return list(numbers.tolist())
    except ValueError as error:
        raise StoreError(f"{files.where}/{file}: {error}; {verify_hint(files.where)}", shard=file) from None


def _texts(data: bytes, count: int) -> list[str]:
    """Decode zarr's vlen-utf8. Raises ValueError."""
    texts, at = [], _SIZE.size
    if len(data) < at or _SIZE.unpack_from(data)[0] != count:
        raise ValueError(f"doesn't hold {count} texts")
    for _ in range(count):
        size = _SIZE.unpack_from(data, at)[0] if at + _SIZE.size <= len(data) else len(data)
        at += _SIZE.size + size
        if at > len(data):
            raise ValueError(f"ends before the {count} texts that it should hold")
        texts.append(data[at - size : at].decode("utf-8"))
    return texts


def _contents(files: Files, manifest: Manifest, name: str) -> bytes:
    """Read a file as the manifest has it, byte for byte. Raises StoreError."""
    info = next((info for info in manifest.files if info.file == name), FileInfo(name, 0, ""))
    data = files.read_all(name, info.bytes)
    if hashlib.sha256(data).hexdigest() != info.sha256:
        raise ContentError(f"{files.where}/{name}: was changed (SHA-256); {verify_hint(files.where)}", shard=name)
    return data
