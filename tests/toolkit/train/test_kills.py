"""Kills and stops at random moments; see tests/support/training_faults.py, which runs hundreds and keeps a log."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.process_pool import ProcessPool
from tests.support.reader_kills import kill_trainings
from tests.support.training_faults import FaultInjection, prepare


def disturb(folder: Path, seed: int, disturbances: int) -> FaultInjection:
    said: list[str] = []
    with ProcessPool() as pool:
        injection = FaultInjection(pool, folder, prepare(folder), seed, said.append)
        injection.run(disturbances)
    assert sum(count for what, count in injection.counts.items() if what.startswith("met")) == disturbances, said
    return injection


def test_a_training_killed_twenty_times_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    injection = disturb(tmp_path, seed=7, disturbances=20)
    assert any(what.startswith("kill one: codes [-9, 1]") for what in injection.counts), injection.counts
    assert any(what.startswith("kill all: codes [-9, -9]") for what in injection.counts), injection.counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_more(tmp_path: Path) -> None:
    disturb(tmp_path, seed=8, disturbances=200)


def test_killed_trainings_leave_no_reader_behind(tmp_path: Path) -> None:
    with ProcessPool() as pool:
        met = kill_trainings(pool, tmp_path, 4, 3, lambda _: None)
    assert sum(met.values()) == 4


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_killed_trainings_leave_no_reader_behind(tmp_path: Path) -> None:
    """`python -m tests.support.reader_kills` keeps a log of it."""
    with ProcessPool() as pool:
        met = kill_trainings(pool, tmp_path, 200, 1, lambda _: None)
    assert sum(met.values()) == 200
