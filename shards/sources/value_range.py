"""From numbers of any kind to codes: `--range LOW,HIGH` says which values the codes 0..255 (uint16: 0..65535) span.

Without it, unsigned numbers of the codes' type are kept as they are, floats of 0..1 are taken as such, and so are whole
numbers that are codes; anything else is refused, as codes would be wrong. All numbers are looked at beforehand, so that
what is rounded or clipped is known.
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


@dataclass(frozen=True)
class ValueRange:
    """Values from `low` to `high` are the codes 0..255, or 0..254 where some are `missing` (NaN); of uint16 0..65535
    and 0..65534.

    Where no range was asked for, whole numbers that are codes are `intensity`: they stand for 0..1.
    """

    low: float
    high: float
    missing: bool = False
    intensity: bool = False
    dtype: str = "uint8"

    @property
    def largest(self) -> int:
        """Return the largest code, which is the missing one where there is one."""
        return int(np.iinfo(self.dtype).max)

    def scale(self, quantity: str = "intensity", unit: str = "1") -> Scale:
        """Return what codes mean."""
        largest = self.largest
        greatest = largest - self.missing
        span = self.high + self.missing if self.intensity else 1.0
        low, high = self.low / span, self.high / span
        return Scale(quantity, unit, low, (high - low) / greatest, greatest, largest if self.missing else None)

    def codes(self, values: npt.NDArray[np.generic]) -> Codes:
        """Return the nearest codes of the same shape."""
        if values.dtype == self.dtype and (self.low, self.high, self.missing) == (0.0, float(self.largest), False):
            return np.ascontiguousarray(values, dtype=self.dtype)
        exact = values.astype(np.float64)
        absent = np.isnan(exact)
        greatest = self.largest - self.missing
        scaled = (np.where(absent, self.low, exact) - self.low) * (greatest / (self.high - self.low))
        codes = np.rint(np.clip(scaled, 0, greatest)).astype(self.dtype)
        codes[absent] = self.largest
        return codes


BYTES = ValueRange(0.0, 255.0, intensity=True)  # bytes as they are


def unchanged(dtype: str, missing: bool = False) -> ValueRange:
    """Return the range of numbers that are codes as they are."""
    return ValueRange(0.0, float(np.iinfo(dtype).max - missing), missing, intensity=True, dtype=dtype)


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
    where: object,
    dtype: np.dtype[np.generic],
    found: Survey,
    asked: tuple[float, float] | None,
    codes: str = "uint8",
) -> tuple[ValueRange, list[str]]:
    """Return the range of an array of `dtype` for `codes` of a type, and what to report of it. Raises SourceError where
    it must be given.
    """
    if found.infinite:
        raise SourceError(
            f"{where}: {found.infinite} of {found.count} numbers are infinite; replace them (NaN is missing)"
        )
    low, high = _exact(found.low), _exact(found.high)
    spans = f"{found.count} numbers of type {dtype} from {low} to {high}"
    missing, largest = found.nan > 0, int(np.iinfo(codes).max)
    finer = "; or keep 65536 codes, with --dtype uint16" if codes == "uint8" else ""
    if asked is not None:
        chosen = ValueRange(*asked, missing, dtype=codes)
    elif dtype == codes:
        chosen = unchanged(codes)
    elif dtype == np.uint8:  # of other bytes the values stay: 255 is 65535
        chosen = ValueRange(0.0, 255.0, intensity=True, dtype=codes)
    elif dtype.kind in "fb" and found.low >= 0 and found.high <= 1:
        chosen = ValueRange(0.0, 1.0, missing, dtype=codes)
    elif found.whole and found.low >= 0 and found.high <= largest - missing:
        chosen = unchanged(codes, missing)
    else:
        raise SourceError(
            f"{where}: {spans}: neither all of 0..1 nor whole numbers of 0..{largest}; say which values the codes "
            f"shall span with --range LOW,HIGH, such as --range={low},{high}; what lies outside is clipped, and "
            f"counted{finer}"
        )
    notes = []
    if found.below or found.above:
        notes.append(
            f"{where}: {spans}: {found.below} below {chosen.low:g} and {found.above} above {chosen.high:g} are clipped"
        )
    if missing:
        notes.append(f"{where}: {found.nan} of {found.count} numbers are NaN: missing (code {largest})")
    step = (chosen.high - chosen.low) / (largest - missing)
    kept = (found.whole and step == 1 and chosen.low == round(chosen.low)) or (asked is None and dtype == np.uint8)
    if not kept:
        notes.append(f"{where}: values {chosen.low:g}..{chosen.high:g} are rounded to steps of {step:.3g}")
    return chosen, notes


def _exact(value: float) -> str:
    """Format a number of float32 or float64 with as few digits as tell it from its neighbours."""
    short = f"{value:g}"
    return short if value in (float(short), float(np.float32(short))) else repr(value)


def parse_range(text: str) -> tuple[float, float]:
    """Parse LOW,HIGH."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise argparse.ArgumentTypeError(f"{text!r}: give LOW,HIGH, two numbers, such as --range=0,1")
    return low, high
