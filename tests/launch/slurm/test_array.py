"""Jobs of other tasks than runs, by stand-ins for Slurm: those of the same name in another folder are left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch.slurm import array
from tests.support.process import SLURM_TOOLS

REMOVE = """\
#!/bin/bash
cd "$(dirname "$0")/.." || exit
echo "$*" >>cancelled
for job; do sed -i "/^$job /d" queue; done
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(SLURM_TOOLS, tmp_path / "bin")
    (tmp_path / "bin" / "scancel").write_text(REMOVE)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(array, "POLL_S", 0.01)
    (tmp_path / "squeue.sh").write_text("")
    return tmp_path


def run(site: Path, *options: str) -> int:
    arguments = ["--name", "shards-radar", "--folder", str(site / "jobs"), "--count", "1", *options]
    return array.main([*arguments, "--", "true"])


def test_only_the_jobs_of_this_folder_are_cancelled_and_waited_for(site: Path) -> None:
    other = "4700 RUNNING shards-radar /elsewhere/jobs"
    (site / "queue").write_text(f"{other}\n4701 RUNNING shards-radar {site}/jobs\n")
    (site / "sbatch.sh").write_text("echo 0 >jobs/0.code; echo Submitted batch job 4711\n")
    assert run(site) == 0
    assert (site / "cancelled").read_text() == "4701\n"
    assert (site / "queue").read_text() == f"{other}\n"


def test_an_interrupted_call_leaves_the_jobs_of_others(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str, folder: Path) -> None:
        raise KeyboardInterrupt

    other = "4700 RUNNING shards-radar /elsewhere/jobs"
    (site / "queue").write_text(f"{other}\n")
    (site / "sbatch.sh").write_text("accept 4711; echo Submitted batch job 4711\n")
    monkeypatch.setattr(array, "_wait", interrupt)
    monkeypatch.setattr(array.signal, "signal", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        run(site)
    assert (site / "cancelled").read_text() == "4711\n"
    assert (site / "queue").read_text() == f"{other}\n"
