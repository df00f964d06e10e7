"""How the ranks of a job find each other: at MASTER_ADDR:MASTER_PORT, within a time limit, or with a clear error.

torch's own rendezvous waits inside C++, where no signal is seen, and then speaks of a socket. Here a rank waits in
Python: it can be stopped, and reports which address it tried and which ranks did not come.
MODERNN_RENDEZVOUS_S sets the limit in seconds (default 300).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import distributed

from toolkit.errors import ConfigError, StoppedError, ToolkitError
from toolkit.wording import first_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

LIMIT_VARIABLE = "MODERNN_RENDEZVOUS_S"
LIMIT_S = 300.0
STOP_GRACE_S = 10.0  # a stop waits so long for ranks that are on their way: all of them leave together then


class _Clock:
    """The time that is left; a stop shortens it."""

    def __init__(self, limit: float, stop: Callable[[], bool]) -> None:
        self.limit, self.stop = limit, stop
        self.deadline = time.monotonic() + limit

    def left(self) -> float:
        """Seconds.

        Raises:
            StoppedError: this process was asked to stop, and waited for the others long enough.
        """
        now = time.monotonic()
        if self.stop():
            self.deadline = min(self.deadline, now + STOP_GRACE_S)
            if now >= self.deadline:
                raise StoppedError("stopped before the ranks had found each other: nothing was trained or saved")
        return self.deadline - now


def meet(rank: int, size: int, stop: Callable[[], bool]) -> Store:
    """Wait until all ranks are there; returns the store that they share.

    Args:
        stop: becomes true when this process is asked to stop.

    Raises:
        ConfigError: no address in the environment.
        ToolkitError: nobody at the address, its name unknown, its port taken, or not all ranks came in time.
        StoppedError: asked to stop while waiting.
    """
    host, port = _address()
    where = f"MASTER_ADDR {host}, MASTER_PORT {port}"
    clock = _Clock(limit_s(), stop)
    # Under torchrun its agent serves; else rank 0 does.
    serve = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    _reach(host, port, serve, clock, f"rank {rank} of {size} on {socket.gethostname()}: {where}")
    left = timedelta(seconds=max(1.0, clock.left()))
    make: Any = distributed.TCPStore  # type: ignore[attr-defined]
    try:
        served = make(host, port, size, is_master=serve, timeout=left, wait_for_workers=False)
    except (RuntimeError, ValueError) as error:
        hint = "is another job using that port of this machine? Set another MASTER_PORT" if serve else "is it ours?"
        raise ToolkitError(f"rank {rank} of {size}: {where}: {first_line(error)}; {hint}") from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = distributed.PrefixStore(f"modernn/{attempt}", served)  # type: ignore[attr-defined]
    try:
        _gather(store, rank, size, clock, where)
    except RuntimeError as error:
        raise ToolkitError(
            f"rank {rank} of {size}: {where}: lost while the ranks gathered: {first_line(error)}"
        ) from None
    return store


def _address() -> tuple[str, int]:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"MASTER_ADDR is {host!r} and MASTER_PORT {port!r}, but several ranks need an address and a port: "
            "start with torchrun, or set both"
        )
    return host, int(port)


def limit_s() -> float:
    """How long ranks may wait for each other, in seconds.

    Raises:
        ConfigError: the variable holds no such number.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(LIMIT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise ConfigError(f"{LIMIT_VARIABLE} is {text!r}: set a number of seconds above 0, or unset it")
    return seconds


def _reach(host: str, port: int, serve: bool, clock: _Clock, what: str) -> None:
    """Wait until the name is known and, unless this rank is to serve there, somebody listens."""
    while True:
        left = clock.left()
        try:
            if serve:
                socket.getaddrinfo(host, port)
            else:
                socket.create_connection((host, port), timeout=min(5.0, max(left, 0.1))).close()
            return
        except socket.gaierror as error:
            fault = f"that name is not known here ({error.strerror})"
        except OSError as error:
            fault = f"nobody answers there ({error.strerror or error})"
        if left <= 0:
            raise ToolkitError(
                f"{what}: {fault} for {clock.limit:g} s. Check that rank 0 runs, and that its name and port can be "
                f"reached from here; {LIMIT_VARIABLE} sets how long to wait"
            )
        time.sleep(min(0.2, max(left, 0.01)))


def _gather(store: Store, rank: int, size: int, clock: _Clock, where: str) -> None:
    """Wait until every rank has registered."""
    store.set(f"here/{rank}", socket.gethostname())
    count = store.add("here", 1)
    pause = 0.01
    while count < size:
        if clock.left() <= 0:
            missing = [str(other) for other in range(size) if not store.check([f"here/{other}"])]
            raise ToolkitError(
                f"rank {rank} of {size}: only {size - len(missing)} ranks came to {where} within {clock.limit:g} s; "
                f"missing: rank {', '.join(missing)}. Look at their logs; {LIMIT_VARIABLE} sets how long to wait"
            )
        time.sleep(pause)
        pause = min(0.5, 2 * pause)
        count = store.add("here", 0)
    # Rank 0 may leave soon after (a stop, an error): by then everyone must have seen the full count.
    store.add("seen", 1)
    while rank == 0 and store.add("seen", 0) < size and clock.left() > 0:
        time.sleep(0.01)
