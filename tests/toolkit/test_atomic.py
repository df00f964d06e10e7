"""What killed writers leave behind is known by its name."""

from __future__ import annotations

import errno
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest

from toolkit.atomic import FileWriteError, clear_leftovers, replacing_tree

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


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def replace(path: Path) -> None:
    with replacing_tree(path) as temporary:
        temporary.mkdir()
        (temporary / "file").write_text("after")


def test_a_folder_that_can_not_be_put_back_is_kept_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    replace(path)
    (path / "file").write_text("before")
    rename = Path.rename
    monkeypatch.setattr("os.replace", full)
    monkeypatch.setattr(Path, "rename", lambda self, target: full() if target == path else rename(self, target))
    with pytest.raises(FileWriteError, match=f"What was there before is in .*, and {path} does not exist") as caught:
        replace(path)
    (old,) = tmp_path.iterdir()
    assert str(old) in str(caught.value) and (old / "file").read_text() == "before"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_folder_that_is_in_place_but_not_flushed_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(tmp_path / "model")
    monkeypatch.setattr("toolkit.atomic.flush", lambda path: full() if path == tmp_path else None)
    with pytest.raises(FileWriteError, match="The new one is in place, but a power cut may undo that"):
        replace(tmp_path / "model")
    assert [item.name for item in tmp_path.iterdir()] == ["model"]
