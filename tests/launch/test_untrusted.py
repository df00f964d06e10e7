"""Folders of somebody else's: what their files name is neither started, nor ended, nor taken for a run."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.jobs.local import _SubmititJob
from launch.sweeps.cancel import WATCHERS, cancel
from toolkit.config import RunConfig, make_config
from toolkit.config.tree import to_yaml
from toolkit.errors import ConfigError
from toolkit.plan import cost
from toolkit.rundir import RunDir
from toolkit.rundir.lock import LOCK_NAME
from toolkit.rundir.sweep import RECORD_NAME, read_runs


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has to do with nothing here."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def is_unharmed(process: subprocess.Popen[bytes]) -> bool:
    time.sleep(0.3)
    return process.poll() is None


def test_a_process_that_a_file_name_gives_is_not_ended(
    tmp_path: Path, bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr("launch.sweeps.cancel.os.kill", lambda pid, number: sent.append((pid, number)))
    folder = tmp_path / "demo" / WATCHERS
    folder.mkdir(parents=True)
    held = []
    for number in (str(bystander.pid), "0", "1", "999999999", "x"):
        held.append(open(folder / f"{socket.gethostname()}-{number}", "w"))  # noqa: SIM115
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    lines = cancel(tmp_path / "demo")
    assert sent == [] and len(lines) == 5 and all("nothing is ended" in line for line in lines)
    held.append(open(folder / f"{socket.gethostname()}-{os.getpid()}", "w"))  # noqa: SIM115  one that it is
    fcntl.flock(held[-1], fcntl.LOCK_EX)
    cancel(tmp_path / "demo")
    assert sent == [(os.getpid(), signal.SIGTERM)]
    for file in held:
        file.close()


def test_a_process_that_a_lock_names_is_not_ended(tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    class Submitted:
        job_id = "7"

    run = RunDir.create(tmp_path / "run", RunConfig())
    (run.path / LOCK_NAME).write_text(
        json.dumps({"job": "local-7", "pid": bystander.pid, "host": socket.gethostname()})
    )
    job: Any = Submitted()
    with open(run.path / LOCK_NAME) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        _SubmititJob(run.path, job).stop()
    assert is_unharmed(bystander)


@pytest.mark.parametrize("name", ["../other/run", "/tmp", "..", ".", "", "a/b", "x\0y", None, ["a"], 5])
def test_a_sweep_has_no_runs_outside_its_folder(tmp_path: Path, name: object) -> None:
    item = {"dir": name, "name": "a", "group": "a", "seed": 1}
    (tmp_path / RECORD_NAME).write_text(to_yaml({"name": "demo", "file": "demo.yaml", "runs": [item]}))
    with pytest.raises(ConfigError, match=r"not a sweep's record \(dir: .* is no name of a folder"):
        read_runs(tmp_path)


def test_costs_are_not_measured_by_modules_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "torch", "yaml", "toolkit"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    model = {"name": "convlstm", "layers": 1, "hidden": 4, "kernel": 3}
    config = make_config({"model": model, "data": {"context": 2, "horizon": 1}}, "test")
    (entry,) = cost.measured([config], 1)
    assert entry["code"] and not (tmp_path / "RAN").exists()
