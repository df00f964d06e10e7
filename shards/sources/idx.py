"""MNIST's idx files: a big-endian header (two zero bytes, a type, the number of dimensions, the dimensions), then raw
bytes.

Format: http://yann.lecun.com/exdb/mnist. Read plain or gzipped; only unsigned bytes (type 8) occur in MNIST.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from shards.errors import NoArchiveError, SourceError
from shards.manifest import Codes

LARGEST = 1 << 30  # bytes of images; MNIST and what looks like it have a tenth
DEFLATE_RATIO = 1032  # no gzip file unpacks to more times its size
IMAGES_MAGIC = 0x00000803  # unsigned bytes, three dimensions: count, rows, columns


def find_idx(folder: Path, stem: str) -> Path:
    """Return the file `stem` or `stem.gz` in `folder`; a dot before `idx` is understood for a hyphen
    (`train-images.idx3-ubyte`).

    Raises NoArchiveError that lists what the folder holds instead.
    """
    names = [name + end for name in (stem, stem.replace("-idx", ".idx")) for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if not folder.is_dir():
        raise NoArchiveError(
            f"{folder} is not a folder; --digits takes 'sklearn' or a folder with MNIST's original idx files"
        )
    found = sorted(path.name for path in folder.iterdir())
    holds = f"it holds {', '.join(found[:6])}{' ...' if len(found) > 6 else ''}" if found else "it is empty"
    raise NoArchiveError(
        f"{folder}: no {stem} or {stem}.gz ({holds}); put MNIST's original files there, or leave --digits out "
        "for the digits that come with scikit-learn"
    )


def read_images(path: Path) -> Codes:
    """Return the images of an idx3 file, uint8 [count, rows, columns].

    Raises SourceError for a wrong magic number, and for a file shorter or longer than its header says.
    """
    if not path.is_file():
        raise SourceError(f"{path}: absent, or no regular file; fetch it again")
    size = path.stat().st_size
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(16)
            shape = _image_shape(path, header)
            expected = math.prod(shape)
            most = min(LARGEST, size * (DEFLATE_RATIO if path.suffix == ".gz" else 1))  # it can hold no more
            body = file.read(min(expected, most))
            surplus = len(file.read(1))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{path}: the gzip data is cut off or damaged ({error}); fetch the file again") from None
    if len(body) < expected:
        raise SourceError(
            f"{path}: truncated: its header promises {shape[0]} images of {shape[1]}x{shape[2]} = {expected} bytes, "
            f"it has {len(body)}; fetch the file again"
        )
    if surplus:
        raise SourceError(f"{path}: is longer than the {expected} bytes that its header promises; fetch the file again")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _image_shape(path: Path, header: bytes) -> tuple[int, int, int]:
    """Return the dimensions in the 16 bytes of `header`."""
    if len(header) < 16:
        raise SourceError(f"{path}: truncated: the header has 16 bytes, the file {len(header)}; fetch the file again")
    magic, count, rows, columns = struct.unpack(">IIII", header)
    if magic != IMAGES_MAGIC:
        raise SourceError(
            f"{path}: not an idx file of images: its magic number is {magic:#010x}, should be {IMAGES_MAGIC:#010x}; "
            "is it another file under this name, or still compressed?"
        )
    if 0 in (count, rows, columns):
        raise SourceError(f"{path}: holds no images ({count} of {rows}x{columns}); fetch the file again")
    return count, rows, columns
