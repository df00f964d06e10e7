"""Times of frames: all are UTC, without a zone; as text they are ISO-8601 with a Z."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta


def moment_of(text: str) -> datetime:
    """Return the time that a text says. Raises ValueError."""
    return datetime.fromisoformat(text.removesuffix("Z"))


def times_of_frames(
    length: int, start: str | None, times: Sequence[str] | None, step_seconds: float | None
) -> list[datetime] | None:
    """Return the time of every frame of an event: its own, or that of the first one and the steps after it; None for
    an event without a clock.
    """
    if times is not None:
        return [moment_of(text) for text in times]
    if start is None or (step_seconds is None and length > 1):
        return None
    first = moment_of(start)
    return [first + timedelta(seconds=(step_seconds or 0.0) * place) for place in range(length)]
