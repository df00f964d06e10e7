"""Every fault is found and named with its shard, its event and its byte."""

import io
import json
import os
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards import ManifestError, ShardError, open_store
from shards.cli import main
from shards.manifest import manifest_digest
from shards.verify import verify
from tests.support.clips import Clips, make_store

TAR = "train/000000.tar"
SOURCE = Clips(lengths={"train": (5, 7, 5), "test": (3,)})


@pytest.fixture
def tar_store(tmp_path) -> Path:
    make_store(tmp_path / "s", "webdataset", SOURCE)
    return tmp_path / "s"


@pytest.fixture
def zarr_store(tmp_path) -> Path:
    make_store(tmp_path / "s", "zarr", SOURCE)
    return tmp_path / "s"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def headers(path: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def rewrite(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def contents(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]


def test_a_whole_store_has_no_problems(tmp_path, format):
    make_store(tmp_path / "s", format, SOURCE)
    assert verify(tmp_path / "s") == [] and verify(tmp_path / "s", quick=True) == []


def test_a_flipped_byte_of_a_frame(tar_store):
    member = headers(tar_store / TAR)["train-0001.frames.npy"]
    flip(tar_store / TAR, member.offset_data + 128 + 40)
    (problem,) = verify(tar_store)
    assert (problem.file, problem.key, problem.offset) == (TAR, "train-0001", member.offset_data + 128)
    assert str(problem).startswith(
        f"{TAR}, train-0001, byte {member.offset_data + 128}: the contents of train-0001.frames.npy"
    )


@pytest.mark.parametrize(
    ("where", "key", "message"),
    [
        (lambda m: m["train-0001.frames.npy"].offset_data + 30, "train-0001", "doesn't begin as npy of uint8"),
        (lambda m: m["train-0002.json"].offset_data + 3, "train-0002", "train-0002.json were changed"),
        (lambda m: m["train-0001.json"].offset + 3, "train-0001", "damaged tar header"),
        (lambda m: m["train-0000.frames.npy"].offset + 150, "train-0000", "damaged tar header"),
        (lambda m: m["train-0002.json"].offset_data + 500, None, "SHA-256 is not the manifest's"),
    ],
)
def test_a_flipped_byte_elsewhere(tar_store, where, key, message):
    flip(tar_store / TAR, where(headers(tar_store / TAR)))
    (problem,) = verify(tar_store)
    assert problem.file == TAR and problem.key == key and message in problem.what


def test_a_flipped_byte_of_a_zarr_frame(zarr_store):
    name = "train/frames/c/0/0/0/0"
    frame_bytes = 2 * 6 * 4
    flip(zarr_store / name, 6 * frame_bytes)
    (problem,) = verify(zarr_store)
    assert (problem.file, problem.key, problem.offset) == (name, "train-0001", 5 * frame_bytes)


def test_a_flipped_byte_of_zarr_metadata(zarr_store):
    flip(zarr_store / "train/event/c/0", 4)
    assert [str(problem) for problem in verify(zarr_store)] == [
        "train/event/c/0: was changed: its SHA-256 is not the manifest's"
    ]


@pytest.mark.parametrize("cut", ["end", "payload", "between the members", "between two events", "header", "all"])
def test_a_cut_tail(tar_store, cut):
    member = headers(tar_store / TAR)
    size = (tar_store / TAR).stat().st_size
    at = {
        "end": size - 700,
        "payload": member["train-0001.frames.npy"].offset_data + 200,
        "between the members": member["train-0001.json"].offset,
        "between two events": member["train-0001.frames.npy"].offset,
        "header": member["train-0001.json"].offset + 100,
        "all": 0,
    }[cut]
    os.truncate(tar_store / TAR, at)
    for quick in (True, False):
        problems = verify(tar_store, quick=quick)
        assert str(problems[0]) == f"{TAR}: has {at} bytes, the manifest says {size}"
    named = {problem.key for problem in problems}
    if cut in ("payload", "between the members", "between two events", "header"):
        assert {"train-0001", "train-0002"} <= named and "train-0000" not in named


def test_a_cut_tail_of_a_zarr_shard(zarr_store):
    name = "train/frames/c/0/0/0/0"
    size = (zarr_store / name).stat().st_size
    os.truncate(zarr_store / name, size - 5)
    (problem,) = verify(zarr_store)
    assert str(problem) == f"{name}: has {size - 5} bytes, the manifest says {size}"


@pytest.mark.parametrize("name", ["train-0001.json", "train-0002.frames.npy"])
def test_a_missing_member(tar_store, name):
    rewrite(tar_store / TAR, [member for member in contents(tar_store / TAR) if member[0] != name])
    problems = verify(tar_store)
    assert any(p.what == f"the member {name} is missing" and p.key == name.split(".")[0] for p in problems)
    assert not any("damaged" in p.what for p in problems)


def test_a_member_twice_and_one_too_many(tar_store):
    members = contents(tar_store / TAR)
    rewrite(tar_store / TAR, [*members, members[2], ("../../etc/cron.d/x", b"hello")])
    said = [str(problem) for problem in verify(tar_store)]
    assert any("train-0001, byte" in line and "train-0001.frames.npy occurs twice" in line for line in said)
    assert any("'../../etc/cron.d/x' is not in the index" in line for line in said)
    assert not (tar_store.parent.parent / "etc").exists()


def test_a_member_of_another_type_or_shape(tar_store):
    members = contents(tar_store / TAR)
    for array in (np.zeros((5, 2, 6, 4), np.float32), np.zeros((5, 2, 4, 6), np.uint8), np.array([{}], dtype=object)):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        rewrite(tar_store / TAR, [(members[0][0], buffer.getvalue()), *members[1:]])
        said = [str(problem) for problem in verify(tar_store)]
        assert any("train-0000" in line and "doesn't begin as npy of uint8 [5, 2, 6, 4]" in line for line in said), said


def test_a_zeroed_header(tar_store):
    member = headers(tar_store / TAR)["train-0001.frames.npy"]
    data = bytearray((tar_store / TAR).read_bytes())
    data[member.offset : member.offset + 512] = bytes(512)
    (tar_store / TAR).write_bytes(data)
    (problem,) = verify(tar_store)
    assert (problem.key, problem.offset) == ("train-0001", member.offset) and "damaged tar header" in problem.what


def test_absent_and_extra_files(tmp_path, format):
    store = make_store(tmp_path / "s", format, SOURCE)
    name = store.splits["test"].shards[0].file
    shutil.copy(tmp_path / "s" / name, tmp_path / "s" / f"{name}9")
    (tmp_path / "s" / name).unlink()
    for quick in (True, False):
        said = [str(problem) for problem in verify(tmp_path / "s", quick=quick)]
        assert f"{name}9: is no part of the store (not in the manifest)" in said
        assert f"{name}: is absent" in said


def test_an_absent_or_changed_index(tar_store):
    index = tar_store / "train/000000.idx"
    index.write_text(index.read_text().replace("train-0001", "train-0009"))
    assert any(p.file == "train/000000.idx" and "not the index that was written" in p.what for p in verify(tar_store))
    index.unlink()
    assert any(p.file == "train/000000.idx" and "absent" in p.what for p in verify(tar_store, quick=True))


def edit_manifest(store: Path, edit, seal: bool) -> None:
    data = json.loads((store / "manifest.json").read_text())
    edit(data)
    if seal:
        data["digest"] = manifest_digest(data)
    (store / "manifest.json").write_text(json.dumps(data))


def test_an_edited_manifest(tmp_path, format):
    make_store(tmp_path / "s", format, SOURCE)
    edit_manifest(tmp_path / "s", lambda data: data["scale"].update(gain=2.0), seal=False)
    assert [str(p) for p in verify(tmp_path / "s")] == [
        "manifest.json: was edited: its digest doesn't match its contents"
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data["splits"]["train"].update(events=4), "train should have 4 events, its shards have 3"),
        (lambda data: data["splits"]["train"].update(frames=18), "17"),
    ],
)
def test_counts_that_disagree(tmp_path, format, edit, message):
    make_store(tmp_path / "s", format, SOURCE)
    edit_manifest(tmp_path / "s", edit, seal=True)
    said = [str(problem) for problem in verify(tmp_path / "s")]
    assert any(message in line for line in said), said


def test_a_key_in_two_splits(tar_store):
    edit_manifest(tar_store, lambda data: data["splits"].update(again=data["splits"]["test"]), seal=True)
    (problem,) = verify(tar_store)
    assert (problem.key, problem.what) == ("test-0000", "the key occurs twice, first in test/000000.tar")


def test_a_store_named_by_a_file_url(tmp_path, tar_store, capsys):
    url = f"file://{tar_store}"
    for words in (["verify", url], ["verify", url, "--quick"], ["info", url], ["repack", url, str(tmp_path / "t")]):
        assert main(words) == 0
    assert "OK: all checksums match" in capsys.readouterr().out
    (tar_store / TAR).unlink()
    assert main(["verify", url]) == 5


def test_no_manifest(tmp_path):
    with pytest.raises(ManifestError, match="is not a store"):
        verify(tmp_path)


def test_random_damage_is_always_found(tmp_path, format):
    """Seeded flips, cuts and deletions: none passes, and none is read as if it were right."""
    store = make_store(tmp_path / "whole", format, SOURCE, shard_mb=0.0005)
    truth = {(s, e.index): store.read(s, e.index, 0, e.length) for s in store.splits for e in store.events(s)}
    rng = random.Random(7)
    for attempt in range(60 if format == "webdataset" else 20):
        damaged = tmp_path / f"s{attempt}"
        shutil.copytree(tmp_path / "whole", damaged)
        path = rng.choice(sorted(p for p in damaged.rglob("*") if p.is_file()))
        size = path.stat().st_size
        kind = rng.choice(["flip", "flip", "cut", "delete"])
        if kind == "flip":
            flip(path, rng.randrange(size))
        elif kind == "cut":
            os.truncate(path, rng.randrange(size))
        else:
            path.unlink()
        try:
            assert verify(damaged), f"{kind} in {path}"
            found = open_store(damaged)
            for split in found.splits:
                for event in found.events(split):
                    assert np.array_equal(found.read(split, event.index, 0, event.length), truth[split, event.index])
        except ShardError:
            pass
