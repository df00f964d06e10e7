"""Kills and stops at random moments; see chaos.py, which runs hundreds and keeps a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toolkit.train.chaos import Chaos, prepare
from tests.toolkit.train.warm import Warm


def disturb(folder: Path, seed: int, disturbances: int) -> Chaos:
    said: list[str] = []
    with Warm() as warm:
        chaos = Chaos(warm, folder, prepare(folder), seed, said.append)
        chaos.run(disturbances)
    assert sum(count for what, count in chaos.counts.items() if what.startswith("met")) == disturbances, said
    return chaos


def test_a_training_killed_twenty_times_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    chaos = disturb(tmp_path, seed=7, disturbances=20)
    assert any(what.startswith("kill one: codes [-9, 1]") for what in chaos.counts), chaos.counts
    assert any(what.startswith("kill all: codes [-9, -9]") for what in chaos.counts), chaos.counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_more(tmp_path: Path) -> None:
    disturb(tmp_path, seed=8, disturbances=200)
