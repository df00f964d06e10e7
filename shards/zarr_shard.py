"""One shard file of zarr v3's sharding codec, for arrays whose shards are divided along their first dimension only.

It is the encoded chunks one after another, then the index, which has for each chunk of the shard its offset and its
size (two little-endian uint64; both 2^64 - 1 for a chunk that isn't there), and the CRC-32C of the index
(https://zarr-specs.readthedocs.io, codec sharding_indexed, `index_location: end`, `index_codecs: bytes, crc32c`).

Shards are written here chunk by chunk, because zarr itself wants the whole shard in memory, several times over. They
are read here, because a window of raw frames is one slice of the file, where zarr reads whole chunks through a queue of
tasks, and because this reads folders and URLs alike.
"""

from __future__ import annotations

import google_crc32c
import numpy as np
import numpy.typing as npt

from shards.encoding import encode_chunk
from shards.manifest import Codes, FrameSpec
from shards.writer import HashedFile

ABSENT = (1 << 64) - 1
CRC_BYTES = 4

Index = npt.NDArray[np.uint64]  # [chunks, 2]: offset and size


class ShardWriter:
    """Appends frames to a shard; whenever they fill a chunk, it is encoded and written."""

    def __init__(self, file: HashedFile, chunks: int, frames: int, spec: FrameSpec, encoding: str) -> None:
        self.file, self.encoding = file, encoding
        self._index = np.full((chunks, 2), ABSENT, dtype="<u8")
        self._chunk = np.zeros((frames, *spec.shape), dtype=spec.code_type)
        self._filled = 0  # frames in self._chunk
        self._number = 0

    def add(self, frames: Codes) -> None:
        """Append frames [N, C, H, W]."""
        while len(frames):
            fits = min(len(frames), len(self._chunk) - self._filled)
            self._chunk[self._filled : self._filled + fits] = frames[:fits]
            self._filled += fits
            frames = frames[fits:]
            if self._filled == len(self._chunk):
                self._write_chunk()

    def finish(self) -> None:
        """Write what is left, padded with zeros as zarr does at the end of an array, and the index."""
        if self._filled:
            self._chunk[self._filled :] = 0
            self._write_chunk()
        index = self._index.tobytes()
        self.file.write(index)
        self.file.write(google_crc32c.value(index).to_bytes(CRC_BYTES, "little"))

    def _write_chunk(self) -> None:
        data = encode_chunk(self.encoding, self._chunk)
        self._index[self._number] = self.file.size, memoryview(data).nbytes
        self.file.write(data)
        self._filled, self._number = 0, self._number + 1


def index_bytes(chunks: int) -> int:
    """Return the bytes at the end of a shard of `chunks` chunks that are its index."""
    return 16 * chunks + CRC_BYTES


def parse_shard_index(data: bytes, shard_bytes: int) -> Index:
    """Return the index at the end of a shard file. Raises ValueError for one that was damaged or points outside the
    file.
    """
    if google_crc32c.value(data[:-CRC_BYTES]) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise ValueError("the index at the end of the shard was changed (CRC)")
    index = np.frombuffer(data[:-CRC_BYTES], dtype="<u8").reshape(-1, 2).astype(np.uint64)
    there = index[index[:, 0] != ABSENT]
    room = np.uint64(shard_bytes - len(data))
    if bool(np.any((there[:, 1] > room) | (there[:, 0] > room) | (there[:, 0] + there[:, 1] > room))):
        raise ValueError("the index at the end of the shard points outside its chunks")
    return index
