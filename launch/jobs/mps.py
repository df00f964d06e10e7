"""CUDA's multi-process service (MPS), for a job whose runs share GPUs: their kernels then run at the same time.

Without it the driver gives each process the GPU in turn (time slicing). The service is the job's own: it is started
with pipes and logs in a folder of its own, and stopped when the job ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator

from launch.jobs.machine import Machine
from launch.jobs.ranks import FORWARDED
from toolkit.wording import count

logger = logging.getLogger(__name__)
CONTROL = "nvidia-cuda-mps-control"
TIMEOUT_S = 30


@contextlib.contextmanager
def shared_gpus(processes: int, machine: Machine) -> Iterator[tuple[dict[str, str], Machine]]:
    """Yield the variables with which that many processes share the machine's GPUs, and the machine as they see it.

    Starts MPS where there are more processes than GPUs and the node has it; logs which way they share. The service
    numbers the GPUs that it was started with from 0.
    """
    if not machine.gpus or processes <= len(machine.gpus):
        yield {}, machine
        return
    sharing = f"{count(processes, 'process', 'processes')} on {count(len(machine.gpus), 'GPU')}"
    if shutil.which(CONTROL) is None:
        logger.warning("%s: they take turns (time slicing): this node has no %s", sharing, CONTROL)
        yield {}, machine
        return
    folder = tempfile.mkdtemp(prefix="mps-")
    variables = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
    try:
        if problem := _control(["-d"], variables):
            logger.warning("%s: they take turns (time slicing): MPS did not start: %s", sharing, problem)
            yield {}, machine
            return
        logger.info("%s: MPS runs their kernels side by side", sharing)
        try:
            yield variables, Machine(machine.cpus, tuple(str(number) for number in range(len(machine.gpus))))
        finally:
            if problem := _control([], variables, "quit\n"):
                logger.warning("MPS did not stop: %s", problem)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ignore_stop_signals() -> None:
    # Slurm sends a step's signals to all its processes: runs that write a checkpoint then still need the service.
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)


def _control(arguments: list[str], variables: dict[str, str], text: str | None = None) -> str | None:
    """Call the service's control program; returns what went wrong, or None."""
    try:
        done = subprocess.run(
            [CONTROL, *arguments],
            start_new_session=True,
            preexec_fn=_ignore_stop_signals,
            env={**os.environ, **variables},
            input=text,
            stdin=None if text is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
