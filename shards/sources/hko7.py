"""HKO-7: seven years of radar over Hong Kong as grey PNG of 480x480 pixels, every 6 minutes, with a mask per frame.

radarPNG/YYYY/MM/DD/RADyymmddHHMM00.png, and radarPNG_mask/YYYY/MM/DD/RADyymmddHHMM00.mask: zlib of 480*480 bytes that
are 1 where a pixel counts; noise and what lies outside the radar's circle is 0. Grey v is dBZ = 70 v / 255 - 10, and
rain is 10^((dBZ - 10 log10 58.53) / 15.6) mm/h (Z = 58.53 R^1.56). Format: sxjscience/HKO-7.

Codes are kept, but 255 is needed for pixels that don't count: v = 255, 60 dBZ, becomes 254, 59.7 dBZ.
"""

from __future__ import annotations

import argparse
import re
import zlib
from pathlib import Path

import numpy as np

from shards.errors import SourceError
from shards.georeference import Grid
from shards.manifest import Scale, SourceInfo
from shards.sources import radar
from shards.sources.base import Source, SourceEntry
from shards.sources.inputs import Listing, by, read_image
from shards.sources.radar_readers import Composite, FileName, FrameReader, named

FRAMES, MASKS = "radarPNG", "radarPNG_mask"  # folders side by side
_NAME = re.compile(r"RAD(?P<time>\d{12})\.png")


class Hko7Png:
    """A reader as radar_readers.py has them. A frame without a mask is all observed, if the archive has no masks."""

    name = "hko7"
    scale = Scale(
        quantity="radar reflectivity", unit="dBZ", offset=-10.0, gain=70 / 255, max_code=254, missing_code=255
    )
    step_seconds = 360.0
    crop = "none"
    looks_like = "RAD150701120600.png"
    suffixes = (".png",)
    source = SourceInfo(
        name="HKO-7",
        licence="Hong Kong Observatory; research use under a signed undertaking, not to be passed on",
        citation="Shi et al., Deep learning for precipitation nowcasting: a benchmark and a new model, NeurIPS 2017",
        url="https://github.com/sxjscience/HKO-7",
    )

    def parse(self, name: str) -> FileName | None:
        """Return the time in RADyymmddHHMM00.png."""
        return named(_NAME.fullmatch(name), "%y%m%d%H%M%S")

    def read(self, path: Path) -> Composite:
        """Return grey values, 255 where the mask says that they don't count."""
        grey = read_image(path, ["PNG"], ("L",))
        codes = np.minimum(grey, 254)
        mask = mask_path(path)
        if mask is not None:
            codes[~read_mask(mask, (grey.shape[0], grey.shape[1]))] = 255
        return Composite(codes, int(np.count_nonzero((grey == 255) & (codes != 255))))

    def grid(self, path: Path) -> Grid | None:
        """Return nothing: the archive names none."""
        return None


def mask_path(frame: Path) -> Path | None:
    """Return where a frame's mask lies; None if the archive came without masks."""
    parts = list(frame.parts)
    if FRAMES not in parts:
        return None
    place = len(parts) - 1 - parts[::-1].index(FRAMES)
    root = Path(*parts[:place], MASKS)
    return root.joinpath(*parts[place + 1 :]).with_suffix(".mask") if root.is_dir() else None


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Return where a pixel counts, bool [height, width]. Raises SourceError that names the file."""
    expected = size[0] * size[1]
    try:
        data = zlib.decompressobj().decompress(path.read_bytes(), expected + 1)  # no more than that, whatever it says
    except FileNotFoundError:
        raise SourceError(
            f"{path}: this frame's mask is absent; fetch it, or move its frame away (the gap then splits its run)"
        ) from None
    except zlib.error as error:
        raise SourceError(f"{path}: unreadable mask ({error}); fetch it again") from None
    if len(data) != expected:
        raise SourceError(
            f"{path}: a mask for {by(size)} pixels has {expected} bytes, this one "
            f"{'more' if len(data) > expected else len(data)}; fetch it again"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(size) != 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    radar.add_radar_arguments(parser, "none", "none")


def _build(args: argparse.Namespace) -> Source:
    reader: FrameReader = Hko7Png()
    return radar.build(args, {reader.name: reader}, reader.name, beside=".mask")


def _guess(listing: Listing) -> str | None:
    count = len(listing.matching(_NAME))
    return f"{count} files named like {Hko7Png.looks_like}" if count else None


ENTRY = SourceEntry(
    summary="HKO-7: Hong Kong radar as PNG with masks",
    example="python -m shards convert hko7 ~/hko7 stores/hko7 --split train=2009-01..2013-12 --split test=2015-01..",
    add_arguments=_add_arguments,
    build=_build,
    input_help=f"folder with {FRAMES} (and {MASKS})",
    guess=_guess,
)
