"""The manifest says all, and refuses what isn't one; codes and values belong together as it says."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import Manifest, ManifestError, Scale, UsageError
from shards.manifest import FileInfo, FrameSpec, ShardInfo, SourceInfo, SplitInfo

DBZ = Scale("radar reflectivity", "dBZ", 0.0, 0.25, 254, 255)
MANIFEST = Manifest(
    format="webdataset",
    name="m",
    frames=FrameSpec(1, 2, 3),
    step_seconds=300.0,
    scale=DBZ,
    splits={"train": SplitInfo(2, 9, (ShardInfo("train/000000.tar", 10, 2, "a" * 64, "b" * 64),))},
    modes=("a",),
    source=SourceInfo("s", "l", "c", "u"),
    conversion={"seed": 1},
    files=(FileInfo("x/y", 3, "c" * 64),),
)


def edited(**changes) -> str:
    data = json.loads(MANIFEST.to_json())
    for path, value in changes.items():
        *inner, last = path.split("__")
        place = data
        for key in inner:
            place = place[int(key) if key.isdigit() else key]
        if value is KeyError:
            del place[last]
        else:
            place[last] = value
    return json.dumps(data)


def test_json_round_trip():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale__gain": KeyError}, "scale: the key 'gain' is missing"),
        ({"frames__depth": 3}, "frames: unknown keys depth"),
        ({"colour": 1}, "unknown keys colour"),
        ({"format_version": 9}, "format_version is 9, this program reads 1"),
        ({"format": "npz"}, "format is 'npz', should be one of webdataset, zarr"),
        ({"frames__height": "8"}, "frames: height should be int of .*, found '8'"),
        ({"splits__train__events": True}, r"splits.train: events should be int of .*, found True"),
        ({"frames__dtype": "float32"}, "frames should be uint8"),
        ({"splits": []}, "splits should be dict"),
        ({"splits__../up": {}}, "'../up' is not a name for a split"),
        ({"splits__train__shards__0__file": "../../etc/passwd"}, "does not lie inside the store"),
        ({"splits__train__shards__0__file": "/etc/passwd"}, "does not lie inside the store"),
        ({"splits__train__shards__0__file": "train/..\\x"}, "does not lie inside the store"),
    ],
)
def test_a_manifest_that_is_none(changes, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.from_json(edited(**changes))


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_not_a_manifest_at_all(text):
    with pytest.raises(ManifestError, match="here"):
        Manifest.from_json(text, "here")


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(ManifestError, match=r"is not a store: it has no manifest.json; .*convert"):
        Manifest.load(tmp_path)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=50))
def test_codes_survive_the_way_to_values_and_back(codes):
    codes = np.array(codes, dtype=np.uint8)
    assert np.array_equal(DBZ.to_code(DBZ.to_physical(codes)), codes)


@given(st.lists(st.floats(0, 63.5), min_size=1, max_size=50))
def test_values_come_back_to_half_a_code(values):
    back = DBZ.to_physical(DBZ.to_code(values))
    assert np.abs(back - values).max() <= DBZ.gain / 2 + 1e-6


def test_missing_is_nan_as_a_value_and_zero_for_models():
    codes = np.array([0, 127, 254, 255], dtype=np.uint8)
    assert np.array_equal(DBZ.to_physical(codes), np.array([0, 31.75, 63.5, np.nan], np.float32), equal_nan=True)
    assert np.array_equal(DBZ.normalise(codes), np.array([0, 0.5, 1, 0], np.float32))
    assert list(DBZ.to_code([np.nan, -10.0, 99.0])) == [255, 0, 254]


def test_nan_without_a_missing_code_is_refused():
    with pytest.raises(UsageError, match="1 values are NaN"):
        Scale("intensity", "1", 0.0, 1 / 255).to_code([np.nan, 0.5])
