"""How the frames of an event lie in a store: raw, or compressed without loss by zstd or lz4.

- `raw`: as they are. A window is read alone, at the speed of the disk.
- `zstd`: level 1, the smallest: a fifth to a quarter of raw for radar composites.
- `lz4`: a fourth to a third of raw for radar, and decodes more than twice as fast as zstd.

In a tar, a compressed event is the npy file in one zstd frame (`KEY.frames.npy.zst`) or one LZ4 frame
(`KEY.frames.npy.lz4`), which `zstd -d` and `lz4 -d` unpack; a zarr chunk has zarr's own zstd or blosc-lz4 codec. A
window of a compressed event costs the decoding of all of it.

What is decoded comes from files that may be damaged or made to harm: the size must be known beforehand, the data must
declare that very size before a byte is decoded, and decoding can't write more than that.
"""

from __future__ import annotations

import struct

import numcodecs.blosc
import numcodecs.lz4
import numcodecs.zstd
import numpy as np

from shards.files import Bytes, Codes

LARGEST_UNPACKED = 1 << 32  # bytes of a compressed event: a small file may claim any size
SUFFIXES = {"raw": "", "zstd": ".zst", "lz4": ".lz4"}  # after .npy in a tar's member name

ZSTD_LEVEL = 1  # of uint8 radar, level 9 saves 6 % more bytes for 8 times the time
BLOSC_LEVEL = 5  # the codec's own default; with its shuffle for uint16, as there is nothing to shuffle in single bytes
_ZSTD_MAGIC = 0xFD2FB528
_LZ4_MAGIC = 0x184D2204
_LZ4_FLAGS = 0x68  # version 1, independent blocks, the content's size is told, no checksums (the index has a CRC)
_LZ4_BLOCK_CODE = 0x70  # blocks of at most 4 MiB
_LZ4_BLOCK = 4 << 20
_LZ4_STORED = 1 << 31  # in a block's size: the block is not compressed
_LZ4_HEADER = struct.Struct("<IBBQB")
_WORD = struct.Struct("<I")


def encode(encoding: str, data: bytes) -> bytes:
    """Return `data` as it lies in a tar: one frame of the format that the suffix names."""
    if encoding == "zstd":
        return bytes(numcodecs.zstd.compress(data, ZSTD_LEVEL))
    if encoding == "lz4":
        return _encode_lz4(data)
    return data


def decode(encoding: str, data: Bytes, size: int) -> Bytes:
    """Return what `encode` was given, which must have `size` bytes: uint8 [size]. Raises ValueError if it hadn't."""
    if encoding == "raw":
        declared = len(data)
    else:
        declared = declared_size(data[:32].tobytes())
    if declared != size:
        raise ValueError(f"holds {declared} bytes, {size} were expected")
    if encoding == "raw":
        return data
    out = np.empty(size, dtype=np.uint8)
    if encoding == "zstd":
        try:
            numcodecs.zstd.decompress(data, out)  # never writes past `out`
        except RuntimeError as error:
            raise ValueError(f"damaged zstd data ({error})") from None
    else:
        _decode_lz4(data, out)
    return out


def declared_size(head: bytes) -> int:
    """Return the size that a zstd or LZ4 frame says its contents have; `head` is its first bytes.

    Raises ValueError if it doesn't say, or is neither.
    """
    magic = _WORD.unpack_from(head)[0] if len(head) >= 4 else 0
    if magic == _LZ4_MAGIC and len(head) >= _LZ4_HEADER.size:
        _, flags, block, size, check = _LZ4_HEADER.unpack_from(head)
        if (flags, block) != (_LZ4_FLAGS, _LZ4_BLOCK_CODE) or check != _lz4_check(head[4:14]):
            raise ValueError("an LZ4 frame of another kind than is written here, or a damaged one")
        return int(size)
    if magic == _ZSTD_MAGIC and len(head) > 6:
        return _zstd_size(head)
    raise ValueError("neither a zstd nor an LZ4 frame")


def encode_chunk(encoding: str, data: Codes) -> bytes | memoryview:
    """Return `data` (contiguous) as it lies in a zarr chunk: zarr's codecs `zstd` and `blosc`, or as it is."""
    if encoding == "zstd":
        return bytes(numcodecs.zstd.compress(data, ZSTD_LEVEL))
    if encoding == "lz4":
        before, numcodecs.blosc.use_threads = numcodecs.blosc.use_threads, False
        try:  # with several threads, blosc puts blocks in the order in which they finish: other bytes every time
            shuffle = numcodecs.blosc.SHUFFLE if data.itemsize > 1 else numcodecs.blosc.NOSHUFFLE
            return bytes(numcodecs.blosc.compress(data, b"lz4", BLOSC_LEVEL, shuffle, 0, data.itemsize))
        finally:
            numcodecs.blosc.use_threads = before
    return data.data


def decode_chunk(encoding: str, data: Bytes, size: int) -> Bytes:
    """Return what `encode_chunk` was given, uint8 [size]. Raises ValueError."""
    if encoding != "lz4":
        return decode(encoding, data, size)
    # blosc's header: 4 bytes of flags, the size of the contents, of a block, and of all this, which blosc believes.
    declared, _, length = struct.unpack_from("<III", data.data, 4) if len(data) >= 16 else (0, 0, 0)
    if declared != size:
        raise ValueError(f"holds {declared} bytes, {size} were expected")
    if length != len(data):
        raise ValueError(f"damaged blosc data: {len(data)} bytes, its header says {length}")
    out = np.empty(size, dtype=np.uint8)
    try:
        numcodecs.blosc.decompress(data, out)
    except RuntimeError as error:
        raise ValueError(f"damaged blosc data ({error})") from None
    return out


def _zstd_size(head: bytes) -> int:
    """Frame_Content_Size of RFC 8878, section 3.1.1.1."""
    descriptor = head[4]
    single = bool(descriptor & 0x20)
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    if not width or at + width > len(head):
        raise ValueError("a zstd frame that doesn't tell its size")
    return int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)


def _encode_lz4(data: bytes) -> bytes:
    """One LZ4 frame (version 1.6.1 of its format)."""
    descriptor = struct.pack("<BBQ", _LZ4_FLAGS, _LZ4_BLOCK_CODE, len(data))
    parts = [_WORD.pack(_LZ4_MAGIC), descriptor, bytes([_lz4_check(descriptor)])]
    for first in range(0, len(data), _LZ4_BLOCK):
        block = data[first : first + _LZ4_BLOCK]
        packed = bytes(numcodecs.lz4.compress(block, 1))[4:]  # numcodecs puts the size before the block
        if len(packed) < len(block):
            parts += [_WORD.pack(len(packed)), packed]
        else:
            parts += [_WORD.pack(len(block) | _LZ4_STORED), block]
    return b"".join([*parts, _WORD.pack(0)])


def _decode_lz4(data: Bytes, out: Bytes) -> None:
    """Decode the blocks of an LZ4 frame, whose header `declared_size` has checked, into `out`."""
    at, filled = _LZ4_HEADER.size, 0
    while filled < len(out):
        target = out[filled : filled + _LZ4_BLOCK]
        length = _WORD.unpack_from(data.data, at)[0] if at + 4 <= len(data) else 0
        stored = length & ~_LZ4_STORED
        block = data[at + 4 : at + 4 + stored]
        if not stored or len(block) != stored:
            raise ValueError(f"damaged LZ4 data: a block of {stored} bytes at {at} of {len(data)}")
        if length & _LZ4_STORED:
            if stored != len(target):
                raise ValueError(f"damaged LZ4 data: a block holds {stored} bytes, {len(target)} were expected")
            target[:] = block
        else:
            try:
                numcodecs.lz4.decompress(_WORD.pack(len(target)) + block.tobytes(), target)
            except RuntimeError as error:
                raise ValueError(f"damaged LZ4 data ({error})") from None
        at, filled = at + 4 + stored, filled + len(target)
    if data[at:].tobytes() != bytes(4):
        raise ValueError(f"damaged LZ4 data: it should end at {at + 4} of {len(data)}")


def _lz4_check(descriptor: bytes) -> int:
    """Return the second byte of xxHash32 (seed 0) of a frame descriptor, which is shorter than 16 bytes."""
    mask = 0xFFFFFFFF
    value = (374761393 + len(descriptor)) & mask
    at = 0
    while at + 4 <= len(descriptor):
        value = (value + _WORD.unpack_from(descriptor, at)[0] * 3266489917) & mask
        value = (((value << 17) | (value >> 15)) & mask) * 668265263 & mask
        at += 4
    for byte in descriptor[at:]:
        value = (value + byte * 374761393) & mask
        value = (((value << 11) | (value >> 21)) & mask) * 2654435761 & mask
    value = (value ^ (value >> 15)) * 2246822519 & mask
    value = (value ^ (value >> 13)) * 3266489917 & mask
    return ((value ^ (value >> 16)) >> 8) & 0xFF
