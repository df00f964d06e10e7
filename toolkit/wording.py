"""Format numbers, durations and names in messages. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence


def count(number: int, one: str, many: str | None = None) -> str:
    """Format a number with its noun: `1 run`, `1,024 runs`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Format a duration: 0:07, 12:30, 3:05:00, 2d 03:05."""
    days, rest = divmod(max(0, round(seconds)), 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days}d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def speed(per_s: float) -> str:
    """Format sequences per second with enough digits: `1,204`, `35.6`, `0.083`."""
    if per_s >= 1000:
        return f"{per_s:,.0f}"
    return f"{per_s:.1f}" if per_s >= 1 else f"{per_s:.2g}"


def exact_number(value: float) -> str:
    """Format a number with the digits that identify it: `30`, `0.1`, `0.1234567`."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def computed_on(facts: Mapping[str, object]) -> str:
    """Return what `toolkit.distributed.device.facts` found: `CPU`, or `NVIDIA A100, TF32 off, deterministic on`."""
    if facts["device"] == "CPU":
        return "CPU"
    tf32, deterministic = ("on" if facts[key] else "off" for key in ("tf32", "deterministic"))
    return f"{facts['device']}, TF32 {tf32}, deterministic {deterministic}"


def some(names: Sequence[str], most: int = 6) -> str:
    """Format the first names of a list: `a, b, c and 4 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def first_line(message: object) -> str:
    """Return the first line of an error or text; the type of an error without a message."""
    return next(iter(str(message).strip().splitlines()), type(message).__name__)


def nearest(given: str, known: Iterable[str]) -> str:
    """Return `did you mean a?`, or an empty text if no known name is similar."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""
