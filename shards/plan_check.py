"""What a source has planned, checked before anything is decoded: a source written by a user may plan what no store can
hold.
"""

from __future__ import annotations

from dataclasses import replace

from shards.clock import times_of_frames, utc_text
from shards.errors import SourceError
from shards.manifest import KEY_PATTERN, LONGEST_KEY, SPLIT_PATTERN
from shards.sources.base import Plan, PlannedEvent
from shards.store import Event, is_sound


def in_utc(plan: Plan, step_seconds: float | None) -> Plan:
    """Return the plan with times as stores keep them, without offsets. Raises SourceError for what is no time."""
    splits = {
        split: [_event_in_utc(split, event, step_seconds) for event in plan.splits[split]] for split in plan.splits
    }
    return Plan(splits, plan.notes)


def _event_in_utc(split: str, event: PlannedEvent, step_seconds: float | None) -> PlannedEvent:
    start, times = event.start_time, event.times
    if start is None and times is None:
        return event
    try:
        start = None if start is None else utc_text(start)
        times = None if times is None else tuple(map(utc_text, times))
        clock = times_of_frames(event.length, start, times, step_seconds)
    except (ValueError, AttributeError, TypeError) as error:
        raise SourceError(
            f"{split}: event {event.key!r} has no times: {error}; a source gives texts of ISO-8601 such as "
            "2016-07-11T22:00:00Z: repair the source"
        ) from None
    if clock is not None and (len(clock) != event.length or start is None):
        raise SourceError(
            f"{split}: event {event.key!r} of {event.length} frames has {len(clock)} times, from {start} on; a source "
            "gives none, start_time alone, or with it one for each frame: repair the source"
        )
    return event if (start, times) == (event.start_time, event.times) else replace(event, start_time=start, times=times)


def check_plan(plan: Plan) -> None:
    """Refuse a plan that no store can hold; a source written by a user may well make one."""
    if not any(plan.splits.values()):
        raise SourceError("the source has no events; ask for at least one (see --help for how it counts them)")
    seen: set[str] = set()
    for split, events in plan.splits.items():
        if not SPLIT_PATTERN.fullmatch(split):
            raise SourceError(f"{split!r} is not a name for a split; use small letters, digits, - and _")
        before = ""
        for event in events:
            if not KEY_PATTERN.fullmatch(event.key) or event.length < 1:
                raise SourceError(
                    f"{split}: event {event.key!r} of {event.length} frames: a key has 1 to {LONGEST_KEY} letters, "
                    "digits, - or _, and an event one frame or more; repair the source"
                )
            if not is_sound(Event(event.key, 0, *_row(event))):
                raise SourceError(
                    f"{split}: event {event.key}: its mode, run, run_offset or start_time is none that a store can "
                    f"hold: {ascii(_row(event))[:200]}; repair the source"
                )
            if event.by_frame and not _lists_frames(event):
                raise SourceError(
                    f"{split}: event {event.key}: by_frame says that its recipe lists one text for each of "
                    f"{event.length} frames, it is {ascii(event.recipe)[:200]}; repair the source"
                )
            if event.key <= before:
                raise SourceError(
                    f"{split}: the key {event.key!r} comes after {before!r}; a source gives ascending keys"
                )
            if event.key in seen:
                raise SourceError(f"the key {event.key!r} occurs in two splits; repair the source")
            before = event.key
            seen.add(event.key)


def _lists_frames(event: PlannedEvent) -> bool:
    if not isinstance(event.recipe, tuple) or not event.recipe:
        return False
    listed = event.listed
    return isinstance(listed, tuple) and len(listed) == event.length and all(isinstance(part, str) for part in listed)


def _row(event: PlannedEvent) -> tuple[int, str | None, str, int, str | None]:
    """Return what an index says of an event: length, mode, run, run_offset, start_time."""
    return event.length, event.mode, event.run or event.key, event.run_offset, event.start_time
