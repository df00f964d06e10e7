"""How fast a store is read, beside the fastest way to read the same bytes on the same machine at the same time.

Every method reads windows of T frames of the same events into arrays of their own: sequentially, or at random places.

- `store`: this package, as training uses it; CRCs are compared when an event is first touched, before the clock runs.
- `copy`: a bare loop over memory maps of the same files that copies the same bytes (of a compressed event, its
  compressed bytes, which is no measure for what decodes them). Nothing that hands out arrays can be faster for long.
- `webdataset`: plain `webdataset.WebDataset(...).decode()` of the tars, sequential because it can't be otherwise.
- `zarr`: the zarr library, `array[first:last]`.

Methods take turns in short rounds, and the median round counts: what else the machine does hits all of them.
"""

from __future__ import annotations

import itertools
import mmap
import multiprocessing
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UsageError
from shards.manifest import Codes
from shards.store import Store, open_store
from shards.stream import decode_npy
from shards.tar_store import TarStore

Reader = Callable[[int], Codes]  # reads the i-th window
MOST_FRAMES = 20  # of a window, unless asked for


@dataclass(frozen=True)
class Task:
    """Which windows to read: (event, first frame) of `split`, each `length` frames."""

    path: str
    split: str
    length: int
    windows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Rate:
    """What a method reached, with `workers` processes together. `of_copy` is its share of the bare loop's rate."""

    pattern: str
    method: str
    workers: int
    sequences_per_s: float
    mb_per_s: float  # of what it hands out
    of_copy: float | None  # None where there is nothing to compare with


def bench(
    path: str | Path,
    *,
    split: str | None = None,
    length: int | None = None,
    workers: Sequence[int] = (1,),
    events: int = 256,
    seconds: float = 0.4,
    rounds: int = 5,
    seed: int = 0,
) -> Iterator[Rate]:
    """Measure the store at `path`, yielding a row when it is known: patterns, methods, numbers of workers.

    At most `events` events are touched; choose more than fit into memory to measure the disk. Raises UsageError for
    windows longer than the events.
    """
    store = open_store(path)
    split = split or max(store.splits, key=lambda name: store.splits[name].frames)
    sequential = make_task(store, split, length, events)
    order = random.Random(seed)  # noqa: S311 - nothing secret
    scattered = tuple(
        (event, order.randint(0, store.events(split)[event].length - sequential.length))
        for event, _ in order.sample(sequential.windows, len(sequential.windows))
    )
    shuffled = Task(sequential.path, split, sequential.length, scattered)
    for pattern, task in (("sequential", sequential), ("random", shuffled)):
        for count in workers:
            found = measure(task, _methods(store, pattern), count, seconds, rounds)
            comparable = "copy" in found and store.manifest.encoding == "raw"
            for method, (windows, size) in found.items():
                share = windows / found["copy"][0] if comparable else None
                yield Rate(pattern, method, count, windows, size / 1e6, share)


def make_task(store: Store, split: str, length: int | None, events: int) -> Task:
    """Return one window at the beginning of each of the first `events` events that are long enough."""
    lengths = Counter(event.length for event in store.events(split))
    wanted = length or min(MOST_FRAMES, lengths.most_common(1)[0][0])
    windows = tuple((event.index, 0) for event in store.events(split) if event.length >= wanted)[:events]
    if not windows:
        raise UsageError(f"{store.path}: {split} has no event of {wanted} frames; ask for at most {max(lengths)}")
    return Task(store.path, split, wanted, windows)


Speeds = tuple[float, float]  # windows and bytes per second


def measure(task: Task, methods: Sequence[str], workers: int, seconds: float, rounds: int) -> dict[str, Speeds]:
    """Return what each method reaches: the median over rounds, the sum over processes."""
    if workers == 1:
        results = [_rounds(task, methods, seconds, rounds, lambda: None)]
    else:
        results = _side_by_side(task, methods, workers, seconds, rounds)
    return {
        method: (
            statistics.median(sum(speeds[method][i][0] for speeds in results) for i in range(rounds)),
            statistics.median(sum(speeds[method][i][1] for speeds in results) for i in range(rounds)),
        )
        for method in methods
    }


def _side_by_side(
    task: Task, methods: Sequence[str], workers: int, seconds: float, rounds: int
) -> list[dict[str, list[Speeds]]]:
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_worker, args=(task, methods, seconds, rounds, place, barrier, queue))
        for place in range(workers)
    ]
    for process in processes:
        process.start()
    try:
        return [queue.get(timeout=120 + 4 * seconds * rounds * len(methods)) for _ in processes]
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _worker(
    task: Task,
    methods: Sequence[str],
    seconds: float,
    rounds: int,
    place: int,
    barrier: Barrier,
    queue: Queue[dict[str, list[Speeds]]],
) -> None:
    """One of several processes: its own windows first, and the same method at the same time as the others."""
    turn = place * len(task.windows) // max(1, barrier.parties)
    mine = Task(task.path, task.split, task.length, task.windows[turn:] + task.windows[:turn])
    queue.put(_rounds(mine, methods, seconds, rounds, lambda: barrier.wait(60)))


def _rounds(
    task: Task, methods: Sequence[str], seconds: float, rounds: int, together: Callable[[], object]
) -> dict[str, list[Speeds]]:
    readers = {method: READERS[method](task) for method in methods}
    for reader in readers.values():
        for i in range(len(task.windows)):  # check CRCs, map pages, fill the page cache: for everybody
            reader(i)
    speeds: dict[str, list[Speeds]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method, reader in readers.items():
            together()
            speeds[method].append(speed(reader, len(task.windows), seconds))
    return speeds


def speed(reader: Reader, windows: int, seconds: float) -> Speeds:
    """Return windows and bytes per second, round and round for `seconds`."""
    count = size = 0
    begin = time.perf_counter()
    for i in itertools.cycle(range(windows)):
        size += reader(i).nbytes
        count += 1
        passed = time.perf_counter() - begin
        if passed >= seconds:
            break
    return count / passed, size / passed


def _methods(store: Store, pattern: str) -> list[str]:
    methods = ["store"]
    if Path(store.path).is_dir():
        methods.append("copy")
        if store.manifest.format == "zarr":
            methods.append("zarr")
        elif pattern == "sequential":
            methods.append("webdataset")
    return methods


def _store_reader(task: Task) -> Reader:
    store = open_store(task.path)

    def read(i: int) -> Codes:
        event, first = task.windows[i]
        return store.read(task.split, event, first, first + task.length)

    return read


def _copy_reader(task: Task) -> Reader:
    """Read by places that are worked out beforehand: what remains is a slice and a copy."""
    store = open_store(task.path)
    maps: dict[str, mmap.mmap] = {}
    frame, raw = store.manifest.frames.bytes, store.manifest.encoding == "raw"
    places = []
    for event, first in task.windows:
        file, offset = store.locate(task.split, event)
        if file not in maps:
            with (Path(task.path) / file).open("rb") as opened:
                maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        size = task.length * frame if raw else _stored(store, task.split, event, len(maps[file]) - offset)
        places.append((maps[file], offset + (first * frame if raw else 0), size))

    def read(i: int) -> Codes:
        mapped, offset, size = places[i]
        return np.frombuffer(mapped, np.uint8, size, offset).copy()

    return read


def _stored(store: Store, split: str, event: int, room: int) -> int:
    """Compressed bytes of an event: in zarr, about its share of the shard."""
    if isinstance(store, TarStore):
        return store.locations(split)[event].row.stored or 0
    shards = store.splits[split].shards
    return min(room, sum(shard.bytes for shard in shards) // len(store.events(split)))


def _webdataset_reader(task: Task) -> Reader:
    import webdataset

    store = open_store(task.path)
    tars = [f"{task.path}/{shard.file}" for shard in store.splits[task.split].shards]
    dataset = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode(decode_npy).repeat()
    samples = iter(dataset)

    def read(i: int) -> Codes:
        sample: dict[str, Any] = next(samples)
        return next(value for key, value in sample.items() if ".npy" in key)

    return read


def _zarr_reader(task: Task) -> Reader:
    import zarr

    from shards.zarr_store import ZarrStore

    store = open_store(task.path)
    assert isinstance(store, ZarrStore)
    array = zarr.open_array(Path(task.path) / task.split / "frames", mode="r")
    starts = [store.first_frame(task.split, event) + first for event, first in task.windows]
    return lambda i: np.asarray(array[starts[i] : starts[i] + task.length])


READERS: dict[str, Callable[[Task], Reader]] = {
    "store": _store_reader,
    "copy": _copy_reader,
    "webdataset": _webdataset_reader,
    "zarr": _zarr_reader,
}
