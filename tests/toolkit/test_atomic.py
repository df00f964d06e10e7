"""What killed writers leave behind is known by its name."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from toolkit.atomic import clear_leftovers

GONE = 2**22 + 1  # above the greatest number of a process


@pytest.mark.parametrize("code", ["-0123abcd", "-95059690", ""])
def test_leftovers_of_processes_that_are_gone_are_removed(tmp_path: Path, code: str) -> None:
    """Also where the random code has digits alone, which is no process's number."""
    left = tmp_path / f".model.{socket.gethostname()}-{GONE}{code}.tmp"
    left.touch()
    others = tmp_path / f".model.another-host-{GONE}{code}.tmp"
    others.touch()
    assert clear_leftovers(tmp_path) == [left]
    assert others.exists()
