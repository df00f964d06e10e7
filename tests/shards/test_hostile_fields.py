"""Manifests, indexes and zarr metadata whose digests fit and whose fields do harm: each ends in one error of ours, at
once and with little memory, from `verify` and from readers alike.
"""

import json
import os
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from shards import ManifestError, ShardError, StoreError, open_store
from shards.cli import main
from shards.info import describe
from shards.manifest import Manifest, manifest_digest
from shards.recent import open_archive
from shards.verify import verify
from tests.support.archives import image_sequence
from tests.support.clips import Clips, make_store
from tests.support.damage import reseal

SOURCE = Clips(lengths={"train": (5, 7, 5), "test": (3,)}, size=(1, 16, 16))
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def bounded(seconds: float = 10):
    """The test may take so long, and may not ask for more than 4 GiB beyond what it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    begin = time.monotonic()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.monotonic() - begin < seconds


def read_everything(path: Path) -> None:
    store = open_store(path)
    describe(path)
    for split in store.splits:
        for event in store.events(split):
            store.read(split, event.index, 0, event.length)
            store.metadata(split, event.index)
    open_archive(path, {})


def refused_by_all(path: Path, kind: type[ShardError] = ShardError) -> str:
    """Readers raise an error of ours; verify raises one or names a problem. Returns what is said."""
    with bounded():
        with pytest.raises(kind) as error:
            read_everything(path)
        assert main(["verify", str(path)]) in (2, 5)
        assert main(["info", str(path)]) in (2, 5)
    assert str(error.value).isprintable()
    return str(error.value)


def at(*path):
    """A setter: at("scale", "gain")(data, 1.0)."""

    def put(data, value):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return put


SHARD = ("splits", "train", "shards", 0)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(
            (("scale", key), value)
            for key in ("gain", "offset")
            for value in (NAN, INF, -INF, 1e300, 10**400, "1", None)
        ),
        (("scale", "gain"), 0),
        (("scale", "gain"), 1e-300),
        *((("scale", "missing_code"), value) for value in (999, -1, 256, 1.5, True, "255", 10**400)),
        *((("scale", "max_code"), value) for value in (0, 256, -1, 1e9, None, [])),
        *((("scale", "unit"), value) for value in ("K\n", "\x1b[2Jm", "\ud800", "m" * 20_000, 3)),
        *((("step_seconds",), value) for value in (0, -300, NAN, INF, 10**400, "300", [])),
        *((("modes",), value) for value in ([{}], [["a"]], [None], ["a", "a"], ["\ud800"], ["a\nb"], "ab", {"a": 1})),
        *((("name",), value) for value in ("\ud800", "a\nWARNING all is well", "\x1b]0;x\x07", {}, None)),
        *((("frames", "height"), value) for value in (0, -1, 1 << 62, 1 << 31, 10**400, 1.0, "16", None, True)),
        (("frames",), {"channels": 1 << 16, "height": 1 << 16, "width": 1 << 16, "dtype": "uint8"}),
        *((("splits", "train", "events"), value) for value in (-1, 1 << 62, 1.5, "3", [])),
        *((("splits", "train", "frames"), value) for value in (-1, 10**400, 1, NAN)),
        (("splits", "train", "shards"), []),
        (("splits", "a\nb"), {"events": 0, "frames": 0, "shards": []}),
        *(
            ((*SHARD, "file"), value)
            for value in (
                *("train/\0.tar", "train/0.tar\nOK: all is well", "train/\x1b[1A.tar", "../x.tar", "/etc/passwd", ""),
                *("train//x.tar", "train/.x.tar", "a/" * 500 + "b.tar", "train/\ud800.tar", "train/x.zip", 3, None),
            )
        ),
        *(((*SHARD, "bytes"), value) for value in (-1, 1 << 62, 1.5, NAN, "9", 10**400)),
        *(((*SHARD, "sha256"), value) for value in ("", "zz", "\n", 7, None)),
        *(((*SHARD, "index_sha256"), value) for value in ("", None, 7)),
        *((("conversion",), value) for value in ({"a": NAN}, {"a": "\ud800"}, {"a": [INF]}, {"a": 10**400}, [], 3)),
        (("conversion", "deep"), json.loads("[" * 200 + "]" * 200)),
        (("source", "licence"), "MIT\x1b[8m"),
        (("files",), [{"file": "x\0", "bytes": 1, "sha256": "0" * 64}]),
        (("generator",), 3),
        (("format_version",), NAN),
        (("encoding",), "blosc2"),
    ],
)
def test_fields_of_a_manifest(tmp_path, path, value):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    reseal(tmp_path / "s", lambda data: at(*path)(data, value))
    refused_by_all(tmp_path / "s")


@pytest.mark.parametrize(
    "text",
    [
        '{"format_version": 1, "format_version": 1}',
        '{"a": NaN}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5000,
        "\ufeff{}",
        '"x"',
        "{}",
        '{"format_version": 1}',
    ],
)
def test_texts_of_a_manifest(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    refused_by_all(tmp_path, ManifestError)


def test_a_key_that_stands_twice(tmp_path):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    path = tmp_path / "s/manifest.json"
    path.write_text(path.read_text().replace('"name": "clips"', '"name": "other", "name": "clips"', 1))
    assert "'name' occurs twice" in refused_by_all(tmp_path / "s")


@pytest.mark.parametrize("make", [lambda p: os.mkfifo(p), lambda p: p.mkdir(), lambda p: p.symlink_to("/dev/zero")])
def test_a_manifest_that_is_no_regular_file(tmp_path, make):
    make(tmp_path / "manifest.json")
    refused_by_all(tmp_path)


def test_a_manifest_of_a_terabyte(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)
    refused_by_all(tmp_path)


@pytest.mark.parametrize("name", ["train/000000.tar", "train/000000.idx"])
@pytest.mark.parametrize("make", [lambda p: os.mkfifo(p), lambda p: p.mkdir(), lambda p: p.symlink_to("/dev/zero")])
def test_files_of_a_store_that_are_no_regular_ones(tmp_path, name, make):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    (tmp_path / "s" / name).unlink()
    make(tmp_path / "s" / name)
    refused_by_all(tmp_path / "s")


ROWS = {
    "length": (5.0, "5", None, 0, -1, {}, True, 1 << 62, 10**300),
    "offset": (-1, 0, 1.5, None, 1 << 62, [], "1536"),
    "size": (0, -1, 1.5, None, {}, 1 << 62),
    "crc32": (-1, None, "x", 1.5, {}),
    "json_offset": (-1, 2.5, None, 1 << 62),
    "json_size": (0, -5, None, 1.5, 1 << 62),
    "json_crc32": (None, {}, 1.5),
    "key": ("../x", "a\nb", "", None, {}, 5, "\ud800", "a" * 300),
    "mode": ({}, [], 5, "a\x1b[2J", "\ud800"),
    "run": ({}, None, 5, "a\nb"),
    "run_offset": (-1, 1.5, None, {}, True, 1 << 62),
    "start_time": (5, {}, "yesterday", "2020-01-01T00:00:00+05:00", "\n"),
    "stored": (0, -1, 1.5, "x", 10),
}


@pytest.mark.parametrize(("column", "value"), [(column, value) for column, values in ROWS.items() for value in values])
def test_fields_of_an_index(tmp_path, column, value):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    index = tmp_path / "s/train/000000.idx"
    lines = index.read_text().split("\n")
    row = json.loads(lines[2])
    row[json.loads(lines[0])["columns"].index(column)] = value
    lines[2] = json.dumps(row)
    index.write_text("\n".join(lines))
    reseal(tmp_path / "s")
    refused_by_all(tmp_path / "s", StoreError)


@pytest.mark.parametrize("line", ["{}", "[]", "5", "null", '"abc"', "[" * 5000, "[1,2", "\udcff", '{"key": 1}'])
def test_lines_of_an_index(tmp_path, line):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    index = tmp_path / "s/train/000000.idx"
    lines = index.read_text().split("\n")
    lines[2] = line
    index.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    reseal(tmp_path / "s")
    refused_by_all(tmp_path / "s", StoreError)


def test_an_index_of_a_terabyte(tmp_path):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    with (tmp_path / "s/train/000000.idx").open("wb") as file:
        file.truncate(1 << 40)
    refused_by_all(tmp_path / "s", StoreError)


# --- zarr

FRAMES = ("consolidated_metadata", "metadata", "frames")
GRID = (*FRAMES, "chunk_grid", "configuration", "chunk_shape")
CODEC = (*FRAMES, "codecs", 0)
INNER = (*CODEC, "configuration", "chunk_shape")
KEY = ("consolidated_metadata", "metadata", "event_key")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(((*GRID, 0), value) for value in (0, -5, 1 << 40, 1.5, "5", None, 7)),
        *(((*INNER, 0), value) for value in (0, -5, 1 << 40, 1.5, "5", None, 3)),
        (GRID, []),
        (INNER, [5, 1, 16, 8]),
        ((*FRAMES, "shape"), [1 << 40, 1, 16, 16]),
        ((*FRAMES, "shape"), [17]),
        ((*FRAMES, "data_type"), "float64"),
        ((*FRAMES, "data_type"), {"name": "struct"}),
        ((*FRAMES, "codecs"), []),
        ((*CODEC, "name"), "numcodecs.pickle"),
        ((*CODEC, "configuration", "codecs", 0, "name"), "gzip"),
        ((*CODEC, "configuration", "index_location"), "start"),
        ((*FRAMES, "node_type"), "group"),
        (FRAMES, None),
        (("node_type",), "array"),
        (("consolidated_metadata",), None),
        (("consolidated_metadata", "metadata"), []),
        ((*KEY, "shape"), [1 << 40]),
        ((*KEY, "shape"), [0]),
        ((*KEY, "chunk_grid", "configuration", "chunk_shape"), [0]),
        ((*KEY, "chunk_grid", "configuration", "chunk_shape"), [1 << 40]),
        ((*KEY, "codecs", 0, "name"), "numcodecs.pickle"),
        ((*KEY, "data_type"), "int64"),
        ((*KEY, "node_type"), "group"),
        (KEY, 7),
    ],
)
def test_zarr_metadata(tmp_path, path, value):
    make_store(tmp_path / "s", "zarr", SOURCE)
    file = tmp_path / "s/train/zarr.json"
    data = json.loads(file.read_text())
    at(*path)(data, value)
    file.write_text(json.dumps(data))
    reseal(tmp_path / "s")
    refused_by_all(tmp_path / "s", StoreError)


def test_zarr_tables_that_claim_more_events_than_a_file_proves(tmp_path):
    """Columns without a file are all fill values: of the length none may be, which would allocate what it likes."""
    make_store(tmp_path / "s", "zarr", SOURCE)
    file = tmp_path / "s/train/zarr.json"
    data = json.loads(file.read_text())
    for name, array in data["consolidated_metadata"]["metadata"].items():
        if name.startswith("event_"):
            array["shape"] = array["chunk_grid"]["configuration"]["chunk_shape"] = [1 << 33]
            (tmp_path / f"s/train/{name}/c/0").unlink(missing_ok=True)
    at(*FRAMES, "shape", 0)(data, 1 << 33)
    at(*GRID, 0)(data, 5 << 33)
    file.write_text(json.dumps(data))

    def claim(manifest):
        manifest["splits"]["train"].update(events=1 << 33, frames=1 << 33)
        manifest["files"] = [one for one in manifest["files"] if "train/event_" not in one["file"]]

    reseal(tmp_path / "s", claim)
    with bounded(), pytest.raises(StoreError, match="train/event_length/c/0: absent"):
        open_store(tmp_path / "s").events("train")


@pytest.mark.parametrize(
    ("array", "data"),
    [
        ("event_key", b""),
        ("event_key", b"\xff\xff\xff\xff"),
        ("event_key", b"\x03\0\0\0\xff\xff\xff\xff"),
        ("event_key", b"\x03\0\0\0" + (b"\x01\0\0\0\xff") * 3),
        ("event_key", b"\x03\0\0\0" + (b"\x01\0\0\0\n") * 3),
        ("event_length", b"\0" * 12),
        ("event_length", b"\xff" * 12),
        ("event_length", b"123"),
        ("event_first", b"\xff" * 24),
        ("event_run", b"\x03\0\0\0" + (b"\x02\0\0\0\x1bc") * 3),
        ("event_start_time", b"\x03\0\0\0" + (b"\x03\0\0\0now") * 3),
        ("event_crc32", b""),
        ("event_metadata", b"\x03\0\0\0" + (b"\x02\0\0\0[]") * 3),
        ("event_metadata", b"\x03\0\0\0" + (b"\x03\0\0\0NaN") * 3),
    ],
)
def test_zarr_tables(tmp_path, array, data):
    make_store(tmp_path / "s", "zarr", SOURCE)
    (tmp_path / f"s/train/{array}/c/0").write_bytes(data)
    reseal(tmp_path / "s")
    with bounded(), pytest.raises(StoreError) as error:
        read_everything(tmp_path / "s")
    assert str(error.value).isprintable()
    if array != "event_metadata":
        assert verify(tmp_path / "s")


# --- an unfinished store


def unfinished(tmp_path, monkeypatch) -> tuple[list[str], Path]:
    image_sequence(tmp_path / "in", 4)
    words = ["convert", "images", str(tmp_path / "in"), str(tmp_path / "out")]
    seen: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr("shards.convert.put_in_place", lambda store, output: seen.append(store.parent) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(words)
    return words, seen[0]


@pytest.mark.parametrize(
    "name", ["work", "store", "done", "store/train", "lock", "work/x", "store/train/000000.tar", "jobs"]
)
def test_links_in_an_unfinished_store_are_not_followed(tmp_path, monkeypatch, capsys, name):
    words, folder = unfinished(tmp_path, monkeypatch)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/precious").write_text("precious")
    place = folder / name
    if place.is_dir():
        place.rename(tmp_path / "moved")
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(tmp_path / "theirs")
    assert main(words) == 2
    assert f"{place}: is a link" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["precious"] and not (tmp_path / "out").exists()


def test_an_earlier_unfinished_store_that_is_a_link_is_left_alone(tmp_path):
    image_sequence(tmp_path / "in", 4)
    (tmp_path / "theirs").mkdir()
    (tmp_path / ".out.partial-0123").symlink_to(tmp_path / "theirs")
    assert main(["convert", "images", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert list((tmp_path / "theirs").iterdir()) == []


# --- what is shown


def test_verify_shows_no_control_characters(tmp_path, capsys):
    make_store(tmp_path / "s", "webdataset", SOURCE)
    (tmp_path / "s" / "x\nOK: all checksums match\x1b[2K").touch()
    assert main(["verify", str(tmp_path / "s")]) == 5
    lines = capsys.readouterr().err.splitlines()
    assert "x\\nOK: all checksums match\\x1b[2K" in lines[-2] and len([x for x in lines if "OK" in x]) == 1


def test_log_lines_can_not_be_forged():
    code = (
        "import logging; from shards import log; log.configure();"
        "logging.getLogger('shards.x').warning('%s: odd', 'a\\n2026-01-01T00:00:00Z INFO all is well\\x1b[2K')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    _, second = done.stderr.splitlines()
    assert second.startswith("    ") and "\x1b" not in done.stderr and "\\x1b[2K" in second


def test_what_is_whole_stays_whole(tmp_path, format):
    """The checks above refuse nothing that is written."""
    make_store(tmp_path / "s", format, SOURCE)
    with bounded():
        read_everything(tmp_path / "s")
    assert verify(tmp_path / "s") == []
    data = json.loads((tmp_path / "s/manifest.json").read_text())
    assert data["digest"] == manifest_digest(data) == Manifest.load(tmp_path / "s").digest
    assert np.isfinite(open_store(tmp_path / "s").manifest.scale.to_physical(np.zeros(1, np.uint8))).all()
