"""A model and an archive to forecast from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shards.recent import Archive, open_archive
from tests.support.forecasts import MakeRun, make_run, radar
from toolkit.forecast.trained import Trained, load_trained

__all__ = ["make_run", "radar"]  # fixtures


@pytest.fixture
def persistence(make_run: MakeRun) -> Trained:
    return load_trained(make_run(), "best", torch.device("cpu"))


@pytest.fixture
def archive(radar: Path, persistence: Trained) -> Archive:
    return open_archive(radar, persistence.archive)
