"""A split from its first event to its last, shard by shard, as one stream per shard: for tools that want everything
once, and for stores behind a URL that is slow to answer.

    for event, frames in stream_events(open_store("https://data.example.org/stores/mmnist"), "train"):
        ...

Tars go through webdataset's own reader, but it never opens a URL: it would hand it to a shell (`pipe:curl ...`).
A tar that ends early, or whose headers are damaged, is to webdataset (and to tarfile) just a shorter one; here every
event of the index must come, in order, with the CRC that was written.

Plain webdataset reads raw stores as they are. For compressed ones, hand it `decode_npy`:

    webdataset.WebDataset("stores/mmnist/train/{000000..000007}.tar").decode(shards.decode_npy)
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.encoding import SUFFIXES, declared_size, decode
from shards.errors import StoreError, verify_hint
from shards.manifest import Codes
from shards.store import Event, Store
from shards.tar_store import FRAMES_SUFFIX, IndexRow, TarStore, npy_header

LARGEST_NPY = 1 << 31  # bytes that `decode_npy` is ready to unpack; it knows no manifest


def stream_events(store: Store, split: str) -> Iterator[tuple[Event, Codes]]:
    """Yield all events of `split` in stored order, with their frames [L, C, H, W]. Raises StoreError."""
    events = store.events(split)
    if not isinstance(store, TarStore):
        for event in events:
            yield event, store.read(split, event.index, 0, event.length)
        return
    by_shard: dict[str, list[tuple[Event, IndexRow]]] = {shard.file: [] for shard in store.splits[split].shards}
    for event, (file, row) in zip(events, store.locations(split), strict=True):
        by_shard[file].append((event, row))
    for shard in store.splits[split].shards:
        yield from _stream_shard(store, shard.file, shard.bytes, by_shard[shard.file])


def _stream_shard(
    store: TarStore, file: str, size: int, expected: list[tuple[Event, IndexRow]]
) -> Iterator[tuple[Event, Codes]]:
    samples = _samples(store, file, size)
    suffix = FRAMES_SUFFIX.removeprefix(".") + SUFFIXES[store.manifest.encoding]
    for event, row in expected:
        sample = next(samples, None)
        if sample is None or sample["__key__"] != row.key or suffix not in sample or "json" not in sample:
            found = "the tar ends" if sample is None else f"there is {sample['__key__']} with {sorted(sample)[2:]}"
            raise _error(store, file, row, f"{row.key} with {suffix} and json is expected here, but {found}")
        yield event, _frames(store, file, row, sample[suffix])
    if (sample := next(samples, None)) is not None:
        raise StoreError(
            f"{store.path}/{file}: continues with {sample['__key__']!r}, which the index doesn't have; "
            + verify_hint(store.path),
            shard=file,
        )


def _samples(store: TarStore, file: str, size: int) -> Iterator[dict[str, Any]]:
    """webdataset's samples of one tar: its members as bytes, under "__key__" and their suffixes."""
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch, if there is one

    with io.BufferedReader(store.files.open(file, size), 1 << 20) as stream:
        try:
            yield from group_by_keys(tar_file_expander([{"url": file, "stream": stream}]))
        except StoreError as error:  # webdataset has put its own things among the arguments
            raise type(error)(error.args[0], shard=file, key=error.key, offset=error.offset) from None
        except (tarfile.TarError, ValueError) as error:
            raise StoreError(f"{store.path}/{file}: {error.args[0]}; {verify_hint(store.path)}", shard=file) from None


def _frames(store: TarStore, file: str, row: IndexRow, data: bytes) -> Codes:
    spec = store.manifest.frames
    header = npy_header(row.length, spec)
    try:
        npy = decode(store.manifest.encoding, np.frombuffer(data, dtype=np.uint8), len(header) + row.size)
    except ValueError as error:
        raise _error(store, file, row, f"the frames of {row.key}: {error}") from None
    if npy[: len(header)].tobytes() != header or zlib.crc32(npy[len(header) :].data) != row.crc32:
        raise _error(store, file, row, f"the frames of {row.key} aren't those that were written (CRC)")
    frames = npy[len(header) :].view(spec.code_type).reshape(row.length, *spec.shape)
    return frames if frames.flags.writeable else frames.copy()


def _error(store: TarStore, file: str, row: IndexRow, what: str) -> StoreError:
    return StoreError(
        f"{store.path}/{file}, byte {row.offset}: {what}; {verify_hint(store.path)}",
        shard=file,
        key=row.key,
        offset=row.offset,
    )


def decode_npy(key: str, data: bytes) -> npt.NDArray[np.generic] | None:
    """Return the array of a .npy.zst or .npy.lz4 member, None (for the next handler) for any other: a handler for
    `webdataset.WebDataset(...).decode(decode_npy)`. Raises ValueError for damaged ones, pickles, and sizes above 2 GiB.
    """
    encoding = {".npy.zst": "zstd", ".npy.lz4": "lz4"}.get(key[-8:])
    if encoding is None:
        return None
    size = declared_size(data[:32])
    if size > LARGEST_NPY:
        raise ValueError(f"{key}: would unpack to {size} bytes, more than {LARGEST_NPY}")
    npy = decode(encoding, np.frombuffer(data, dtype=np.uint8), size)
    array: npt.NDArray[np.generic] = np.lib.format.read_array(io.BytesIO(npy.data), allow_pickle=False)
    return array
