"""Stores made to harm: names, links, pickles, shapes and URLs are refused, nothing is written, nothing is run."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards import ManifestError, ShardError, StoreError, open_store, stream_events
from shards.verify import verify
from tests.support.clips import Clips, make_store
from tests.support.damage import members, reseal, rewrite_store, write_tar

SOURCE = Clips(lengths={"train": (5, 7, 5), "test": (3,)}, size=(1, 16, 16))
TAR = "train/000000.tar"
HIT = "train-0001"


@pytest.fixture
def store(tmp_path) -> Path:
    make_store(tmp_path / "s", "webdataset", SOURCE)
    return tmp_path / "s"


def crafted(store: Path, contents: list, **options) -> Path:
    """The store with another tar, whose digest the manifest has."""
    write_tar(store / TAR, contents)
    reseal(store)
    return store


@pytest.mark.parametrize(
    "name", ["../../../etc/cron.d/x", "/tmp/shards-was-here", "train-0001.frames.npy/../x", "a\\b", "../../x.json"]
)
def test_names_that_lead_out_become_no_paths(store, tmp_path, name):
    before = set(tmp_path.parent.rglob("*"))
    contents = [(info.name, data) for info, data in members(store / TAR)]
    crafted(store, [*contents, (name, b"* * * * * root true")])
    assert any("is not in the index" in problem.what for problem in verify(store))
    found = open_store(store)
    for i, event in enumerate(SOURCE.plan().splits["train"]):
        assert np.array_equal(found.read("train", i, 0, event.length), SOURCE.frames(event))
    with contextlib.suppress(StoreError):  # webdataset passes over names without a suffix
        assert len(list(stream_events(open_store(store), "train"))) == 3
        assert "." not in Path(name).name
    assert set(tmp_path.parent.rglob("*")) == before and not Path("/tmp/shards-was-here").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_members_that_are_no_files(store, tmp_path, kind):
    (tmp_path / "secret").write_text("42")
    link = tarfile.TarInfo(f"{HIT}.json")
    link.type, link.linkname = kind, str(tmp_path / "secret")
    contents = [(link if info.name == link.name else info.name, data) for info, data in members(store / TAR)]
    contents = [(name, b"" if name is link else data) for name, data in contents]
    crafted(store, contents)
    assert any("is not a regular file" in problem.what and problem.key == HIT for problem in verify(store))
    with pytest.raises(StoreError):
        list(stream_events(open_store(store), "train"))


@pytest.mark.parametrize("kind", ["pickle", "huge shape", "fortran", "json"])
def test_a_hostile_member_whose_store_agrees_with_it(store, kind, tmp_path):
    """Index, digests and manifest were all made to match the member."""
    frames = SOURCE.frames(SOURCE.plan().splits["train"][1])
    if kind == "json":
        rewrite_store(store, f"{HIT}.json", b"[" * 100_000)
        assert any(problem.key == HIT for problem in verify(store))
        return

    class Runs:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    buffer = io.BytesIO()
    if kind == "pickle":
        np.save(buffer, np.array([Runs()], dtype=object), allow_pickle=True)
        payload = buffer.getvalue().ljust(128 + frames.nbytes, b".")
    else:
        np.save(buffer, frames)
        old, new = {
            "huge shape": (b"(7, 1, 16, 16)", b"(1<<40, 1<<40)"),
            "fortran": (b"'fortran_order': False", b"'fortran_order': True "),
        }[kind]
        payload = buffer.getvalue().replace(old, new)
    rewrite_store(store, f"{HIT}.frames.npy", payload)
    assert any(problem.key == HIT and "doesn't begin as npy" in problem.what for problem in verify(store))
    found = open_store(store)
    with pytest.raises(StoreError):
        list(stream_events(found, "train"))
    if kind == "pickle":
        with pytest.raises(StoreError, match="CRC"):
            found.read("train", 1, 0, 7)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "file", ["../outside.tar", "/etc/passwd", "train/../../x.tar", "train//x.tar", "train\\x.tar", "pipe:touch ran"]
)
def test_a_manifest_that_leads_out(store, monkeypatch, tmp_path, file):
    monkeypatch.chdir(tmp_path)
    reseal(store, lambda data: data["splits"]["train"]["shards"][0].update(file=file))
    with pytest.raises(ShardError):
        open_store(store).read("train", 0, 0, 1)
    assert not (tmp_path / "ran").exists()


def test_an_index_that_holds_no_numbers(store):
    index = (store / TAR).with_suffix(".idx")
    for bad in ('["a", "b", [], {}, 0, 0, 0, 0, null, "a", 0, null]', "[1]", "[" * 50_000, '"x"', "1e999"):
        whole = index.read_text()
        index.write_text("\n".join([whole.split("\n")[0], *[bad] * 3]) + "\n")
        reseal(store)
        with pytest.raises(StoreError, match=r"000000.idx: "):
            open_store(store).events("train")
        assert verify(store)
        index.write_text(whole)


@pytest.mark.parametrize(
    "change", [("length", 1 << 60), ("size", -5), ("offset", -512), ("offset", 1 << 62), ("stored", 9)]
)
def test_an_index_with_impossible_numbers(store, change):
    index = (store / TAR).with_suffix(".idx")
    lines = index.read_text().splitlines()
    columns, row = json.loads(lines[0])["columns"], json.loads(lines[2])
    row[columns.index(change[0])] = change[1]
    index.write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]) + "\n")
    reseal(store)
    with pytest.raises(StoreError, match=r"000000.idx: 'train-0001' has") as caught:
        open_store(store).events("train")
    assert caught.value.key == HIT


def test_a_manifest_nested_without_end(store):
    (store / "manifest.json").write_text('{"a":' * 100_000)
    with pytest.raises(ManifestError, match="not JSON"):
        open_store(store)


def test_reading_never_unpickles_or_starts_anything(store):
    """In a process where pickle and subprocess are out of order."""
    code = (
        "import sys, pickle, subprocess, os\n"
        "from shards import open_store, stream_events\n"
        "import webdataset.tariterators\n"
        "def no(*a, **k): raise SystemExit('used')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = subprocess.Popen = os.system = os.popen = no\n"
        f"s = open_store({str(store)!r})\n"
        "[s.read('train', i, 0, 1) for i in range(3)]\n"
        "print(len(list(stream_events(s, 'train'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "3\n", done.stderr
