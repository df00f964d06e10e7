"""What a training tells people and what it writes down."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.config import RunConfig
from toolkit.rundir import RunDir
from toolkit.train import record
from toolkit.train.record import Recorder

VALUES = {"loss": 0.5, "grad_norm": 0.1, "lr": 1e-3, "teacher_rate": 1.0}


def test_slow_steps_are_told_as_they_come_but_not_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(RunDir.create(tmp_path / "run", RunConfig()), 0, 20, 8)
    recorder.train(1, VALUES, "00")
    recorder.train(2, VALUES, None)
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(record, "LOG_EVERY_S", -1.0)
    recorder.train(3, VALUES, None)
    recorder.close()
    assert "step  3/20  loss 0.50000" in capsys.readouterr().err
    assert len(recorder.run.metrics_file.read_text().splitlines()) == 1  # lines depend on the step alone
