"""Frames as PNG: grey, RGB, or a dBZ scale with its legend; differences of two frames in a scale of their own."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.manifest import Codes
from toolkit.errors import ToolkitError

ScaleFacts = Mapping[str, Any]  # the fields of a shards.Scale, as they are kept beside frames
SMALL_SIDE = 96  # frames up to this are enlarged, and ten fit side by side
SMALL_COLUMNS, LARGE_COLUMNS = 10, 6
TARGET_SIDE = 128  # pixels that a small frame is enlarged to, at least
LARGEST_SIDE = 400  # above it only every n-th pixel is kept

# (from this value on, colour). Steps of 5 dBZ in the order of the usual radar scales, blue to yellow to red, but each
# step darker or lighter enough than the last to be told apart without colour vision; 30 dBZ, where convective rain is
# commonly said to begin, is the visible jump from dark blue to light yellow.
DBZ_COLOURS = (
    (5, "#deebf7"), (10, "#b3d2ea"), (15, "#7fb4d9"), (20, "#4a90c4"), (25, "#20609f"), (30, "#fff3a3"),
    (35, "#fed65a"), (40, "#fda530"), (45, "#f0701c"), (50, "#cf3315"), (55, "#8f1020"), (60, "#4d0a35"),
)  # fmt: skip
BELOW_COLOUR = "#ffffff"
MISSING_COLOUR = "#c4c4c4"
# Differences, forecast less truth: blue to white to orange (Crameri's and Brewer's advice for the colour-blind), each
# end darker the further it is from 0. Values beyond the ends have the ends' colours.
TOO_LOW, TOO_HIGH = ("#cfe3f3", "#8bbfe0", "#3f8fc5", "#15599a", "#08305f"), (
    "#fde3c8", "#fbb877", "#ee8232", "#bb4d0d", "#6e2703",
)  # fmt: skip
EQUAL_COLOUR = "#ffffff"
DBZ_DIFFERENCE = 25.0  # dBZ at the ends of the scale; other quantities: half their range


@dataclass(frozen=True)
class Samples:
    """The frames that an evaluation kept, by the key of their sequence; see `toolkit.evaluate.run.sample_frames`."""

    context: Mapping[str, Codes]  # [Tc, C, H, W]
    truth: Mapping[str, Codes]  # [T, C, H, W]
    prediction: Mapping[str, Codes]
    mse: Mapping[str, float]
    mode: Mapping[str, str]
    time: Mapping[str, str]  # of the first context frame, ISO-8601 UTC; "" without a clock
    scale: ScaleFacts

    @property
    def keys(self) -> list[str]:
        return list(self.truth)


def load_samples(path: Path) -> Samples:
    """Read `eval/*.samples.npz`.

    Raises:
        ToolkitError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
        keys = [str(key) for key in found["key"]]
        found.setdefault("time", np.full(len(keys), ""))  # evaluations of before 2026-11-23 kept none

        def by_key(name: str) -> dict[str, Any]:
            return dict(zip(keys, found[name], strict=True))

        return Samples(
            context=by_key("context"),
            truth=by_key("truth"),
            prediction=by_key("prediction"),
            mse={key: float(value) for key, value in by_key("mse").items()},
            mode={key: str(mode) for key, mode in by_key("mode").items()},
            time={key: str(time) for key, time in by_key("time").items()},
            scale=json.loads(str(found["scale"])),
        )
    except (OSError, KeyError, ValueError) as error:
        raise ToolkitError(f"{path}: not a file of sample frames ({error}); run launch/evaluate.py --force") from None


def columns_for(height: int, width: int) -> int:
    """How many frames of a size are shown side by side."""
    return SMALL_COLUMNS if max(height, width) <= SMALL_SIDE else LARGE_COLUMNS


def chosen_leads(count: int, columns: int) -> list[int]:
    """Up to `columns` of `count` frames, evenly spread, the first and the last among them."""
    if count <= columns:
        return list(range(count))
    return [int(place) for place in np.linspace(0, count - 1, columns).round()]


def png_uri(codes: Codes, scale: ScaleFacts) -> str:
    """One frame [C, H, W] of codes as the data URI of a PNG, enlarged without smoothing where it is small."""
    return _uri(coloured(resized(codes), scale))


def difference_uri(prediction: Codes, truth: Codes, scale: ScaleFacts) -> str:
    """Prediction less truth, frames [C, H, W], the first channel; where the truth is missing, grey."""
    difference = resized(prediction)[0].astype(np.int16) - resized(truth)[0]
    step = _half_range(scale) / (len(TOO_HIGH) + 0.5) / abs(scale["gain"])  # codes of a colour's width
    bins = np.clip(np.round(difference / step), -len(TOO_LOW), len(TOO_HIGH)).astype(np.int16) + len(TOO_LOW)
    if scale["missing_code"] is not None:
        bins[resized(truth)[0] == scale["missing_code"]] = len(_difference_colours())
    image = Image.fromarray(bins.astype(np.uint8))
    colours = [*_difference_colours(), MISSING_COLOUR]
    image.putpalette(np.array([_rgb(colour) for colour in colours], dtype=np.uint8).tobytes())
    return _uri(image)


def _difference_colours() -> tuple[str, ...]:
    """From far too low to far too high."""
    return (*reversed(TOO_LOW), EQUAL_COLOUR, *TOO_HIGH)


def _half_range(scale: ScaleFacts) -> float:
    """The difference at the ends of the colours, in the store's unit."""
    return DBZ_DIFFERENCE if scale["unit"] == "dBZ" else abs(float(scale["gain"])) * int(scale["max_code"]) / 2


def _uri(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def resized(codes: Codes) -> Codes:
    """A frame [C, H, W] as large as it is shown."""
    side = max(codes.shape[-2:])
    if side > LARGEST_SIDE:
        step = -(-side // LARGEST_SIDE)
        return codes[:, ::step, ::step]
    factor = -(-TARGET_SIDE // side) if side <= SMALL_SIDE else 1
    return codes.repeat(factor, axis=1).repeat(factor, axis=2)


def coloured(codes: Codes, scale: ScaleFacts) -> Image.Image:
    """A frame [C, H, W] of codes in the colours of its unit, pixel by pixel; `scale` has the fields of a `Scale`."""
    missing = scale["missing_code"]
    if scale["unit"] == "dBZ":
        table = np.array([_rgb(BELOW_COLOUR)] + [_rgb(colour) for _, colour in DBZ_COLOURS], dtype=np.uint8)
        values = scale["offset"] + scale["gain"] * np.arange(256)
        palette = table[np.digitize(values, [start for start, _ in DBZ_COLOURS])]
    else:
        grey = np.minimum(np.arange(256) * 255 // int(scale["max_code"]), 255).astype(np.uint8)
        palette = np.stack([grey] * 3, axis=1)
    if missing is not None:
        palette[missing] = _rgb(MISSING_COLOUR)
    if codes.shape[0] == 3 and scale["unit"] != "dBZ":
        return Image.fromarray(np.ascontiguousarray(codes.transpose(1, 2, 0)))
    image = Image.fromarray(np.ascontiguousarray(codes[0]))  # of several channels the first
    image.putpalette(palette.tobytes())
    return image


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def legend_svg(scale: ScaleFacts) -> str:
    """The key to the colours, as inline SVG: dBZ steps, or the range of grey in the store's unit."""
    if scale["unit"] == "dBZ":
        return _steps_svg(scale)
    low, high = scale["offset"], scale["offset"] + scale["gain"] * scale["max_code"]
    unit = "" if scale["unit"] == "1" else " " + html.escape(str(scale["unit"]))
    return (
        '<svg class="legend" width="250" height="34" role="img" aria-label="grey scale">'
        '<defs><linearGradient id="grey"><stop offset="0" stop-color="#000"/><stop offset="1" stop-color="#fff"/>'
        '</linearGradient></defs><rect x="1" y="1" width="180" height="13" fill="url(#grey)" stroke="#777"/>'
        f'<text x="1" y="29">{low:g}</text><text x="181" y="29" text-anchor="end">{high:g}{unit}</text></svg>'
    )


def _steps_svg(scale: ScaleFacts) -> str:
    wide = 40
    colours = [(None, BELOW_COLOUR), *DBZ_COLOURS]
    boxes = []
    for place, (start, colour) in enumerate(colours):
        x = 1 + place * wide
        boxes.append(f'<rect x="{x}" y="1" width="{wide}" height="13" fill="{colour}" stroke="#777"/>')
        if start is not None:
            boxes.append(f'<text x="{x}" y="29" text-anchor="middle">{start}</text>')
    end = 1 + len(colours) * wide
    boxes.append(f'<text x="{end + 6}" y="13">dBZ</text>')
    if scale["missing_code"] is not None:
        boxes.append(f'<rect x="{end + 50}" y="1" width="24" height="13" fill="{MISSING_COLOUR}" stroke="#777"/>')
        boxes.append(f'<text x="{end + 80}" y="13">no data</text>')
    return (
        f'<svg class="legend" width="{end + 140}" height="34" role="img" aria-label="dBZ scale">{"".join(boxes)}</svg>'
    )


def difference_svg(scale: ScaleFacts) -> str:
    """The key to the colours of differences."""
    colours, wide, end = _difference_colours(), 26, _half_range(scale)
    unit = "" if scale["unit"] == "1" else " " + html.escape(str(scale["unit"]))
    boxes = "".join(
        f'<rect x="{12 + place * wide}" y="1" width="{wide}" height="13" fill="{colour}" stroke="#777"/>'
        for place, colour in enumerate(colours)
    )
    ends = ((0, f"−{end:g}"), (len(colours) / 2, "0"), (len(colours), f"+{end:g}"))
    texts = "".join(
        f'<text x="{12 + place * wide:g}" y="29" text-anchor="middle">{text}</text>' for place, text in ends
    )
    right = 12 + len(colours) * wide + 18
    return (
        f'<svg class="legend" width="{right + 170}" height="34" role="img" aria-label="scale of differences">{boxes}'
        f'{texts}<text x="{right}" y="13">forecast less truth{unit}</text></svg>'
    )
