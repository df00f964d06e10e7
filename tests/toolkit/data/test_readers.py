"""Reader processes where shared memory is short, and what they send."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.support.process import PATIENCE_S, ROOT
from toolkit.config import RunConfig, make_config
from toolkit.data import readers
from toolkit.data.readers import log_shared_memory
from toolkit.errors import ConfigError
from toolkit.train import size

SCRIPT = """
import os, sys
from itertools import islice
import torch
from tests.toolkit.data.test_data import FakeStore, event
import numpy as np
from toolkit.data.batches import Share, read_batches
from toolkit.data.readers import log_shared_memory
from toolkit.data.windows import WindowSet
from shards import log

class Large(FakeStore):
    def read(self, split, index, start, stop):
        return np.full((stop - start, 1, 384, 384), index, np.uint8)

if __name__ == "__main__":
    log.configure()
    windows = WindowSet(Large([event(i, 4, f"r{i}") for i in range(8)]), "train", 4)
    log_shared_memory(2, 1, 4 * 4 * 384 * 384)
    batches = read_batches(windows, 0, Share(4, 4, 0, 1), 0, workers=2)
    alone = read_batches(windows, 0, Share(4, 4, 0, 1), 0)
    for one, other in islice(zip(batches, alone), 12):
        assert one.keys == other.keys and torch.equal(one.frames, other.frames)
    batches.close()
    print("equal", os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize)
"""


def can_unshare() -> bool:
    words = ["unshare", "-Urm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"]
    try:
        return subprocess.run(words, capture_output=True, timeout=PATIENCE_S).returncode == 0
    except OSError:
        return False


@pytest.mark.timeout(600)
def test_batches_that_shared_memory_can_not_hold_come_through_pipes(tmp_path: os.PathLike[str]) -> None:
    """A /dev/shm of 4 MiB, as a container's: each of the batches that readers keep ready takes 2.25 MiB."""
    if not can_unshare():
        pytest.skip("user namespaces with mounts are not allowed here")
    script = os.path.join(tmp_path, "script.py")
    with open(script, "w", encoding="utf-8") as file:
        file.write(SCRIPT)
    inner = f"mount -t tmpfs -o size=4m tmpfs /dev/shm && exec {sys.executable} {script}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", inner],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"equal {4 << 20}"
    assert "/dev/shm has 4,194,304 bytes free, 2 reader processes with 2 batches of 2,359,296 bytes each" in done.stderr
    assert "need up to 11,796,480" in done.stderr and "--shm-size=" in done.stderr


def test_shared_memory_that_suffices_is_no_news(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readers.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    log_shared_memory(2, 1, 200)
    log_shared_memory(0, 4, 10_000)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        log_shared_memory(2, 1, 201)
    assert "1,005" in caplog.text


@pytest.mark.parametrize(("workers", "ranks", "fits"), [(3, 1, True), (16, 4, False), (1000, 1, False)])
def test_readers_that_the_machine_can_not_hold_are_refused(
    monkeypatch: pytest.MonkeyPatch, workers: int, ranks: int, fits: bool
) -> None:
    monkeypatch.setattr(size, "host_memory", lambda: 8 * 10**9)
    config: RunConfig = make_config({"data": {"num_workers": workers}, "train": {"batch": 8}}, "test")
    shape = SimpleNamespace(bytes=4096)
    if fits:
        size.check_readers(config, shape, ranks)  # type: ignore[arg-type]
        return
    with pytest.raises(ConfigError, match=rf"data.num_workers {workers}: .* GB .* which has 8.0 GB: use at most \d+"):
        size.check_readers(config, shape, ranks)  # type: ignore[arg-type]


def test_the_memory_of_this_machine_is_known() -> None:
    assert 2**28 < size.host_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize("alive", [True, False])
def test_a_server_of_readers_that_starts_after_its_training_was_killed_ends(alive: bool) -> None:
    """Killed between the start of the server and its first import, a training is no longer the server's parent."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    server = "from multiprocessing.forkserver import main; import toolkit.data.tether; print('lives')"
    tether = os.getpid() if alive else gone.pid
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MODERNN_TETHER": str(tether)}
    done = subprocess.run([sys.executable, "-c", server], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == ((0, "lives\n") if alive else (1, ""))
