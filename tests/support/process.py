"""Starting processes, and waiting for what they do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SLURM_TOOLS = ROOT / "tests" / "support" / "slurm_tools"  # to copy into FOLDER/bin; they keep their files in FOLDER
TRAINING = ROOT / "tests" / "toolkit" / "train"


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(ranks: int, script: str, *arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run a script of tests/toolkit/train on so many ranks."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [*start, str(TRAINING / script), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=timeout)


def wait_for(*paths: Path, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not all(path.exists() and path.stat().st_size for path in paths):
        assert time.monotonic() < deadline, f"{paths} did not appear"
        time.sleep(0.01)


def as_from_a_terminal() -> None:
    """Tests run under nohup or in a shell's background inherit ignored signals, and would hand them on."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds:.0f} s"
        time.sleep(0.1)


def asks_for_gpus(expression: str) -> bool:
    """Whether pytest's `-m` takes the tests marked `gpu`."""
    return re.search(r"(?<!not )\bgpu\b", expression) is not None
