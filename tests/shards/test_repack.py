"""The same events in another format, shard size or encoding; and back again the same files."""

import numpy as np
import pytest

from shards import UsageError, open_store
from shards.cli import main
from shards.repack import repack
from shards.verify import verify
from tests.support.clips import Clips, make_store, tree

SOURCE = Clips(lengths={"train": (4, 4, 9, 4, 1), "test": (2,)}, runs=("r1", "r1", "r2", "r3", "r3"), size=(3, 8, 6))
QUIET = {"report": lambda text: None}


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ({"format": "zarr"}, {"format": "webdataset"}),
        ({"format": "zarr", "encoding": "lz4"}, {"format": "webdataset", "encoding": "raw"}),
        ({"format": "zarr", "shard_mb": 0.001}, {"format": "webdataset", "shard_mb": 0.002}),
        ({"encoding": "zstd"}, {"encoding": "raw"}),
        ({"shard_mb": 9.0}, {"shard_mb": 0.002}),
    ],
)
def test_there_and_back_is_the_same_store(tmp_path, change, back):
    first = make_store(tmp_path / "a", "webdataset", SOURCE, shard_mb=0.002)
    repack(tmp_path / "a", tmp_path / "b", **change, **QUIET)
    repack(tmp_path / "b", tmp_path / "c", **back, workers=2, **QUIET)
    assert verify(tmp_path / "b") == []
    assert tree(tmp_path / "a") == tree(tmp_path / "c") != tree(tmp_path / "b")
    second = open_store(tmp_path / "b")
    for split in first.splits:
        assert first.events(split) == second.events(split)
        for event in first.events(split):
            frames = [store.read(split, event.index, 0, event.length) for store in (first, second)]
            assert np.array_equal(*frames)
            assert first.metadata(split, event.index) == second.metadata(split, event.index)
    assert second.manifest.conversion.items() >= {"source": "clips", "plan_sha256": plan(first)}.items()


def plan(store) -> str:
    return store.manifest.conversion["plan_sha256"]


def test_zarr_and_back(tmp_path):
    make_store(tmp_path / "a", "zarr", SOURCE, encoding="zstd", shard_mb=0.001)
    repack(tmp_path / "a", tmp_path / "b", format="webdataset", encoding="raw", **QUIET)
    repack(tmp_path / "b", tmp_path / "c", format="zarr", encoding="zstd", **QUIET)
    assert tree(tmp_path / "a") == tree(tmp_path / "c")


def test_uneven_times_are_kept(tmp_path):
    class Uneven(Clips):
        def plan(self):
            plan = super().plan()
            for event in plan.splits["train"]:
                times = tuple(f"2020-01-01T00:{i * i:02d}:00Z" for i in range(event.length))
                object.__setattr__(event, "times", times)
            return plan

    make_store(tmp_path / "a", "webdataset", Uneven(lengths={"train": (3, 4)}))
    repack(tmp_path / "a", tmp_path / "b", format="zarr", **QUIET)
    repack(tmp_path / "b", tmp_path / "c", format="webdataset", **QUIET)
    assert tree(tmp_path / "a") == tree(tmp_path / "c")


def test_the_same_again_does_nothing_and_another_store_is_refused(tmp_path):
    make_store(tmp_path / "a", "webdataset", SOURCE)
    make_store(tmp_path / "other", "webdataset", Clips())
    assert not repack(tmp_path / "a", tmp_path / "b", encoding="lz4", **QUIET).already_complete
    assert repack(tmp_path / "a", tmp_path / "b", encoding="lz4", **QUIET).already_complete
    with pytest.raises(UsageError, match="--overwrite"):
        repack(tmp_path / "other", tmp_path / "b", encoding="lz4", **QUIET)


def test_a_damaged_store_is_not_passed_on(tmp_path, capsys):
    store = make_store(tmp_path / "a", "webdataset", SOURCE)
    shard, offset = store.locate("train", 2)
    data = bytearray((tmp_path / "a" / shard).read_bytes())
    data[offset] ^= 1
    (tmp_path / "a" / shard).write_bytes(data)
    assert main(["repack", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "zarr"]) == 5
    assert "train-0002" in capsys.readouterr().err and not (tmp_path / "b").exists()
