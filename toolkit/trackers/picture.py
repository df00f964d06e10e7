"""Draw a forecast below its observation: one labelled picture in the colours of the quantity (shards/colours.py)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.colours import DBZ_COLOURS, code_colours, has_steps, upper_bits, value_range
from shards.manifest import Codes, Scale
from toolkit.trackers.base import Picture

PAST, LEADS = 3, 8  # columns at most
SMALLEST, LARGEST = 80, 256  # pixels of a frame's longer side; small ones are enlarged, large ones subsampled
GAP, TEXT, KEY_WIDE, KEY_TALL = 6, 16, 260, 10
PAPER, INK = "#ffffff", "#1c1e21"


def draw_forecast(codes: Codes, forecast: Codes, scale: Scale, step_seconds: float | None) -> Picture:
    """Return rows of observed and predicted frames under their lead times, above a colour key.

    Args:
        codes: observed, [Tc + T, C, H, W]; the context comes first.
        forecast: codes [T, C, H, W].
    """
    context = len(codes) - len(forecast)
    past = list(range(max(0, context - PAST), context))
    leads = np.unique(np.linspace(0, len(forecast) - 1, min(LEADS, len(forecast))).round().astype(int)).tolist()
    colours = code_colours(scale)
    observed = [_frame(codes[place], scale, colours) for place in (*past, *(context + lead for lead in leads))]
    predicted = [_frame(forecast[lead], scale, colours) for lead in leads]
    tall, wide = observed[0].shape[:2]
    width = max(GAP + len(observed) * (wide + GAP), KEY_WIDE + 220)
    row = TEXT + tall + GAP
    page = Image.new("RGB", (width, 2 * row + 2 * TEXT + KEY_TALL + GAP), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    first = len(past)
    for place, frame in enumerate(observed):
        x = GAP + place * (wide + GAP)
        lead = place - first + 1 if place < first else leads[place - first] + 1
        draw.text((x, 1), _label(lead, step_seconds), INK, font)
        page.paste(Image.fromarray(frame), (x, TEXT))
        draw.rectangle((x - 1, TEXT - 1, x + wide, TEXT + tall), outline="#9a9ea6")
        if place >= first:
            y = row + TEXT
            page.paste(Image.fromarray(predicted[place - first]), (x, y))
            draw.rectangle((x - 1, y - 1, x + wide, y + tall), outline="#9a9ea6")
    draw.text((GAP, TEXT + tall + 2), "observation", INK, font)
    draw.text((GAP, row + TEXT), "forecast", INK, font)
    _draw_key(page, draw, scale, colours, 2 * row + TEXT)
    return np.asarray(page)


def _frame(codes: Codes, scale: Scale, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame [C, H, W] in colours [H', W', 3]; of other channels than three the first."""
    shown = upper_bits(codes).transpose(1, 2, 0) if len(codes) == 3 and not has_steps(scale) else colours[codes[0]]
    side = max(shown.shape[:2])
    shown = shown[:: -(-side // LARGEST), :: -(-side // LARGEST)]
    factor = max(1, SMALLEST // side)
    return np.ascontiguousarray(shown.repeat(factor, axis=0).repeat(factor, axis=1))


def _label(lead: int, step_seconds: float | None) -> str:
    if not step_seconds or step_seconds < 60:
        return f"{lead:+d}" if lead else "0"
    return f"{lead * step_seconds / 60:+g} min" if lead else "0 min"


def _draw_key(page: Image.Image, draw: ImageDraw.ImageDraw, scale: Scale, colours: NDArray[np.uint8], y: int) -> None:
    """Draw the colours of all codes with the values at their ends, or where steps begin."""
    strip = np.linspace(0, scale.max_code, KEY_WIDE).round().astype(int)
    page.paste(Image.fromarray(np.repeat(colours[strip][None], KEY_TALL, axis=0)), (GAP, y))
    draw.rectangle((GAP - 1, y - 1, GAP + KEY_WIDE, y + KEY_TALL), outline="#9a9ea6")
    low, high = value_range(scale)
    font = ImageFont.load_default(10)
    ticks = [float(start) for start, _ in DBZ_COLOURS[1::2]] if has_steps(scale) else [low, high]
    for value in ticks:
        x = GAP + round((value - low) / (high - low) * (KEY_WIDE - 1)) if high != low else GAP
        if GAP <= x <= GAP + KEY_WIDE:
            anchor = "la" if x == GAP else "ra" if value == high else "ma"
            draw.text((x, y + KEY_TALL + 1), f"{value:g}", INK, font, anchor=anchor)
    unit = scale.quantity if scale.unit == "1" else f"{scale.quantity} in {scale.unit}"
    unit += "" if scale.missing_code is None else " (grey: no data)"
    draw.text((GAP + KEY_WIDE + 8, y - 2), unit, INK, font)
