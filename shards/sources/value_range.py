"""From numbers of any kind to codes of 8 bits: `--range LOW,HIGH` says which values the codes 0..255 stand for.

Without it, bytes are kept as they are, floats of 0..1 are taken as such, and whole numbers of 0..255 too; anything else
is refused, as codes would be wrong. All numbers are looked at beforehand, so that what is rounded or clipped is known.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.errors import SourceError
from shards.manifest import Codes, Scale

MISSING = 255


@dataclass(frozen=True)
class ValueRange:
    """Values from `low` to `high` are the codes 0..255, or 0..254 where some are `missing` (NaN).

    Where no range was asked for, whole numbers of 0..255 are `intensity`: they stand for 0..1.
    """

    low: float
    high: float
    missing: bool = False
    intensity: bool = False

    def scale(self, quantity: str = "intensity", unit: str = "1") -> Scale:
        """Return what codes mean."""
        greatest = MISSING - self.missing
        low, high = (self.low / 255, self.high / 255) if self.intensity else (self.low, self.high)
        return Scale(quantity, unit, low, (high - low) / greatest, greatest, MISSING if self.missing else None)

    def codes(self, values: npt.NDArray[np.generic]) -> Codes:
        """Return the nearest codes, uint8 of the same shape."""
        if values.dtype == np.uint8 and (self.low, self.high, self.missing) == (0.0, 255.0, False):
            return np.ascontiguousarray(values, dtype=np.uint8)
        exact = values.astype(np.float64)
        absent = np.isnan(exact)
        greatest = MISSING - self.missing
        scaled = (np.where(absent, self.low, exact) - self.low) * (greatest / (self.high - self.low))
        codes = np.rint(np.clip(scaled, 0, greatest)).astype(np.uint8)
        codes[absent] = MISSING
        return codes


BYTES = ValueRange(0.0, 255.0, intensity=True)  # bytes as they are


@dataclass(frozen=True)
class Survey:
    """What is known of all numbers of an array."""

    count: int
    low: float
    high: float
    nan: int
    infinite: int
    whole: bool  # numbers without a fraction
    below: int  # of the range that was asked for
    above: int


def measure_values(parts: Iterable[npt.NDArray[np.generic]], asked: tuple[float, float] | None) -> Survey:
    """Look at all numbers, part by part."""
    low, high = asked or (-math.inf, math.inf)
    count = nan = infinite = below = above = 0
    least, greatest, whole = math.inf, -math.inf, True
    for part in parts:
        values: npt.NDArray[Any] = part.astype(np.float64) if part.dtype.kind == "f" else part
        count += values.size
        if values.dtype.kind == "f":
            absent = np.isnan(values)
            endless = np.isinf(values)
            nan, infinite = nan + int(absent.sum()), infinite + int(endless.sum())
            values = values[~(absent | endless)]
            whole = whole and bool((values == np.rint(values)).all())
        if values.size:
            least, greatest = min(least, float(values.min())), max(greatest, float(values.max()))
            below, above = below + int((values < low).sum()), above + int((values > high).sum())
    return Survey(count, least, greatest, nan, infinite, whole, below, above)


def choose_range(
    where: object, dtype: np.dtype[np.generic], found: Survey, asked: tuple[float, float] | None
) -> tuple[ValueRange, list[str]]:
    """Return the range of an array, and what to report of it. Raises SourceError where it must be given."""
    if found.infinite:
        raise SourceError(
            f"{where}: {found.infinite} of {found.count} numbers are infinite; replace them (NaN is missing)"
        )
    spans = f"{found.count} numbers of type {dtype} from {found.low:g} to {found.high:g}"
    missing = found.nan > 0
    if asked is not None:
        chosen = ValueRange(*asked, missing)
    elif dtype == np.uint8:
        chosen = BYTES
    elif dtype.kind in "fb" and found.low >= 0 and found.high <= 1:
        chosen = ValueRange(0.0, 1.0, missing)
    elif found.whole and found.low >= 0 and found.high <= 255 - missing:
        chosen = ValueRange(0.0, 255.0 - missing, missing, intensity=True)
    else:
        raise SourceError(
            f"{where}: {spans}: neither all of 0..1 nor whole numbers of 0..255; say which values the codes shall span "
            f"with --range LOW,HIGH, such as --range={found.low:g},{found.high:g}; what lies outside is "
            "clipped, and counted"
        )
    notes = []
    if found.below or found.above:
        notes.append(
            f"{where}: {spans}: {found.below} below {chosen.low:g} and {found.above} above {chosen.high:g} are clipped"
        )
    if missing:
        notes.append(f"{where}: {found.nan} of {found.count} numbers are NaN: missing (code {MISSING})")
    step = (chosen.high - chosen.low) / (MISSING - missing)
    if not (found.whole and step == 1 and chosen.low == round(chosen.low)):
        notes.append(f"{where}: values {chosen.low:g}..{chosen.high:g} are rounded to steps of {step:.3g}")
    return chosen, notes


def parse_range(text: str) -> tuple[float, float]:
    """Parse LOW,HIGH."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise argparse.ArgumentTypeError(f"{text!r}: give LOW,HIGH, two numbers, such as --range=0,1")
    return low, high
