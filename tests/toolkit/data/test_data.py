"""Order, windows and batches: every window once, the same global batches on any number of ranks, from any step on."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import Event, Scale, StoreError, open_store
from toolkit.data.augment import augment
from toolkit.data.batches import Share, read_batches
from toolkit.data.order import permutation, rank_positions, window_at
from toolkit.data.windows import WindowSet, to_unit
from toolkit.errors import ConfigError


class FakeManifest:
    scale = Scale("count", "1", 0.0, 1.0, 255)


class FakeStore:
    """Events whose frames say where they are: value = 10 * event + frame."""

    path = "fake"

    def __init__(self, events: list[Event]) -> None:
        self.splits = {"train": None}
        self._events = events
        self.manifest = FakeManifest()

    def events(self, split: str) -> list[Event]:
        return self._events

    def read(self, split: str, index: int, start: int, stop: int) -> np.ndarray:
        values = np.arange(start, stop, dtype=np.uint8) + 10 * index
        return values.reshape(-1, 1, 1, 1)


def event(index: int, length: int, run: str, offset: int = 0, mode: str | None = None) -> Event:
    return Event(f"e{index}", index, length, mode, run, offset, None)


def store_of(count: int) -> FakeStore:
    return FakeStore([event(i, 4, f"r{i}") for i in range(count)])


def test_windows_slide_and_stride() -> None:
    store = FakeStore([event(0, 7, "a"), event(1, 5, "b")])
    assert len(WindowSet(store, "train", 5, 1)) == 3 + 1
    assert len(WindowSet(store, "train", 5)) == 2
    windows = WindowSet(store, "train", 5, 1)
    assert windows[2].frames.ravel().tolist() == [2, 3, 4, 5, 6]
    assert [windows[i].key for i in range(4)] == ["e0@0000", "e0@0001", "e0@0002", "e1@0000"]


def test_a_window_spans_consecutive_events_of_a_run_but_not_a_gap() -> None:
    store = FakeStore([event(0, 4, "a", 0), event(1, 4, "a", 4), event(2, 4, "a", 12)])
    windows = WindowSet(store, "train", 6, 1)
    assert [windows[i].frames.ravel().tolist() for i in range(len(windows))] == [
        [0, 1, 2, 3, 10, 11],
        [1, 2, 3, 10, 11, 12],
        [2, 3, 10, 11, 12, 13],
    ]
    spanning = WindowSet(FakeStore([event(0, 2, "a", 0), event(1, 2, "a", 2), event(2, 2, "a", 4)]), "train", 6)
    assert spanning[0].frames.ravel().tolist() == [0, 1, 10, 11, 20, 21]


def test_modes_choose_events() -> None:
    store = FakeStore([event(0, 4, "a", mode="1"), event(1, 4, "b", mode="2")])
    assert [w.mode for w in (WindowSet(store, "train", 4, modes=["2"])[0],)] == ["2"]
    with pytest.raises(ConfigError, match=r"no event of mode 3; it has 1, 2"):
        WindowSet(store, "train", 4, modes=["3"])


def test_too_long_and_unknown_split_name_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"windows of 20 frames .* longest run without a gap, 4 frames"):
        WindowSet(store_of(2), "train", 20)
    with pytest.raises(ConfigError, match="no split 'val'; it has train"):
        WindowSet(store_of(2), "val", 2)


def test_order_is_a_fixed_function() -> None:
    assert permutation(1, 0, 8).tolist() == [7, 4, 6, 3, 2, 0, 1, 5]
    assert permutation(1, 0, 50).tolist() != permutation(1, 1, 50).tolist()
    assert permutation(1, 0, 50).tolist() != permutation(2, 0, 50).tolist()


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 3))
def test_every_window_once_an_epoch(count: int, seed: int, epoch: int) -> None:
    seen = [window_at(epoch * count + i, seed, count) for i in range(count)]
    assert sorted(seen) == list(range(count))


@settings(max_examples=25)
@given(
    count=st.integers(1, 13),
    world=st.sampled_from([1, 2, 3, 4]),
    per_rank=st.integers(1, 3),
    micro=st.integers(1, 3),
    first=st.integers(0, 9),
    seed=st.integers(0, 3),
)
def test_global_batches_do_not_depend_on_ranks_or_restarts(
    count: int, world: int, per_rank: int, micro: int, first: int, seed: int
) -> None:
    batch, windows, steps = world * per_rank * micro, WindowSet(store_of(count), "train", 4), 3
    alone = list(islice(read_batches(windows, seed, Share(batch, batch, 0, 1), 0), first + steps))
    expected = [b.keys for b in alone[first:]]
    together: list[list[str]] = [[] for _ in range(steps)]
    for rank in range(world):
        share = Share(batch, micro, rank, world)
        for i, b in enumerate(islice(read_batches(windows, seed, share, first), steps * share.accumulation)):
            together[i // share.accumulation] += b.keys
            assert b.positions == [
                p for p in b.positions if p in rank_positions(first + i // share.accumulation, batch, rank, world)
            ]
    assert together == expected


def test_an_epoch_reads_every_window_once_across_steps() -> None:
    windows = WindowSet(store_of(12), "train", 4)
    keys = [key for b in islice(read_batches(windows, 0, Share(4, 4, 0, 1), 0), 3) for key in b.keys]
    assert Counter(keys) == Counter({f"e{i}@0000": 1 for i in range(12)})


def test_reader_processes_change_nothing() -> None:
    windows = WindowSet(store_of(5), "train", 4)
    here = [b.keys for b in islice(read_batches(windows, 0, Share(2, 2, 0, 1), 3), 4)]
    loader = read_batches(windows, 0, Share(2, 2, 0, 1), 3, workers=2)
    assert [b.keys for b in islice(loader, 4)] == here
    loader.close()


@pytest.fixture(scope="module")
def four_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 events of 8 frames of 32 x 32, 8 KiB each, in four shards."""
    path = tmp_path_factory.mktemp("stores") / "sharded"
    options = ["--train", "23", "--val", "0", "--test", "0", "--modes", "2", "--size", "32", "--length", "8"]
    command = [sys.executable, "-m", "shards", "convert", "moving-mnist", str(path), *options, "--shard-mb", "0.07"]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores is meant
@pytest.mark.parametrize("case", range(4))
def test_stop_and_resume_on_other_ranks_and_workers_of_a_real_store(case: int, four_shards: Path) -> None:
    """Seeded random cases: stopped at a step, gone on with other ranks, workers and micro-batches."""
    store = open_store(four_shards)
    assert len(store.manifest.splits["train"].shards) == 4
    choose = random.Random(case)
    windows = WindowSet(store, "train", choose.choice([3, 8]), choose.choice([1, 4]))
    seed, batch, steps = choose.randrange(9), 4, 9
    stop = choose.randrange(1, steps)
    alone = list(islice(read_batches(windows, seed, Share(batch, batch, 0, 1), 0), steps))
    frames = [batch.frames for batch in alone]
    world, workers = choose.choice([(1, 5), (2, 1), (4, 0), (2, 0)])  # 5 workers on 4 shards
    for rank in range(world):
        share = Share(batch, 1, rank, world)
        loader = read_batches(windows, seed, share, stop, workers=workers)
        mine = list(islice(loader, (steps - stop) * share.accumulation))
        got = torch.cat([part.frames for part in mine]).view(steps - stop, share.accumulation, *frames[0].shape[1:])
        expected = torch.stack(frames[stop:])[:, rank * share.accumulation : (rank + 1) * share.accumulation]
        assert torch.equal(got, expected)
    epoch = list(islice(read_batches(windows, seed, Share(1, 1, 0, 1), 0), len(windows)))
    assert len({part.keys[0] for part in epoch}) == len(windows)


def test_to_unit() -> None:
    scale = Scale("dBZ", "dBZ", 0.0, 0.25, 254, 255)
    assert to_unit(torch.tensor([0, 127, 254, 255], dtype=torch.uint8), scale).tolist() == [0, 0.5, 1, 0]


def frames_of(height: int, width: int) -> np.ndarray:
    return np.arange(3 * height * width, dtype=np.uint8).reshape(3, 1, height, width)


@pytest.mark.parametrize("kind", ["flip", "rotate", "reverse"])
def test_augmentation_is_a_symmetry_decided_by_the_sample(kind: str) -> None:
    frames = frames_of(4, 4)
    seen = {augment(frames, (kind,), 1, position).tobytes() for position in range(64)}
    assert len(seen) == {"flip": 4, "rotate": 4, "reverse": 2}[kind]
    for position in range(8):
        once, again = (augment(frames, (kind,), 1, position) for _ in range(2))
        assert np.array_equal(once, again)
        assert sorted(once.ravel()) == sorted(frames.ravel())
        assert once.flags.c_contiguous
    assert augment(frames_of(2, 5), ("rotate",), 1, 3).shape == (3, 1, 2, 5)


def test_augmented_batches_do_not_depend_on_the_ranks() -> None:
    windows = WindowSet(store_of(6), "train", 4)
    kinds = ("flip", "rotate", "reverse")
    alone = next(read_batches(windows, 0, Share(4, 4, 0, 1), 2, kinds=kinds))
    parts = [next(read_batches(windows, 0, Share(4, 2, rank, 2), 2, kinds=kinds)) for rank in (0, 1)]
    assert torch.equal(alone.frames, torch.cat([part.frames for part in parts]))


class DamagedStore(FakeStore):
    """Events 1 and 2 can't be read."""

    def read(self, split: str, index: int, start: int, stop: int) -> np.ndarray:
        if index in (1, 2):
            raise StoreError(f"train/000000.tar: key e{index}: damaged")
        return super().read(split, index, start, stop)


def test_a_damaged_sample_is_raised_or_skipped_and_told() -> None:
    events = [event(i, 4, f"r{i}") for i in range(5)]
    windows = WindowSet(DamagedStore(events), "train", 4)
    with pytest.raises(StoreError, match=r"key e[12]: damaged"):
        list(islice(read_batches(windows, 0, Share(5, 5, 0, 1), 0), 1))
    batch = next(read_batches(windows, 0, Share(5, 5, 0, 1), 0, on_error="skip"))
    assert Counter(batch.keys) == Counter({"e0@0000": 1, "e3@0000": 3, "e4@0000": 1})
    assert len(batch.skipped) == 3  # e1, then e2 in its place, and e2 itself
    nothing_left = WindowSet(DamagedStore(events[1:3]), "train", 4)
    with pytest.raises(StoreError, match="2 consecutive samples cannot be read"):
        next(read_batches(nothing_left, 0, Share(1, 1, 0, 1), 0, on_error="skip"))
