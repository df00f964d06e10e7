"""Finding and opening what archives are made of: folders, images, and packages that only some archives need."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, UnidentifiedImageError

from shards.errors import NoArchiveError, SourceError, UsageError
from shards.manifest import Codes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".webp")


def walk(folder: Path) -> list[str]:
    """All files below `folder`, relative with forward slashes, sorted. Raises NoArchiveError if it is no folder."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise NoArchiveError(
            f"{folder} is not a folder (it {what}); give the archive's folder, sub-folders are searched too"
        )
    return sorted(
        Path(parent, name).relative_to(folder).as_posix() for parent, _, names in os.walk(folder) for name in names
    )


@dataclass(frozen=True)
class Listing:
    """What a guess looks at: `files` below `root`, relative; a lone file is listed by its name."""

    root: Path
    files: tuple[str, ...]

    @staticmethod
    def of(path: Path, limit: int = 20_000) -> Listing:
        """At most `limit` files, found without reading a large archive's whole tree. Raises NoArchiveError."""
        if path.is_file():
            return Listing(path.parent, (path.name,))
        if not path.is_dir():
            raise NoArchiveError(f"{path} does not exist; give the archive's folder or file")
        found: list[str] = []
        for parent, folders, names in os.walk(path):
            folders.sort()
            found += (Path(parent, name).relative_to(path).as_posix() for name in sorted(names))
            if len(found) >= limit:
                break
        return Listing(path, tuple(found[:limit]))

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        """The files whose last name part is wholly the pattern's."""
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


def read_image(path: Path, formats: list[str] | None = None, modes: Sequence[str] = ("L", "P")) -> Codes:
    """The stored numbers of an image, uint8 [height, width] or [height, width, 3], palettes not applied.

    `modes` are Pillow's names of the pixel kinds that the caller understands. Raises SourceError for another kind, and
    for what Pillow can't read.
    """
    with open_image(path, formats) as image:
        if image.mode not in modes:
            raise SourceError(
                f"{path}: pixels of kind {image.mode}, expected {' or '.join(modes)} (Pillow's names; L is grey of 8 "
                "bits); was it edited? Save it as it was, and convert again"
            )
        return _pixels(path, image)


def read_grey_or_rgb(path: Path, channels: int) -> Codes:
    """An image as a viewer shows it: uint8 [channels, height, width], 1 for grey (ITU-R 601 luma), 3 for RGB.

    Raises SourceError for more than 8 bits a channel, which uint8 can't hold, and for what Pillow can't read.
    """
    with open_image(path) as image:
        if image.mode.startswith("I") or image.mode == "F":
            raise SourceError(
                f"{path}: more than 8 bits a pixel (Pillow's kind {image.mode}); what its numbers mean has to be said: "
                "write a source of ten lines for it, see docs/new-dataset.md"
            )
        try:
            shown = image.convert("L" if channels == 1 else "RGB")
        except (OSError, EOFError, SyntaxError) as error:
            raise _unreadable(path, error) from None
        pixels = _pixels(path, shown)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_sequence(folder: Path, names: Sequence[str], channels: int, size: tuple[int, int]) -> Codes:
    """The images `names` below `folder` as frames, uint8 [L, channels, height, width]. Raises SourceError where one is
    not of `size` (height, width).
    """
    frames = np.empty((len(names), channels, *size), dtype=np.uint8)
    for target, name in zip(frames, names, strict=True):
        image = read_grey_or_rgb(folder / name, channels)
        if image.shape[1:] != size:
            raise two_sizes(folder / name, image.shape[1:], size)
        target[:] = image
    return frames


def two_sizes(path: Path, found: Sequence[int], expected: Sequence[int]) -> SourceError:
    """What is said of a frame that isn't of the archive's size."""
    return SourceError(
        f"{path}: frames of {by(found)} pixels, the archive's first has {by(expected)}; convert them as two archives, "
        "or move it away"
    )


def image_channels(path: Path) -> int:
    """1 for a grey image, 3 for one with colours. Raises SourceError for what Pillow can't read."""
    with open_image(path) as image:
        return 1 if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;") else 3


def image_size(path: Path) -> tuple[int, int]:
    """(height, width), from the header alone. Raises SourceError for what Pillow can't read."""
    with open_image(path) as image:
        return image.height, image.width


def open_image(path: Path, formats: list[str] | None = None) -> Image.Image:
    """Pillow's open, with our errors."""
    try:
        return Image.open(path, formats=formats)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, EOFError, SyntaxError) as error:
        raise _unreadable(path, error) from None


def _pixels(path: Path, image: Image.Image) -> Codes:
    try:
        return np.asarray(image, dtype=np.uint8)
    except (OSError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> SourceError:
    return unreadable(path, str(error))


def unreadable(path: Path, why: object) -> SourceError:
    """What is said of a frame that can't be decoded."""
    return SourceError(
        f"{path}: unreadable frame ({why}); replace it, or move it away (the gap then splits its run), "
        "and convert again"
    )


def by(size: Sequence[int]) -> str:
    """ "384x512", height first."""
    return "x".join(str(side) for side in size)


def plural(count: int, what: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count} {what}{'' if count == 1 else 's'}"
