"""HDF5 (and netCDF-4, which is HDF5 inside) through h5py, with errors that name the file and what it holds instead."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import ShardError, SourceError
from shards.sources.inputs import by, need, unreadable
from shards.sources.radar_readers import PACKED, content

LARGEST = 1 << 40  # bytes of a dataset: more is no archive's
LARGEST_CHUNK = 1 << 30  # bytes that one number of it may need to be unpacked
# What h5py raises for files that are damaged; a file of it may claim any size.
HDF5_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError, AttributeError)


@contextmanager
def opened(path: Path, what: str) -> Iterator[Any]:
    """Open a file; `what` names the archive's format where h5py is missing. Raises SourceError where bytes are bad."""
    h5py = need("h5py", "radar", what)
    packed = path.suffix.lower() in PACKED
    try:
        with h5py.File(_Unpacked(path) if packed else path, "r") as file:
            yield file
    except HDF5_ERRORS as error:  # a file that is none, is cut off, or has a damaged chunk
        if isinstance(error, ShardError):
            raise
        raise unreadable(path, error or type(error).__name__) from None


class _Unpacked(io.BytesIO):
    """A packed file's content; h5py calls a file of this kind by its repr."""

    def __init__(self, path: Path) -> None:
        super().__init__(content(path))
        self._path = path

    def __repr__(self) -> str:
        return str(self._path)


def dataset(file: Any, name: str, shape: Sequence[int | None] | None = None, dtypes: Sequence[str] = ()) -> Any:
    """Return the dataset `name`, not yet read. `shape` has None for sides that don't matter. Raises SourceError."""
    if not is_here(file, name) or not hasattr(file[name], "dtype"):
        holds: list[str] = []
        file.visit(holds.append)
        raise SourceError(
            f"{file.filename}: no dataset {name}; it holds {', '.join(holds[:8]) or 'nothing'}"
            f"{' ...' if len(holds) > 8 else ''}; is it another product?"
        )
    found = file[name]
    refuse_elsewhere(file, name)
    if dtypes and str(found.dtype) not in dtypes:
        raise SourceError(
            f"{file.filename}: {name} has type {found.dtype}, expected {' or '.join(dtypes)}; is it another product?"
        )
    if shape is not None:
        fits = len(shape) == len(found.shape) and all(
            want in (None, have) for want, have in zip(shape, found.shape, strict=True)
        )
        if not fits:
            wanted = "x".join("N" if side is None else str(side) for side in shape)
            raise SourceError(
                f"{file.filename}: {name} has the shape {by(found.shape)}, expected {wanted}; is it another product?"
            )
    return found


def scalar(attributes: Any, name: str, otherwise: object = None) -> Any:
    """Return an attribute as a plain Python value: writers store numbers as arrays of one, text as bytes."""
    if name not in attributes:
        return otherwise
    value = attributes[name]
    value = value.ravel()[0] if getattr(value, "ndim", 0) else value
    value = value.item() if hasattr(value, "item") else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def is_here(file: Any, name: str) -> bool:
    """Return whether the file itself holds `name`, without opening what a link leads to. Raises SourceError for a link
    into another file, and for links that lead round in a circle.
    """
    h5py = need("h5py", "radar", "reading HDF5")
    left, here, links = [part for part in name.split("/") if part not in ("", ".")], file, 0
    while left:
        part = left.pop(0)
        if not isinstance(here, h5py.Group) or part not in here.keys():  # noqa: SIM118 - `in` would follow the link
            return False
        link = here.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise SourceError(
                f"{file.filename}: {name} leads into another file ({link.filename}), which isn't read: only what is in "
                "the archive's own files; copy it there (h5repack does)"
            )
        if not isinstance(link, h5py.SoftLink):
            here = here[part]
            continue
        links += 1
        if links > 16:
            raise SourceError(f"{file.filename}: {name} is a link that leads round in a circle; was the file edited?")
        left = [step for step in link.path.split("/") if step not in ("", ".")] + left
        here = file if link.path.startswith("/") else here
    return True


def refuse_elsewhere(file: Any, name: str) -> None:
    """Refuse a dataset whose numbers lie in other files, or that claims too much. Raises SourceError."""
    found = file[name]
    if not hasattr(found, "external"):
        return
    if found.external or found.is_virtual:
        where = found.external[0][0] if found.external else found.virtual_sources()[0].file_name
        raise SourceError(
            f"{file.filename}: the numbers of {name} lie in another file ({where}), which isn't read: only what is in "
            "the archive's own files; copy it there (h5repack does)"
        )
    chunk = math.prod(found.chunks or (0,)) * found.dtype.itemsize
    if chunk > LARGEST_CHUNK:
        raise SourceError(
            f"{file.filename}: {name} has chunks of {chunk} bytes, at most {LARGEST_CHUNK} are unpacked at once; "
            "rewrite it with smaller ones (h5repack -l)"
        )
    if found.dtype.kind not in "biufSUVO" or found.nbytes > LARGEST:
        raise SourceError(f"{file.filename}: {name} claims {found.nbytes} bytes of {found.dtype}; was the file edited?")


def datasets(file: Any) -> list[tuple[str, tuple[int, ...], str]]:
    """Return name, shape and type of the datasets that the file itself holds; links aren't followed."""
    found: list[tuple[str, tuple[int, ...], str]] = []

    def visit(name: str | bytes, item: Any) -> None:
        if isinstance(name, bytes):
            raise SourceError(f"{file.filename}: the name {name!r} isn't UTF-8; is the file damaged? Fetch it again")
        if hasattr(item, "dtype") and hasattr(item, "shape") and item.shape is not None:
            found.append((name, tuple(item.shape), str(item.dtype)))

    file.visititems(visit)
    return found
