"""Shared by all tests."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A shell starts what it puts in the background deaf to Ctrl-C, and so would be all processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real samples; they are no part of the project, so tests that need them may be skipped."""
    folder = Path(os.environ.get("MODERNN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; name their folder in MODERNN_TEST_DATA")
    return folder
