"""Read .npz files that come from outside: no pickles, no more memory than is stated, one kind of error."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 1 << 32  # bytes of an .npz when it is unpacked
# What numpy and zipfile raise for files that are damaged.
NUMPY_ERRORS = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, OverflowError, MemoryError, RecursionError, SyntaxError),
    *(NotImplementedError, RuntimeError, IndexError, AttributeError, struct.error, zlib.error),
    *(zipfile.BadZipFile, tokenize.TokenError),
)


def load_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return all arrays of an .npz by name.

    Raises:
        ValueError: it is missing, damaged, no .npz, holds Python objects, or unpacks to more than LARGEST bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > LARGEST:
            raise ValueError(f"unpacks to {size} bytes, at most {LARGEST} are read")
        with np.load(path, allow_pickle=False) as stored:
            return {name: np.asarray(stored[name]) for name in stored.files}
    except NUMPY_ERRORS as error:
        raise ValueError(str(error) or type(error).__name__) from None
