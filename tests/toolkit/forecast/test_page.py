"""docs/forecast.md, typed as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "forecast.md").read_text(encoding="utf-8")


def test_the_page_can_be_followed_to_the_letter(tmp_path: Path) -> None:
    pytest.importorskip("h5netcdf")
    for name in ("configs", "launch", "shards", "toolkit"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, code in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(code, encoding="utf-8")
    commands = "".join(re.findall(r"<!-- commands -->\n```\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    assert len(commands) == 6
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": path, "OMP_NUM_THREADS": "1"}
    said = {}
    for line in commands:
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        said[line.split()[1]] = done.stdout
    assert said["in_python.py"].startswith("(4, 1, 48, 64) dBZ")
    assert "2024-05-01T04:55:00.000000000 to 2024-05-01T05:25:00.000000000" in said["in_python.py"]
    assert "RMSE dBZ" in said["launch/predict.py"]
    assert (tmp_path / "past.zarr" / "zarr.json").exists() and (tmp_path / "past.gif").stat().st_size > 10_000
