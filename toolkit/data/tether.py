"""Ends reader processes with their training, however it ends, and from their first instant on, before PyTorch loads.

The training starts a forkserver, which imports this module, and that starts the readers. Linux kills a process whose
parent thread is gone, where it has asked for that (prctl, PR_SET_PDEATHSIG): here the server asks for itself, and each
reader right after the fork. So nothing is left behind by a training that is killed. Imports nothing of the toolkit.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent, the process `parent`, is gone."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # gone already
        os._exit(1)


def _in_reader() -> None:
    die_with_parent(_server)


_server = os.getpid()
# A forkserver's command line; the training that starts it, which may be gone by now, sets the variable.
if "multiprocessing.forkserver" in " ".join(sys.orig_argv) and "MODERNN_TETHER" in os.environ:
    die_with_parent(int(os.environ["MODERNN_TETHER"]))
    os.register_at_fork(after_in_child=_in_reader)
