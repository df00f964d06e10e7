"""Every parser of bytes from outside, with files that are damaged at random: an error of ours, or what the bytes say.

benchmarks/fuzz.py does the same for as long as one likes, with limits of time and memory.
"""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import TARGETS, Case


def check(name: str, folder: Path, examples: int, derandomize: bool = False) -> None:
    try:
        case = Case.of(name, folder)
    except ImportError as error:  # of a package that an archive needs
        pytest.skip(str(error))
    assert case.read(case.sound)

    @settings(max_examples=examples, derandomize=derandomize, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, (1 << 64) - 1))
    def damaged(seed: int) -> None:
        case.read(case.damaged(random.Random(seed)))

    damaged()


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_refused_or_read(name: str, tmp_path: Path) -> None:
    """The same ones each time: new ones are for the slow test and for benchmarks/fuzz.py, whose findings get a test."""
    check(name, tmp_path, 12, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_damaged_files_are_refused_or_read(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, 1000)


def test_a_finding_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: an exception that isn't ours comes through."""
    case = Case.of("idx", tmp_path)
    monkeypatch.setattr("shards.sources.idx._image_shape", lambda path, header: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        case.read(case.sound)
