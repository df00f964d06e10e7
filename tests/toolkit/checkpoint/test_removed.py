"""A checkpoint's folder, or the run directory, removed by hand while a run trains."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from toolkit.checkpoint import checkpoint, commit
from toolkit.checkpoint.checkpoint import Progress, TrainState
from toolkit.checkpoint.saver import Saver
from toolkit.config.sections import TrainConfig
from toolkit.errors import CheckpointError

STATE = TrainState({"w": torch.ones(3)}, {}, 1)


def test_a_folder_removed_between_two_saves_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    saver = Saver(folder, TrainConfig(), "abc")
    saver.save(STATE, Progress(1, 8), last=True)
    shutil.rmtree(folder)
    with caplog.at_level(logging.WARNING):
        saver.save(STATE, Progress(2, 16), last=True)
    assert f"{folder}: was removed while this run was training, with all its checkpoints" in caplog.text
    assert checkpoint.steps_in(folder) == [2]


def test_a_folder_removed_during_a_save_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    write = commit._write

    def removing(path: Path, put: object) -> dict[str, object]:
        shutil.rmtree(folder, ignore_errors=True)
        return write(path, put)  # type: ignore[arg-type]

    monkeypatch.setattr(commit, "_write", removing)
    with pytest.raises(
        CheckpointError, match=r"checkpoints was removed or renamed while this run was training"
    ) as said:
        commit.save(folder, STATE, Progress(1, 8), "abc")
    assert "Make room" not in str(said.value)


def test_a_run_directory_that_was_removed_is_not_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    with pytest.raises(CheckpointError, match=r"run was removed or renamed while this run was training"):
        commit.save(folder, STATE, Progress(1, 8), "abc")
    assert not folder.parent.exists()
