"""The real archives: MNIST's own files and two days of MeteoSwiss radar."""

from datetime import datetime, timezone

import numpy as np
import pytest
import xarray
from PIL import Image

from shards import open_store
from shards.cli import main
from shards.sources.idx import find_idx, read_images
from shards.sources.moving_mnist import digit_pool
from shards.verify import verify


@pytest.mark.parametrize(("stem", "count"), [("train-images-idx3-ubyte", 60_000), ("t10k-images-idx3-ubyte", 10_000)])
def test_mnist_reads_whole(real_data, stem, count):
    images = read_images(find_idx(real_data / "mnist", stem))
    assert images.shape == (count, 28, 28) and images.max() == 255 and 30 < images.mean() < 36


def test_mnist_digits_are_kept_apart(real_data):
    pools = {split: digit_pool(str(real_data / "mnist"), split) for split in ("train", "val", "test")}
    assert {split: len(pool.images) for split, pool in pools.items()} == {"train": 55_000, "val": 5_000, "test": 10_000}
    assert pools["val"].first == 55_000
    test = {image.tobytes() for image in pools["test"].images}
    assert not any(image.tobytes() in test for image in pools["train"].images[:5_000])


@pytest.fixture(scope="module", params=["webdataset", "zarr"])
def radar_store(request, real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("radar") / "mch"
    archive = str(real_data / "radar" / "mch" / "20150515")
    splits = ["--split", "train=2015-05-15..2015-05-15T18:00", "--split", "test=2015-05-15T18:00.."]
    assert main(["convert", "radar", archive, str(folder), *splits, "--format", request.param]) == 0
    return open_store(folder)


def test_a_day_of_radar_is_whole(radar_store):
    assert verify(radar_store.path) == []
    assert radar_store.manifest.frames.shape == (1, 384, 384)
    assert sum(split.frames for split in radar_store.splits.values()) == 40
    assert [event.start_time for event in radar_store.events("train")] == ["2015-05-15T15:45:00Z"]


def test_physical_values_are_the_gifs_to_half_a_code(real_data, radar_store):
    """Straight from the GIF by the documented formula, in mm/h first, as pysteps has it."""
    path = next((real_data / "radar/mch/20150515").glob("AQC151351600*.gif"))
    with Image.open(path) as image:
        index = np.asarray(image)[128:512, 163:547].astype(np.float64)
    rate = 12 * (10 ** ((index - 71.5) / 20) / 316) ** (1 / 1.5)
    rate[(index < 2) | ((index >= 251) & (index <= 254))] = 0
    expected = 10 * np.log10(np.maximum(316 * rate**1.5, 1.0))
    values = radar_store.manifest.scale.to_physical(radar_store.read("train", 0, 3, 4))[0, 0]
    seen = index != 255
    assert np.array_equal(np.isnan(values), ~seen)
    assert (expected[seen] > 30).sum() > 1000
    assert np.abs(values[seen] - np.clip(expected[seen], 0, 63.5)).max() <= 0.125 + 1e-5


def test_xarray_finds_the_storm_by_its_time(radar_store):
    if radar_store.manifest.format != "zarr":
        pytest.skip("webdataset stores are no zarr groups")
    with xarray.open_zarr(radar_store.path, group="train") as data:
        frame = data.frames.sel(time=datetime(2015, 5, 15, 16, 0, tzinfo=timezone.utc).replace(tzinfo=None))
        assert frame.attrs["units"] == "dBZ" and 30 < float(frame.max()) < 63.5
        values = radar_store.manifest.scale.to_physical(radar_store.read("train", 0, 3, 4))[0]
        assert np.allclose(frame.values, values, equal_nan=True)
