"""One lock for all that must not run twice: the kernel's `flock`, which ends with the last process that holds it."""

from __future__ import annotations

import fcntl


def lock_file(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file for as long as it is open; several may hold a shared lock.

    Args:
        wait: until it is free; else return False at once where another open file holds it.

    Raises:
        OSError: the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
