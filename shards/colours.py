"""The colour map of a quantity: one for contact sheets, reports and pictures of forecasts.

Reflectivity (dBZ) has steps of 5 dBZ, every other quantity is grey, linear in its codes. Importing this needs
numpy alone.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shards.manifest import Codes, Scale

if TYPE_CHECKING:
    from matplotlib.colors import Colormap, Normalize

# (from this value on, colour). Steps of 5 dBZ in the order of the usual radar scales, blue to yellow to red, but each
# step darker or lighter enough than the last to be told apart without colour vision; 30 dBZ, where convective rain is
# commonly said to begin, is the visible jump from dark blue to light yellow.
DBZ_COLOURS = (
    (5, "#deebf7"), (10, "#b3d2ea"), (15, "#7fb4d9"), (20, "#4a90c4"), (25, "#20609f"), (30, "#fff3a3"),
    (35, "#fed65a"), (40, "#fda530"), (45, "#f0701c"), (50, "#cf3315"), (55, "#8f1020"), (60, "#4d0a35"),
)  # fmt: skip
BELOW_COLOUR = "#ffffff"
MISSING_COLOUR = "#c4c4c4"


def rgb(*colours: str) -> npt.NDArray[np.uint8]:
    """Return `#rrggbb` colours as uint8 [n, 3]."""
    return np.array([list(bytes.fromhex(colour[1:])) for colour in colours], dtype=np.uint8)


def has_steps(scale: Scale) -> bool:
    """Return whether the quantity is drawn in steps of colour, and not in grey."""
    return scale.unit == "dBZ"


def value_range(scale: Scale) -> tuple[float, float]:
    """Return the values, in `scale.unit`, of code 0 and of the greatest code."""
    return scale.offset, scale.offset + scale.gain * scale.max_code


def upper_bits(codes: Codes) -> npt.NDArray[np.uint8]:
    """Return the upper 8 bits of codes, for three channels that are shown as RGB."""
    return np.asarray(codes >> (8 * (codes.itemsize - 1)), dtype=np.uint8)


@functools.lru_cache(maxsize=8)
def palette(scale: Scale) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the colours [256 at most, 3] of a scale, and for every code which of them is its own."""
    colours = code_colours(scale)
    if len(colours) == 256:
        return colours, np.arange(256, dtype=np.uint8)
    distinct, places = np.unique(colours, axis=0, return_inverse=True)
    return distinct, places.reshape(-1).astype(np.uint8)


def code_colours(scale: Scale) -> npt.NDArray[np.uint8]:
    """Return the colour of every code as uint8 [256 or 65536, 3]."""
    codes = np.arange(np.iinfo(scale.code_type).max + 1)
    if has_steps(scale):
        steps = [start for start, _ in DBZ_COLOURS]
        table = rgb(BELOW_COLOUR, *(colour for _, colour in DBZ_COLOURS))
        colours = table[np.digitize(scale.offset + scale.gain * codes, steps)]
    else:
        grey = np.minimum(codes * 255 // scale.max_code, 255).astype(np.uint8)
        colours = np.stack([grey] * 3, axis=1)
    if scale.missing_code is not None:
        colours[scale.missing_code] = rgb(MISSING_COLOUR)[0]
    return colours


def norm_and_colours(scale: Scale) -> tuple[Normalize, Colormap]:
    """Return the same map for matplotlib: a norm of values in `scale.unit`, and its colours."""
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize

    if not has_steps(scale):
        return Normalize(*value_range(scale)), colormaps["gray"]
    starts = [start for start, _ in DBZ_COLOURS]
    colours = ListedColormap([BELOW_COLOUR, *(colour for _, colour in DBZ_COLOURS)])
    return BoundaryNorm([min(0, starts[0] - 5), *starts, starts[-1] + 5], colours.N), colours
