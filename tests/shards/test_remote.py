"""Stores behind a URL: the same frames through every misbehaviour of a server, or a clear error in a bounded time."""

import os
import pickle
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from shards import ManifestError, StoreError, TransportError, UsageError, open_store, stream_events
from shards.info import describe
from shards.remote import HttpFiles, Retry, location
from shards.repack import repack
from shards.verify import verify
from tests.support.clips import Clips, make_store
from tests.support.damage import flip, members
from tests.support.web_server import Site

SOURCE = Clips(lengths={"train": (5, 7, 5), "test": (3, 5)}, size=(1, 16, 16))
TAR = "train/000000.tar"
FAST = Retry(attempts=3, timeout=0.4, pause=0.01)


@pytest.fixture
def site(tmp_path):
    with Site(tmp_path) as site:
        yield site


def check_all(store) -> None:
    for split, planned in SOURCE.plan().splits.items():
        assert [event.key for event in store.events(split)] == [event.key for event in planned]
        for i, event in enumerate(planned):
            assert np.array_equal(store.read(split, i, 1, 3), SOURCE.frames(event)[1:3])
            assert np.array_equal(store.read(split, i, 0, event.length), SOURCE.frames(event))
            assert store.metadata(split, i)["details"] == {"draw": i}


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
def test_a_store_behind_a_url_is_the_store(tmp_path, site, format, encoding):
    make_store(tmp_path / "a store", format, SOURCE, encoding=encoding, shard_mb=0.003)
    store = open_store(f"{site.url}/a%20store/", retry=FAST)
    check_all(store)
    check_all(pickle.loads(pickle.dumps(store)))
    assert describe(f"{site.url}/a%20store").splitlines()[1:] == describe(tmp_path / "a store").splitlines()[1:]


def test_a_read_is_one_request_of_its_event(tmp_path, site, format):
    make_store(tmp_path / "s", format, SOURCE)
    store = open_store(f"{site.url}/s", retry=FAST)
    store.read("train", 1, 0, 7)
    site.log.clear()
    store.read("train", 1, 2, 4)
    asked = [range_.removeprefix("bytes=").split("-") for _, range_ in site.log]
    assert len(asked) == (2 if format == "zarr" else 1)  # zarr: it lies in two chunks
    assert sum(int(last) - int(first) + 1 for first, last in asked) == 7 * 16 * 16  # as its CRC is that of all


@pytest.mark.parametrize("fault", ["dropped", "closed", "503", "429", "silent", "wrong range", "garbled"])
def test_a_fault_that_passes_is_not_noticed(tmp_path, site, format, fault):
    make_store(tmp_path / "s", format, SOURCE)
    store = open_store(f"{site.url}/s", retry=FAST)
    store.events("train")
    site.faults = [fault] if fault == "silent" else [fault, fault]
    assert np.array_equal(store.read("train", 1, 0, 7), SOURCE.frames(SOURCE.plan().splits["train"][1]))
    assert site.faults == []


@pytest.mark.parametrize("fault", ["dropped", "closed", "500", "silent", "trickle", "wrong range"])
def test_a_fault_that_stays_ends_in_an_error_that_says_where(tmp_path, site, fault):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    store = open_store(f"{site.url}/s", retry=FAST)
    offset = store.locate("train", 1)[1]
    site.faults = [fault] * 9
    begin = time.monotonic()
    with pytest.raises(
        TransportError, match=r"of train-0001: 3 attempts failed, the last: .*run the same command"
    ) as e:
        store.read("train", 1, 0, 7)
    assert time.monotonic() - begin < 3 and len(site.faults) == 6
    assert (e.value.shard, e.value.key) == (TAR, "train-0001") and e.value.offset >= offset
    site.faults = []
    assert store.read("train", 1, 0, 7).shape == (7, 1, 16, 16)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "this file is absent on the server .HTTP 404., wanted for train-0001"),
        ("403", "the server refuses it .HTTP 403."),
        ("wrong total", r"\d+ bytes, the manifest says \d+"),
    ],
)
def test_what_another_attempt_would_not_change_is_told_at_once(tmp_path, site, fault, message):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    store = open_store(f"{site.url}/s", retry=FAST)
    store.events("train")
    site.faults = [fault, fault]
    with pytest.raises(StoreError, match=message) as error:
        store.read("train", 1, 0, 7)
    assert not isinstance(error.value, TransportError) and site.faults == [fault]
    assert (error.value.shard, error.value.key) == (TAR, "train-0001")


def test_a_store_damaged_on_the_server(tmp_path, site, format):
    store = make_store(tmp_path / "s", format, SOURCE)
    file, offset = store.locate("train", 1)
    flip(tmp_path / "s" / file, offset + 700)
    with pytest.raises(StoreError, match=r"train-0001.*CRC") as error:
        open_store(f"{site.url}/s", retry=FAST).read("train", 1, 0, 2)
    assert (error.value.shard, error.value.key, error.value.offset) == (file, "train-0001", offset)


def test_a_shard_that_is_replaced_while_it_is_read(tmp_path, site):
    """Every read is compared with what was written: what was checked before was another file."""
    make_store(tmp_path / "s", "webdataset", SOURCE)
    store = open_store(f"{site.url}/s", retry=FAST)
    store.read("train", 1, 0, 7)
    flip(tmp_path / "s" / TAR, store.locate("train", 1)[1] + 300)
    with pytest.raises(StoreError, match="CRC"):
        store.read("train", 1, 1, 2)


def test_a_server_without_ranges(tmp_path, format):
    make_store(tmp_path / "s", format, SOURCE)
    with Site(tmp_path, ranges=False) as site:
        store = open_store(f"{site.url}/s", retry=FAST)
        with pytest.raises(StoreError, match=r"doesn't serve byte ranges.*SHARDS_CACHE=FOLDER"):
            store.read("train", 1, 0, 7)
        if format == "webdataset":
            assert [event.key for event, _ in stream_events(store, "train")] == [
                "train-0000",
                "train-0001",
                "train-0002",
            ]
        check_all(open_store(f"{site.url}/s", cache=tmp_path / "cache", retry=FAST))


def test_a_cache_fetches_each_shard_once(tmp_path, site, format, monkeypatch):
    make_store(tmp_path / "s", format, SOURCE)
    monkeypatch.setenv("SHARDS_CACHE", str(tmp_path / "cache"))
    check_all(open_store(f"{site.url}/s", retry=FAST))
    shards = [path for path, _ in site.log if path.endswith((".tar", "/0/0/0/0"))]
    assert len(shards) == len(set(shards)) == 2
    site.log.clear()
    store = open_store(f"{site.url}/s", retry=FAST)
    store.read("train", 0, 0, 5)
    check_all(pickle.loads(pickle.dumps(store)))
    assert not [path for path, _ in site.log if path in shards]


def test_files_of_a_cache_are_for_whom_the_umask_says(tmp_path, site):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    before = os.umask(0o027)
    try:
        check_all(open_store(f"{site.url}/s", cache=tmp_path / "cache", retry=FAST))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {0o640}


def test_a_cache_keeps_nothing_that_is_wrong(tmp_path, site):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    store = open_store(f"{site.url}/s", cache=tmp_path / "cache", retry=FAST)
    store.events("train")
    site.faults, site.only = ["garbled", "dropped"], ".tar"
    with pytest.raises(StoreError, match="another SHA-256 than the manifest says"):
        store.read("train", 0, 0, 5)
    assert not [*tmp_path.glob("cache/*/train/*.tar"), *tmp_path.glob("cache/*/train/*.partial")]
    check_all(store)
    assert site.faults == []


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("encoding", ["raw", "lz4"])
def test_streaming_goes_on_after_a_drop(tmp_path, ranges, encoding):
    make_store(tmp_path / "s", "webdataset", SOURCE, encoding=encoding, shard_mb=0.003)
    with Site(tmp_path, ranges) as site:
        store = open_store(f"{site.url}/s", retry=FAST)
        store.events("train")
        site.faults, site.only = ["dropped", "dropped", "", "closed", "503"], ".tar"
        events = SOURCE.plan().splits["train"]
        for (event, frames), planned in zip(stream_events(store, "train"), events, strict=True):
            assert event.key == planned.key and np.array_equal(frames, SOURCE.frames(planned))
        assert site.faults == [] and sum(path.endswith(".tar") for path, _ in site.log) == 4 + len(site.faults) + 3


def test_streaming_gives_up_after_its_attempts(tmp_path, site):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    store = open_store(f"{site.url}/s", retry=FAST)
    store.events("train")
    site.faults = ["dropped", *["closed"] * 9]
    with pytest.raises(TransportError, match=r"train/000000.tar, byte \d+: 3 attempts failed"):
        list(stream_events(store, "train"))


def test_no_store_behind_the_url(tmp_path, site):
    with pytest.raises(ManifestError, match=r"http://127.0.0.1:\d+/x is not a store: .*404"):
        open_store(f"{site.url}/x", retry=FAST)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ManifestError, match="not UTF-8"):
        open_store(site.url, retry=FAST)
    (tmp_path / "manifest.json").write_text("<html>Please log in</html>")
    with pytest.raises(ManifestError, match="not JSON"):
        open_store(site.url, retry=FAST)


def test_no_server(tmp_path):
    with Site(tmp_path) as site:
        url = site.url
    with pytest.raises(TransportError, match=r"3 attempts failed.*refused"):
        open_store(f"{url}/s", retry=FAST)


def test_redirections_stay_with_http(tmp_path, site):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    site.faults = [f"redirect {site.url}/s/manifest.json"]
    assert open_store(f"{site.url}/elsewhere", retry=FAST).splits["train"].events == 3
    for target in (f"file://{tmp_path}/s/manifest.json", "ftp://127.0.0.1/manifest.json", "data:,{}", "pipe:echo"):
        site.faults = [f"redirect {target}"] * 3
        with pytest.raises((ManifestError, StoreError)):
            open_store(f"{site.url}/elsewhere", retry=FAST)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://h:8080/a/b/", "http://h:8080/a/b"),
        ("https://h/a%20b", "https://h/a%20b"),
        ("s3://bucket/a/b/", "https://bucket.s3.amazonaws.com/a/b"),
        ("s3://bucket", "https://bucket.s3.amazonaws.com"),
        ("file:///data/my%20store", Path("/data/my store")),
        ("stores/mmnist", Path("stores/mmnist")),
        ("stores/12:30", Path("stores/12:30")),
        ("a:b", Path("a:b")),
    ],
)
def test_what_a_place_means(url, place, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert location(url) == place


def test_an_s3_endpoint_of_ones_own(tmp_path, site, monkeypatch):
    make_store(tmp_path / "bucket/s", "webdataset", SOURCE)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{site.url}/")
    check_all(open_store("s3://bucket/s", retry=FAST))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "minio:9000")
    with pytest.raises(UsageError, match="should begin with http"):
        open_store("s3://bucket/s")


@pytest.mark.parametrize(
    "url",
    [
        "pipe:touch ran",
        "pipe://touch ran",
        "ftp://h/s",
        "gs://bucket/s",
        "file://elsewhere/s",
        "http:///s",
        "https://h/s?token=1",
        "http://me:secret@h/s",
    ],
)
def test_no_other_url_is_opened(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a program was started"))
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("a shell was started"))
    with pytest.raises(UsageError) as error:
        open_store(url)
    assert "secret" not in str(error.value) and not list(tmp_path.iterdir())


def test_no_shell_reads_a_url(tmp_path, site, monkeypatch):
    """webdataset by itself would run curl."""
    make_store(tmp_path / "s", "webdataset", SOURCE)
    store = open_store(f"{site.url}/s", retry=FAST)
    list(stream_events(store, "train"))  # imports come first: some of them start programs
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a program was started"))
    assert len(list(stream_events(store, "train"))) == 3


def test_a_store_is_verified_where_it_lies(site):
    with pytest.raises(UsageError, match=r"where it lies; run there: python -m shards verify"):
        verify(f"{site.url}/s")


def test_a_store_behind_a_url_can_be_repacked(tmp_path, site):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    repack(f"{site.url}/s", tmp_path / "t", format="zarr", report=lambda text: None)
    assert verify(tmp_path / "t") == []
    check_all(open_store(tmp_path / "t"))


def test_the_tar_ends_early_on_the_server(tmp_path, site):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    last = members(tmp_path / "s" / TAR)[-1][0]
    os.truncate(tmp_path / "s" / TAR, last.offset)
    store = open_store(f"{site.url}/s", retry=FAST)
    with pytest.raises(StoreError, match=r"bytes, the manifest says|shorter than it should be"):
        store.read("train", 2, 0, 5)
    with pytest.raises(StoreError, match="bytes, the manifest says"):
        list(stream_events(store, "train"))


def test_attempts_are_bounded_in_time():
    retry = Retry()
    pauses = sum(retry.pause * 2**i for i in range(retry.attempts - 1))
    assert pauses == 7.5 and HttpFiles("http://h").retry == retry


# --- copies in a cache that go bad


def cached(tmp_path: Path, site, name: str = "cache"):
    store = open_store(f"{site.url}/s", cache=tmp_path / name, retry=FAST)
    check_all(store)
    return store, [*tmp_path.glob(f"{name}/*/train/*.tar"), *tmp_path.glob(f"{name}/*/train/frames/c/*/0/0/0")]


@pytest.mark.parametrize("harm", ["flipped", "cut", "longer", "removed", "a folder's link", "emptied"])
@pytest.mark.parametrize("warm", [True, False])
def test_a_damaged_copy_is_fetched_again_once(tmp_path, site, format, harm, warm):
    make_store(tmp_path / "s", format, SOURCE)
    store, (copy, *_) = cached(tmp_path, site)
    if not warm:
        store = open_store(f"{site.url}/s", cache=tmp_path / "cache", retry=FAST)
    right = copy.read_bytes()
    if harm == "flipped":
        for at in range(0, len(right), 64):
            flip(copy, at)
    elif harm == "cut":
        os.truncate(copy, len(right) // 2)
    elif harm == "longer":
        copy.write_bytes(right + b"x")
    elif harm == "emptied":
        copy.write_bytes(b"")
    else:
        copy.unlink()
        if harm == "a folder's link":
            (tmp_path / "theirs").write_bytes(b"precious")
            copy.symlink_to(tmp_path / "theirs")
    site.log.clear()
    check_all(store)
    assert sum("frames/c" in path or path.endswith(".tar") for path, _ in site.log) == 1
    assert copy.read_bytes() == right and not copy.is_symlink()
    assert not (tmp_path / "theirs").exists() or (tmp_path / "theirs").read_bytes() == b"precious"


def test_bytes_that_change_after_the_first_read_are_noticed(tmp_path, site, format):
    make_store(tmp_path / "s", format, SOURCE)
    store = open_store(f"{site.url}/s", retry=FAST)
    store.read("train", 1, 0, 7)
    site.faults = ["garbled"]
    assert np.array_equal(store.read("train", 1, 2, 4), SOURCE.frames(SOURCE.plan().splits["train"][1])[2:4])
    site.faults = ["garbled"] * 9
    with pytest.raises(StoreError, match=r"CRC|changed|outside"):
        store.read("train", 1, 2, 4)


def test_temporary_names_of_a_cache_can_not_be_foreseen_and_links_are_not_followed(tmp_path, site):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    store = open_store(f"{site.url}/s", cache=tmp_path / "cache", retry=FAST)
    store.events("train")
    folder = next((tmp_path).glob("cache/*"), None) or (store.files.local.folder)
    (folder / "train").mkdir(parents=True)
    (tmp_path / "theirs").write_bytes(b"precious")
    for name in ("000000.tar.partial", ".000000.tar.x.partial"):
        (folder / "train" / name).symlink_to(tmp_path / "theirs")
    check_all(store)
    assert (tmp_path / "theirs").read_bytes() == b"precious"
    (folder / "test").mkdir(exist_ok=True)
    (folder / "test" / "000000.tar").unlink(missing_ok=True)
    (folder / "test" / "000000.tar.lock").unlink(missing_ok=True)
    (folder / "test" / "000000.tar.lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(StoreError, match="can't be written"):
        store.read("test", 0, 0, 3)


def test_a_cache_that_can_not_be_written(tmp_path, site):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    (tmp_path / "cache").write_text("a file")
    store = open_store(f"{site.url}/s", cache=tmp_path / "cache", retry=FAST)
    with pytest.raises(StoreError, match=r"can't be written .*make room, or name another folder for the cache"):
        store.read("train", 0, 0, 5)


@pytest.mark.parametrize("fault", ["endless", "endless length"])
@pytest.mark.parametrize("only", ["manifest.json", ".idx", ".tar"])
def test_an_answer_without_end_is_cut(tmp_path, site, fault, only, monkeypatch):
    monkeypatch.setattr("shards.remote.HttpFiles.read_all.__defaults__", (None, 1 << 20))
    make_store(tmp_path / "s", "webdataset", SOURCE)
    site.faults, site.only = [fault] * 9, only
    begin = time.monotonic()
    with pytest.raises((StoreError, ManifestError), match=r"bytes|SHA-256"):
        open_store(f"{site.url}/s", cache=tmp_path / "cache", retry=FAST).read("train", 0, 0, 5)
    assert time.monotonic() - begin < 10
