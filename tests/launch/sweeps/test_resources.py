"""What a run will need, as sweeps show it; launch/plan.py in full: tests/launch/test_plan.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.sweeps.resources import stored_shape


def test_a_store_is_looked_for_in_the_working_directory_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (32, 64):
        store = tmp_path / str(size) / "stores" / "demo"
        store.mkdir(parents=True)
        frames = {"channels": 1, "height": size, "width": size}
        (store / "manifest.json").write_text(json.dumps({"frames": frames}))
    for size in (32, 64, 32):
        monkeypatch.chdir(tmp_path / str(size))
        assert stored_shape("stores/demo") == (1, size, size)
    monkeypatch.chdir(tmp_path)
    assert stored_shape("stores/demo") is None
