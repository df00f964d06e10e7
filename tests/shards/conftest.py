"""Small archives and sources to convert."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.clips import FORMATS, write_idx


@pytest.fixture(params=FORMATS)
def format(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def idx_folder(tmp_path_factory) -> Path:
    """120 training digits, every pixel of digit i is i + 1, and 40 test digits of 201..240: pixels tell the digit."""
    folder = tmp_path_factory.mktemp("mnist")
    write_idx(
        folder / "train-images-idx3-ubyte.gz",
        np.ones((120, 28, 28), np.uint8) * np.arange(1, 121, dtype=np.uint8)[:, None, None],
    )
    write_idx(
        folder / "t10k-images-idx3-ubyte",
        np.ones((40, 28, 28), np.uint8) * np.arange(201, 241, dtype=np.uint8)[:, None, None],
    )
    return folder
