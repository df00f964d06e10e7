"""A run whose model is from a file: its job runs the copy in the run directory, and no other text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.process import ROOT
from toolkit.config import load_config
from toolkit.errors import EXIT_USAGE
from toolkit.rundir import RunDir


def call(*words: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.timeout(900)
def test_a_job_trains_and_scores_with_the_copy_of_the_file(tiny_store: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "support" / "my_model.py", tmp_path / "my_model.py")
    config = tmp_path / "mine.yaml"
    config.write_text(
        "base: configs/demo.yaml\nmodel: {name: my_model.py:Recurrent, layers: 1, hidden: 4}\n"
        f"data: {{store: {tiny_store}, context: 3, horizon: 2}}\n"
        "train: {steps: 2, batch: 2, validate_every: 2, device: cpu}\neval: {show: 0}\n"
    )
    run = RunDir.create(tmp_path / "run", load_config(config, typed=True))
    shutil.copytree(run.path, tmp_path / "changed")
    (tmp_path / "my_model.py").unlink()
    done = call(ROOT / "launch" / "jobs" / "job.py", run.path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert run.done and {*run.scores()} == {"test-best", "test-last"}
    again = call(ROOT / "launch" / "train.py", run.path, "--resume", "none")
    assert again.returncode == 0 and "already trained" in again.stderr
    changed = RunDir(tmp_path / "changed")
    with changed.model_file.open("a") as file:
        file.write("# edited\n")
    refused = call(ROOT / "launch" / "jobs" / "job.py", changed.path)
    assert refused.returncode == EXIT_USAGE and "model.py: has SHA-256" in refused.stderr
    assert not changed.done and not changed.checkpoints.exists()
