"""A training on a real file system that has 16 KiB free: a message, what was there stays, and it resumes with room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process_pool import ProcessPool
from toolkit.checkpoint.checkpoint import fault_of, steps_in
from toolkit.rundir import RunDir

FREE = 16 << 10
KILLED = -9


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool() as started:
        yield started


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path) -> Path:
    """Leave FREE bytes."""
    rest = disk / "rest"
    with open(rest, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(file.tell() - FREE)
    return rest


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("on_error", ["raise", "continue"])
def test_a_training_with_16_kib_free(
    pool: ProcessPool, tiny_config: Path, disk: Path, tmp_path: Path, begun: bool, on_error: str
) -> None:
    run, log = RunDir(disk / "run"), tmp_path / "log"
    words = ["--config", tiny_config, "--out", run.path, "--set", f"train.checkpoint.on_error={on_error}"]
    if begun:
        assert pool.run(words, log, "kill 0 3") == KILLED, log.read_text()
        assert steps_in(run.checkpoints) == [2]
    rest = fill(disk)
    log.unlink(missing_ok=True)
    code, told = pool.run(words, log), log.read_text()
    assert code == 1 and "Traceback" not in told, told
    assert "bytes are free in" in told and str(run.path) in told, told
    assert "No space left on device" in told or "not enough room" in told, told
    if begun:
        assert fault_of(run.checkpoints, 2) is None
        assert not run.done
        assert run.failure() is not None or f"{run.path / 'FAILED'}: can't be written" in told  # status: interrupted
    rest.unlink()
    code, told = pool.run(words, log), log.read_text()
    assert code == 0, told
    assert run.done and run.failure() is None and fault_of(run.checkpoints, 6) is None
    assert {record["step"] for record in run.logged_steps()} <= {1, 2, 3, 4, 5, 6}
