"""Frames as PNG with the colour map of their quantity (shards/colours.py), error maps, and colour legends."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from shards.colours import (
    BELOW_COLOUR,
    DBZ_COLOURS,
    MISSING_COLOUR,
    has_steps,
    palette,
    rgb,
    upper_bits,
    value_range,
)  # fmt: skip
from shards.manifest import Codes, Scale

SMALL_SIDE = 96  # frames up to this size are enlarged, ten side by side
SMALL_COLUMNS, LARGE_COLUMNS = 10, 6
TARGET_SIDE = 128  # minimum size of an enlarged frame, pixels
LARGEST_SIDE = 400  # larger frames are subsampled

# Errors, forecast - observation: blue to white to orange (colour-blind safe, after Crameri and Brewer), darker with
# distance from 0. Values beyond the range have the colours at its ends.
TOO_LOW, TOO_HIGH = ("#cfe3f3", "#8bbfe0", "#3f8fc5", "#15599a", "#08305f"), (
    "#fde3c8", "#fbb877", "#ee8232", "#bb4d0d", "#6e2703",
)  # fmt: skip
EQUAL_COLOUR = "#ffffff"
DIFFERENCE_COLOURS = (*reversed(TOO_LOW), EQUAL_COLOUR, *TOO_HIGH)
DBZ_DIFFERENCE = 25.0  # dBZ at the ends of the colour scale; other quantities: half their range


@dataclass(frozen=True)
class Key:
    """A colour legend, for the macro `key`; lengths in pixels.

    Attributes:
        colours: of adjacent boxes.
        ticks: (x, text) below them.
        missing: colour of pixels without data, if there are any.
    """

    label: str
    colours: Sequence[str]
    wide: int
    ticks: Sequence[tuple[float, str]]
    text: str
    missing: str | None = None


def columns_for(height: int, width: int) -> int:
    """Return the number of frames per row for a frame size."""
    return SMALL_COLUMNS if max(height, width) <= SMALL_SIDE else LARGE_COLUMNS


def chosen_leads(count: int, columns: int) -> list[int]:
    """Choose up to `columns` of `count` frames, evenly spaced, including the first and the last."""
    if count <= columns:
        return list(range(count))
    return [int(place) for place in np.linspace(0, count - 1, columns).round()]


def png_uri(codes: Codes, scale: Scale) -> str:
    """Return a frame [C, H, W] of codes as the data URI of a PNG; small frames are enlarged without smoothing."""
    return _uri(coloured(resized(codes), scale))


def difference_uri(prediction: Codes, truth: Codes, scale: Scale) -> str:
    """Return the error map (prediction - observation) of frames [C, H, W], first channel; grey if there is no data."""
    difference = resized(prediction)[0].astype(np.int32) - resized(truth)[0]
    step = _half_range(scale) / (len(TOO_HIGH) + 0.5) / abs(scale.gain)  # width of a colour, in codes
    bins = np.clip(np.round(difference / step), -len(TOO_LOW), len(TOO_HIGH)).astype(np.int16) + len(TOO_LOW)
    if scale.missing_code is not None:
        bins[resized(truth)[0] == scale.missing_code] = len(DIFFERENCE_COLOURS)
    image = Image.fromarray(bins.astype(np.uint8))
    image.putpalette(rgb(*DIFFERENCE_COLOURS, MISSING_COLOUR).tobytes())
    return _uri(image)


def _half_range(scale: Scale) -> float:
    """Return the error at the ends of the colour scale, in the store's unit."""
    return DBZ_DIFFERENCE if has_steps(scale) else abs(scale.gain) * scale.max_code / 2


def _uri(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return data_uri("image/png", out.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    """Return bytes as a data URI, to embed them in the page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def resized(codes: Codes) -> Codes:
    """Resize a frame [C, H, W] to its size on the page."""
    side = max(codes.shape[-2:])
    if side > LARGEST_SIDE:
        step = -(-side // LARGEST_SIDE)
        return codes[:, ::step, ::step]
    factor = -(-TARGET_SIDE // side) if side <= SMALL_SIDE else 1
    return codes.repeat(factor, axis=1).repeat(factor, axis=2)


def coloured(codes: Codes, scale: Scale) -> Image.Image:
    """Return a frame [C, H, W] of codes as an image with the colour map of its quantity."""
    if codes.shape[0] == 3 and not has_steps(scale):
        return Image.fromarray(np.ascontiguousarray(upper_bits(codes).transpose(1, 2, 0)))
    colours, places = palette(scale)
    image = Image.fromarray(places[codes[0]])  # only the first channel
    image.putpalette(colours.tobytes())
    return image


def frame_key(scale: Scale) -> Key:
    """Return the colour legend of frames: steps of dBZ, or the grayscale range in the store's unit."""
    missing = None if scale.missing_code is None else MISSING_COLOUR
    if has_steps(scale):
        ticks = [(40.0 * (1 + place), f"{start}") for place, (start, _) in enumerate(DBZ_COLOURS)]
        colours = [BELOW_COLOUR, *(colour for _, colour in DBZ_COLOURS)]
        return Key("dBZ scale", colours, 40, ticks, "dBZ", missing)
    low, high = value_range(scale)
    greys = [f"#{grey:02x}{grey:02x}{grey:02x}" for grey in range(0, 256, 5)]
    wide = 4
    ticks = [(0.0, f"{low:g}"), (float(wide * len(greys)), f"{high:g}")]
    return Key("grayscale", greys, wide, ticks, _unit(scale), missing)


def difference_key(scale: Scale) -> Key:
    """Return the colour legend of error maps."""
    wide, end = 26, _half_range(scale)
    middle = wide * len(DIFFERENCE_COLOURS) / 2
    ticks = [(0.0, f"−{end:g}"), (middle, "0"), (2 * middle, f"+{end:g}")]
    text = f"error (forecast − observation) {_unit(scale)}".rstrip()
    return Key("error scale", DIFFERENCE_COLOURS, wide, ticks, text)


def _unit(scale: Scale) -> str:
    return "" if scale.unit == "1" else scale.unit
