"""The README's commands, typed as written, in a folder that holds the checkout's files but none of its results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.markdown import blocks, commands
from tests.support.process import ROOT

README = (ROOT / "README.md").read_text()


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 260


@pytest.mark.timeout(1200)
def test_every_command_works_as_written(tmp_path: Path) -> None:
    typed = [command for block in blocks(README) if block.language == "sh" for command in commands(block.code)]
    assert len(typed) >= 8
    for name in ("configs", "launch", "shards", "toolkit"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in typed:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    page = tmp_path / "runs" / "tiny" / "demo" / "report" / "index.html"
    assert page.stat().st_size > 10_000
