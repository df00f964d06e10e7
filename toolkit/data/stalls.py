"""Reads in a thread of their own, so that a store that stalls neither makes a process deaf to signals nor hangs it."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from toolkit.data.windows import Window, WindowSet
from toolkit.errors import StalledError, StoppedError

POLL_S = 0.2
PATIENCE_S = 1.0  # a read that takes no longer is waited for, though a stop was asked for
CLOSE_S = 5.0
Item = TypeVar("Item")


class Reads:
    """Makes reads in a thread; who waits for one can be called away. Use as a context.

    Args:
        should_stop: becomes true when the process is asked to stop.
        device: whose page-locked memory the thread may allocate.
    """

    def __init__(self, should_stop: Callable[[], bool], device: torch.device) -> None:
        self.should_stop, self.device = should_stop, device
        self._asked: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="reads", daemon=True)  # a stalled one is left behind
        self._thread.start()
        self.stalled = False

    def __enter__(self) -> Reads:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; one that stalls is left behind, and its reader processes are killed."""
        self._asked.put(None)
        self._thread.join(0.0 if self.stalled else CLOSE_S)
        if self._thread.is_alive():  # readers that stall would be waited for at the interpreter's end, deaf to SIGTERM
            for reader in multiprocessing.active_children():
                reader.kill()

    def call(self, read: Callable[[], Item], limit_s: float | None = None) -> Item:
        """Return what `read` returns, or raise what it raises.

        Args:
            limit_s: seconds to wait for it; None: as long as it takes.

        Raises:
            StoppedError: the process was asked to stop meanwhile. The read goes on, and no other is made.
            StalledError: it took longer than `limit_s`.
        """
        if self.stalled:
            raise StoppedError("a read before this one was given up")
        self._asked.put(read)
        began = time.monotonic()
        while True:
            try:
                value, error = self._answers.get(timeout=POLL_S)
            except queue.Empty:
                self._check(time.monotonic() - began, limit_s)
                continue
            if error is not None:
                raise error
            answer: Item = value
            return answer

    def _check(self, waited: float, limit_s: float | None) -> None:
        """Give the read up where it is time to."""
        if waited > PATIENCE_S and self.should_stop():
            self.stalled = True
            raise StoppedError("asked to stop while waiting for data")
        if limit_s is not None and waited > limit_s:
            self.stalled = True
            raise StalledError(
                f"no data for {waited:.0f} s: the store's file system or server stalls, or data.num_workers "
                "processes are too few or stuck. Run the same command again when it answers"
            )

    def _work(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a new thread begins on GPU 0
        while (read := self._asked.get()) is not None:
            try:
                self._answers.put((read(), None))
            except BaseException as error:
                self._answers.put((None, error))
            del read  # what it holds is as large as a batch


class Iterated(Generic[Item]):
    """The items of an iterator, each read by `Reads.call`; `limit_s` is asked anew for each."""

    def __init__(self, reads: Reads, items: Iterator[Item], limit_s: Callable[[], float]) -> None:
        self.reads, self.items, self.limit_s = reads, items, limit_s

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        return self.reads.call(partial(next, self.items), self.limit_s())


class CalledWindows:
    """The windows of a set, each read by `Reads.call`; `limit_s` is asked anew for each."""

    def __init__(self, reads: Reads, windows: WindowSet, limit_s: Callable[[], float]) -> None:
        self.reads, self.windows, self.limit_s, self.scale = reads, windows, limit_s, windows.scale

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        return self.reads.call(partial(self.windows.__getitem__, index), self.limit_s())

    def time(self, index: int) -> str | None:
        """Return when the first frame of a window was taken."""
        return self.reads.call(partial(self.windows.time, index), self.limit_s())
