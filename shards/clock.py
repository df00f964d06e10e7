"""Times of frames: all are UTC, without a zone; as text they are ISO-8601 with a Z."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone


def moment_of(text: str) -> datetime:
    """Return the time that a text says, in UTC; one without an offset is UTC. Raises ValueError."""
    moment = datetime.fromisoformat(text.removesuffix("Z"))
    try:
        return moment if moment.tzinfo is None else moment.astimezone(timezone.utc).replace(tzinfo=None)
    except OverflowError:
        raise ValueError(f"{text!r} is before the year 1 or after 9999 in UTC") from None


def utc_text(text: str) -> str:
    """Return the text of a time as stores keep it: without an offset. Raises ValueError."""
    moment = moment_of(text)
    return text if datetime.fromisoformat(text.removesuffix("Z")) == moment else f"{moment.isoformat()}Z"


def times_of_frames(
    length: int, start: str | None, times: Sequence[str] | None, step_seconds: float | None
) -> list[datetime] | None:
    """Return the time of every frame of an event: its own, or that of the first one and the steps after it; None for
    an event without a clock. Raises ValueError for times that are none.
    """
    if times is not None:
        return [moment_of(text) for text in times]
    if start is None or (step_seconds is None and length > 1):
        return None
    first = moment_of(start)
    try:
        return [first + timedelta(seconds=(step_seconds or 0.0) * place) for place in range(length)]
    except OverflowError:
        raise ValueError(f"{length} frames, one every {step_seconds} s from {start} on, end after 9999") from None
