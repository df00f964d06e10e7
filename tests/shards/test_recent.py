"""The frames that a forecast begins with: in order, without gaps, encoded as for training, from any archive."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from shards import SourceError, UsageError, open_store
from shards.cli import main
from shards.recent import Archive, open_archive
from tests.support.archives import (
    numbered,
    numbers_of,
    radar_times,
    save,
    write_cf,
    write_gifs,
    write_knmi,
    write_radar,
)

START = datetime(2016, 7, 11, 20, 45)
STEP = 300.0


def iso(minutes: int) -> str:
    return f"{START + timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Thirty frames, of which the 13th and 14th are missing."""
    write_radar(tmp_path / "in", START, 30, skip=(12, 13))
    return open_archive(tmp_path / "in", {"source": "radar", "crop": "none", "reader": "meteoswiss"})


def test_the_last_frames_are_those_of_the_archive(tmp_path: Path) -> None:
    write_gifs(tmp_path / "in", radar_times(12))
    archive = open_archive(tmp_path / "in", {"source": "radar", "crop": "none"})
    frames = archive.up_to(archive.series()[-1], 4, STEP)
    assert numbers_of(archive.read(frames), 100) == [8, 9, 10, 11]
    assert archive.description.scale.unit == "dBZ" and archive.description.step_seconds == STEP


def test_a_gap_is_refused_with_its_times_and_the_last_moment_without(archive: Archive) -> None:
    last = archive.series(iso(80))[-1]
    with pytest.raises(UsageError) as caught:
        archive.up_to(last, 10, STEP)
    for part in ("900 s", iso(55), iso(70), "300 s", f"--at {iso(55)}"):
        assert part in str(caught.value)
    assert len(archive.up_to(archive.series(iso(55))[-1], 10, STEP)) == 10
    with pytest.raises(UsageError, match=r"12 frames up to .*shown 13"):
        archive.up_to(archive.series(iso(55))[-1], 13, STEP)


def test_following_frames_end_at_a_gap(archive: Archive) -> None:
    last = archive.series(iso(45))[-1]
    assert [str(frame) for frame in archive.following(last, 10, STEP)] == [iso(50), iso(55)]
    assert archive.following(archive.series()[-1], 10, STEP) == ()


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("2016-07-11T21:50", [iso(55), iso(70)]),
        ("2016-07-11T23:50+02:00", [iso(55), iso(70)]),
        ("0001-01-01T00:00+05:00", ["neither a time"]),
        ("yesterday", ["neither a time"]),
    ],
)
def test_a_moment_without_a_frame_names_the_nearest(archive: Archive, at: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        archive.series(at)
    assert all(word in str(caught.value) for word in words)


def test_a_store_gives_the_same_frames_as_its_archive(tmp_path: Path) -> None:
    """Whose splits are of no matter."""
    write_gifs(tmp_path / "in", radar_times(20))
    assert main(["convert", "radar", str(tmp_path / "in"), str(tmp_path / "store"), "--crop", "none"]) == 0
    recorded = open_store(tmp_path / "store").manifest.conversion
    archives = [open_archive(tmp_path / name, recorded) for name in ("in", "store")]
    chosen = [archive.up_to(archive.series()[-1], 8, STEP) for archive in archives]
    assert [str(frame) for frame in chosen[0]] == [str(frame) for frame in chosen[1]]
    assert np.array_equal(*(archive.read(frames) for archive, frames in zip(archives, chosen, strict=True)))
    with pytest.raises(UsageError, match="is a store"):
        open_archive(tmp_path / "store", recorded, ["--crop", "8"])


def test_recorded_options_hold_unless_others_are_given(tmp_path: Path) -> None:
    write_radar(tmp_path / "in", START, 3)
    recorded = {"source": "radar", "reader": "meteoswiss", "crop": "2,4,16,20", "size": "8x10", "input": "elsewhere"}
    assert open_archive(tmp_path / "in", recorded).description.frames.shape == (1, 8, 10)
    assert open_archive(tmp_path / "in", recorded, ["--size", "none"]).description.frames.shape == (1, 16, 20)


def test_another_service_brings_its_own_crop(tmp_path: Path) -> None:
    write_knmi(tmp_path / "in", radar_times(2), [np.zeros((640, 600)) for _ in range(2)])
    recorded = {"source": "radar", "reader": "meteoswiss", "crop": "16"}
    assert open_archive(tmp_path / "in", recorded).description.frames.shape == (1, 384, 384)


def test_images_without_a_clock_follow_in_natural_order(tmp_path: Path) -> None:
    for sequence, first in (("a", 100), ("b", 0)):
        for number in range(12):
            save(tmp_path / "in" / sequence / f"frame{number}.png", numbered(first + number))
    archive = open_archive(tmp_path / "in", {"source": "images", "channels": "auto"})
    frames = archive.up_to(archive.series()[-1], 4, None)
    assert numbers_of(archive.read(frames), 100) == [8, 9, 10, 11] and frames[0].time is None
    first = archive.series(archive.frames[5].key)
    assert numbers_of(archive.read(first), 100) == [100, 101, 102, 103, 104, 105]
    with pytest.raises(UsageError, match="no clock"):
        archive.series("2020-01-01")


def test_cf_coordinates_follow_crop_and_turn(tmp_path: Path) -> None:
    import xarray

    axis = np.arange(16.0)
    projection = xarray.DataArray(0, attrs={"grid_mapping_name": "latitude_longitude"})
    rain = xarray.DataArray(
        np.stack([numbered(i, 0, 8) for i in range(4)]).astype(np.float32)[:, ::-1],
        coords={"time": np.array(radar_times(4), dtype="datetime64[ns]"), "y": 40 + axis, "x": 5 + axis},
        dims=("time", "y", "x"),
        attrs={"units": "mm/h", "grid_mapping": "crs"},
    )
    rain["x"].attrs["units"] = "degrees_east"
    xarray.Dataset({"rain": rain, "crs": projection}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    grid = open_archive(tmp_path / "a.nc", {}, ["--crop", "0,4,12,8"]).grid()
    assert grid is not None and grid.geographic and grid.axis_attributes("x")["units"] == "degrees_east"
    assert grid.y.tolist() == [55.0 - i for i in range(12)]  # north first
    assert grid.x.tolist() == [9.0 + i for i in range(8)]
    assert grid.mapping_attributes()["grid_mapping_name"] == "latitude_longitude"
    half = open_archive(tmp_path / "a.nc", {}, ["--crop", "0,4,12,8", "--size", "6x4"]).grid()
    assert half is not None and half.x.tolist() == [9.5, 11.5, 13.5, 15.5]


def test_an_archive_that_grows_is_seen(tmp_path: Path) -> None:
    values = np.zeros((6, 16, 16), np.float32)
    write_cf(tmp_path / "a.nc", radar_times(4), values[:4], "mm/h")
    assert len(open_archive(tmp_path / "a.nc", {}).frames) == 4
    write_cf(tmp_path / "next" / "a.nc", radar_times(6), values, "mm/h")
    (tmp_path / "next" / "a.nc").replace(tmp_path / "a.nc")
    assert len(open_archive(tmp_path / "a.nc", {}).frames) == 6


def test_frames_without_a_clock_are_called_as_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("000", "001", "002"):
        save(tmp_path / f"newest/{name}.png", np.zeros((8, 8), np.uint8))
    archive = open_archive(tmp_path / "newest", {})
    assert [str(frame) for frame in archive.frames] == ["newest/000.png", "newest/001.png", "newest/002.png"]
    assert len(archive.series("newest/001.png")) == 2
    with pytest.raises(UsageError, match=r"3 frames up to newest/002.png, the model is shown 10"):
        archive.up_to(archive.frames[-1], 10, None)
    monkeypatch.chdir(tmp_path / "newest")
    assert str(open_archive(".", {}).frames[0]) == "newest/000.png"


def test_what_is_no_archive_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_archive(tmp_path / "nothing", {})
    with pytest.raises(UsageError, match="--source sonar"):
        open_archive(tmp_path, {}, source="sonar")


@pytest.mark.parametrize(("name", "units"), [("mch", "m"), ("knmi", "m"), ("bom", "m"), ("mrms", "degree")])
def test_real_archives_know_where_they_lie(real_data: Path, name: str, units: str) -> None:
    if name == "mrms":
        pytest.importorskip("pyproj")  # before eccodes: see radar_grib.py
        pytest.importorskip("eccodes")
    archive = open_archive(real_data / "radar" / name, {})
    grid, (_, height, width) = archive.grid(), archive.description.frames.shape
    assert grid is not None and grid.unit == units
    assert (len(grid.y), len(grid.x)) == (height, width)
    assert np.all(np.diff(grid.y) < 0) and np.all(np.diff(grid.x) > 0)  # north first, west first
    first = {"mch": (351.5e3, 418.5e3), "knmi": (-3890.5e3, 176.5e3), "bom": (96e3, -96e3), "mrms": (53.715, -117.195)}[
        name
    ]
    assert (grid.y[0], grid.x[0]) == pytest.approx(first, rel=1e-6)  # the default crop's first pixel


def test_tiles_are_parts_of_frames(tmp_path: Path) -> None:
    write_radar(tmp_path / "in", START, 10)
    options = ["--crop", "none", "--split", "train=.."]
    for name, extra in (("whole", []), ("tiles", ["--tiles", "10"])):
        assert main(["convert", "radar", str(tmp_path / "in"), str(tmp_path / name), *options, *extra]) == 0
    whole, tiles = (open_store(tmp_path / name) for name in ("whole", "tiles"))
    frames = whole.read("train", 0, 0, 10)
    events = tiles.events("train")
    assert [event.key[-9:] for event in events] == [f"{y:04d}-{x:04d}" for y in (0, 10) for x in (0, 10, 20)]
    assert len({event.run for event in events}) == 6  # no window spans two of them
    for event in events:
        y, x = int(event.key[-9:-5]), int(event.key[-4:])
        assert np.array_equal(tiles.read("train", event.index, 0, 10), frames[..., y : y + 10, x : x + 10])
    assert "tiles" not in whole.manifest.conversion
    assert main(["convert", "radar", str(tmp_path / "in"), str(tmp_path / "no"), *options, "--tiles", "25"]) == 2
