"""Numbers in records that no machine counts with, and names that no file system takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.sweeps.efficiency import efficiency
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir
from toolkit.rundir.events import read_starts
from toolkit.rundir.records import keep_typed
from toolkit.rundir.status import read_status
from toolkit.rundir.sweep import read_record

START = {"job": "1", "host": "a", "ranks": 1, "gpus": 1, "batch": 8, "began": 1.5, "ready": 2, "step": 0}


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), True, "1", None])
def test_numbers_beyond_all_bounds_are_left_out(value: object) -> None:
    assert keep_typed({"step": value, "rate": value}, {"step": int, "rate": float}) == {}
    assert keep_typed({"step": 1 << 62, "rate": 1}, {"step": int, "rate": float}) == {"step": 1 << 62, "rate": 1}


@pytest.mark.parametrize("value", [10**400, 1e300, -1, "x", None, [], float("inf")])
@pytest.mark.parametrize("key", ["ranks", "batch", "began", "ready", "step", "last_step", "last_time", "submitted"])
def test_status_and_efficiency_show_a_run_whatever_its_starts_record(tmp_path: Path, key: str, value: object) -> None:
    (tmp_path / "starts.jsonl").write_text(json.dumps({**START, key: value}) + "\n" + json.dumps(START))
    (tmp_path / "state.json").write_text(json.dumps({"val": {"mse": value}, "loss": value, "updated": 1e9}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "kind": "train", "seq_per_s": value}))
    assert read_starts(tmp_path)
    view = read_status(RunDir(tmp_path))
    assert view.state == "interrupted"
    assert efficiency([view], 80)


@pytest.mark.parametrize("name", ["x" * 256, "a\0b", "..", "a/b", 5])
def test_a_record_of_a_sweep_names_folders(tmp_path: Path, name: object) -> None:
    run = {"dir": name, "name": "a", "group": "a", "seed": 1, "settings": {}}
    (tmp_path / "sweep.yaml").write_text(json.dumps({"name": "demo", "file": "demo.yaml", "runs": [run]}))
    with pytest.raises(ConfigError, match="is no name of a folder"):
        read_record(tmp_path)
