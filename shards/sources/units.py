"""Units of rain: what turns them into mm/h."""

from __future__ import annotations

_RATES = {
    **dict.fromkeys(("mm/h", "mmh-1", "mm/hr", "mmhr-1", "mmhour-1", "mm/hour", "kgm-2h-1", "kg/m2/h"), 1.0),
    **dict.fromkeys(("kgm-2s-1", "mms-1", "mm/s", "kg/m2/s"), 3600.0),
    **dict.fromkeys(("mm/5min", "mm5min-1"), 12.0),
    **dict.fromkeys(("mm/min", "mmmin-1"), 60.0),
    **dict.fromkeys(("ms-1", "m/s"), 3.6e6),
}
_AMOUNTS = {
    **dict.fromkeys(("mm", "kgm-2", "kg/m2"), 1.0),
    "m": 1000.0,
    "cm": 10.0,
}


def _short(unit: str) -> str:
    """Without spaces, powers' signs and dots between factors, in small letters."""
    text = unit.lower().replace("**", "").replace("^", "").replace("(", "").replace(")", "")
    return "".join(text.replace("·", ".").replace(".", " ").split())


def rate_factor(unit: str) -> float | None:
    """Return what a rain rate in `unit` is multiplied by to be in mm/h; None for another unit."""
    return _RATES.get(_short(unit))


def amount_factor(unit: str) -> float | None:
    """Return what an amount of rain in `unit` is multiplied by to be in mm; None for another unit."""
    return _AMOUNTS.get(_short(unit))
