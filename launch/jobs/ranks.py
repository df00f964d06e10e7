"""Run a command as N ranks on this machine, hand signals on to them, and never leave one behind.

This does for one node what srun does for several. torchrun isn't used under a job: it returns 1 whatever its workers
return, so that "stopped with a checkpoint" (3) and "not finite" (4) could not be told apart, and it kills a worker that
needs more than 30 seconds for the checkpoint after a signal. By hand, `torchrun launch/train.py` works as ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from toolkit.errors import EXIT_HANG, EXIT_MEANING, EXIT_OK, EXIT_REQUEUE

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
PEER_GRACE_S = 20.0  # for the other ranks to end by themselves after one failed, and again after SIGTERM
HANG_GRACE_S = 10.0  # the same after a hang: what the others do is to be seen, not waited for
STACKS_S = 1.0  # for a rank that is killed to show what it was doing
POLL_S = 0.05
CHECK_S = 2.0
logger = logging.getLogger(__name__)
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


class SignalRelay:
    """While entered, notes the signals that ask a job to stop, for `run_ranks` to hand on."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self._handed_on = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> SignalRelay:
        for number in FORWARDED:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))

    def take(self) -> list[signal.Signals]:
        """Return the signals that were not forwarded yet."""
        fresh = self.received[self._handed_on :]
        self._handed_on += len(fresh)
        return fresh


def run_ranks(
    command: Sequence[str],
    ranks: int,
    relay: SignalRelay,
    logs: Sequence[Path] = (),
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    describe: Callable[[int], str] = "rank {}".format,
    check: Callable[[], None] = lambda: None,
) -> int:
    """Start `command` once per rank and wait for all.

    Args:
        command: what each rank runs; it reads its rank from the variables that torchrun sets (none for one rank).
        ranks: number of processes.
        relay: where signals arrive.
        logs: one file per rank that its output is appended to; empty: this process's own output.
        environment: variables to set for the ranks.
        pass_fds: open files that the ranks keep open.
        describe: names a rank in messages.
        check: called every CHECK_S seconds; what it raises ends the ranks and is raised here.

    Returns:
        0 when all ranks returned 0; else the code of the first that failed, 128 + n for signal n; 3 when the ranks
        that did not return 0 returned 3.
    """
    processes: list[subprocess.Popen[bytes]] = []
    port = _free_port() if ranks > 1 else 0
    try:
        for rank in range(ranks):
            log = logs[rank] if logs else None
            variables = {**_rank_environment(rank, ranks, port), **(environment or {})}
            processes.append(_start(command, variables, log, pass_fds))
        return _wait(processes, relay, describe, check)
    finally:
        for process in processes:
            end_group(process)


def _start(
    command: Sequence[str], environment: dict[str, str], log: Path | None, pass_fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(open(log, "ab")) if log else None
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            start_new_session=True,  # a Ctrl-C in the terminal comes to us alone, and we hand it on once
            pass_fds=pass_fds,
            preexec_fn=die_with_parent,
        )


def die_with_parent() -> None:
    # Even a SIGKILL of this process can't orphan a rank: the kernel then sends it SIGTERM, and it checkpoints. In a
    # step of Slurm its time is up: Slurm drains a node on which a rank lingers.
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL if "SLURM_STEP_ID" in os.environ else signal.SIGTERM))


def _rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    environment["PYTHONUNBUFFERED"] = "1"
    if ranks > 1:
        values = (rank, ranks, rank, ranks, "127.0.0.1", port)
        environment.update({key: str(value) for key, value in zip(RANK_VARIABLES, values, strict=True)})
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(
    processes: Sequence[subprocess.Popen[bytes]],
    relay: SignalRelay,
    describe: Callable[[int], str],
    check: Callable[[], None],
) -> int:
    ended: dict[int, int] = {}  # rank -> code, in the order in which they ended
    failed_at = 0.0
    first_failure = EXIT_OK
    told, checked = False, time.monotonic()
    while len(ended) < len(processes):
        if time.monotonic() - checked > CHECK_S:
            check()
            checked = time.monotonic()
        for number in relay.take():
            for process in processes:
                process.send_signal(number)
        for rank in _newly_ended(processes, ended):
            # A rank that stopped with its checkpoint is no failure: the others may need long to finish theirs.
            if ended[rank] in (EXIT_OK, EXIT_REQUEUE) or first_failure != EXIT_OK:
                continue
            failed_at, first_failure = time.monotonic(), ended[rank]
            if len(processes) > 1:
                how = meaning(first_failure)
                logger.error("%s ended: %s; stopping the others", describe(rank), how)
        silence = 0.0 if first_failure == EXIT_OK else time.monotonic() - failed_at
        grace = HANG_GRACE_S if first_failure == EXIT_HANG else PEER_GRACE_S
        if silence > 2 * grace:
            _show_stacks(processes)
            break  # `run_ranks` kills what is left
        if silence > grace and not told:
            told = True
            for process in processes:
                process.terminate()
        time.sleep(POLL_S)
    codes = [code for code in ended.values() if code != EXIT_OK]
    return next((code for code in codes if code != EXIT_REQUEUE), codes[0] if codes else EXIT_OK)


def _newly_ended(processes: Sequence[subprocess.Popen[bytes]], ended: dict[int, int]) -> list[int]:
    """Add the ranks that have ended since the last call to `ended`, with their codes, and return them."""
    fresh = []
    for rank, process in enumerate(processes):
        code = process.poll()
        if code is not None and rank not in ended:
            ended[rank] = code if code >= 0 else 128 - code
            fresh.append(rank)
    return fresh


def _show_stacks(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask what is left to write what its threads are doing (toolkit/train/watchdog.py), even inside a C call."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGQUIT)
    time.sleep(STACKS_S)


def meaning(code: int) -> str:
    """Describe an exit code."""
    if code > 128:
        try:
            name = signal.Signals(code - 128).name
        except ValueError:
            return f"exit code {code}"
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exit code {code} ({EXIT_MEANING.get(code, 'unknown')})"


def end_group(process: subprocess.Popen[bytes]) -> None:
    # The rank leads its own group: this takes its reader processes along, and is in vain when all have ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
