"""Writing the shards of a store: in this process, or side by side in several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized

from shards.errors import ShardError
from shards.progress import Progress
from shards.sources.base import Source
from shards.writer import ShardJob, ShardResult, StoreWriter, write_or_recall


def run_jobs(
    writer: StoreWriter, source: Source, jobs: Sequence[ShardJob], workers: int, progress: Progress
) -> list[ShardResult]:
    """Write every shard that isn't finished yet; results come in the jobs' order.

    Any part of a store's jobs may be run here, in any process and more than once: what a job writes depends on nothing
    but the plan, and finished shards are recognised in the plan's folder.
    """
    if workers == 1 or len(jobs) == 1:
        return [write_or_recall(writer, source, job, progress.add, progress.keep) for job in jobs]
    context = multiprocessing.get_context("spawn")  # a fork would inherit zarr's threads
    counters = tuple(context.Value("q", 0) for _ in range(3))
    with ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker, (writer, source, counters)) as pool:
        futures = [pool.submit(_work, job) for job in jobs]
        waiting: set[Future[ShardResult]] = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()  # the first failure ends the conversion
                events, size, kept = (counter.value for counter in counters)
                progress.keep(kept - progress.kept, 0)
                progress.add(events - progress.events, size - progress.bytes)
        except BrokenProcessPool:
            raise ShardError(
                "a worker process was killed (out of memory?); run the same command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)  # waits: nobody may write when the partial folder is removed
    return [future.result() for future in futures]


_worker: tuple[StoreWriter, Source, tuple[Synchronized[int], ...]]


def _start_worker(writer: StoreWriter, source: Source, counters: tuple[Synchronized[int], ...]) -> None:
    """Keep what every job of this process needs, sent once."""
    global _worker
    _worker = (writer, source, counters)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End with the parent: a killed one can't stop its workers: they would keep writing into a folder that is no
    longer locked.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(job: ShardJob) -> ShardResult:
    writer, source, (events, sizes, kept) = _worker

    def tick(count: int, size: int) -> None:
        for counter, amount in ((events, count), (sizes, size)):
            with counter.get_lock():
                counter.value += amount

    def recalled(count: int, size: int) -> None:
        with kept.get_lock():
            kept.value += count

    return write_or_recall(writer, source, job, tick, recalled)
