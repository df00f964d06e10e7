"""What a message says of two runs that want one directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from toolkit.config import make_config
from toolkit.errors import ConfigError, ToolkitError
from toolkit.rundir import RunDir, differences, read_result


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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("context", "<img src=x onerror=alert(1)>"),
        ("frames", "<img src=x onerror=alert(1)>"),
        ("frames", {"a": 1}),
        ("step", True),
        ("overall", []),
        ("unit", 3),
        ("persistence", None),
    ],
)
def test_scores_of_a_wrong_type_are_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    file = tmp_path / "run" / "eval" / "test-best.json"
    file.parent.mkdir(parents=True)
    sound = {"version": 1, "context": 4, "frames": [1, 16, 16], "overall": {"mse": 1.0}, "mine": {"more": "keys"}}
    file.write_text(json.dumps(sound))
    assert read_result(file) == sound
    file.write_text(json.dumps({**sound, key: value}))
    with pytest.raises(ToolkitError, match=rf"test-best.json: {key} is .*expected a value of type .*evaluate"):
        read_result(file)


@pytest.mark.parametrize("text", ["", "5", "[1]", "[" * 100_000, "{", "\xff"])
def test_scores_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "run" / "eval" / "test-best.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(ToolkitError, match=r"test-best.json: can't be read"):
        read_result(file)
