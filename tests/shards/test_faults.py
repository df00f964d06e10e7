"""Damage of every kind is found by `verify` and met by `read` as an error that says where, never as wrong frames."""

import contextlib
import io
import json
import os
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards import ManifestError, ShardError, Store, StoreError, open_store, stream_events
from shards.verify import verify
from tests.support.clips import Clips, make_store, tree
from tests.support.damage import BLOCK, flip, members, random_damage, write_tar, zero

SOURCE = Clips(lengths={"train": (5, 7, 5), "test": (3,)}, size=(1, 16, 16))
TAR = "train/000000.tar"
HIT = "train-0001"  # what is damaged below, or the first thing that is


@pytest.fixture
def store(tmp_path) -> Path:
    make_store(tmp_path / "s", "webdataset", SOURCE)
    return tmp_path / "s"


@pytest.fixture
def place(store) -> dict[str, tarfile.TarInfo]:
    return {info.name: info for info, _ in members(store / TAR)}


def read_all(store: Path | Store, **options) -> dict[str, StoreError]:
    """Read every event; what is read must be right. Returns the errors by key."""
    found = open_store(store, **options) if isinstance(store, Path) else store
    errors = {}
    for split, planned in SOURCE.plan().splits.items():
        for i, event in enumerate(planned):
            try:
                frames = found.read(split, i, 0, event.length)
            except StoreError as error:
                errors[event.key] = error
            else:
                assert np.array_equal(frames, SOURCE.frames(event)), event.key
    return errors


def check_named(error: StoreError, shard: str, key: str | None) -> None:
    """The attributes, and the words, say where."""
    assert (error.shard, error.key) == (shard, key)
    assert isinstance(error.offset, int) and shard in str(error) and "python -m shards verify" in str(error)
    assert key is None or (key in str(error) and str(error.offset) in str(error))


# The five kinds of place where a tar may be cut: only the first is noticed by tarfile in stream mode.
CUTS = {
    "within a payload": lambda p: p[f"{HIT}.frames.npy"].offset_data + 900,
    "within a header": lambda p: p[f"{HIT}.json"].offset + 100,
    "between the members of an event": lambda p: p[f"{HIT}.json"].offset,
    "between two events": lambda p: p[f"{HIT}.frames.npy"].offset,
    "in the padding at the end": lambda p: p["train-0002.json"].offset_data + BLOCK,
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_tar_that_is_cut(store, place, cut):
    size, at = (store / TAR).stat().st_size, CUTS[cut](place)
    os.truncate(store / TAR, at)
    for quick in (True, False):
        problems = verify(store, quick=quick)
        assert (problems[0].file, problems[0].what) == (TAR, f"has {at} bytes, the manifest says {size}")
    with pytest.raises(StoreError, match=f"{at} bytes, the manifest says {size}") as caught:
        open_store(store).events("train")
    check_named(caught.value, TAR, None)
    errors = read_all(store, faults="reading")  # the events before the cut can be used
    hurt = {
        "within a payload": {HIT, "train-0002"},
        "between two events": {HIT, "train-0002"},
        "in the padding at the end": set(),
    }.get(cut, {"train-0002"})
    assert set(errors) == hurt
    for key, error in errors.items():
        check_named(error, TAR, key)


@pytest.mark.parametrize("encoding", ["raw", "zstd", "lz4"])
def test_a_flipped_byte_of_a_payload(tmp_path, format, encoding):
    made = make_store(tmp_path / "s", format, SOURCE, encoding=encoding)
    shard, offset = made.locate("train", 1)
    flip(tmp_path / "s" / shard, offset + 300)
    (error,) = read_all(tmp_path / "s").values()
    check_named(error, shard, HIT)
    assert error.offset == offset
    assert any((p.file, p.key) == (shard, HIT) and p.offset is not None for p in verify(tmp_path / "s"))


def test_a_zeroed_header_hides_nothing_from_us(store, place):
    """To tarfile, and so to webdataset, the archive ends there; `read` goes by the index and has the right frames."""
    zero(store / TAR, place[f"{HIT}.frames.npy"].offset, BLOCK)
    with tarfile.open(store / TAR) as tar:
        assert len(tar.getnames()) == 2
    (problem,) = verify(store)
    assert (problem.file, problem.key) == (TAR, HIT) and problem.offset == place[f"{HIT}.frames.npy"].offset
    assert read_all(store) == {}
    with pytest.raises(StoreError, match=f"{HIT} with frames.npy and json is expected here, but the tar ends") as e:
        list(stream_events(open_store(store), "train"))
    check_named(e.value, TAR, HIT)


def test_a_file_of_no_bytes(tmp_path, format):
    shard = make_store(tmp_path / "s", format, SOURCE).splits["train"].shards[0].file
    os.truncate(tmp_path / "s" / shard, 0)
    assert verify(tmp_path / "s", quick=True)[0].file == shard
    with pytest.raises(StoreError, match="0 bytes, the manifest says"):
        open_store(tmp_path / "s").events("train")
    errors = read_all(tmp_path / "s", faults="reading")
    assert set(errors) == {"train-0000", "train-0001", "train-0002"}
    for key, error in errors.items():
        check_named(error, shard, key)


def test_a_shard_that_is_absent(tmp_path, format):
    shard = make_store(tmp_path / "s", format, SOURCE).splits["train"].shards[0].file
    (tmp_path / "s" / shard).unlink()
    assert str(verify(tmp_path / "s", quick=True)[0]) == f"{shard}: is absent"
    with pytest.raises(StoreError, match="this shard is absent") as caught:
        open_store(tmp_path / "s").events("train")
    assert caught.value.shard == shard
    errors = read_all(tmp_path / "s", faults="reading")
    assert {error.shard for error in errors.values()} == {shard} and len(errors) == 3


def test_a_shard_too_many(store):
    shutil.copy(store / TAR, store / "train/000001.tar")
    shutil.copy((store / TAR).with_suffix(".idx"), store / "train/000001.idx")
    said = [str(problem) for problem in verify(store, quick=True)]
    assert said == [f"train/000001.{end}: is no part of the store (not in the manifest)" for end in ("idx", "tar")]
    assert read_all(store) == {} and len(open_store(store).events("train")) == 3


def rewritten(store: Path, change) -> None:
    contents = [(info.name, data) for info, data in members(store / TAR)]
    write_tar(store / TAR, change(contents))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


CHANGES = {
    "a key twice": (lambda c: [*c, (c[2][0], c[2][1])], f"{HIT}.frames.npy occurs twice"),
    "a member missing": (lambda c: [m for m in c if m[0] != f"{HIT}.json"], f"{HIT}.json is missing"),
    "another dtype": (
        lambda c: [(n, npy(np.zeros((7, 1, 16, 16), np.float32)) if n == c[2][0] else d) for n, d in c],
        "doesn't begin as npy of uint8 [7, 1, 16, 16]",
    ),
    "another shape": (
        lambda c: [(n, npy(np.zeros((7, 16, 16, 1), np.uint8)) if n == c[2][0] else d) for n, d in c],
        "doesn't begin as npy of uint8 [7, 1, 16, 16]",
    ),
    "two events swapped": (lambda c: [*c[2:4], *c[:2], *c[4:]], "the index says at byte"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_tar_that_was_written_anew(store, change):
    edit, message = CHANGES[change]
    rewritten(store, edit)
    problems = verify(store)
    assert any(p.file == TAR and message in p.what and p.offset is not None and p.key for p in problems), problems
    for key, error in read_all(store, faults="reading").items():
        check_named(error, TAR, key)
    with pytest.raises((StoreError, ValueError)):
        list(stream_events(open_store(store, faults="reading"), "train"))


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["frames"].update(height=32, width=8),
        lambda data: data["scale"].update(gain=2.0),
        lambda data: data["splits"]["train"]["shards"][0].update(sha256="0" * 64),
        lambda data: data.update(name="other"),
    ],
)
def test_an_edited_manifest_opens_nothing(tmp_path, format, edit):
    make_store(tmp_path / "s", format, SOURCE)
    data = json.loads((tmp_path / "s/manifest.json").read_text())
    edit(data)
    (tmp_path / "s/manifest.json").write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=r"manifest.json: was edited or damaged: .* copy, or convert"):
        open_store(tmp_path / "s")
    assert "manifest.json: was edited" in str(verify(tmp_path / "s")[0])


@pytest.mark.parametrize("table", ["event_length", "event_crc32", "event_first", "event_key"])
def test_a_damaged_event_table_of_zarr(tmp_path, table):
    make_store(tmp_path / "s", "zarr", SOURCE)
    flip(tmp_path / "s/train" / table / "c/0", 0, 1)
    with pytest.raises(StoreError, match=f"train/{table}/c/0: was changed") as caught:
        open_store(tmp_path / "s").events("train")
    assert caught.value.shard == f"train/{table}/c/0"
    assert [p.file for p in verify(tmp_path / "s")] == [f"train/{table}/c/0"]


def test_a_damaged_shard_index_of_zarr(tmp_path):
    make_store(tmp_path / "s", "zarr", SOURCE)
    shard = open_store(tmp_path / "s").splits["train"].shards[0]
    flip(tmp_path / "s" / shard.file, shard.bytes - 20)
    errors = read_all(tmp_path / "s")
    assert len(errors) == 3 and all("the index at the end of the shard was changed" in str(e) for e in errors.values())
    for key, error in errors.items():
        check_named(error, shard.file, key)
    assert {p.key for p in verify(tmp_path / "s")} == {"train-0000", "train-0001", "train-0002"}


def test_a_tar_cut_off_under_a_running_reader(store):
    """Read through a memory map, this would end the process with SIGBUS."""
    found = open_store(store)
    found.read("train", 0, 0, 5)
    os.truncate(store / TAR, found.locate("train", 1)[1] + 100)
    with pytest.raises(StoreError, match=r"cut off: .* of train-0001 are missing") as caught:
        found.read("train", 1, 0, 7)
    check_named(caught.value, TAR, HIT)


def test_an_error_travels_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(StoreError("x", shard="a", key="b", offset=3)))
    assert (str(error), error.shard, error.key, error.offset) == ("x", "a", "b", 3)


@pytest.mark.parametrize(
    ("format", "encoding", "attempts"),
    [("webdataset", "raw", 80), ("webdataset", "zstd", 70), ("zarr", "raw", 25), ("zarr", "lz4", 25)],
)
def test_random_damage_is_always_found(tmp_path, format, encoding, attempts):
    """200 in all, seeded: none passes `verify`, none gives wrong frames, metadata or events in silence."""
    whole = make_store(tmp_path / "whole", format, SOURCE, encoding=encoding, shard_mb=0.003)
    truth = {
        split: (whole.events(split), [whole.metadata(split, i) for i in range(len(whole.events(split)))])
        for split in whole.splits
    }
    rng = random.Random(f"{format} {encoding}")
    for attempt in range(attempts):
        damaged = tmp_path / f"s{attempt}"
        shutil.copytree(tmp_path / "whole", damaged)
        how = random_damage(damaged, rng)
        with contextlib.suppress(ManifestError):
            assert verify(damaged), how
        for faults in ("opening", "reading"):
            with contextlib.suppress(ShardError):
                found = open_store(damaged, faults=faults)
                read_all(found)
                for split, (events, metadata) in truth.items():
                    assert found.events(split) == events, how
                    assert [found.metadata(split, i) for i in range(len(events))] == metadata, how
        shutil.rmtree(damaged)


def test_verify_changes_nothing(tmp_path, format):
    make_store(tmp_path / "s", format, SOURCE)
    before = tree(tmp_path / "s")
    verify(tmp_path / "s")
    read_all(tmp_path / "s")
    assert tree(tmp_path / "s") == before
