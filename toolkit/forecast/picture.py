"""Draw a forecast: a PNG with observations and forecast, or an animated GIF.

Colour maps: shards/colours.py.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from shards.colours import BELOW_COLOUR, DBZ_COLOURS, MISSING_COLOUR, has_steps, norm_and_colours, rgb, value_range
from shards.manifest import Codes, Scale
from toolkit.atomic import clear_leftovers, replacing
from toolkit.errors import ConfigError
from toolkit.forecast.make import Forecast, Frames
from toolkit.models.plugins import entry_of
from toolkit.report.html.pictures import chosen_leads, coloured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colours = NDArray[np.uint8]  # [H, W, 3]
SUFFIXES = (".png", ".gif")
COLUMNS = 5
DPI = 100  # of animations
FRAME_MS, LAST_MS = 350, 1500
MINUS = "\N{MINUS SIGN}"
INK, SOFT = "#1c1e21", "#5b6068"


def check_picture(path: Path, overwrite: bool = False) -> None:
    """Raise ConfigError for an unknown suffix, or if the file exists."""
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--picture {path}: the suffix is {path.suffix or 'missing'}, use {' or '.join(SUFFIXES)}")
    if path.exists() and not overwrite:
        raise ConfigError(f"--picture {path}: exists; choose another name, or pass --overwrite")


def draw(forecast: Forecast, path: Path, truth: Frames | None = None) -> None:
    """Draw a forecast into `path`, atomically; temporary files that killed writers left in its folder are removed.

    Args:
        truth: the observations, [T', C, H, W], T' at most the lead; drawn next to the forecast.
    """
    check_picture(path, overwrite=True)
    clear_leftovers(path.parent)
    data = _gif(forecast, truth) if path.suffix == ".gif" else _png(forecast, truth)
    with replacing(path) as file:
        file.write(data)


def _png(forecast: Forecast, truth: Frames | None) -> bytes:
    """Draw rows: the context, the forecast, and the observation if known."""
    predicted, times = _predicted(forecast), forecast.valid()
    shown = chosen_leads(len(predicted), COLUMNS)
    past = list(range(max(0, len(forecast.context) - COLUMNS), len(forecast.context)))
    context = _observed(forecast.context, forecast.scale)
    rows: list[tuple[str, list[tuple[Colours, str]]]] = [
        (
            "context",
            [(context[i], _stamp(forecast, forecast.times[i], i - len(context) + 1)) for i in past],
        ),
        (_name(forecast), [(predicted[i], _stamp(forecast, times[i], i + 1)) for i in shown]),
    ]
    if truth is not None and len(truth):
        images = _observed(truth, forecast.scale)
        rows.append(("observation", [(images[i], _stamp(forecast, times[i], i + 1)) for i in shown if i < len(truth)]))
    height, width = forecast.context.codes.shape[-2:]
    columns = max(len(row) for _, row in rows)
    side = 1.9
    figure = _figure(side * columns + 0.5, (side * height / width + 0.28) * len(rows) + 0.95)
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.14})
    for line, (name, frames) in zip(axes, rows, strict=True):
        for ax in line[len(frames) :]:
            ax.set_axis_off()
        for ax, (image, label) in zip(line, frames, strict=False):
            _show(ax, image)
            ax.set_title(label, fontsize=8, color=INK, pad=3)
        line[0].set_ylabel(name, fontsize=9, color=INK)
    tall = figure.get_figheight()
    figure.subplots_adjust(left=0.36 / figure.get_figwidth(), right=0.99, top=1 - 0.5 / tall, bottom=0.5 / tall)
    figure.text(0.36 / figure.get_figwidth(), 1 - 0.17 / tall, _title(forecast), fontsize=10, color=INK, va="center")
    _legend(figure, forecast, 0.36)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    packed = io.BytesIO()
    _limited(Image.open(out).convert("RGB"), forecast.scale).save(packed, format="PNG", optimize=True)
    return packed.getvalue()


def _gif(forecast: Forecast, truth: Frames | None) -> bytes:
    """Draw the context, then the forecast, with the observation next to it if known."""
    times, context = forecast.valid(), _observed(forecast.context, forecast.scale)
    observed = [] if truth is None else _observed(truth, forecast.scale)
    both = len(observed) > 0
    pages: list[list[tuple[str, Colours]]] = []
    for i, image in enumerate(context):
        label = f"context  {_stamp(forecast, forecast.times[i], i - len(context) + 1)}"
        pages.append([(label, image)] * (2 if both else 1))
    for i, image in enumerate(_predicted(forecast)):
        pages.append([(f"{_name(forecast)}  {_stamp(forecast, times[i], i + 1)}", image)])
        if i < len(observed):
            pages[-1].append(("observation", observed[i]))
    images = [_limited(_page(forecast, page, 2 if both else 1), forecast.scale) for page in pages]
    durations = [FRAME_MS] * len(images)
    durations[len(context) - 1] = durations[-1] = LAST_MS
    out = io.BytesIO()
    images[0].save(
        out, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False
    )
    return out.getvalue()


def _page(forecast: Forecast, frames: Sequence[tuple[str, Colours]], count: int) -> Image.Image:
    """Draw one time step: `count` frames side by side, of which the last may be missing."""
    height, width = forecast.context.codes.shape[-2:]
    side = width / DPI if 200 <= width <= 500 else 3.6  # one image pixel per grid pixel for usual sizes
    gap, below, above = 0.14, 0.6, 0.32
    wide, tall = count * side + (count + 1) * gap, side * height / width + below + above
    figure = _figure(wide, tall)
    for i, (name, image) in enumerate(frames):
        place = ((i * side + (i + 1) * gap) / wide, below / tall, side / wide, (tall - below - above) / tall)
        ax = figure.add_axes(place)
        _show(ax, image)
        ax.set_title(name, fontsize=9, color=INK, pad=4, loc="left")
    _legend(figure, forecast, gap)
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore[attr-defined]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _images(codes: Codes, missing: NDArray[np.bool_], scale: Scale) -> list[Colours]:
    """Return the colours [H, W, 3] of frames [T, C, H, W]; missing pixels are grey, also without a code for them."""
    images = [np.array(coloured(frame, scale).convert("RGB")) for frame in codes]
    for image, absent in zip(images, np.any(missing, axis=1), strict=True):
        image[absent] = rgb(MISSING_COLOUR)[0]
    return images


def _predicted(forecast: Forecast) -> list[Colours]:
    """Return the colours of the forecast."""
    return _images(forecast.mean_codes(), forecast.missing, forecast.scale)


def _observed(frames: Frames, scale: Scale) -> list[Colours]:
    return _images(frames.codes, ~frames.seen, scale)


def _show(ax: Axes, image: Colours) -> None:
    ax.imshow(image, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color("#a1a7b0")
        spine.set_linewidth(0.6)


def _legend(figure: Figure, forecast: Forecast, left: float) -> None:
    """Draw the colour bar (dBZ steps or grayscale) at the lower edge; lengths in inches."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Rectangle

    scale, (wide, tall) = forecast.scale, figure.get_size_inches()
    missing = bool(forecast.missing.any() or not forecast.context.seen.all())
    length = min(4.6, wide - left - (1.4 if missing else 0.6))
    ax = figure.add_axes((left / wide, 0.26 / tall, length / wide, 0.12 / tall))
    ticks = [start for start, _ in DBZ_COLOURS] if has_steps(scale) else value_range(scale)
    bar = figure.colorbar(ScalarMappable(*norm_and_colours(scale)), cax=ax, orientation="horizontal", ticks=ticks)
    bar.ax.tick_params(labelsize=7, length=2, pad=2, colors=SOFT)
    bar.outline.set_linewidth(0.5)
    unit = "" if scale.unit == "1" else scale.unit
    figure.text((left + length + 0.1) / wide, 0.32 / tall, unit, fontsize=8, color=SOFT, va="center")
    if missing:
        place = (left + length + 0.5) / wide
        figure.add_artist(Rectangle((place, 0.26 / tall), 0.2 / wide, 0.12 / tall, color=MISSING_COLOUR))
        figure.text(place + 0.26 / wide, 0.32 / tall, "no data", fontsize=8, color=SOFT, va="center")


def _limited(image: Image.Image, scale: Scale) -> Image.Image:
    """Reduce an image to a palette: the dBZ colours and greys for text, or its most frequent colours."""
    if not has_steps(scale):
        return image.quantize(255, dither=Image.Dither.NONE)
    named = [BELOW_COLOUR, MISSING_COLOUR, *(colour for _, colour in DBZ_COLOURS)]
    colours = [ImageColor.getrgb(colour) for colour in named] + [(grey, grey, grey) for grey in range(0, 256, 8)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for colour in colours for part in colour])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def _title(forecast: Forecast) -> str:
    at = "" if forecast.reference is None else f" from {forecast.reference:%Y-%m-%d %H:%M} UTC"
    members = f", ensemble size {len(forecast.values)}" if len(forecast.values) > 1 else ""
    return f"{entry_of(forecast.trained.config.model).title}: {forecast.scale.quantity}{at}{members}"


def _name(forecast: Forecast) -> str:
    return "forecast" if len(forecast.values) == 1 else "ensemble mean"


def _stamp(forecast: Forecast, time: datetime | None, steps: int) -> str:
    """Format a time and lead time: "21:35  +10 min"; without time stamps "+2"."""
    if time is None or forecast.step_seconds is None:
        return f"{steps:+d}".replace("-", MINUS) if steps else "last"
    minutes = steps * forecast.step_seconds / 60
    return f"{time:%H:%M}" + (f"  {minutes:+g} min".replace("-", MINUS) if steps else "")
