"""Shared by all tests."""

import os
import re
import signal
from pathlib import Path

import pytest

from shards import log

ROOT = Path(__file__).resolve().parents[1]

# A shell starts what it puts in the background deaf to Ctrl-C, and so would be all processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from tests that aren't of GPUs: they compare numbers with a CPU's, and start more ranks than there are
    cards. CUDA looks at the variable at its first use, which is after this."""
    if not asks_for_gpus(config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    log.configure()  # as the commands do, whose mains tests call


def asks_for_gpus(expression: str) -> bool:
    """Whether pytest's `-m` takes the tests marked `gpu`."""
    return re.search(r"(?<!not )\bgpu\b", expression) is not None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real samples; they are no part of the project, so tests that need them may be skipped."""
    folder = Path(os.environ.get("MODERNN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; name their folder in MODERNN_TEST_DATA")
    return folder
