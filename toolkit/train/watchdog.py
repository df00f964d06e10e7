"""The watchdog of a rank: a thread that writes the heartbeat, and ends the rank when the training hangs.

The training thread only marks what it begins (`at`) and that it gets on (`pulse`); it never waits for this thread.
Every two seconds the watchdog writes the rank's heartbeat (heartbeat.py) and looks:

- Did this rank begin nothing new for longer than `train.watchdog` allows? Then the rank that is furthest behind, or
  that is silent, is the one that is stuck: the others wait for it in a collective.
- Is a rank silent (killed where nobody noticed, stopped, or stuck inside a C call) while this one gets nowhere?
  Rank 0 watches all ranks, all ranks watch rank 0.
- Has another rank found so? A verdict travels in the heartbeats: any rank -> rank 0 -> all ranks.
- Did a rank fail or die while this one gets nowhere? Over gloo the training thread gets an error and raises
  `peer_error`; over NCCL it waits on the GPU forever, and its watchdog ends it with the same words and code.

A rank that ends so names the stuck one, leaves the Python stacks of its threads in its log and in
`heartbeat/rank-N.stacks`, and exits with EXIT_HANG. A rank that is merely slow is named and left alone. Time is counted
in the thread's own ticks, so a job that was suspended and resumed is not reported as hung.

A command whose training failed and that is not gone after LEAVE_S, because a reader process or a collective holds it,
is ended with the failure's exit code. A process that called the training (a notebook) continues: the thread ends.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from toolkit.atomic import alive
from toolkit.config.sections import WatchdogConfig
from toolkit.errors import EXIT_FAILURE, EXIT_HANG, EXIT_MEANING, EXIT_OK, EXIT_REQUEUE, PeerError, ToolkitError
from toolkit.rundir import RunDir
from toolkit.rundir.heartbeat import BEAT_S, FOLDER, Beat, beats_of, path_of, read_beat, stacks_of, write_beat
from toolkit.rundir.lock import RunBusyError, check_lock
from toolkit.signals import is_command
from toolkit.wording import first_line

logger = logging.getLogger(__name__)
SILENT_S = 20.0  # a heartbeat that old, while the training stands still, is a dead or frozen rank
OF_ALLOWED = 0.9  # a read is given up before this thread would end the rank, which saves nothing
LEAVE_S = 60.0  # for a command whose training has failed to be gone
SLOW_TIMES = 2.0  # a rank's own time against the median of the others'
SLOW_EXCESS_S = 0.1
SLOW_LOOKS = 3  # in a row


class Watchdog:
    """Use as a context around the training; leaving it records in the heartbeat how the rank ended."""

    def __init__(self, run: RunDir, rank: int, size: int, config: WatchdogConfig, training: str = "") -> None:
        """
        Args:
            training: names this training; heartbeats of another one are left alone.
        """
        self.run, self.rank, self.size, self.config, self.training = run, rank, size, config, training
        self._base = 0  # the step that this training began from
        self.slow: str | None = None  # on rank 0: which rank holds up the others
        self._beat_s = min(BEAT_S, config.first_step / 4, config.step / 4)
        self._silent_s = min(SILENT_S, config.step)
        self._now = (0, 0, "starting", time.time())  # one tuple, replaced whole: no lock is needed
        self._pulses = 0
        self._own_s = 0.0
        self._end: tuple[str, int] | None = None
        self._peers: dict[int, _Peer] = {}
        self._idle_s = 0.0
        self._slow_looks: dict[int, int] = {}
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._stacks: Any = None

    def __enter__(self) -> Watchdog:
        (self.run.path / FOLDER).mkdir(exist_ok=True)
        self._stacks = open(stacks_of(self.run.path, self.rank), "a", encoding="utf-8")
        # `kill -QUIT` shows what a rank is doing even when it is stuck inside a C call, and then ends it.
        faulthandler.register(signal.SIGQUIT, file=self._stacks, all_threads=True, chain=True)
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        code = EXIT_OK if error is None else int(getattr(error, "exit_code", EXIT_FAILURE))
        self._end = ("ended" if error is None else f"{type(error).__name__}: {error}", code)
        self._beat()
        if error is None or not is_command():
            self._leave.set()
            self._thread.join(5 * self._beat_s)
            faulthandler.unregister(signal.SIGQUIT)
            self._stacks.close()

    def begin(self, step: int) -> None:
        """Record the step from which the training thread starts."""
        self._base = step
        self.at(step, "starting")

    def at(self, step: int, phase: str) -> None:
        """Record that the training thread begins a phase; `step` is the number of finished optimizer steps."""
        before = self._now
        marks = before[1] + 1 if step == before[0] else 0
        self._now = (step, marks, phase, time.time())

    def pulse(self) -> None:
        """Record progress of the training thread within a phase."""
        self._pulses += 1

    @property
    def _started(self) -> bool:
        """A step of this training is finished."""
        return self._now[0] > self._base

    @property
    def _allowed_s(self) -> float:
        """Seconds without progress that are allowed in the present phase."""
        return self.config.step if self._started else self.config.first_step

    def begin_read(self) -> float:
        """Record progress of the training thread, and return the seconds that it may wait for data from now on."""
        self.pulse()
        return OF_ALLOWED * self._allowed_s

    def own(self, seconds: float) -> None:
        """Record the time of one step on this rank, measured before it waits for others."""
        if self._now[0] <= self._base + 1:
            return  # the first step compiles, allocates and warms up
        self._own_s = seconds if self._own_s == 0.0 else 0.8 * self._own_s + 0.2 * seconds

    def peer_error(self, error: BaseException) -> PeerError | None:
        """Return the error to raise instead of one caused by another rank that is gone; None if it is our own."""
        if self.size == 1 or hasattr(error, "exit_code") or not isinstance(error, RuntimeError):
            return None
        before = beats_of(self.run.path, self.training)
        deadline = time.monotonic() + 4 * self._beat_s
        while time.monotonic() < deadline:  # the others' heartbeats need a moment to tell
            for beat in beats_of(self.run.path, self.training).values():
                blamed = None if beat.rank == self.rank else self._blame(beat)
                if blamed is not None:
                    return blamed
            time.sleep(self._beat_s / 10)
        for rank, beat in beats_of(self.run.path, self.training).items():
            if rank != self.rank and not beat.ended and rank in before and beat.time == before[rank].time:
                return PeerError(f"rank {self.rank} ends because another is silent (killed? its node lost?): {beat}")
        return None

    def _blame(self, beat: Beat) -> PeerError | None:
        if beat.verdict is not None:
            return PeerError(f"rank {self.rank} ends: hung: {beat.verdict}", EXIT_HANG)
        if beat.ended and beat.code not in (EXIT_OK, None):
            told = f"rank {self.rank} ends because rank {beat.rank} on {beat.host} failed: {beat.ended}"
            return PeerError(told, beat.code)
        if not beat.ended and alive(beat.host, beat.pid) is False:
            return PeerError(f"rank {self.rank} ends because another died (killed? out of memory?): {beat}")
        return None

    # What follows runs in the watchdog's thread.

    def _watch(self) -> None:
        last, seen, fault = time.monotonic(), self._progress(), ""
        while not self._leave.wait(self._beat_s):
            elapsed, last = time.monotonic() - last, time.monotonic()
            elapsed = min(elapsed, 2 * self._beat_s)  # this process, or all of the job, was suspended
            progress = self._progress()
            self._idle_s = 0.0 if progress != seen else self._idle_s + elapsed
            seen = progress
            if self._end is not None:
                # Once the command has returned, the interpreter waits for threads and readers, without a main thread.
                ending = is_command() or not threading.main_thread().is_alive()
                if ending and self._idle_s > LEAVE_S:
                    signal.alarm(5)  # which ends it too, where the message can't be written
                    logger.error("rank %d failed more than %g s ago and has not exited: killed", self.rank, LEAVE_S)
                    os._exit(self._end[1])
                continue
            before, fault = fault, ""
            try:
                self._examine(elapsed)
            except (OSError, ToolkitError) as error:  # of a file system that is away; this thread must not end
                fault = first_line(error)
                if fault != before:
                    logger.warning("rank %d can't look at the others (%s); it is tried again", self.rank, fault)

    def _examine(self, elapsed: float) -> None:
        """Write the heartbeat, and end this rank where the lock or the heartbeats of others say so."""
        wrote = self._beat()
        if self.rank == 0 and self._end is None:
            self._check_lock()
        gone = self._gone()
        if gone is not None and self._end is None:
            self._follow(gone)
        verdict = self._look(elapsed, wrote)
        if verdict is not None and self._end is None:
            self._hang(verdict)

    def _check_lock(self) -> None:
        """End this rank, and with it the others, where another job has taken the run; nothing of the run is touched."""
        try:
            check_lock(self.run.path)
        except RunBusyError as error:
            self._end = (f"PeerError: {error}", error.exit_code)
            self._beat()
            logger.error("%s", error)
            os._exit(error.exit_code)

    def _progress(self) -> tuple[object, ...]:
        return self._now, self._pulses, self._end

    def _beat(self, verdict: str | None = None) -> bool:
        step, marks, phase, since = self._now
        ended, code = self._end or (None, None)
        beat = Beat(
            rank=self.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            step=step,
            marks=marks,
            phase=phase,
            since=since,
            time=time.time(),
            own_s=self._own_s,
            ended=ended,
            code=code,
            verdict=verdict,
            slow=self.slow,
            training=self.training,
        )
        try:
            write_beat(self.run.path, beat)
        except OSError:  # no reason to end a training; and silence is no proof then, see `_look`
            return False
        return True

    def _watched(self) -> Sequence[int]:
        """Whom this rank watches."""
        return [rank for rank in (range(self.size) if self.rank == 0 else (0,)) if rank != self.rank]

    def _gone(self) -> PeerError | None:
        """Return the error to exit with after a failure of another rank, if this one made no progress meanwhile."""
        if self._idle_s <= self._silent_s:
            return None
        beats = beats_of(self.run.path, self.training)
        blamed = (self._blame(beats[rank]) for rank in self._watched() if rank in beats)
        return next((error for error in blamed if error is not None and error.exit_code != EXIT_HANG), None)

    def _look(self, elapsed: float, wrote: bool) -> str | None:
        """Why all ranks have to end, or None."""
        beats: dict[int, Beat] = {}
        for rank in self._watched():
            peer = self._peers.setdefault(rank, _Peer(path_of(self.run.path, rank), self.training))
            beat = peer.look(elapsed)
            if beat is None:
                continue
            beats[rank] = beat
            if beat.verdict is not None:
                return beat.verdict
            # Where we can't write ourselves, the file system is away, and the other's silence says nothing.
            if wrote and not beat.ended and min(peer.silent_s, self._idle_s) > self._silent_s:
                return f"{beat} is silent for {peer.silent_s:.0f} s: killed, frozen, or its node lost"
        if self.rank == 0:
            self._find_slow(beats)
        allowed = self._allowed_s
        if self._idle_s <= allowed:
            return None
        key = "step" if self._started else "first_step"
        who, others = stuck(beats_of(self.run.path, self.training))
        return f"{who} made no progress for {allowed:g} s (train.watchdog.{key}){others}"

    def _find_slow(self, beats: Mapping[int, Beat]) -> None:
        """Name a rank that is slow for several looks in a row, on its own account."""
        times = {rank: beat.own_s for rank, beat in beats.items() if beat.own_s and not beat.ended}
        if self._own_s:
            times[self.rank] = self._own_s
        slow = slow_ranks(times)
        self._slow_looks = {rank: self._slow_looks.get(rank, 0) + 1 for rank in slow}
        lasting = [rank for rank, looks in self._slow_looks.items() if looks >= SLOW_LOOKS]
        before = self.slow
        if not lasting:
            self.slow = None
            return
        rank = max(lasting, key=lambda rank: slow[rank])
        host = beats[rank].host if rank in beats else socket.gethostname()
        self.slow = (
            f"rank {rank} on {host} takes {slow[rank]:.1f} times as long as the others for its own part of a step"
        )
        if before is None:
            logger.warning("slow: %s", self.slow)

    def _follow(self, error: PeerError) -> None:
        """Exit this rank, whose training thread waits for a rank that is gone and cannot raise an error."""
        self._end = (f"PeerError: {error}", error.exit_code)
        self._beat()
        with contextlib.suppress(OSError):
            if error.exit_code != EXIT_REQUEUE and self.run.failure() is None:
                self.run.mark_failed(f"rank {self.rank}: {self._end[0]}", error.exit_code)
        logger.error("%s", error)
        os._exit(error.exit_code)

    def _hang(self, verdict: str) -> None:
        """Exit this rank: log the reason and the stack traces."""
        self._beat(verdict)
        text = f"hung: {verdict}"
        with contextlib.suppress(OSError):
            if self.run.failure() is None:
                self.run.mark_failed(text, EXIT_HANG)
        logger.error("rank %d ends: %s", self.rank, text)
        logger.error("exit code %d (%s); its threads:", EXIT_HANG, EXIT_MEANING[EXIT_HANG])
        for file in (sys.stderr, self._stacks):
            with contextlib.suppress(OSError, ValueError):
                faulthandler.dump_traceback(file=file, all_threads=True)
                file.flush()
        os._exit(EXIT_HANG)  # the training thread can't be asked: it is what hangs


class _Peer:
    """Another rank's heartbeat, and for how long it has not changed."""

    def __init__(self, path: Path, training: str) -> None:
        self.path, self.training = path, training
        self.beat: Beat | None = None
        self.silent_s = 0.0

    def look(self, elapsed: float) -> Beat | None:
        beat = read_beat(self.path)
        if beat is not None and beat != self.beat and beat.training == self.training:
            self.beat, self.silent_s = beat, 0.0
        else:
            self.silent_s += elapsed
        return self.beat


def stuck(beats: Mapping[int, Beat]) -> tuple[str, str]:
    """Who holds up the others, and what these do. By the places of the ranks alone, as clocks may differ."""
    working = [beat for beat in beats.values() if not beat.ended]
    if not working:
        return "the run", ""
    least = min(beat.place for beat in working)
    behind = [beat for beat in working if beat.place == least]
    if len(behind) < len(working):
        return ", ".join(map(str, behind)), "; the other ranks wait for it"
    if len(working) == 1:
        return str(behind[0]), ""
    where = f"step {behind[0].step}, phase {behind[0].phase}"
    return f"all {len(working)} ranks, at {where},", ": the network between them, or a device"


def slow_ranks(times: Mapping[int, float]) -> dict[int, float]:
    """Ranks whose own time is SLOW_TIMES the median of the others', with that ratio."""
    slow = {}
    for rank, seconds in times.items():
        others = [value for other, value in times.items() if other != rank]
        if not others:
            continue
        middle = statistics.median(others)
        if seconds > SLOW_TIMES * middle and seconds - middle > SLOW_EXCESS_S:
            slow[rank] = seconds / middle
    return slow
