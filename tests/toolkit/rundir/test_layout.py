"""What a message says of two runs that want one directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.config import make_config
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir, differences


def test_another_runs_directory_is_refused_with_what_differs(tmp_path: Path) -> None:
    here = make_config({"seed": 9, "data": {"store": "stores/a"}, "train": {"clip": None}}, "here")
    there = make_config({"train": {"clip": 1.0}, "model": {"name": "convlstm"}}, "there")
    RunDir.create(tmp_path / "run", there)
    with pytest.raises(ConfigError, match=r"seed is 0 there, 9 here; .*choose another --out"):
        RunDir.create(tmp_path / "run", here)
    text = differences(there, here)
    assert 'model.name is "convlstm" there, "modernn" here' in text
    assert "train.clip is 1.0 there, null here" in text
    assert differences(there, here, limit=1).endswith("; and 3 keys more")
    assert differences(here, here) == ""
