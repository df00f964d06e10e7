"""Frames as PNG in the colours of their quantity (shards/colours.py), differences of two frames, keys to both."""

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
    code_colours,
    has_steps,
    rgb,
    value_range,
)  # fmt: skip
from shards.manifest import Codes, Scale

SMALL_SIDE = 96  # frames up to this are enlarged, and ten fit side by side
SMALL_COLUMNS, LARGE_COLUMNS = 10, 6
TARGET_SIDE = 128  # pixels that a small frame is enlarged to, at least
LARGEST_SIDE = 400  # above it only every n-th pixel is kept

# Errors, forecast - observation: blue to white to orange (Crameri's and Brewer's advice for the colour-blind), each end
# darker the further it is from 0. Values beyond the ends have the ends' colours.
TOO_LOW, TOO_HIGH = ("#cfe3f3", "#8bbfe0", "#3f8fc5", "#15599a", "#08305f"), (
    "#fde3c8", "#fbb877", "#ee8232", "#bb4d0d", "#6e2703",
)  # fmt: skip
EQUAL_COLOUR = "#ffffff"
DIFFERENCE_COLOURS = (*reversed(TOO_LOW), EQUAL_COLOUR, *TOO_HIGH)
DBZ_DIFFERENCE = 25.0  # dBZ at the ends of the scale; other quantities: half their range


@dataclass(frozen=True)
class Key:
    """The key to the colours of frames, for the macro `key`; lengths in pixels.

    Attributes:
        colours: of boxes side by side.
        ticks: (x, text) below them.
        missing: the colour of pixels without data, if there are any.
    """

    label: str
    colours: Sequence[str]
    wide: int
    ticks: Sequence[tuple[float, str]]
    text: str
    missing: str | None = None


def columns_for(height: int, width: int) -> int:
    """How many frames of a size are shown side by side."""
    return SMALL_COLUMNS if max(height, width) <= SMALL_SIDE else LARGE_COLUMNS


def chosen_leads(count: int, columns: int) -> list[int]:
    """Up to `columns` of `count` frames, evenly spread, the first and the last among them."""
    if count <= columns:
        return list(range(count))
    return [int(place) for place in np.linspace(0, count - 1, columns).round()]


def png_uri(codes: Codes, scale: Scale) -> str:
    """One frame [C, H, W] of codes as the data URI of a PNG, enlarged without smoothing where it is small."""
    return _uri(coloured(resized(codes), scale))


def difference_uri(prediction: Codes, truth: Codes, scale: Scale) -> str:
    """Prediction - observation, frames [C, H, W], the first channel; where the observation is missing, grey."""
    difference = resized(prediction)[0].astype(np.int16) - resized(truth)[0]
    step = _half_range(scale) / (len(TOO_HIGH) + 0.5) / abs(scale.gain)  # codes of a colour's width
    bins = np.clip(np.round(difference / step), -len(TOO_LOW), len(TOO_HIGH)).astype(np.int16) + len(TOO_LOW)
    if scale.missing_code is not None:
        bins[resized(truth)[0] == scale.missing_code] = len(DIFFERENCE_COLOURS)
    image = Image.fromarray(bins.astype(np.uint8))
    image.putpalette(rgb(*DIFFERENCE_COLOURS, MISSING_COLOUR).tobytes())
    return _uri(image)


def _half_range(scale: Scale) -> float:
    """The difference at the ends of the colours, in the store's unit."""
    return DBZ_DIFFERENCE if has_steps(scale) else abs(scale.gain) * scale.max_code / 2


def _uri(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return data_uri("image/png", out.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    """A file's bytes as the address of an image that is inside the page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def resized(codes: Codes) -> Codes:
    """A frame [C, H, W] as large as it is shown."""
    side = max(codes.shape[-2:])
    if side > LARGEST_SIDE:
        step = -(-side // LARGEST_SIDE)
        return codes[:, ::step, ::step]
    factor = -(-TARGET_SIDE // side) if side <= SMALL_SIDE else 1
    return codes.repeat(factor, axis=1).repeat(factor, axis=2)


def coloured(codes: Codes, scale: Scale) -> Image.Image:
    """A frame [C, H, W] of codes in the colours of its quantity, pixel by pixel."""
    if codes.shape[0] == 3 and not has_steps(scale):
        return Image.fromarray(np.ascontiguousarray(codes.transpose(1, 2, 0)))
    image = Image.fromarray(np.ascontiguousarray(codes[0]))  # of several channels the first
    image.putpalette(code_colours(scale).tobytes())
    return image


def frame_key(scale: Scale) -> Key:
    """The key to the colours of frames: steps of dBZ, or the range of grey in the store's unit."""
    missing = None if scale.missing_code is None else MISSING_COLOUR
    if has_steps(scale):
        ticks = [(40.0 * (1 + place), f"{start}") for place, (start, _) in enumerate(DBZ_COLOURS)]
        colours = [BELOW_COLOUR, *(colour for _, colour in DBZ_COLOURS)]
        return Key("dBZ scale", colours, 40, ticks, "dBZ", missing)
    low, high = value_range(scale)
    greys = [f"#{grey:02x}{grey:02x}{grey:02x}" for grey in range(0, 256, 5)]
    wide = 4
    ticks = [(0.0, f"{low:g}"), (float(wide * len(greys)), f"{high:g}")]
    return Key("grey scale", greys, wide, ticks, _unit(scale), missing)


def difference_key(scale: Scale) -> Key:
    """The key to the colours of differences."""
    wide, end = 26, _half_range(scale)
    middle = wide * len(DIFFERENCE_COLOURS) / 2
    ticks = [(0.0, f"−{end:g}"), (middle, "0"), (2 * middle, f"+{end:g}")]
    text = f"error (forecast − observation) {_unit(scale)}".rstrip()
    return Key("scale of differences", DIFFERENCE_COLOURS, wide, ticks, text)


def _unit(scale: Scale) -> str:
    return "" if scale.unit == "1" else scale.unit
