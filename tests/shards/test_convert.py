"""A conversion gives the whole store or nothing, and never touches what isn't a store."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime

import pytest

from shards import SourceError, UsageError, open_store
from shards.convert import convert
from shards.manifest import Scale, SourceInfo
from shards.verify import verify
from tests.support.clips import Clips, make_store, tree
from tests.support.process import PATIENCE_S


def quiet(source, folder, **options):
    return convert(source, folder, arguments={"source": "clips"}, report=lambda text: None, **options)


def test_the_same_again_does_nothing(tmp_path, format):
    make_store(tmp_path / "s", format)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")}
    assert quiet(Clips(), tmp_path / "s", format=format).already_complete
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*")} == before


def test_an_archive_that_has_grown_is_not_the_same(tmp_path):
    make_store(tmp_path / "s", "webdataset")
    with pytest.raises(
        UsageError, match=r"holds the store 'clips' \(webdataset\), made with other arguments .*--overwrite"
    ):
        quiet(Clips(lengths={"train": (5, 7, 5, 5), "test": (3, 5)}), tmp_path / "s")


def test_a_damaged_store_is_not_taken_for_complete(tmp_path):
    make_store(tmp_path / "s", "webdataset")
    (tmp_path / "s/test/000000.tar").unlink()
    with pytest.raises(UsageError, match=r"damaged \(test/000000.tar: is absent\).*--overwrite"):
        quiet(Clips(), tmp_path / "s")
    assert not quiet(Clips(), tmp_path / "s", overwrite=True).already_complete
    assert verify(tmp_path / "s") == []


def test_overwrite_replaces_a_store(tmp_path):
    make_store(tmp_path / "s", "webdataset")
    make_store(tmp_path / "s", "zarr", overwrite=True)
    assert verify(tmp_path / "s") == [] and open_store(tmp_path / "s").manifest.format == "zarr"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_is_left_alone(tmp_path, overwrite):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/thesis.tex").write_text("42")
    with pytest.raises(
        UsageError, match=r"s is not a store; it holds thesis.tex; choose a folder that doesn't exist yet"
    ):
        quiet(Clips(), tmp_path / "s", overwrite=overwrite)
    (tmp_path / "f").touch()
    with pytest.raises(UsageError, match="is there and is not a folder"):
        quiet(Clips(), tmp_path / "f", overwrite=overwrite)
    assert set(tree(tmp_path)) == {"s/thesis.tex", "f"}


def test_overwrite_spares_a_store_that_holds_other_things_too(tmp_path):
    make_store(tmp_path / "s", "webdataset")
    (tmp_path / "s/train/notes.txt").write_text("42")
    with pytest.raises(UsageError, match=r"also train/notes.txt, which is no part of it"):
        quiet(Clips(lengths={"train": (3,)}), tmp_path / "s", overwrite=True)
    assert (tmp_path / "s/train/notes.txt").exists()


def test_an_empty_folder_is_as_good_as_none(tmp_path, format):
    (tmp_path / "s").mkdir()
    assert make_store(tmp_path / "s", format).splits["train"].events == 3


def test_a_source_that_fails_at_once_leaves_nothing(tmp_path, format):
    with pytest.raises(SourceError, match="train-0000: unreadable; mend it"):
        make_store(tmp_path / "s", format, Clips(broken_at="train-0000"), shard_mb=0.0005)
    assert list(tmp_path.iterdir()) == []


class Wrong(Clips):
    def frames(self, event):
        return super().frames(event)[:, :, 1:]


class TooBright(Clips):
    def describe(self):
        description = super().describe()
        object.__setattr__(description.scale, "missing_code", None)
        return description


@dataclasses.dataclass(frozen=True)
class Described(Clips):
    """With other texts and numbers about itself."""

    changes: tuple[tuple[str, object], ...] = ()

    def describe(self):
        return dataclasses.replace(super().describe(), **dict(self.changes))


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"source": SourceInfo("one\nline\x1b[2J", "CC0", "-", "-")}, {}, "source: name should be str"),
        ({"source": SourceInfo("me", "CC0", "x" * 10_001, "-")}, {}, "source: citation should be str"),
        ({"step_seconds": float("inf")}, {}, "the number Infinity"),
        ({"scale": Scale("rain", "mm", 0.0, float("nan"))}, {}, "the number NaN"),
        ({"modes": ("even", "odd\u202e")}, {}, "modes should be different texts"),
        ({}, {"name": "a\nb"}, "name should be str"),
        ({}, {"arguments": {"input": "a\nb"}}, "conversion: holds"),
        ({}, {"arguments": {"step": float("inf")}}, "the number Infinity"),
    ],
)
def test_no_store_is_written_that_could_not_be_read_again(tmp_path, format, changes, options, message):
    source = Described(changes=tuple(changes.items()))
    with pytest.raises(SourceError, match=f"the manifest to be written.*{message}"):
        convert(source, tmp_path / "s", format=format, **{"arguments": {}, **options})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard_mb", [0.0, float("inf"), float("nan")])
def test_sizes_of_shards_that_are_none(tmp_path, shard_mb):
    with pytest.raises(UsageError, match="shard size"):
        convert(Clips(), tmp_path / "s", arguments={}, shard_mb=shard_mb)


class SameKey(Clips):
    def plan(self):
        plan = super().plan()
        plan.splits["test"][:] = plan.splits["train"]
        return plan


class BadKey(Clips):
    def plan(self):
        plan = super().plan()
        for event in plan.splits["test"]:
            object.__setattr__(event, "key", "../" + event.key)
        return plan


class Backwards(Clips):
    def plan(self):
        plan = super().plan()
        plan.splits["train"].reverse()
        return plan


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Wrong(), r"event train-0000: the source gave uint8 \[5, 2, 5, 4\], planned were uint8 \[5, 2, 6, 4\]"),
        (TooBright(), "codes above the scale's greatest, 254"),
        (SameKey(), "'train-0000' occurs in two splits"),
        (BadKey(), r"'../test-0000' of 3 frames: a key has 1 to 80 letters"),
        (Backwards(), "'train-0001' comes after 'train-0002'"),
        (Clips(lengths={"Train": (3,)}), "'Train' is not a name for a split"),
        (Clips(lengths={"train": (3, 0)}), "of 0 frames"),
        (Clips(lengths={"train": ()}), "the source has no events"),
    ],
)
def test_a_source_with_a_fault_is_told(tmp_path, source, message):
    with pytest.raises(SourceError, match=message):
        quiet(source, tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass(frozen=True)
class Changed(Clips):
    """Clips whose event test-0001, of five frames, has other fields."""

    fields: tuple[tuple[str, object], ...] = ()

    def plan(self):
        plan = super().plan()
        plan.splits["test"][1] = dataclasses.replace(plan.splits["test"][1], **dict(self.fields))
        return plan


class Unread(Changed):
    def read(self, event):
        raise AssertionError("read before the plan was checked")


@pytest.mark.parametrize(
    "start", ["2020-01-01T00:03:00+00:00", "2020-01-01T02:03:00+02:00", "2019-12-31T18:33:00-05:30", "2020-01-01T00:03"]
)
def test_times_with_an_offset_are_kept_in_utc(tmp_path, format, start):
    source = Changed(fields=(("start_time", start),))
    quiet(source, tmp_path / "s", format=format)
    store = open_store(tmp_path / "s")
    assert verify(tmp_path / "s") == []
    times = [datetime(2020, 1, 1, 0, minute) for minute in range(3, 8)]
    assert store.times("test", 1) == times
    own = tuple(f"{time:%Y-%m-%dT%H:%M}+00:00" for time in times)
    quiet(Changed(fields=(("start_time", start), ("times", own))), tmp_path / "t", format=format)
    assert open_store(tmp_path / "t").times("test", 1) == times and verify(tmp_path / "t") == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start_time": "yesterday"}, "has no times: Invalid isoformat string: 'yesterday'"),
        ({"start_time": ""}, "has no times"),
        ({"start_time": 20200101}, "has no times"),
        ({"start_time": datetime(2020, 1, 1)}, "has no times"),
        ({"start_time": "0001-01-01T00:00+05:00"}, "before the year 1"),
        ({"start_time": "9999-12-31T23:59"}, "end after 9999"),
        ({"times": ("2020-01-01T00:00Z",) * 4}, "of 5 frames has 4 times"),
        ({"times": ("2020-01-01T00:00Z", None, "", "", "")}, "has no times"),
        ({"times": ("2020-01-01T00:00Z",) * 5, "start_time": None}, "has 5 times, from None on"),
        ({"mode": 3}, "its mode, run, run_offset or start_time"),
        ({"mode": "a\nb"}, "its mode, run, run_offset or start_time"),
        ({"run": "x" * 1001}, "its mode, run, run_offset or start_time"),
        ({"run_offset": -1}, "its mode, run, run_offset or start_time"),
        ({"run_offset": 0.5}, "its mode, run, run_offset or start_time"),
    ],
)
def test_a_plan_is_checked_before_anything_is_read(tmp_path, format, fields, message):
    with pytest.raises(SourceError, match=f"test: event '?test-0001.*{message}.*repair the source"):
        quiet(Unread(fields=tuple(fields.items())), tmp_path / "s", format=format)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"format": "npz"}, {"shard_mb": 0}, {"workers": 0}])
def test_options_that_make_no_sense(tmp_path, options):
    with pytest.raises(UsageError):
        quiet(Clips(), tmp_path / "s", **options)


def test_shards_are_filled_to_the_size_asked_for(tmp_path, format):
    source = Clips(lengths={"train": (5,) * 40}, size=(1, 32, 32))
    store = make_store(tmp_path / "s", format, source, shard_mb=0.05)
    shards = store.splits["train"].shards
    assert len(shards) > 3 and sum(shard.events for shard in shards) == 40
    assert all(30_000 < shard.bytes <= 60_000 for shard in shards[:-1])


def test_a_second_conversion_to_the_same_name_waits_outside(tmp_path):
    partial = tmp_path / ".s.partial-0123"
    partial.mkdir()
    with (partial / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"another conversion to .*s is running"):
            quiet(Clips(), tmp_path / "s")
    assert not quiet(Clips(), tmp_path / "s").already_complete  # its lock is gone: it was stale
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def children(pid: int) -> list[int]:
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in out.split()]


def alive(pid: int) -> bool:
    """A process that has ended but that nobody waits for in this container doesn't count."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_converter_killed_midway_leaves_no_half_store(tmp_path, idx_folder, workers):
    command = [
        sys.executable,
        "-m",
        "shards",
        "convert",
        "moving-mnist",
        str(tmp_path / "s"),
        "--digits",
        str(idx_folder),
    ]
    options = ["--val", "0", "--test", "0", "--shard-mb", "1", "--workers", str(workers)]
    process = subprocess.Popen([*command, "--train", "5000", *options], stderr=subprocess.PIPE)
    deadline = time.monotonic() + PATIENCE_S
    while len(list(tmp_path.glob(".s.partial-*/store/train/*.tar"))) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    workers_alive = children(process.pid)
    process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert not (tmp_path / "s").exists() and list(tmp_path.glob(".s.partial-*"))
    while any(alive(pid) for pid in workers_alive):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    again = subprocess.run([*command, "--train", "2", *options], capture_output=True, text=True, check=True)
    assert "removing what an interrupted conversion left" in again.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["s"] and verify(tmp_path / "s") == []


def test_the_manifest_names_no_machine_and_no_clock(tmp_path, format):
    make_store(tmp_path / "s", format)
    text = (tmp_path / "s/manifest.json").read_text()
    assert str(tmp_path) not in text and os.uname().nodename not in text
    assert json.loads(text)["conversion"].keys() == {"source", "format", "name", "shard_mb", "plan_sha256"}
