"""Starting processes, and waiting for what they do."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SLURM_TOOLS = ROOT / "tests" / "support" / "slurm_tools"  # to copy into FOLDER/bin; they keep their files in FOLDER
PATIENCE_S = 280.0  # for what takes seconds on an idle machine; a test that hangs shall end by itself


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for(*paths: Path, timeout: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout
    while not all(path.exists() and path.stat().st_size for path in paths):
        assert time.monotonic() < deadline, f"{paths} did not appear"
        time.sleep(0.01)


def as_from_a_terminal() -> None:
    """Tests run under nohup or in a shell's background inherit ignored signals, and would hand them on."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def eventually(condition: Callable[[], object], seconds: float = PATIENCE_S) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {seconds:.0f} s"
        time.sleep(0.1)


def asks_for_gpus(expression: str) -> bool:
    """Whether pytest's `-m` takes the tests marked `gpu`."""
    return re.search(r"(?<!not )\bgpu\b", expression) is not None
