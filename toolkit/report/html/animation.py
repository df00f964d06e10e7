"""Create an animated GIF of a sequence: observation and every model side by side, starting with the context."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.manifest import Codes, Scale
from toolkit.report.html.pictures import coloured, data_uri, resized

PANELS_IN_A_ROW = 4
LARGEST_PANEL = 256  # pixels of a side
MARGIN, CAPTION = 6, 18
FRAME_MS, LAST_MS = 300, 1500
PAPER, INK, RULE = "#ffffff", "#1c1e21", "#9a9ea6"


def gif_uri(context: Codes, panels: Mapping[str, Codes], labels: Sequence[str], scale: Scale) -> str:
    """Return the data URI of a GIF.

    Args:
        context: frames [Tc, C, H, W] shown first in all panels.
        panels: frames [T, C, H, W] that follow, by title.
        labels: Tc + T texts, one for each frame.
    """
    frames = []
    for place, label in enumerate(labels):
        shown = {
            title: context[place] if place < len(context) else following[place - len(context)]
            for title, following in panels.items()
        }
        frames.append(_page(shown, label + (", context" if place < len(context) else ""), scale))
    out = io.BytesIO()
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    frames[0].save(out, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return data_uri("image/gif", out.getvalue())


def _page(panels: Mapping[str, Codes], label: str, scale: Scale) -> Image.Image:
    """Draw one frame: the label, and below it the panels in rows, each with its title."""
    images = {title: coloured(_panel(codes), scale).convert("RGB") for title, codes in panels.items()}
    width, height = next(iter(images.values())).size
    columns = min(PANELS_IN_A_ROW, len(images))
    rows = -(-len(images) // columns)
    page = Image.new(
        "RGB",
        (MARGIN + columns * (width + MARGIN), CAPTION + MARGIN + rows * (height + CAPTION + MARGIN)),
        PAPER,
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    draw.text((MARGIN, 3), label, INK, font)
    for place, (title, image) in enumerate(images.items()):
        x = MARGIN + place % columns * (width + MARGIN)
        y = CAPTION + place // columns * (height + CAPTION + MARGIN)
        draw.text((x, y + 3), _fitting(title, width, font), INK, font)
        page.paste(image, (x, y + CAPTION))
        draw.rectangle((x - 1, y + CAPTION - 1, x + width, y + CAPTION + height), outline=RULE)
    return page


def _panel(codes: Codes) -> Codes:
    shown = resized(codes)
    step = -(-max(shown.shape[-2:]) // LARGEST_PANEL)
    return np.ascontiguousarray(shown[:, ::step, ::step])


def _fitting(text: str, width: int, font: Any) -> str:
    """Shorten a title to the width of its panel; keep its end, where models of one sweep differ."""
    while len(text) > 1 and font.getlength(text) > width:
        text = "…" + text.removeprefix("…")[1:]
    return text
