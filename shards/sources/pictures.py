"""Images as frames: what a file's header says, and its pixels as grey or RGB of 8 bits, as a viewer shows them.

A file may hold several images (a TIFF stack, an animated GIF): `FILE#3` names the fourth. Transparent pixels (alpha 0)
have no value. More than 8 bits a channel are refused: uint8 can't hold them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from shards.errors import SourceError
from shards.manifest import Codes
from shards.sources.inputs import IMAGE_ERRORS, by, open_image, page_count, two_sizes, unreadable

MISSING = 255  # the code of transparent pixels, in stores of archives that have them


@dataclass(frozen=True)
class Picture:
    """What a file's header says."""

    size: tuple[int, int]  # height, width
    colour: bool
    alpha: bool  # it may have transparent pixels
    pages: int


def probe(path: Path) -> Picture:
    """Read a file's header, and those of its pages. Raises SourceError for what can't be read or stored."""
    with open_image(path) as image:
        _refuse_deep(path, image)
        size, pages = (image.height, image.width), page_count(path, image)
        found = Picture(size, _is_coloured(image), image.has_transparency_data, pages)
        for page in range(1, pages):
            _seek(path, image, page)
            if (image.height, image.width) != size:
                raise SourceError(
                    f"{path}: images of two sizes in one file: the first has {by(size)} pixels, number {page + 1} "
                    f"{by((image.height, image.width))}; is it one image in several resolutions? Save the one you want"
                )
        return found


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width), from the header alone. Raises SourceError for what Pillow can't read."""
    with open_image(path) as image:
        return image.height, image.width


def transparent_pixels(path: Path, pages: int) -> int:
    """Count the pixels of alpha 0 in all images of a file. Raises SourceError."""
    with open_image(path) as image:
        return sum(int(np.count_nonzero(_shown(path, image, page, "RGBA")[..., 3] == 0)) for page in range(pages))


def read_picture(name: Path, channels: int, missing: bool = False) -> Codes:
    """Decode an image, or `FILE#PAGE`: uint8 [channels, height, width], 1 for grey (ITU-R 601 luma), 3 for RGB.

    With `missing`, transparent pixels become MISSING, and values of 255 become 254. Raises SourceError for more than 8
    bits a channel, and for what Pillow can't read.
    """
    found = re.fullmatch(r"(.*)#(\d+)", name.name)
    path, page = (name.with_name(found[1]), int(found[2])) if found else (name, 0)
    with open_image(path) as image:
        _refuse_deep(path, image)
        if found is None and (pages := page_count(path, image)) > 1:
            raise SourceError(f"{path}: {pages} images in one file, there was one before; convert again")
        pixels = _shown(path, image, page, "L" if channels == 1 else "RGB")
        pixels = pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        if missing:
            transparent = _shown(path, image, page, "RGBA")[..., 3] == 0
            pixels = np.where(transparent, MISSING, np.minimum(pixels, MISSING - 1)).astype(np.uint8)
    return pixels


def read_sequence(
    folder: Path, names: Sequence[str], channels: int, size: tuple[int, int], missing: bool = False
) -> Codes:
    """Decode the images `names` below `folder` as frames, uint8 [L, channels, height, width]. Raises SourceError where
    one is not of `size` (height, width).
    """
    frames = np.empty((len(names), channels, *size), dtype=np.uint8)
    for target, name in zip(frames, names, strict=True):
        image = read_picture(folder / name, channels, missing)
        if image.shape[1:] != size:
            raise two_sizes(folder / name, image.shape[1:], size)
        target[:] = image
    return frames


def _is_coloured(image: Image.Image) -> bool:
    return image.mode not in ("1", "L", "LA", "La")


def _seek(path: Path, image: Image.Image, page: int) -> None:
    try:
        image.seek(page)
    except IMAGE_ERRORS as error:
        raise unreadable(path, f"image {page + 1}: {error}") from None


def _shown(path: Path, image: Image.Image, page: int, mode: str) -> npt.NDArray[np.uint8]:
    _seek(path, image, page)
    try:
        return np.asarray(image.convert(mode), dtype=np.uint8)
    except IMAGE_ERRORS as error:
        raise unreadable(path, error) from None


def _refuse_deep(path: Path, image: Image.Image) -> None:
    """Pillow opens some kinds of 16 bits (RGB, RGBA, grey and alpha) as 8 bits, and drops the lower ones."""
    raw = "".join(str(tile[3]) for tile in getattr(image, "tile", ()) if len(tile) > 3)
    bits = image.tag_v2.get(258, (8,)) if image.format == "TIFF" else (8,)  # type: ignore[attr-defined]
    greatest = [int(number) for number in re.findall(r"\d+", raw)] if image.format == "PPM" else []
    deep = ";16" in raw or ";32" in raw or max(np.ravel(bits)) > 8 or max(greatest, default=255) > 255
    if deep or image.mode.startswith("I") or image.mode == "F":
        raise SourceError(
            f"{path}: more than 8 bits a pixel and channel (Pillow's kind {image.mode}, stored as {raw or 'unknown'}), "
            "a store of uint8 can't hold them; the meaning of its numbers has to be given: save them as arrays "
            "(convert arrays --range LOW,HIGH), or write a source of ten lines, see docs/new-dataset.md"
        )
