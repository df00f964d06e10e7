"""`--on-error skip`: an archive's damaged frames are left out, and nothing is bridged: a run ends before each, and
another begins after it. What was left out is listed in the manifest.

Whether a frame is damaged is known when it has been decoded, and where shards begin follows from the plan; so all
frames are decoded beforehand once. An event whose frames can't be left out one by one (a video's) is left out whole.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

from shards.clock import times_of_frames
from shards.errors import SourceError
from shards.manifest import LONGEST_KEY
from shards.sources.base import Damage, Plan, PlannedEvent, Source
from shards.sources.inputs import plural
from shards.sources.timeline import iso

DEFAULT_LIMIT = 100
_CHUNK = 8  # events that a process is given at a time
_STEM = LONGEST_KEY - 17  # of a key that gets its event's number and a part's


def without_damaged(
    source: Source, plan: Plan, limit: int, workers: int, known: Sequence[Damage] = ()
) -> tuple[Plan, list[Damage]]:
    """Decode all frames, and return the plan without those that can't be, and what they are.

    Args:
        limit: of frames and files to leave out.
        known: what the source itself has left out as it looked for frames.

    Raises:
        SourceError: more than `limit` are damaged, or all.
    """
    step = source.describe().step_seconds
    damages = list(known)
    found: dict[str, list[Damage]] = {}
    for events in plan.splits.values():
        for event, damaged in zip(events, _checked(source, events, workers), strict=True):
            found[event.key] = damaged
            damages += damaged
            if sum(damage.end - damage.begin for damage in damages) > limit:
                raise SourceError(
                    f"more than {plural(limit, 'damaged frame')} (--skip-limit), the last: {damages[-1].error}; is it "
                    "the right archive, and whole? Fetch it again, or raise --skip-limit"
                )
    keys = _distinct_keys(plan.splits, found)
    splits = {split: list(_cut(events, found, keys, step)) for split, events in plan.splits.items()}
    if damages and not any(splits.values()):
        raise SourceError(f"all frames are damaged, the first: {damages[0].error}")
    notes = [f"left out as damaged: {damage.what}: {damage.error}" for damage in damages[:5]]
    if len(damages) > 5:
        notes.append(f"left out as damaged: {len(damages) - 5} more, listed in the manifest (conversion: skipped)")
    return Plan({split: events for split, events in splits.items() if events}, (*plan.notes, *notes)), damages


def _checked(source: Source, events: Sequence[PlannedEvent], workers: int) -> Iterator[list[Damage]]:
    with ExitStack() as stack:
        if workers == 1:
            yield from (_damages(source, event) for event in events)
            return
        context = multiprocessing.get_context("spawn")
        pool = stack.enter_context(ProcessPoolExecutor(workers, context))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        yield from pool.map(_damages, itertools.repeat(source), events, chunksize=_CHUNK)


def _damages(source: Source, event: PlannedEvent) -> list[Damage]:
    """Return the damaged frames of an event: each one, if they can be read alone."""
    try:
        source.read(event)
    except SourceError as error:
        step = source.describe().step_seconds
        parts = [part_of(event, place, place + 1, step) for place in range(event.length)]
        if event.length == 1 or None in parts:
            return [Damage(event.key, 0, event.length, str(error))]
        single = [
            dataclasses.replace(damage, what=f"{event.key} frame {place}", begin=place, end=place + 1)
            for place, part in enumerate(parts)
            if part is not None
            for damage in _damages(source, part)
        ]
        return single or [Damage(event.key, 0, event.length, str(error))]
    return []


def part_of(event: PlannedEvent, begin: int, end: int, step_seconds: float | None) -> PlannedEvent | None:
    """Return frames [begin, end) as an event; None where the source doesn't say that its recipe lists them."""
    if not event.by_frame:
        return None
    part = event.listed[begin:end]
    cut = part if event.listed is event.recipe else (part, *event.recipe[1:])
    start = event.start_time
    if begin:
        times = times_of_frames(event.length, start, event.times, step_seconds)
        start = event.times[begin] if event.times is not None else None if times is None else iso(times[begin])
    return dataclasses.replace(
        event,
        key=_key_of_part(event, begin),
        length=end - begin,
        run_offset=event.run_offset + begin,
        start_time=start,
        times=None if event.times is None else event.times[begin:end],
        recipe=cut,
    )


def _key_of_part(event: PlannedEvent, begin: int) -> str:
    """Return a key that comes after those of earlier parts; a long one is cut, for all parts alike."""
    suffix = f"-{begin:0{max(4, len(str(event.length)))}d}"
    stem = event.key[: LONGEST_KEY - len(suffix)]
    return event.key if begin == 0 and stem == event.key else stem + suffix


def _distinct_keys(splits: Mapping[str, Sequence[PlannedEvent]], damaged: Mapping[str, list[Damage]]) -> dict[str, str]:
    """Return other keys for events whose own are so long and so much alike that their parts' would be equal: each with
    its number in the plan, which keeps their order.
    """
    alike: dict[str, list[tuple[int, str]]] = {}
    for number, event in enumerate(event for events in splits.values() for event in events):
        if len(event.key) > _STEM:
            alike.setdefault(event.key[:_STEM], []).append((number, event.key))
    return {
        key: f"{stem}-{number:07d}"
        for stem, events in alike.items()
        if len(events) > 1 and any(damaged[key] for _, key in events)
        for number, key in events
    }


def _cut(
    events: Sequence[PlannedEvent],
    damaged: Mapping[str, list[Damage]],
    keys: Mapping[str, str],
    step_seconds: float | None,
) -> Iterator[PlannedEvent]:
    """Yield the events without their damaged frames; after each such frame a run of another name begins.

    Args:
        keys: other keys for some of the events.
    """
    began: dict[str, tuple[str, int]] = {}  # run of the plan -> the run it has become, and where that begins in it
    broken: set[str] = set()
    for event in events:
        run = event.run or event.key
        bad = sorted((damage.begin, damage.end) for damage in damaged[event.key])
        event = dataclasses.replace(event, key=keys.get(event.key, event.key))
        begin = 0
        for first, last in [*bad, (event.length, event.length)]:
            if begin < first:
                piece = event if (begin, first) == (0, event.length) else part_of(event, begin, first, step_seconds)
                assert piece is not None  # an event that can't be cut is damaged as a whole
                if run in broken:
                    broken.remove(run)
                    began[run] = (piece.key, piece.run_offset)
                name, base = began.get(run, (event.run, 0))
                yield dataclasses.replace(piece, run=name, run_offset=piece.run_offset - base)
            if first < last:
                broken.add(run)
            begin = last
