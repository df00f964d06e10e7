"""What is written opens in xarray with the right times, units and places, and appears whole or not at all."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shards.errors import ShardError
from shards.georeference import grid_of
from shards.recent import Archive, open_archive
from tests.support.archives import numbered, save
from tests.support.forecasts import SVG, MakeRun
from toolkit.errors import ConfigError
from toolkit.forecast.files import as_dataset, check_output, clear_leftovers, write_forecast
from toolkit.forecast.make import Forecast, Request, make_forecast
from toolkit.forecast.picture import check_picture, draw
from toolkit.forecast.trained import Trained, load_trained

xarray = pytest.importorskip("xarray")
STEREO = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60 +a=6378137 +b=6356752"
PLACE = grid_of(np.arange(32) + 0.5, -np.arange(24) - 3500.5, STEREO, "km")


@pytest.fixture
def forecast(persistence: Trained, archive: Archive) -> Forecast:
    placed = dataclasses.replace(archive, description=dataclasses.replace(archive.description, grid=PLACE))
    return make_forecast(persistence, placed, archive.up_to(archive.series()[-1], 1, 300.0), Request(lead=3))


def picture(path: Path) -> tuple[tuple[int, int], int, set]:
    """Size, frames, and the colours of the first."""
    with Image.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        return image.size, frames, {colour for _, colour in image.convert("RGB").getcolors(10_000)}


def opened(path: Path):
    return xarray.open_zarr(path, consolidated=True) if path.is_dir() else xarray.open_dataset(path)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_it_opens_with_times_units_and_places(forecast: Forecast, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "deep" / f"forecast{suffix}"
    write_forecast(forecast, path)
    write_forecast(forecast, path)  # what was there is replaced
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    with opened(path) as data:
        rain = data["radar_reflectivity"]
        assert rain.dims == ("time", "y", "x") and rain.attrs["units"] == "dBZ"
        assert rain.attrs["standard_name"] == "equivalent_reflectivity_factor"
        assert (
            data.time.values.tolist()
            == np.arange(
                np.datetime64("2016-07-11T22:05", "ns"), np.datetime64("2016-07-11T22:20", "ns"), np.timedelta64(5, "m")
            ).tolist()
        )
        assert data.forecast_reference_time.values == np.datetime64("2016-07-11T22:00")
        assert data.lead_time.values.tolist() == [300, 600, 900] and data.lead_time.attrs["units"] == "s"
        assert np.array_equal(data.y, PLACE.y) and data.x.attrs["units"] == "m"
        mapping = data[rain.attrs["grid_mapping"]].attrs
        assert mapping["grid_mapping_name"] == "polar_stereographic" and mapping["semi_major_axis"] == 6378137.0
        assert np.array_equal(rain.values, forecast.values[0, :, 0], equal_nan=True)
        assert np.isnan(rain.values[0]).sum() == 3
        assert data.attrs["run"] == "tiny-persistence" and data.attrs["training_step"] == 0
        assert data.attrs["toolkit_version"] in data.attrs["source"]


def test_an_ensemble_has_members_and_clips_have_leads(make_run: MakeRun, tmp_path: Path) -> None:
    for number in range(6):
        save(tmp_path / "in" / "a" / f"{number}.png", numbered(number, size=(24, 32)))
    trained = load_trained(make_run("svg_lp", **SVG), "best", torch.device("cpu"))
    archive = open_archive(tmp_path / "in", {"source": "images", "channels": "grey"})
    trained = dataclasses.replace(trained, scale=archive.description.scale)
    made = make_forecast(trained, archive, archive.up_to(archive.series()[-1], 4, None), Request(2, samples=3))
    data = as_dataset(made)
    assert data["intensity"].dims == ("realization", "lead", "y", "x") and data["intensity"].shape == (3, 2, 24, 32)
    assert data.lead.values.tolist() == [1, 2] and data.realization.values.tolist() == [0, 1, 2]
    assert "time" not in data.coords and "x" not in data.coords
    draw(made, tmp_path / "a.png")  # without a clock
    assert picture(tmp_path / "a.png")[0][0] > 500


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_write_that_fails_leaves_what_was_there(
    forecast: Forecast, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"forecast{suffix}"
    write_forecast(forecast, path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        write_forecast(forecast, path)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    with opened(path) as data:
        assert data.time.size == 3


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_a_kill_at_any_moment_leaves_a_whole_file(forecast: Forecast, tmp_path: Path, suffix: str) -> None:
    """A folder can't be renamed onto another: a kill may leave it aside, from where the next writer brings it back."""
    path = tmp_path / f"forecast{suffix}"
    write_forecast(forecast, path)
    halves = 0
    for number in range(12):
        child = os.fork()
        if child == 0:
            while True:
                write_forecast(forecast, path)
        time.sleep(0.03 + 0.007 * number)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        halves += len(list(tmp_path.glob(".*.tmp")))
        if suffix == ".zarr":
            clear_leftovers(tmp_path)
        with opened(path) as data:
            assert np.array_equal(data["radar_reflectivity"].values, forecast.values[0, :, 0], equal_nan=True)
    assert halves  # some were killed while they wrote
    write_forecast(forecast, path)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_what_an_interrupted_forecast_left_is_cleared_away(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    gone = f"{socket.gethostname()}-{process.pid}"
    kept = (
        f".a.nc.{socket.gethostname()}-{os.getpid()}.tmp",
        f".a.nc.elsewhere-{process.pid}.tmp",
        ".hidden.nc",
        "b.nc",
    )
    for name in (*kept, f".a.nc.{gone}.tmp", f".c.zarr.{gone}.old", f".b.nc.{gone}.old"):
        (tmp_path / name).write_text(name)
    clear_leftovers(tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([*kept, "c.zarr"])


def test_what_can_not_be_written_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"\.grib, use \.nc or \.zarr"):
        check_output(tmp_path / "a.grib")
    (tmp_path / "a.nc").write_text("dear")
    with pytest.raises(ConfigError, match="exists"):
        check_output(tmp_path / "a.nc")
    check_output(tmp_path / "a.nc", overwrite=True)
    with pytest.raises(ConfigError, match=r"use \.png or \.gif"):
        check_picture(tmp_path / "a.jpg")
    monkeypatch.setitem(__import__("sys").modules, "h5netcdf", None)
    with pytest.raises(ShardError, match=r"writing netCDF needs .*modernn-toolkit\[cf\]"):
        check_output(tmp_path / "b.nc")


def test_pictures_show_observations_forecast_and_what_came(
    persistence: Trained, archive: Archive, tmp_path: Path
) -> None:
    frame = archive.series("2016-07-11T21:30")[-1]
    made = make_forecast(persistence, archive, archive.up_to(frame, 4, 300.0), Request(lead=3))
    truth = made.recoded(archive, archive.following(frame, 3, 300.0))
    for name, given in (("plain", None), ("truth", truth)):
        draw(made, tmp_path / f"{name}.png", given)
        draw(made, tmp_path / f"{name}.gif", given)
    (plain, _, _), (beside, _, colours) = (picture(tmp_path / f"{name}.png") for name in ("plain", "truth"))
    assert beside[1] > 1.3 * plain[1] and beside[0] == plain[0]
    assert {(0xFF, 0xF3, 0xA3), (0xC4, 0xC4, 0xC4), (255, 255, 255)} <= colours  # 30 dBZ, no data, none
    (plain, count, _), (beside, same, _) = (picture(tmp_path / f"{name}.gif") for name in ("plain", "truth"))
    assert count == same == 7  # 4 observations, 3 forecasts
    assert beside[0] > 1.8 * plain[0]
    assert not list(tmp_path.glob(".*"))
