"""Moving digits: reproducible, kept apart between splits, and moving as they should."""

import argparse
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import SourceError, UsageError, open_store
from shards.cli import main
from shards.sources import SOURCES
from shards.sources.idx import find_idx, read_images
from shards.sources.moving_mnist import bounce_as_original, bounce_by_reflection, digit_pool
from tests.support.clips import tree, write_idx


def moving(*options: str):
    parser = argparse.ArgumentParser()
    SOURCES["moving-mnist"].add_arguments(parser)
    return SOURCES["moving-mnist"].build(parser.parse_args(list(options)))


def to_store(folder, idx_folder, *options: str) -> None:
    counts = ["--train", "5", "--val", "2", "--test", "3"]
    assert main(["convert", "moving-mnist", str(folder), "--digits", str(idx_folder), *counts, *options]) == 0


def test_made_twice_and_by_four_workers_it_is_the_same_bytes(tmp_path, idx_folder, format):
    options = ["--format", format, "--shard-mb", "0.4"]
    to_store(tmp_path / "a", idx_folder, *options)
    to_store(tmp_path / "b", idx_folder, *options)
    to_store(tmp_path / "c", idx_folder, *options, "--workers", "4")
    assert len(open_store(tmp_path / "a").splits["train"].shards) > 2
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == tree(tmp_path / "c")


def test_another_seed_is_another_store(tmp_path, idx_folder):
    to_store(tmp_path / "a", idx_folder)
    to_store(tmp_path / "b", idx_folder, "--seed", "1")
    one, other = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    assert not np.array_equal(one.read("train", 0, 0, 20), other.read("train", 0, 0, 20))


def test_counts_are_per_mode_and_modes_take_turns(tmp_path, idx_folder):
    to_store(tmp_path / "s", idx_folder)
    store = open_store(tmp_path / "s")
    assert {name: split.events for name, split in store.splits.items()} == {"train": 15, "val": 6, "test": 9}
    assert [event.mode for event in store.events("test")] == ["1-digit", "2-digit", "3-digit"] * 3
    assert store.manifest.modes == ("1-digit", "2-digit", "3-digit")
    assert store.manifest.frames.shape == (1, 64, 64) and {event.length for event in store.events("val")} == {20}


def test_splits_share_no_digit(tmp_path, idx_folder):
    """The pixels of the made-up digits tell which digit it is: 1..110 train, 111..120 val, 201..240 test."""
    to_store(tmp_path / "s", idx_folder)
    store = open_store(tmp_path / "s")
    shades = {
        split: {int(v) for e in store.events(split) for v in np.unique(store.read(split, e.index, 0, e.length))} - {0}
        for split in store.splits
    }
    assert shades["train"] <= set(range(1, 111))
    assert shades["val"] <= set(range(111, 121))
    assert shades["test"] <= set(range(201, 241))
    digits = store.metadata("test", 2)["details"]["digits"]
    assert len(digits) == 3 and set(np.unique(store.read("test", 2, 0, 20))) <= {0, *(d + 201 for d in digits)}


def test_the_embedded_digits_are_kept_apart_too():
    pools = {split: digit_pool("sklearn", split) for split in ("train", "val", "test")}
    ranges = sorted((pool.first, pool.first + len(pool.images)) for pool in pools.values())
    assert ranges[0][0] == 0 and ranges[-1][1] == 1797
    assert all(one[1] == two[0] for one, two in itertools.pairwise(ranges))
    images = {split: {image.tobytes() for image in pool.images} for split, pool in pools.items()}
    assert not images["train"] & images["test"] and not images["val"] & images["test"]
    assert pools["train"].images.shape[1:] == (28, 28) and pools["train"].images.max() == 255


def test_a_subset_of_modes_holds_the_same_sequences(idx_folder):
    """A model trained on two digits alone sees the two-digit sequences of the mixture."""
    mixed, alone = (moving("--digits", str(idx_folder), "--modes", modes) for modes in ("1,2,3", "2"))
    events = {event.key: event for event in mixed.plan().splits["train"]}
    for event in alone.plan().splits["train"][:3]:
        assert np.array_equal(alone.read(event).frames, mixed.read(events[event.key]).frames)


def test_the_brighter_pixel_wins_and_digits_stay_whole(idx_folder):
    source = moving("--digits", str(idx_folder), "--modes", "3")
    for event in source.plan().splits["train"][:20]:
        frames = source.read(event).frames[:, 0]
        brightest = frames.max()
        assert all((frame == brightest).sum() == 28 * 28 for frame in frames)


def test_digits_scale_with_the_frame(idx_folder):
    source = moving("--digits", str(idx_folder), "--size", "32", "--modes", "1", "--length", "7")
    frames = source.read(source.plan().splits["train"][0]).frames
    assert frames.shape == (7, 1, 32, 32)
    assert all((frame > 0).sum() == 14 * 14 for frame in frames)


@given(st.floats(0, 1), st.floats(-1, 1), st.integers(1, 100))
def test_reflected_digits_move_within_the_frame_at_constant_speed(start, direction, free):
    positions = bounce_by_reflection(start, direction, 200, free)
    assert positions.min() >= 0 and positions.max() <= free
    assert abs(positions[0] - start * free) <= 0.5 + 1e-9
    steps = np.abs(np.diff(positions))
    assert steps.max() <= abs(direction) * 0.1 * free + 1 + 1e-9


def test_a_reflected_digit_comes_back_from_the_wall():
    assert list(bounce_by_reflection(0.0, 1.0, 22, 36)[[0, 1, 9, 10, 11, 20, 21]]) == [0, 4, 32, 36, 32, 0, 4]


def trajectory_of_the_original(x, y, theta, seq_length, canvas_size):
    """Srivastava's rule for both axes, written from its description: step, clip, turn, cut to whole pixels."""
    v_x, v_y = math.cos(theta), math.sin(theta)
    columns, rows = [], []
    for _ in range(seq_length):
        y += v_y * 0.1
        x += v_x * 0.1
        if x <= 0:
            x, v_x = 0, -v_x
        if x >= 1.0:
            x, v_x = 1.0, -v_x
        if y <= 0:
            y, v_y = 0, -v_y
        if y >= 1.0:
            y, v_y = 1.0, -v_y
        columns.append(int(canvas_size * x))
        rows.append(int(canvas_size * y))
    return columns, rows


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 2 * math.pi), st.integers(1, 100))
def test_digits_move_as_in_the_original_generator(x, y, theta, free):
    columns, rows = trajectory_of_the_original(x, y, theta, 40, free)
    assert list(bounce_as_original(x, math.cos(theta), 40, free)) == columns
    assert list(bounce_as_original(y, math.sin(theta), 40, free)) == rows


def test_the_two_rules_at_a_wall():
    assert list(bounce_by_reflection(0.95, 1.0, 4, 36)) == [34, 34, 31, 27]
    assert list(bounce_as_original(0.95, 1.0, 3, 36)) == [36, 32, 28]


def test_the_original_rule_touches_walls_more_often():
    """15 % of frames against 5 %: a score on data of one rule isn't comparable with one on data of the other."""
    draw = np.random.default_rng(0)
    shares = {}
    for rule in (bounce_as_original, bounce_by_reflection):
        touched = 0
        for start, angle in zip(draw.random(4000), draw.random(4000) * 2 * math.pi, strict=True):
            positions = rule(start, math.cos(angle), 20, 36)
            touched += int(((positions == 0) | (positions == 36)).sum())
        shares[rule] = touched / (4000 * 20)
    assert shares[bounce_as_original] > 1.8 * shares[bounce_by_reflection]


def test_the_rule_at_the_walls_is_in_the_manifest_and_in_the_frames(tmp_path):
    digests = {}
    for rule in ("original", "reflect"):
        options = ["--train", "2", "--val", "0", "--test", "0", "--modes", "2", "--bounce", rule]
        assert main(["convert", "moving-mnist", str(tmp_path / rule), *options]) == 0
        manifest = json.loads((tmp_path / rule / "manifest.json").read_text())
        assert rule in json.dumps(manifest["conversion"])
        digests[rule] = manifest["splits"]["train"]
    assert digests["original"] != digests["reflect"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "20", "--digit-size", "20"], "digit of 20 pixels has no room to move in frames of 20"),
        (["--train", "-1"], "can't be negative"),
        (["--length", "0"], "can't be less than 1"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message):
        moving(*options)


def test_too_few_digits_for_validation(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.ones((5, 28, 28), np.uint8))
    with pytest.raises(SourceError, match=r"5 training digits are too few .* --val 0"):
        moving("--digits", str(tmp_path)).plan()


def bad_idx(folder, name: str, data: bytes):
    path = folder / name
    path.write_bytes(data)
    return path


def test_idx_missing_file(tmp_path):
    with pytest.raises(
        SourceError, match=r"no t10k-images-idx3-ubyte or .*\(it is empty\); put MNIST's original files"
    ):
        find_idx(tmp_path, "t10k-images-idx3-ubyte")
    (tmp_path / "train.csv").touch()
    with pytest.raises(SourceError, match=r"it holds train.csv"):
        find_idx(tmp_path, "t10k-images-idx3-ubyte")
    with pytest.raises(SourceError, match="nowhere is not a folder"):
        find_idx(tmp_path / "nowhere", "t10k-images-idx3-ubyte")


def test_idx_files_with_a_dot_in_their_name_are_understood(tmp_path):
    write_idx(tmp_path / "train-images.idx3-ubyte", np.ones((1, 28, 28), np.uint8))
    assert find_idx(tmp_path, "train-images-idx3-ubyte").name == "train-images.idx3-ubyte"


@pytest.mark.parametrize("end", ["", ".gz"])
def test_idx_truncated(tmp_path, end):
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    write_idx(path, np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(
        SourceError, match=r"train-images-idx3-ubyte.*(has 4840|cut off).*fetch the file again"
    ) as error:
        read_images(path)
    if not end:
        assert "10 images of 28x28 = 7840 bytes" in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the header has 16 bytes, the file 0"),
        (b"\0\0\x08\x03\0\0", "the header has 16 bytes, the file 6"),
        (b"\0\0\x08\x01" + bytes(12), "magic number is 0x00000801, should be 0x00000803"),
        (b"\x1f\x8b" + bytes(14), "magic number is 0x1f8b0000.*still compressed"),
        (b"\0\0\x08\x03" + bytes(12), r"holds no images \(0 of 0x0\)"),
        (b"\0\0\x08\x03" + b"\0\0\0\1" * 3 + b"ab", "longer than the 1 bytes"),
    ],
)
def test_idx_that_is_none(tmp_path, data, message):
    with pytest.raises(SourceError, match=message):
        read_images(bad_idx(tmp_path, "train-images-idx3-ubyte", data))


def test_idx_gz_that_is_no_gzip(tmp_path):
    with pytest.raises(SourceError, match=r"x.gz: the gzip data is cut off or damaged"):
        read_images(bad_idx(tmp_path, "x.gz", b"hello world, not gzip"))
