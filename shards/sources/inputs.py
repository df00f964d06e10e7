"""Finding and opening what archives are made of: folders, images, and packages that only some archives need."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import logging
import os
import re
import stat
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, UnidentifiedImageError

from shards.errors import NoArchiveError, SourceError, UsageError
from shards.manifest import Codes

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".webp")
# Pillow goes by what is in a file, not by its name, and for some formats (EPS) it starts a program.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "PPM", "WEBP")
# What desktops, editors and network drives leave beside data; names that begin with a dot too.
_TOOLS = ("__MACOSX", "__pycache__", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_TOOL_FILES = ("Thumbs.db", "desktop.ini")
# What Pillow raises for files that are damaged; a bomb is one of more pixels than it is ready to decode.
IMAGE_ERRORS = (
    *(UnidentifiedImageError, Image.DecompressionBombError, OSError, EOFError),
    *(SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error, zlib.error, OverflowError, MemoryError),
)


def walk(folder: Path) -> list[str]:
    """Return all regular files below `folder`, relative with forward slashes, sorted. Links are followed.

    Hidden files and folders, those that tools leave, and what is no regular file (pipes, sockets) are left out, which
    is logged with their number.

    Raises:
        NoArchiveError: it is no folder.
        SourceError: a folder below it can't be listed, a link leads back to a folder that it lies in, or a name isn't
            UTF-8.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise NoArchiveError(
            f"{folder} is not a folder (it {what}); give the archive's folder, sub-folders are searched too"
        )
    passed_over: list[str] = []
    found = sorted(_files_below(folder, passed_over))
    if passed_over:
        logger.warning(
            "%s: %s that are hidden, a tool's or no regular files are skipped, the first is %s",
            folder,
            plural(len(passed_over), "entr", "y", "ies"),
            passed_over[0],
        )
    return found


def _files_below(root: Path, passed_over: list[str]) -> Iterator[str]:
    """Yield the regular files below `root` as relative names, unsorted; add to `passed_over` what is none."""
    above: dict[str, tuple[tuple[int, int], ...]] = {os.fspath(root): (_identity(root),)}
    for parent, folders, names in os.walk(root, onerror=_not_listed, followlinks=True):
        for name in sorted(names):
            path = Path(parent, name)
            relative = _utf8(path.relative_to(root).as_posix(), root)
            if name.startswith(".") or name in _TOOL_FILES or not _is_file_or_dangling(path):
                passed_over.append(relative)
            else:
                yield relative
        folders.sort()
        for name in tuple(folders):
            path = Path(parent, name)
            relative = _utf8(path.relative_to(root).as_posix(), root)
            if name.startswith(".") or name in _TOOLS:
                passed_over.append(f"{relative}/")
                folders.remove(name)
                continue
            identity = _identity(path)
            if identity in above[parent]:
                raise SourceError(
                    f"{path}: leads back to a folder that it lies in ({os.path.realpath(path)}); remove that link, and "
                    "convert again"
                )
            above[os.path.join(parent, name)] = (*above[parent], identity)  # as os.walk names it: "./a", not "a"
        del above[parent]


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _not_listed(error: OSError) -> None:
    """Refuse it: what is in there would be absent from the store, and nobody would know."""
    raise SourceError(
        f"{error.filename}: this folder can't be listed ({error.strerror}); grant access or move it away, and run the "
        "same command again"
    )


def _utf8(name: str, root: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise SourceError(
            f"{root}/{name}: a name that isn't UTF-8, which a store can't record; rename it (convmv does so for whole "
            "folders), and convert again"
        ) from None
    return name


def _is_file_or_dangling(path: Path) -> bool:
    """Return whether it is a file; a link to nothing stays: where it should be a frame, reading it says so."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return path.is_symlink()


@dataclass(frozen=True)
class Listing:
    """What a guess looks at: `files` below `root`, relative; a lone file is listed by its name."""

    root: Path
    files: tuple[str, ...]

    @staticmethod
    def of(path: Path, limit: int = 20_000) -> Listing:
        """List at most `limit` files, without reading a large archive's whole tree. Raises SourceErrors as `walk`."""
        if path.is_file():
            return Listing(path.parent, (path.name,))
        if not path.is_dir():
            raise NoArchiveError(f"{path} does not exist; give the archive's folder or file")
        return Listing(path, tuple(itertools.islice(_files_below(path, []), limit)))

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        """Return the files whose last name part is wholly the pattern's."""
        return [file for file in self.files if pattern.fullmatch(file.rsplit("/", 1)[-1])]


def need(module: str, extra: str, what: str) -> ModuleType:
    """Import a package that only some archives need. Raises UsageError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{what} needs the package {module.split('.')[0]} ({error}); "
            f"install it with: pip install 'modernn-toolkit[{extra}]'"
        ) from None


@contextlib.contextmanager
def quiet(rasterio: ModuleType) -> Iterator[None]:
    """Drop rasterio's warnings of images without a grid, which are no fault, and what Python prints when GDAL complains
    about a damaged file in bytes that aren't UTF-8, for which rasterio's error handler can't raise an error.
    """
    printing, unraisable = sys.excepthook, sys.unraisablehook  # Cython calls both
    sys.excepthook = lambda kind, *rest: None if kind is UnicodeDecodeError else printing(kind, *rest)
    sys.unraisablehook = lambda found: None if found.exc_type is UnicodeDecodeError else unraisable(found)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            yield
    finally:
        sys.excepthook, sys.unraisablehook = printing, unraisable


def read_image(
    path: Path, formats: Sequence[str] = IMAGE_FORMATS, modes: Sequence[str] = ("L", "P"), dtype: str = "uint8"
) -> Codes:
    """Return the stored numbers of an image, [height, width] or [height, width, 3], palettes not applied.

    `modes` are Pillow's names of the pixel kinds that the caller understands; with a `dtype` of uint16 grey of 16 bits
    too. Raises SourceError for another kind, for
    several images in one file, and for what Pillow can't read.
    """
    with open_image(path, formats) as image:
        deep = image.mode.startswith("I")
        if deep and "L" in modes and dtype == "uint8":
            raise SourceError(
                f"{path}: grey of more than 8 bits: add --dtype uint16, and the meaning of its numbers: convert radar "
                "--reader images --dtype uint16 --dbz OFFSET,GAIN, or convert images --dtype uint16 for brightness"
            )
        if image.mode not in modes and not (deep and dtype == "uint16"):
            raise SourceError(
                f"{path}: pixels of kind {image.mode}, expected {' or '.join(modes)} (Pillow's names; L is grey of 8 "
                "bits); was it edited? Save it as it was, and convert again"
            )
        pages = page_count(path, image)
        if pages > 1:
            raise SourceError(
                f"{path}: {pages} images in one file, expected one; save them one by one, or --source images"
            )
        return _pixels(path, image, dtype)


def two_sizes(path: Path, found: Sequence[int], expected: Sequence[int]) -> SourceError:
    """Return the error of a frame that isn't of the archive's size."""
    return SourceError(
        f"{path}: frames of {by(found)} pixels, the archive's first has {by(expected)}; convert them as two archives, "
        "or move it away"
    )


def open_image(path: Path, formats: Sequence[str] = IMAGE_FORMATS) -> Image.Image:
    """Open an image by Pillow, as one of `formats`; pixels are decoded later. Raises SourceError."""
    try:
        if not path.is_file():
            raise FileNotFoundError("absent, or no regular file")
        return Image.open(path, formats=tuple(formats))
    except IMAGE_ERRORS as error:
        raise unreadable(path, error) from None


def page_count(path: Path, image: Image.Image) -> int:
    """Return how many images an open file has: pages of a TIFF, frames of a GIF. Raises SourceError."""
    try:
        return int(getattr(image, "n_frames", 1))
    except IMAGE_ERRORS as error:
        raise unreadable(path, error) from None


def _pixels(path: Path, image: Image.Image, dtype: str) -> Codes:
    try:
        numbers = np.asarray(image)
    except IMAGE_ERRORS as error:
        raise unreadable(path, error) from None
    if numbers.dtype.itemsize > 2 and (numbers.min() < 0 or numbers.max() > np.iinfo(dtype).max):
        raise unreadable(path, f"numbers {numbers.min()}..{numbers.max()}, should be 0..{np.iinfo(dtype).max}")
    return numbers.astype(dtype)


def unreadable(path: Path, why: object) -> SourceError:
    """Return the error of a frame that can't be decoded."""
    return SourceError(
        f"{path}: unreadable frame ({why}); replace it, or move it away (the gap then splits its run), "
        "and convert again"
    )


def by(size: Sequence[int]) -> str:
    """Return "384x512", height first."""
    return "x".join(str(side) for side in size)


def plural(count: int, what: str, one: str = "", many: str = "s") -> str:
    """Return "1 file" or "2 files"; `one` and `many` are other endings."""
    return f"{count} {what}{one if count == 1 else many}"
