"""Splits by name or drawn, crops and sizes: what the sources share."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards import SourceError, UsageError
from shards.sources.geometry import Geometry, parse_crop, parse_size, resize
from shards.sources.inputs import walk
from shards.sources.pictures import read_picture
from shards.sources.splits import Grouping, Part, Shares, divide, named_split

NAMES = st.lists(st.text("abc/1", min_size=1, max_size=8), min_size=1, max_size=30, unique=True)


@given(NAMES, st.floats(0, 0.5), st.floats(0, 0.5), st.integers(0, 5), st.sampled_from([None, r"[abc]+", r"\d"]))
def test_every_sequence_has_one_split_and_groups_stay_whole(names, val, test, seed, together):
    grouping = Grouping(Shares(val, test), together, seed)
    lengths = dict.fromkeys(names, 9)
    try:
        parts, _ = divide(lengths, grouping)
    except UsageError:  # of two sequences both can't be had
        return
    assert set(parts) == set(names) and {len(found) for found in parts.values()} == {1}
    split_of = {name: part.split for name, (part,) in parts.items()}
    assert set(split_of.values()) <= {"train", "val", "test"}
    assert divide(dict.fromkeys(names[::-1], 9), grouping)[0] == parts
    if together is not None:
        import re

        groups: dict[str, set[str]] = {}
        for name in names:
            found = re.search(together, name)
            groups.setdefault(found[0] if found else name, set()).add(split_of[name])
        assert all(len(splits) == 1 for splits in groups.values())


@given(st.integers(0, 1000), st.floats(0, 0.4), st.floats(0, 0.4))
def test_counts_of_shares(total, val, test):
    counts = Shares(val, test).counts(total)
    assert sum(counts.values()) == total and list(counts) == ["train", "val", "test"]
    if total >= 3:
        assert (counts["val"] > 0) == (val > 0) and (counts["test"] > 0) == (test > 0)
    assert abs(counts["test"] - total * test) <= 1


def test_the_test_split_does_not_depend_on_the_validation_share():
    lengths = {f"s{i}": 5 for i in range(50)}
    few, many = (divide(lengths, Grouping(Shares(val, 0.2), None, 0))[0] for val in (0.0, 0.3))
    assert {n for n in lengths if few[n][0].split == "test"} == {n for n in lengths if many[n][0].split == "test"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/a/b", "train"),
        ("Validation/a", "val"),
        ("testing/a", "test"),
        ("mnist_test_seq.npy", "test"),
        ("a/test/b", None),
        ("train_test.npy", None),
        ("contest.npy", None),
    ],
)
def test_names_that_say_a_split(name, split):
    assert named_split(name) == split


def test_names_that_say_it_in_part():
    with pytest.raises(
        UsageError, match=r"1 of 2 sequences are named for a split, b and 0 more are not; move them, or"
    ):
        divide({"train/a": 3, "b": 3}, Grouping(None, None, 0))
    whole = divide({"train/a": 3, "b": 3}, Grouping(Shares(0, 0), None, 0))[0]
    assert whole == {"train/a": [Part("train", 0, 3)], "b": [Part("train", 0, 3)]}
    with pytest.raises(UsageError, match=r"'p1' is in test and in train \(train/p1\)"):
        divide({"test/p1": 3, "train/p1": 3}, Grouping(None, r"p\d", 0))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))
def test_resizing_stays_within_the_values(height, width, new_height, new_width, seed):
    frame = np.random.default_rng(seed).integers(0, 250, (2, height, width), dtype=np.uint8)
    out = resize(frame, (new_height, new_width), 255)
    assert out.shape == (2, new_height, new_width) and out.min() >= frame.min() and out.max() <= frame.max()
    absent = np.full_like(frame, 255)
    assert (resize(absent, (new_height, new_width), 255) == 255).all()


def test_resizing_is_pillows_bilinear_when_it_enlarges():
    frame = np.random.default_rng(0).integers(0, 256, (12, 16), dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(frame).resize((40, 30), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(resize(frame, (30, 40)).astype(int) - pillow).max() <= 1


def test_resizing_to_half_averages_pairs():
    frame = np.array([[0, 10, 20, 30], [40, 50, 60, 70]], np.uint8)
    assert resize(frame, (1, 2)).tolist() == [[25, 45]]
    frame[0, 0] = frame[1, 0] = 255
    assert resize(frame, (1, 2), 255).tolist() == [[30, 45]]  # of the observed neighbours


def test_sizes():
    assert (parse_size(None), parse_size("none"), parse_size("8"), parse_size("8x9")) == (None, None, (8, 8), (8, 9))
    for text in ("", "8x", "0", "8x9x1", "-1"):
        with pytest.raises(UsageError, match="--size"):
            parse_size(text)
    geometry = Geometry((10, 20), parse_crop("1,2,8,8", (10, 20)), (4, 4))
    assert geometry.shape == (4, 4) and geometry.apply(np.zeros((3, 1, 10, 20), np.uint8)).shape == (3, 1, 4, 4)


def test_walking_what_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=r"file is not a folder \(it is a file\)"):
        walk(tmp_path / "file")
    with pytest.raises(SourceError, match=r"\(it does not exist\)"):
        walk(Path("/nowhere"))


def test_a_picture_cut_off(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"a.png: unreadable frame"):
        read_picture(tmp_path / "a.png", 1)
