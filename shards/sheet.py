"""A contact sheet: some events of a store as one picture, a row for each, with keys, modes, times and a scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shards.colours import norm_and_colours, upper_bits
from shards.errors import UsageError
from shards.manifest import Scale
from shards.store import Event, Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage
    from matplotlib.patches import Rectangle

FORMATS = (".png", ".pdf", ".svg")
COLUMNS = 8
GAP = 0.04  # between frames, in frame widths
LONG_SIDE = 320  # pixels of a frame in the picture, at most; larger ones are thinned out


def draw_sheet(store: Store, file: Path, rows: int = 8) -> None:
    """Draw COLUMNS frames, evenly spaced in time, of each of `rows` events into `file` (.png, .pdf or .svg).

    Events are taken from every split and mode in turn, spread over each. Raises UsageError for another kind of file.
    """
    if file.suffix not in FORMATS or rows < 1:
        raise UsageError(f"{file}: a contact sheet ends in {', '.join(FORMATS)} and has a row at least")
    from matplotlib.figure import Figure  # half a second that no other command needs

    chosen = choose_events(store, rows)
    spec = store.manifest.frames
    width, margin = 1.25 * COLUMNS + 1.6, 0.34
    height = len(chosen) * (1.25 * spec.height / spec.width + margin) + 1.3
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes = figure.subplots(len(chosen), 1, squeeze=False)[:, 0]
    shown = None
    for ax, (split, event) in zip(axes, chosen, strict=True):
        shown = _draw_event(ax, store, split, event)
    figure.suptitle(f"{store.manifest.name}: {_title(store)}", fontsize=10)
    if spec.channels != 3 and shown is not None:
        scale = store.manifest.scale
        bar = figure.colorbar(shown, ax=list(axes), shrink=min(1.0, 3.5 / height), pad=0.01)
        if scale.mapping is not None:  # colours are linear in codes, as in every other picture
            codes = np.linspace(0, scale.max_code, 6).round().astype(scale.code_type)
            places = (scale.offset + scale.gain * codes).tolist()
            bar.set_ticks(places, labels=[f"{value:.3g}" for value in scale.to_physical(codes)])
        bar.set_label(_scale_label(scale), fontsize=8)
        bar.ax.tick_params(labelsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def choose_events(store: Store, count: int) -> list[tuple[str, Event]]:
    """Return `count` events (or all, if there are fewer): the splits and modes take turns, the events of each are
    spread.
    """
    groups: dict[tuple[str, str], list[Event]] = {}
    for split in store.splits:
        for event in store.events(split):
            groups.setdefault((split, event.mode or ""), []).append(event)
    shares = dict.fromkeys(groups, 0)
    left = min(count, sum(map(len, groups.values())))
    while left:
        for group in groups:
            if left and shares[group] < len(groups[group]):
                shares[group] += 1
                left -= 1
    return [
        (split, events[i * len(events) // share])
        for (split, mode), events in groups.items()
        if (share := shares[split, mode])
        for i in range(share)
    ]


def _draw_event(ax: Axes, store: Store, split: str, event: Event) -> AxesImage:
    """One row; returns what a colour bar needs."""
    spec, scale = store.manifest.frames, store.manifest.scale
    places = np.unique(np.linspace(0, event.length - 1, min(COLUMNS, event.length)).round().astype(int))
    frames = np.concatenate([store.read(split, event.index, int(i), int(i) + 1) for i in places])
    thin = max(1, -(-max(spec.height, spec.width) // LONG_SIDE))
    frames = frames[:, :, ::thin, ::thin]
    height, width = frames.shape[2:]
    step = width + max(1, round(GAP * width))
    if spec.channels == 3:
        strip: npt.NDArray[np.generic] = np.full((height, step * COLUMNS, 3), 255, dtype=np.uint8)
        for i, frame in enumerate(frames):
            strip[:, i * step : i * step + width] = upper_bits(frame).transpose(1, 2, 0)
        shown = ax.imshow(strip, interpolation="nearest")
    else:
        strip = np.full((height, step * COLUMNS), np.nan, dtype=np.float32)
        for i, frame in enumerate(frames):
            ax.add_patch(_missing_patch(i * step - 0.5, width, height))
            values = scale.offset + scale.gain * frame[0].astype(np.float32)
            strip[:, i * step : i * step + width] = np.where(frame[0] == scale.missing_code, np.nan, values)
        norm, colours = norm_and_colours(scale)
        shown = ax.imshow(strip, norm=norm, cmap=colours, interpolation="nearest", zorder=2)
    for i, place in enumerate(places):
        label = _moment(store, split, event, int(place))
        ax.text(i * step + width / 2, height, label, fontsize=6, ha="center", va="top")
    mode = f", {event.mode}" if event.mode else ""
    ax.set_title(
        f"{split}: {event.key}{mode}, {event.length} frame{'' if event.length == 1 else 's'}",
        fontsize=7,
        loc="left",
        pad=2,
    )
    ax.set_axis_off()
    return shown


def _missing_patch(left: float, width: int, height: int) -> Rectangle:
    """Return what shows through where a pixel is missing."""
    from matplotlib.patches import Rectangle

    return Rectangle(
        (left, -0.5), width, height, facecolor="0.85", edgecolor="0.6", hatch="////", linewidth=0, zorder=1
    )


def _moment(store: Store, split: str, event: Event, place: int) -> str:
    """Return the time of a frame, or its number where there is no clock."""
    times = store.times(split, event.index)
    return f"frame {place}" if times is None else f"{times[place]:%Y-%m-%d %H:%M:%S}".removesuffix(":00")


def _title(store: Store) -> str:
    spec = store.manifest.frames
    events = ", ".join(f"{split} {info.events}" for split, info in store.splits.items())
    clock = "" if store.manifest.step_seconds is None else ", times UTC"
    return f"{spec.channels} x {spec.height} x {spec.width}, events: {events}{clock}"


def _scale_label(scale: Scale) -> str:
    unit = "" if scale.physical_unit == "1" else f" ({scale.physical_unit})"
    return f"{scale.quantity}{unit}" + ("" if scale.missing_code is None else "; hatched: missing")
