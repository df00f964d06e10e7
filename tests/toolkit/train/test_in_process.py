"""A training that fails: a command is gone soon after, whatever holds it; a process that called it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch import distributed

from launch.cli.parser import run_script
from launch.train import main
from shards.errors import SourceError
from tests.support.process import ROOT
from toolkit.config import RunConfig
from toolkit.config.sections import WatchdogConfig
from toolkit.errors import EXIT_DATA, EXIT_OK
from toolkit.rundir import RunDir
from toolkit.rundir.heartbeat import path_of, read_beat
from toolkit.signals import CAUGHT, is_command
from toolkit.train import watchdog
from toolkit.train.loop import Training
from toolkit.train.watchdog import Watchdog

# A command whose training fails; what holds it then is filled in.
COMMAND = """\
import atexit, sys, threading, time
from pathlib import Path
from launch.cli.parser import run_script
from shards.errors import SourceError
from toolkit.config.sections import WatchdogConfig
from toolkit.rundir import RunDir
from toolkit.train import watchdog

watchdog.LEAVE_S = 0.5

def main():
    guard = watchdog.Watchdog(RunDir(Path(sys.argv[1])), 0, 1, WatchdogConfig())
    guard._beat_s = 0.1
    try:
        with guard:
            {hold}
            raise SourceError("a cut shard")
    finally:
        {unwind}

run_script(main)
"""


@pytest.mark.parametrize(
    ("hold", "unwind"),
    [
        ("threading.Thread(target=time.sleep, args=(600,)).start()", "pass"),
        ("atexit.register(time.sleep, 600)", "pass"),
        ("pass", "time.sleep(600)"),
    ],
    ids=["thread", "atexit", "unwinding"],
)
def test_a_command_that_hangs_after_a_failed_training_is_ended(tmp_path: Path, hold: str, unwind: str) -> None:
    run = RunDir.create(tmp_path / "run", RunConfig())
    command = [sys.executable, "-c", COMMAND.format(hold=hold, unwind=unwind), str(run.path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == EXIT_DATA, done.stderr
    assert "rank 0 failed more than 0.5 s ago and has not exited: killed" in done.stderr
    beat = read_beat(path_of(run.path, 0))
    assert beat is not None and (beat.ended, beat.code) == ("SourceError: a cut shard", EXIT_DATA)


def test_a_process_that_called_a_training_survives_its_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(watchdog, "LEAVE_S", 0.1)
    run = RunDir.create(tmp_path / "run", RunConfig())
    guard = Watchdog(run, 0, 1, WatchdogConfig())
    guard._beat_s = 0.02
    with pytest.raises(SourceError), guard:
        raise SourceError("a cut shard")
    before = path_of(run.path, 0).read_bytes()
    time.sleep(0.5)
    assert codes == [] and not guard._thread.is_alive()
    assert path_of(run.path, 0).read_bytes() == before


def test_a_command_that_is_called_is_no_command_once_it_has_returned() -> None:
    seen: list[bool] = []
    with pytest.raises(SystemExit):
        run_script(lambda: seen.append(is_command()) or 0)
    assert seen == [True] and not is_command()


@pytest.mark.parametrize("fault", [SourceError("a cut shard"), None], ids=str)
def test_a_training_leaves_the_process_that_called_it_as_it_was(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    """Its signal handlers, threads and process group, so that the next training is like the first."""
    fit = Training.fit

    def fitted(training: Training) -> int:
        if fault is not None:
            raise fault
        return fit(training)

    monkeypatch.setattr(Training, "fit", fitted)
    handlers = [signal.getsignal(number) for number in CAUGHT]
    words = ["--config", str(tiny_config), "--out", str(tmp_path / "run"), "--set", "train.steps=1"]
    if fault is None:
        assert main(words) == EXIT_OK
        assert main(words) == EXIT_OK  # with nothing to do
        assert main([*words[:3], str(tmp_path / "another"), *words[4:]]) == EXIT_OK
    else:
        with pytest.raises(SourceError, match="a cut shard"):
            main(words)
    assert [signal.getsignal(number) for number in CAUGHT] == handlers
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())
    assert not distributed.is_initialized()
