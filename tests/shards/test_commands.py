"""bench, info --sheet, repack and convert's options of the store, at the terminal."""

import json

import numpy as np
import pytest
from PIL import Image

from shards import UsageError, open_store
from shards.bench import bench, make_task
from shards.cli import main
from shards.sheet import choose_events, draw_sheet
from tests.support.clips import Clips, make_store

SOURCE = Clips(lengths={"train": (6, 7, 6, 6), "test": (3, 6)}, size=(1, 24, 20))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("encoding", ["raw", "zstd"])
def test_bench_measures_every_way_to_read(tmp_path, format, encoding):
    make_store(tmp_path / "s", format, SOURCE, encoding=encoding)
    rates = list(bench(tmp_path / "s", seconds=0.01, rounds=2))
    found = {(rate.pattern, rate.method) for rate in rates}
    other = {("sequential", "webdataset")} if format == "webdataset" else {("sequential", "zarr"), ("random", "zarr")}
    assert found == {(p, m) for p in ("sequential", "random") for m in ("store", "copy")} | other
    for rate in rates:
        assert rate.sequences_per_s > 0 and rate.workers == 1
        assert (rate.of_copy is None) == (encoding != "raw")
        if rate.method == "store":
            assert rate.mb_per_s == pytest.approx(rate.sequences_per_s * 6 * 24 * 20 / 1e6, rel=0.5)


def test_bench_with_two_processes_at_the_terminal(tmp_path, capsys):
    make_store(tmp_path / "s", "zarr", SOURCE)
    assert main(["bench", str(tmp_path / "s"), "--workers", "1,2", "--seconds", "0.01", "--length", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/s: zarr, raw" and len(lines) == 2 + 2 * 2 * 3
    assert [line.split()[:3] for line in lines[2:5]] == [["sequential", m, "1"] for m in ("store", "copy", "zarr")]


def test_bench_windows_lie_within_events(tmp_path):
    store = make_store(tmp_path / "s", "webdataset", SOURCE)
    assert make_task(store, "train", 7, 99).windows == ((1, 0),)
    assert make_task(store, "train", None, 2).windows == ((0, 0), (1, 0))
    with pytest.raises(UsageError, match="train has no event of 8 frames; ask for at most 7"):
        list(bench(tmp_path / "s", length=8))


@pytest.mark.parametrize("workers", ["0", "1,", "two"])
def test_bench_takes_numbers_of_processes(workers, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "s", "--workers", workers])
    assert "numbers of processes with commas between" in capsys.readouterr().err


def test_a_contact_sheet(tmp_path, capsys):
    make_store(tmp_path / "s", "zarr", SOURCE)
    assert main(["info", str(tmp_path / "s"), "--sheet", str(tmp_path / "out/s.png"), "--events", "4"]) == 0
    assert "drawn: " in capsys.readouterr().err
    with Image.open(tmp_path / "out/s.png") as image:
        picture = np.asarray(image.convert("RGB"))
    assert min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("size", [(3, 8, 8), (2, 8, 8), (1, 700, 90)])
def test_sheets_of_colours_of_two_channels_and_of_large_frames(tmp_path, size):
    store = make_store(tmp_path / "s", "webdataset", Clips(lengths={"train": (1, 12)}, size=size))
    draw_sheet(store, tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size[0] > 300


def test_a_sheet_shows_every_split_and_mode(tmp_path):
    store = make_store(tmp_path / "s", "webdataset", Clips(lengths={"train": (3,) * 40, "test": (3,) * 10}))
    chosen = choose_events(store, 8)
    assert [(split, event.mode) for split, event in chosen] == [
        *[("train", "even")] * 2,
        *[("train", "odd")] * 2,
        *[("test", "even")] * 2,
        *[("test", "odd")] * 2,
    ]
    assert [event.index for _, event in chosen[:2]] == [0, 20]
    assert len(choose_events(store, 999)) == 50


def test_a_sheet_of_another_kind_is_refused(tmp_path, capsys):
    make_store(tmp_path / "s", "webdataset")
    assert main(["info", str(tmp_path / "s"), "--sheet", str(tmp_path / "s.exe")]) == 2
    assert "ends in .png, .pdf, .svg" in capsys.readouterr().err


def test_repack_and_encoding_at_the_terminal(tmp_path, idx_folder, capsys):
    counts = ["--train", "2", "--val", "0", "--test", "1"]
    arguments = ["convert", "moving-mnist", str(tmp_path / "a"), "--digits", str(idx_folder), *counts]
    assert main([*arguments, "--encoding", "zstd"]) == 0
    assert "(webdataset, zstd)" in capsys.readouterr().out
    assert main([*arguments, "--encoding", "zstd"]) == 0
    assert "already complete" in capsys.readouterr().out
    assert main(arguments) == 2  # raw is another store
    assert main(["repack", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "zarr", "--shard-mb", "1"]) == 0
    assert "(zarr, zstd)" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "b"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["encoding"], data["conversion"]["shard_mb"], data["conversion"]["train"]) == ("zstd", 1.0, 2)


def test_jobs_need_a_cluster(tmp_path, idx_folder, capsys):
    arguments = ["convert", "moving-mnist", str(tmp_path / "a"), "--digits", str(idx_folder), "--jobs", "2"]
    assert main(arguments) == 2
    assert "--jobs 2 needs --cluster" in capsys.readouterr().err


def test_ten_thousand_zarr_events_cost_no_more_than_their_table(tmp_path):
    """What a fresh process needs before its first frame: the table's files, not the per-frame coordinates."""
    make_store(tmp_path / "s", "zarr", Clips(lengths={"train": (4,) * 10_000}, size=(1, 2, 2)))
    opened = []
    store = open_store(tmp_path / "s")
    original = store.files.read_all
    store.files.read_all = lambda file, size=None: opened.append(file) or original(file, size)
    store.read("train", 9_999, 0, 1)
    assert (
        "train/event/c/0" not in opened and "train/time/c/0" not in opened and "train/event_metadata/c/0" not in opened
    )
