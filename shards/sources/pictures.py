"""Images as frames: what a file's header says, and its pixels as grey or RGB of 8 or 16 bits, as a viewer shows them.

A file may hold several images (a TIFF stack, an animated GIF): `FILE#3` names the fourth. Transparent pixels (alpha 0)
have no value. More than 8 bits a channel are refused for uint8, which can't hold them. For uint16 bytes become v * 257,
so that 0..1 stays what it is.
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
from shards.sources.inputs import IMAGE_ERRORS, by, need, open_image, page_count, quiet, two_sizes, unreadable

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601
PIXELS = {"PNG": "PNG", "TIFF": "GTiff"}  # Pillow's formats and GDAL's drivers of 16-bit colours


@dataclass(frozen=True)
class Picture:
    """What a file's header says."""

    size: tuple[int, int]  # height, width
    colour: bool
    alpha: bool  # it may have transparent pixels
    pages: int


def probe(path: Path, dtype: str = "uint8") -> Picture:
    """Read a file's header, and those of its pages. Raises SourceError for what can't be read or stored as `dtype`."""
    with open_image(path) as image:
        _depth(path, image, dtype)
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
        deep = _depth(path, image, "uint16") == 16
        return sum(int(np.count_nonzero(_transparent(path, image, page, deep))) for page in range(pages))


def read_picture(name: Path, channels: int, missing: bool = False, dtype: str = "uint8") -> Codes:
    """Decode an image, or `FILE#PAGE`: [channels, height, width], 1 for grey (ITU-R 601 luma), 3 for RGB.

    With `missing`, transparent pixels become the largest code, and pixels of that value the one below. Raises
    SourceError for more bits a channel than `dtype` has, and for what Pillow can't read.
    """
    found = re.fullmatch(r"(.*)#(\d+)", name.name)
    path, page = (name.with_name(found[1]), int(found[2])) if found else (name, 0)
    with open_image(path) as image:
        deep = _depth(path, image, dtype) == 16
        if found is None and (pages := page_count(path, image)) > 1:
            raise SourceError(f"{path}: {pages} images in one file, there was one before; convert again")
        if deep:
            pixels: Codes = _as_channels(_bands(path, image, page)[0], channels)
        else:
            shown = _shown(path, image, page, "L" if channels == 1 else "RGB")
            pixels = shown[None] if channels == 1 else np.ascontiguousarray(shown.transpose(2, 0, 1))
            pixels = pixels if dtype == "uint8" else pixels.astype(np.uint16) * np.uint16(257)
        if missing:
            largest = np.iinfo(dtype).max
            absent = _transparent(path, image, page, deep)
            pixels = np.where(absent, largest, np.minimum(pixels, largest - 1)).astype(dtype)
    return pixels


def read_sequence(
    folder: Path,
    names: Sequence[str],
    channels: int,
    size: tuple[int, int],
    missing: bool = False,
    dtype: str = "uint8",
) -> Codes:
    """Decode the images `names` below `folder` as frames [L, channels, height, width]. Raises SourceError where one is
    not of `size` (height, width).
    """
    frames: Codes = np.empty((len(names), channels, *size), dtype=dtype)
    for target, name in zip(frames, names, strict=True):
        image = read_picture(folder / name, channels, missing, dtype)
        if image.shape[1:] != size:
            raise two_sizes(folder / name, image.shape[1:], size)
        target[:] = image
    return frames


def _is_coloured(image: Image.Image) -> bool:
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    return not (grey or _raw(image).startswith("LA"))  # of 16 bits with alpha it is RGBA to Pillow


def _raw(image: Image.Image) -> str:
    """Return how pixels are stored, in Pillow's words."""
    return "".join(str(tile[3]) for tile in getattr(image, "tile", ()) if len(tile) > 3)


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


def _transparent(path: Path, image: Image.Image, page: int, deep: bool) -> npt.NDArray[np.bool_]:
    """Return the pixels of alpha 0, bool [height, width]."""
    if not deep:
        return np.asarray(_shown(path, image, page, "RGBA")[..., 3] == 0)
    bands, absent = _bands(path, image, page)
    return np.zeros(bands.shape[1:], dtype=bool) if absent is None else absent


def _bands(path: Path, image: Image.Image, page: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.bool_] | None]:
    """Return the bands of an image of 16 bits, [1 or 3, height, width], and where it is transparent, if it says so.

    Pillow reads grey of 16 bits, and colours as 8 bits: of those GDAL reads all of them.
    """
    _seek(path, image, page)
    if image.mode.startswith("I"):
        try:
            grey = np.asarray(image).astype(np.uint16)
        except IMAGE_ERRORS as error:
            raise unreadable(path, error) from None
        if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
            grey = np.iinfo(np.uint16).max - grey  # white is zero
        clear = image.info.get("transparency")
        return grey[None], grey == clear if isinstance(clear, int) else None
    rasterio = need("rasterio", "geo", "reading colours of 16 bits")
    name = f"GTIFF_DIR:{page + 1}:{path}" if page else str(path)
    try:
        with quiet(rasterio), rasterio.open(name, driver=PIXELS[str(image.format)]) as opened:
            bands = np.asarray(opened.read())
    except rasterio.errors.RasterioError as error:
        raise unreadable(path, error) from None
    count = 1 if len(bands) <= 2 else 3
    if bands.dtype != np.uint16 or len(bands) > 4:
        raise unreadable(path, f"{len(bands)} bands of {bands.dtype}, expected at most 4 of uint16")
    alpha = bands[count] == 0 if image.mode in ("LA", "RGBA") and len(bands) > count else None
    return bands[:count], alpha


def _as_channels(bands: npt.NDArray[np.uint16], channels: int) -> npt.NDArray[np.uint16]:
    if len(bands) == channels:
        return bands
    if channels == 3:
        return np.repeat(bands, 3, axis=0)
    return np.rint(np.tensordot(LUMA, bands, 1))[None].astype(np.uint16)


def _depth(path: Path, image: Image.Image, dtype: str) -> int:
    """Return 8 or 16, the bits of a channel. Raises SourceError for more than `dtype` has, and for numbers that are
    no brightness: signed ones, floats.

    Pillow opens some kinds of 16 bits (RGB, RGBA, grey and alpha) as 8 bits, and drops the lower ones.
    """
    raw = _raw(image)
    tiff = image.format == "TIFF"
    bits = int(max(np.ravel(image.tag_v2.get(258, (8,))))) if tiff else 8  # type: ignore[attr-defined]
    greatest = [int(number) for number in re.findall(r"\d+", raw)] if image.format == "PPM" else []
    wide = ";16" in raw or bits > 8 or max(greatest, default=255) > 255
    if not (wide or ";32" in raw or image.mode.startswith("I") or image.mode == "F"):
        return 8
    brightness = image.mode.startswith("I") or (image.mode in ("RGB", "RGBA", "LA") and image.format in PIXELS)
    if not (wide and brightness) or bits > 16 or ";32" in raw or re.search(";16B?S", raw):
        advice = (
            "which --dtype uint16 takes only as grey, or colours of PNG and TIFF; if its numbers have another meaning"
        )
    elif dtype == "uint8":
        advice = "a store of uint8 can't hold them: add --dtype uint16; if its numbers are no brightness"
    else:
        return 16
    raise SourceError(
        f"{path}: more than 8 bits a pixel and channel (Pillow's kind {image.mode}, stored as {raw or 'unknown'}), "
        f"{advice}: save them as arrays (convert arrays --range LOW,HIGH), or write a source of ten lines, see "
        "docs/new-dataset.md"
    )
