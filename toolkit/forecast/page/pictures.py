"""The frames of a forecast as PNG files: forecast, members, probabilities, observations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.colours import MISSING_COLOUR, rgb
from shards.manifest import Codes, Scale
from toolkit.atomic import replacing
from toolkit.forecast.make import Forecast
from toolkit.forecast.products import probability
from toolkit.report.html.pictures import LARGEST_SIDE, Key, coloured

COLUMNS = 6  # lead times that are shown
MEMBERS = 4  # that are shown
# Tenths of probability, white to dark green: none of the colours of dBZ.
PROBABILITY_COLOURS = (
    "#ffffff", "#e8f3e4", "#d0e8c9", "#b3d9ab", "#92c88c", "#6fb370", "#4d9b58", "#318145", "#1a6633", "#0a4a22",
)  # fmt: skip


def frames_of(forecast: Forecast, places: list[int], thresholds: list[float], side: int) -> Iterator[tuple[str, Any]]:
    """Yield the name of each picture of a forecast and its colours, uint8 [H, W, 3].

    Args:
        places: of the lead times, from 0.
        thresholds, side: of the probabilities, and the side of their neighbourhood.
    """
    scale = forecast.scale
    missing = np.any(forecast.missing, axis=1)
    means = forecast.mean_codes()
    for place in places:
        yield f"-forecast-{place + 1:02d}.png", _grey(_colours(means[place], scale), missing[place])
        for member in range(pictured_members(forecast)):
            codes = np.rint(forecast.units[member, place] * scale.max_code).astype(scale.code_type)
            yield f"-member{member + 1}-{place + 1:02d}.png", _grey(_colours(codes, scale), missing[place])
    for number, threshold in enumerate(thresholds, 1):
        found = probability(forecast, threshold, side)[:, 0]
        for place in places:
            tenths = np.nan_to_num(np.clip(found[place] * 10, 0, 9)).astype(np.uint8)
            yield f"-probability{number}-{place + 1:02d}.png", _grey(rgb(*PROBABILITY_COLOURS)[tenths], missing[place])


def pictured_members(forecast: Forecast) -> int:
    """Return the number of members that have pictures; 0 for a single forecast."""
    return min(MEMBERS, len(forecast.values)) if len(forecast.values) > 1 else 0


def observation(codes: Codes, seen: NDArray[np.bool_], scale: Scale) -> NDArray[np.uint8]:
    """Return the colours of an observation, codes and where there are any [C, H, W], uint8 [H, W, 3]."""
    return _grey(_colours(codes, scale), np.any(~seen, axis=0))


def save(colours: NDArray[np.uint8], path: Path) -> None:
    """Write a PNG, atomically; large frames are subsampled."""
    step = -(-max(colours.shape[:2]) // LARGEST_SIDE)
    image = Image.fromarray(np.ascontiguousarray(colours[::step, ::step]))
    palette = image.getcolors(256)
    if palette is not None:
        packed = np.asarray(image).astype(np.int32) @ (65536, 256, 1)
        known, places = np.unique(packed, return_inverse=True)
        image = Image.fromarray(places.reshape(packed.shape).astype(np.uint8))
        image.putpalette([part for colour in known.tolist() for part in colour.to_bytes(3, "big")])
    with replacing(path) as file:
        image.save(file, format="PNG", optimize=True)


def probability_key() -> Key:
    """Return the colour legend of probabilities."""
    wide = 40
    ticks = [(float(wide * place), f"{10 * place}") for place in range(0, 11, 2)]
    return Key("probability scale", PROBABILITY_COLOURS, wide, ticks, "% probability", MISSING_COLOUR)


def _colours(codes: Codes, scale: Scale) -> NDArray[np.uint8]:
    return np.array(coloured(codes, scale).convert("RGB"))


def _grey(colours: NDArray[np.uint8], missing: NDArray[np.bool_]) -> NDArray[np.uint8]:
    colours = colours.copy()
    colours[missing] = rgb(MISSING_COLOUR)[0]
    return colours
