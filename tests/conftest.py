"""Shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real samples; they are no part of the project, so tests that need them may be skipped."""
    folder = Path(os.environ.get("MODERNN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; name their folder in MODERNN_TEST_DATA")
    return folder
