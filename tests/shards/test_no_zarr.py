"""Without zarr 3, as on Python 3.10, stores are tars; what asks for zarr is told why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITHOUT = "import sys; sys.modules['zarr'] = None; from shards.cli import main; sys.exit(main())"


def shards(*words: str | Path) -> subprocess.CompletedProcess[str]:
    arguments = [str(word) for word in words]
    return subprocess.run([sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=False)


def test_tars_are_written_read_and_verified(tmp_path: Path) -> None:
    made = shards(
        "convert", "moving-mnist", tmp_path / "s", "--size", "32", "--train", "2", "--val", "1", "--test", "1"
    )
    assert made.returncode == 0, made.stderr
    assert shards("verify", tmp_path / "s").returncode == 0


def test_zarr_says_which_python_it_wants(tmp_path: Path) -> None:
    words = ("--size", "32", "--train", "2", "--val", "1", "--test", "1", "--format", "zarr")
    made = shards("convert", "moving-mnist", tmp_path / "s", *words)
    assert made.returncode == 2
    assert "wants Python 3.11 or later; with an older Python keep events in tars" in made.stderr
    assert "Traceback" not in made.stderr
