"""A conversion that was stopped at any point goes on from its finished shards, and nobody can tell from the bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards import SourceError, UsageError
from shards.cluster import Cluster
from shards.convert import convert
from shards.verify import verify
from tests.support.clips import Clips, make_store, tree
from tests.support.kill_points import POINTS, SHARD_MB, source
from tests.support.process import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What every conversion here must come to: format -> files."""
    folder = tmp_path_factory.mktemp("whole")
    stores = {}
    for format in ("webdataset", "zarr"):
        make_store(folder / format, format, source(), shard_mb=SHARD_MB)
        stores[format] = tree(folder / format)
    return stores


def start(output: Path, format: str, workers: int, point: str = "never", count: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.support.kill_points", str(output), format, str(workers), point, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)


def go_on(output: Path, format: str, **options) -> list[str]:
    """Convert in this process; returns what the user is told."""
    told: list[str] = []
    arguments = {"source": "clips"}
    convert(source(), output, format=format, arguments=arguments, shard_mb=SHARD_MB, report=told.append, **options)
    return told


def records(folder: Path) -> list[Path]:
    return sorted(folder.glob(".s.partial-*/done/*.json"))


def shard_stamps(store: Path) -> dict[str, int]:
    files = [*store.glob("*/*.tar"), *store.glob("*/frames/c/*/0/0/0")]
    return {path.relative_to(store).as_posix(): path.stat().st_mtime_ns for path in files}


def wait_for(condition, process=None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    out = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in out.stdout.splitlines() if "resource_tracker" not in line]


@pytest.mark.parametrize(("point", "count"), [(point, 1) for point in POINTS] + [("a shard is written", 4)])
def test_killed_between_two_steps(tmp_path, whole, point, count, format):
    process = start(tmp_path / "s", format, 1, point, count)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGKILL, said
    assert (tmp_path / "s").exists() == (point == "the store is renamed")
    kept = len(records(tmp_path))
    stamps = shard_stamps(next(tmp_path.glob(".s.partial-*")) / "store")
    told = go_on(tmp_path / "s", format)
    assert tree(tmp_path / "s") == whole[format] and [path.name for path in tmp_path.iterdir()] == ["s"]
    assert (told == []) == (kept == 0 or point == "the store is renamed")
    after = shard_stamps(tmp_path / "s")
    assert sum(after[name] == stamp for name, stamp in stamps.items()) >= min(kept, len(stamps))


@pytest.mark.parametrize(("format", "workers"), [("webdataset", 1), ("webdataset", 3), ("zarr", 2)])
def test_killed_from_outside(tmp_path, whole, format, workers):
    process = start(tmp_path / "s", format, workers, count=10)
    wait_for(lambda: len(records(tmp_path)) >= 2, process)
    process.kill()
    process.communicate()
    kept = records(tmp_path)
    assert kept and not (tmp_path / "s").exists()
    told = go_on(tmp_path / "s", format, workers=2)
    assert told[0].startswith("resuming: ")
    assert tree(tmp_path / "s") == whole[format] and [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_worker_is_killed(tmp_path, whole):
    process = start(tmp_path / "s", "webdataset", 2, count=20)  # seconds of work, or it is done before the signal comes
    wait_for(lambda: records(tmp_path), process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "ShardError: a worker process was killed" in said and "finished shards are kept in" in said
    go_on(tmp_path / "s", "webdataset")
    assert tree(tmp_path / "s") == whole["webdataset"]


@pytest.mark.slow
def test_killed_again_and_again_at_random_times(tmp_path, whole, format):
    rng = random.Random(5)
    for _ in range(20):
        process = start(tmp_path / "s", format, rng.choice([1, 2, 3]))
        time.sleep(rng.uniform(0.2, 1.5))
        if process.poll() is None:
            process.kill()
        process.communicate()
    go_on(tmp_path / "s", format)
    assert tree(tmp_path / "s") == whole[format]


def interrupted(folder: Path, format: str, at: str = "train-0015") -> list[str]:
    """A conversion that met an unreadable event."""
    told: list[str] = []
    broken = Clips(lengths=source().lengths, broken_at=at)
    with pytest.raises(SourceError, match="unreadable; mend it"):
        convert(broken, folder, format=format, arguments={"source": "c"}, shard_mb=SHARD_MB, report=told.append)
    return told


def resumed(folder: Path, format: str, **options) -> list[str]:
    told: list[str] = []
    whole = Clips(lengths=source().lengths)
    convert(whole, folder, format=format, arguments={"source": "c"}, shard_mb=SHARD_MB, report=told.append, **options)
    return told


def test_what_is_finished_outlives_an_error(tmp_path, format):
    (said,) = interrupted(tmp_path / "s", format)
    assert said.startswith(f"finished shards are kept in {tmp_path}/.s.partial-")
    kept = len(records(tmp_path))
    assert kept > 1
    assert resumed(tmp_path / "s", format)[0].startswith(f"resuming: {kept} of ")
    assert verify(tmp_path / "s") == [] and [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "record"])
def test_a_finished_shard_that_was_damaged_since_is_written_again(tmp_path, format, damage):
    interrupted(tmp_path / "s", format)
    shard = next(
        path
        for path in sorted(tmp_path.glob(".s.partial-*/store/train/**/*"))
        if path.is_file() and path.suffix != ".idx"
    )
    if damage == "flip":
        data = bytearray(shard.read_bytes())
        data[700] ^= 1
        shard.write_bytes(data)
    elif damage == "cut":
        os.truncate(shard, 600)
    elif damage == "delete":
        shard.unlink()
    else:
        os.truncate(records(tmp_path)[0], 40)
    resumed(tmp_path / "s", format)
    resumed(tmp_path / "t", format)
    assert tree(tmp_path / "s") == tree(tmp_path / "t")


def test_other_arguments_begin_anew_and_remove_the_rest_when_done(tmp_path):
    interrupted(tmp_path / "s", "webdataset")
    (left,) = tmp_path.iterdir()
    told = resumed(tmp_path / "s", "zarr")
    assert told == [f"removing what an interrupted conversion left: {left}"]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_another_program_does_not_go_on(tmp_path, monkeypatch):
    """Half of a store from one version of a source and half from another would be nobody's archive."""
    interrupted(tmp_path / "s", "webdataset")
    monkeypatch.setattr("shards.partial.inspect.getfile", lambda kind: __file__)
    assert not any("going on" in line for line in resumed(tmp_path / "s", "webdataset"))


def test_jobs_on_a_local_cluster_write_the_same_bytes(tmp_path, whole):
    go_on(tmp_path / "s", "webdataset", cluster=Cluster("local", 2))
    assert tree(tmp_path / "s") == whole["webdataset"] and [path.name for path in tmp_path.iterdir()] == ["s"]


def test_an_error_in_a_job_is_the_users_error(tmp_path):
    broken = Clips(broken_at="train-0001")
    with pytest.raises(SourceError, match="train-0001: unreadable; mend it"):
        convert(broken, tmp_path / "s", arguments={}, cluster=Cluster("local", 1), report=lambda text: None)
    with pytest.raises(UsageError, match="0 jobs"):
        convert(broken, tmp_path / "s", arguments={}, cluster=Cluster("local", 0))


MEMORY = """
import resource, sys, time
from pathlib import Path
from dataclasses import dataclass
import numpy as np
from shards import open_store
from shards.convert import convert
from shards.stream import stream_events
from tests.support.clips import Clips

@dataclass(frozen=True)
class Big(Clips):
    size: tuple = (1, 320, 320)
    def frames(self, event):
        return np.random.default_rng(event.recipe[1]).integers(0, 254, (event.length, *self.size), dtype=np.uint8)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB

def work(events, name):
    folder = Path(sys.argv[1]) / name
    convert(Big(lengths={"train": (20,) * events}), folder, arguments={}, format=sys.argv[2], encoding=sys.argv[3])
    store = open_store(folder)
    for i in range(events):
        store.read("train", i, 0, 20)
    for event, frames in stream_events(store, "train"):
        pass

work(4, "few")
before = peak()
work(80, "many")
print(peak() - before)
"""


@pytest.mark.parametrize(("format", "encoding"), [("webdataset", "zstd"), ("zarr", "raw")])
def test_memory_does_not_grow_with_shards(tmp_path, format, encoding):
    """80 events of 2 MB in one shard of 164 MB, against 4 events: converting, reading and streaming need no more."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path), format, encoding]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 12, f"{done.stdout} MiB more than for 8 MB"


def test_a_full_disk_is_told_and_what_is_finished_is_kept(tmp_path, monkeypatch):
    from shards import writer

    original, calls = writer.HashedFile.write, []

    def full(self, data):
        calls.append(1)
        if len(calls) > 60:
            raise OSError(28, "No space left on device")
        original(self, data)

    monkeypatch.setattr(writer.HashedFile, "write", full)
    with pytest.raises(OSError, match="No space left"):
        go_on(tmp_path / "s", "webdataset")
    monkeypatch.undo()
    assert records(tmp_path) and not list(tmp_path.glob(".s.partial-*/work/*"))
    go_on(tmp_path / "s", "webdataset")
    assert verify(tmp_path / "s") == []
