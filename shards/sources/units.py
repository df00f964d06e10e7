"""Units of rain: what turns them into mm/h."""

from __future__ import annotations

import re

_RATES = {
    **dict.fromkeys(("mmh-1", "mm/hr", "mmhr-1", "mmhour-1", "mm/hour", "kgm-2h-1"), 1.0),
    **dict.fromkeys(("kgm-2s-1", "mms-1", "mm/s", "kg/m2/s"), 3600.0),
    "mm5min-1": 12.0,
    "mmmin-1": 60.0,
    **dict.fromkeys(("ms-1", "m/s"), 3.6e6),
}
_AMOUNTS = {
    **dict.fromkeys(("mm", "kgm-2", "kg/m2"), 1.0),
    "m": 1000.0,
    "cm": 10.0,
}
# Units of much else too: heights, wind and Doppler velocity, water in a column of air.
_AMBIGUOUS = frozenset(("m", "cm", "ms-1", "m/s", "kgm-2", "kg/m2", "kgm-2s-1", "kg/m2/s"))
_PERIOD = re.compile(r"(?P<amount>.+)/(?P<count>[1-9]\d{0,3})?(?P<each>min|h)")  # mm/10min, kg/m2/h
_RAIN = re.compile(
    r"(?<![a-zA-Z])rain|Rain|(?<![A-Z])RAIN|(?i:precip(?!itable)|snowfall)"  # not terrain, nor precipitable water
    r"|(?i:(?<![a-z])(acrr|tp|pr|prate|qpe|rr)(?![a-z]))"
)
_NO_RAIN = re.compile(
    r"(?i:height|altitude|column|velocity|speed|diameter|(?<![a-z])(tops?|base|bottom|level|line|path)(?![a-z]))"
)


def says_rain(*names: object) -> bool:
    """Return whether one of a variable's names or descriptions says that it is rain, and none that it is a property of
    it: the height where it begins, how fast it falls, the water in a column of air.
    """
    texts = [str(name) for name in names]
    return any(map(_RAIN.search, texts)) and not any(map(_NO_RAIN.search, texts))


def _short(unit: str) -> str:
    """Without spaces, powers' signs and dots between factors, in small letters."""
    text = unit.lower().replace("**", "").replace("^", "").replace("(", "").replace(")", "")
    return "".join(text.replace("·", ".").replace(".", " ").split())


def is_ambiguous(unit: str) -> bool:
    """Return whether rain has this unit, and what isn't rain too: then a name has to say which."""
    period = _PERIOD.fullmatch(_short(unit))
    return _short(unit) in _AMBIGUOUS or (period is not None and period["amount"] in ("m", "cm"))


def rate_factor(unit: str) -> float | None:
    """Return what a rain rate in `unit`, such as mm/h, m s-1 or mm/10min, is multiplied by to be in mm/h; None for
    another unit.
    """
    period = _PERIOD.fullmatch(_short(unit))
    if period is None or period["amount"] not in _AMOUNTS:
        return _RATES.get(_short(unit))
    return _AMOUNTS[period["amount"]] * (1 if period["each"] == "h" else 60) / int(period["count"] or 1)


def amount_factor(unit: str) -> float | None:
    """Return what an amount of rain in `unit` is multiplied by to be in mm; None for another unit."""
    return _AMOUNTS.get(_short(unit))
