"""evaluate, export, predict and report, killed at each write and on a disk that is full from each write on.

What was there stays, the message names the file and the free bytes, and the same command again does the work and
leaves nothing behind of the one that was killed.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.figure  # noqa: F401  what follows is imported here, and not by each of the forked children
import pytest
import xarray  # noqa: F401

import toolkit.analysis.job
import toolkit.checkpoint.export
import toolkit.evaluate.job
import toolkit.forecast.files
import toolkit.forecast.picture
import toolkit.report.build  # noqa: F401
from launch import evaluate, export, predict, report
from launch.cli.parser import run_script
from tests.support.crash import Countdown, ended, start
from tests.support.runs import write_run
from toolkit.atomic import remove

MAINS = {"evaluate": evaluate.main, "export": export.main, "predict": predict.main, "report": report.main}
EVERY = 4  # of the writes, but for the slow test


@dataclass
class Place:
    """A run in a folder of its own, and the command under test."""

    folder: Path
    script: str
    words: list[str]
    output: Path

    def call(self, kill_at: int = 0, full: bool = False) -> tuple[int, str, int]:
        """Return the exit code, what was printed, and the number of writes (0 where it was killed)."""
        log, counted = self.folder.parent / "log", self.folder.parent / "writes"
        counted.unlink(missing_ok=True)

        def work() -> int:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.chdir(self.folder)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            main = MAINS[self.script]
            countdown = Countdown(self.folder, kill_at, full)
            countdown.arm()
            sys.argv = [f"launch/{self.script}.py", *self.words]
            try:
                run_script(main)
            except SystemExit as end:
                descriptor = os.open(counted, os.O_WRONLY | os.O_CREAT, 0o644)
                os.write(descriptor, str(countdown.calls).encode())
                return int(end.code or 0)

        code = ended(start(work))
        return code, log.read_text(), int(counted.read_text()) if counted.exists() else 0

    def leftovers(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.name.endswith((".tmp", ".old", ".partial"))]

    def results(self) -> dict[str, bytes]:
        """The files that were asked for."""
        files = [path for path in self.output.rglob("*") if path.is_file()] if self.output.is_dir() else [self.output]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files if path.exists()}


@pytest.fixture
def place(request: pytest.FixtureRequest, tiny_store: Path, tmp_path: Path) -> Place:
    folder = tmp_path / "place"
    tree = {
        "model": {"name": "modernn", "layers": 1, "hidden": 8, "slots": 2, "patch": 8},
        "data": {"store": str(tiny_store), "context": 4, "horizon": 4},
        "eval": {"show": 1, "batch": 3},
    }
    run = write_run(folder / "runs" / "run", tree, 1, 2, best=1)
    script = request.param
    made = {
        "evaluate": Place(folder, script, [str(run.path), "--force"], run.eval),
        "export": Place(folder, script, [str(run.path), "--out", "model"], folder / "model"),
        "predict": Place(
            folder, script, [str(run.path), "--input", str(tiny_store), "--out", "f.nc", "--overwrite"], folder / "f.nc"
        ),
        "report": Place(folder, script, [str(folder / "runs"), "--out", "report.html"], folder / "report.html"),
    }[script]
    if script == "report":
        code, told, _ = Place(folder, "evaluate", [str(run.path)], run.eval).call()
        assert code == 0, told
    return made


def survive(place: Place, points: range) -> None:
    anew = place.script in ("export", "report")  # which aren't made again where they are
    code, told, _ = place.call()
    assert code == 0, told
    before = place.results()
    assert before

    def call(n: int = 0, full: bool = False) -> tuple[int, str, int]:
        if anew:
            remove(place.output)
        return place.call(n, full)

    for n in points:
        code, told, writes = call(n, full=True)
        assert "Traceback" not in told and code in (0, 1), (n, told)
        if code == 0 and writes < n:
            break
        if code == 1:
            assert "No space left on device" in told and "bytes are free in" in told, (n, told)
        check(place, {} if anew else before)
    assert n > points.start
    for n in points:
        code, told, _ = call(n)
        if code == 0:
            break
        assert code == -9, (n, told)
        code, told, _ = place.call()
        assert code == 0 and "Traceback" not in told, (n, told)
        check(place, before)
    assert n > points.start and code == 0


def check(place: Place, before: dict[str, bytes]) -> None:
    """What was there is there, whole, of this time or the time before; and nothing else."""
    after = place.results()
    assert set(before) <= set(after)
    for name, data in after.items():
        if name.endswith(".json"):
            json.loads(data)
    assert not place.leftovers()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("place", MAINS, indirect=True)
def test_killed_or_out_of_room_at_a_write(place: Place) -> None:
    survive(place, range(1, 400, EVERY))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("place", MAINS, indirect=True)
def test_killed_or_out_of_room_at_every_write(place: Place) -> None:
    survive(place, range(1, 400))
