"""Both formats hold the same events, give them back byte for byte, and are read by the tools that people have."""

import multiprocessing
import os
import pickle
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

from shards import StoreError, UsageError, open_store
from tests.support.clips import FORMATS, Clips, make_store


def test_frames_come_back_byte_for_byte(tmp_path, format):
    source = Clips()
    store = make_store(tmp_path / "s", format, source)
    for split, planned in source.plan().splits.items():
        events = store.events(split)
        assert [e.key for e in events] == [p.key for p in planned]
        assert [e.length for e in events] == [p.length for p in planned]
        assert [e.index for e in events] == list(range(len(planned)))
        for event, plan in zip(events, planned, strict=True):
            frames = store.read(split, event.index, 0, event.length)
            assert frames.dtype == np.uint8 and frames.flags.c_contiguous and frames.flags.owndata
            assert np.array_equal(frames, source.frames(plan))
            assert np.array_equal(store.read(split, event.index, 1, 3), frames[1:3])
            assert store.metadata(split, event.index)["details"] == {"draw": event.index}


def test_both_formats_tell_the_same_of_every_event(tmp_path):
    source = Clips(lengths={"train": (4, 4, 4, 9, 1), "val": (2,)})
    one, other = (make_store(tmp_path / format, format, source, shard_mb=0.0006) for format in FORMATS)
    for split in ("train", "val"):
        assert one.events(split) == other.events(split)
        for event in one.events(split):
            assert one.metadata(split, event.index) == other.metadata(split, event.index)
            read = [store.read(split, event.index, 0, event.length) for store in (one, other)]
            assert np.array_equal(*read)
    assert one.manifest.scale == other.manifest.scale
    assert len(one.splits["train"].shards) > 1 and len(other.splits["train"].shards) > 1


def test_an_overlong_run_is_consecutive_events(tmp_path, format):
    store = make_store(tmp_path / "s", format, Clips(lengths={"train": (5, 5, 2, 4)}, runs=("r1", "r1", "r1", "r2")))
    events = store.events("train")
    assert [(e.run, e.run_offset, e.length) for e in events[:3]] == [("r1", 0, 5), ("r1", 5, 5), ("r1", 10, 2)]
    assert events[3].run == "r2"


def test_a_run_of_its_own_bears_the_key(tmp_path, format):
    event = make_store(tmp_path / "s", format).events("train")[1]
    assert (event.run, event.run_offset) == (event.key, 0)


def test_missing_share_is_recorded(tmp_path, format):
    store = make_store(tmp_path / "s", format)
    share = float((store.read("train", 0, 0, 5) == 255).mean())
    assert store.metadata("train", 0)["missing"] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(
    ("split", "index", "start", "stop", "message"),
    [
        ("dev", 0, 0, 1, "no split 'dev'; it has train, test"),
        ("train", 3, 0, 1, "has 3 events, asked for number 3"),
        ("train", -1, 0, 1, "asked for number -1"),
        ("train", 0, 0, 6, "has 5 frames, asked for 0:6"),
        ("train", 0, 3, 3, "asked for 3:3"),
        ("train", 0, -1, 2, "asked for -1:2"),
    ],
)
def test_frames_that_are_not_there(tmp_path, format, split, index, start, stop, message):
    with pytest.raises(UsageError, match=message):
        make_store(tmp_path / "s", format).read(split, index, start, stop)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files to the garbage collector
def test_plain_webdataset_reads_it(tmp_path):
    import webdataset

    source = Clips()
    make_store(tmp_path / "s", "webdataset", source)
    samples = list(webdataset.WebDataset(str(tmp_path / "s/train/000000.tar"), shardshuffle=False).decode())
    planned = source.plan().splits["train"]
    assert [sample["__key__"] for sample in samples] == [event.key for event in planned]
    for sample, event in zip(samples, planned, strict=True):
        assert np.array_equal(sample["frames.npy"], source.frames(event))
        assert sample["json"]["mode"] == event.mode and sample["json"]["start_time"] == event.start_time


def test_tar_lists_it(tmp_path):
    make_store(tmp_path / "s", "webdataset")
    done = subprocess.run(["tar", "tvf", tmp_path / "s/train/000000.tar"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[-1] for line in lines[:2]] == ["train-0000.frames.npy", "train-0000.json"]
    assert len(lines) == 6
    assert all(line.startswith("-rw-r--r-- 0/0") and "1970-01-01" in line for line in lines)


def test_xarray_shows_time_scale_and_units(tmp_path):
    store = make_store(tmp_path / "s", "zarr")
    with xarray.open_zarr(tmp_path / "s", group="train") as data:
        assert data.frames.dims == ("time", "channel", "y", "x")
        assert data.frames.attrs["units"] == "K"
        assert str(data.time.values[6])[:19] == "2020-01-01T00:06:00"
        assert list(data.event_key.values) == ["train-0000", "train-0001", "train-0002"]
        second = data.frames.values[data.event.values == 1]
    assert np.allclose(second, store.manifest.scale.to_physical(store.read("train", 1, 0, 7)), equal_nan=True)


def test_one_zarr_array_per_split_in_whole_shards(tmp_path):
    make_store(tmp_path / "s", "zarr", Clips(lengths={"train": (4,) * 10}), shard_mb=0.0006)
    frames = zarr.open_array(tmp_path / "s/train/frames", mode="r")
    assert frames.chunks == (4, 2, 6, 4) and frames.shards == (12, 2, 6, 4)
    assert (
        len(list((tmp_path / "s/train/frames/c").rglob("0")))
        == len(open_store(tmp_path / "s").splits["train"].shards) * 3 + 1
    )


def read_elsewhere(store, queue):
    queue.put((os.getpid(), store.read("train", 1, 2, 4)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_store_may_be_handed_to_another_process(tmp_path, format, method):
    store = make_store(tmp_path / "s", format)
    here = store.read("train", 1, 2, 4)  # files are open when the store travels
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=read_elsewhere, args=(store, queue))
    process.start()
    pid, there = queue.get()
    process.join()
    assert pid != os.getpid() and np.array_equal(here, there)


def test_pickling_drops_open_files(tmp_path, format):
    store = make_store(tmp_path / "s", format)
    before = len(pickle.dumps(store))
    store.read("train", 0, 0, 5)
    assert len(pickle.dumps(store)) == before


def corrupt(store, split="train", index=1) -> None:
    """Flip one bit of an event's frames, on disk."""
    file = Path(store.path) / store.splits[split].shards[0].file
    data = bytearray(file.read_bytes())
    place = bytes(data).index(store.read(split, index, 0, store.events(split)[index].length).tobytes())
    data[place + 3] ^= 1
    file.write_bytes(data)


def test_a_flipped_byte_is_met_at_the_first_touch(tmp_path, format):
    store = make_store(tmp_path / "s", format)
    corrupt(store)
    store = open_store(tmp_path / "s")
    store.read("train", 0, 0, 5)
    with pytest.raises(StoreError, match=r"train.*train-0001.*CRC.*run: python -m shards verify"):
        store.read("train", 1, 6, 7)
    assert open_store(tmp_path / "s", check="never").read("train", 1, 0, 7).shape == (7, 2, 6, 4)


def test_a_cut_or_absent_shard_is_told_at_opening(tmp_path, format):
    store = make_store(tmp_path / "s", format)
    file = tmp_path / "s" / store.splits["train"].shards[0].file
    size = file.stat().st_size
    os.truncate(file, size - 100)
    with pytest.raises(StoreError, match=f"{size - 100} bytes, the manifest says {size}; run: python -m shards verify"):
        open_store(tmp_path / "s").events("train")
    file.unlink()
    with pytest.raises(StoreError, match="absent"):
        open_store(tmp_path / "s").events("train")
    assert open_store(tmp_path / "s").events("test")


def test_an_edited_index_is_refused(tmp_path):
    make_store(tmp_path / "s", "webdataset")
    index = tmp_path / "s/train/000000.idx"
    index.write_text(index.read_text().replace('"odd"', '"eve"'))
    with pytest.raises(StoreError, match=r"000000.idx: not the index that was written"):
        open_store(tmp_path / "s").events("train")


def test_ten_thousand_events_open_in_seconds_of_the_processor(tmp_path, format):
    make_store(tmp_path / "s", format, Clips(lengths={"train": (2,) * 10_000}, size=(1, 2, 2)))
    begin = time.process_time()
    store = open_store(tmp_path / "s")
    assert len(store.events("train")) == 10_000
    store.read("train", 9_999, 0, 2)
    assert time.process_time() - begin < 3  # a few tenths; an event that costs 1 ms would take 10
