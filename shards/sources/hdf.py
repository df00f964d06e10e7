"""HDF5 (and netCDF-4, which is HDF5 inside) through h5py, with errors that name the file and what it holds instead."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.errors import SourceError
from shards.sources.inputs import by, need, unreadable


@contextmanager
def opened(path: Path, what: str) -> Iterator[Any]:
    """The open file; `what` names the archive's format for who hasn't h5py. Raises SourceError where bytes are bad."""
    h5py = need("h5py", "radar", what)
    packed = path.suffix.lower() in (".gz", ".bz2")
    try:
        with h5py.File(_Unpacked(path) if packed else path, "r") as file:
            yield file
    except OSError as error:  # a file that is none, is cut off, or has a damaged chunk
        raise unreadable(path, error) from None


class _Unpacked(io.BytesIO):
    """A packed file's content; h5py calls a file of this kind by its repr."""

    def __init__(self, path: Path) -> None:
        from shards.sources.radar_readers import content

        super().__init__(content(path))
        self._path = path

    def __repr__(self) -> str:
        return str(self._path)


def dataset(file: Any, name: str, shape: Sequence[int | None] | None = None, dtypes: Sequence[str] = ()) -> Any:
    """The dataset `name`, not yet read. `shape` has None for sides that don't matter. Raises SourceError."""
    if name not in file or not hasattr(file[name], "dtype"):
        holds: list[str] = []
        file.visit(holds.append)
        raise SourceError(
            f"{file.filename}: no dataset {name}; it holds {', '.join(holds[:8]) or 'nothing'}"
            f"{' ...' if len(holds) > 8 else ''}; is it another product?"
        )
    found = file[name]
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
    """An attribute as a plain Python value: writers store a number as an array of one, and text as bytes."""
    if name not in attributes:
        return otherwise
    value = attributes[name]
    value = value.ravel()[0] if getattr(value, "ndim", 0) else value
    value = value.item() if hasattr(value, "item") else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
