"""Forecasts of every reader's archive before judges of others: the IOOS compliance checker (CF 1.10), and GDAL, which
must find the CRS and the corners that the archive states.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from shards.cli import main as shards
from shards.recent import open_archive
from tests.support.judges import cf_problems
from tests.support.radar_files import PLACED, need_reader, place_archive
from toolkit.forecast.files import write_forecast
from toolkit.forecast.make import Request, make_forecast
from toolkit.forecast.trained import Trained

xarray = pytest.importorskip("xarray")
STEP = ["--step", "300"]


def forecast_of(trained: Trained, archive: Path, output: Path, *options: str) -> Path:
    opened = open_archive(archive, {}, list(options))
    frames = opened.up_to(opened.series()[-1], 4, 300.0)
    write_forecast(make_forecast(trained, opened, frames, Request(lead=3)), output)
    return output


@pytest.mark.parametrize("reader", PLACED)
def test_forecasts_are_cf_and_in_their_places(tmp_path: Path, persistence: Trained, reader: str) -> None:
    need_reader(reader)
    rasterio = pytest.importorskip("rasterio")
    crs, upper_left, lower_right = place_archive(tmp_path / "in", reader)
    crop = [] if reader == "cf" else ["--crop", "none"]
    path = forecast_of(persistence, tmp_path / "in", tmp_path / "forecast.nc", *crop, *STEP)
    with rasterio.open(path) as image:
        found, bounds, count, shape = image.crs, image.bounds, image.count, image.shape
        half = abs(image.transform.a) / 2
    assert count == 3 and shape[0] > 1
    wanted = rasterio.crs.CRS.from_user_input(crs)
    assert found is not None and found.is_geographic == wanted.is_geographic
    assert (bounds.left, bounds.top) == pytest.approx(upper_left, abs=half)
    assert (bounds.right, bounds.bottom) == pytest.approx(lower_right, abs=half)
    warp = pytest.importorskip("rasterio.warp")
    degrees = [warp.transform(system, "EPSG:4326", [upper_left[0]], [upper_left[1]]) for system in (found, wanted)]
    assert np.ravel(degrees[0]) == pytest.approx(np.ravel(degrees[1]), abs=0.005)
    assert cf_problems(path) == []


def test_swiss_forecasts_are_in_swiss_coordinates(tmp_path: Path, persistence: Trained) -> None:
    rasterio = pytest.importorskip("rasterio")
    place_archive(tmp_path / "in", "meteoswiss")
    path = forecast_of(persistence, tmp_path / "in", tmp_path / "forecast.nc")  # the default crop
    with rasterio.open(path) as image:
        assert image.crs.to_epsg() == 21781
        assert image.bounds.left == 418e3 and image.bounds.top == 352e3


def test_a_forecast_of_a_store_has_the_stores_grid(tmp_path: Path, persistence: Trained) -> None:
    rasterio = pytest.importorskip("rasterio")
    place_archive(tmp_path / "in", "odim")
    words = ["convert", "radar", str(tmp_path / "in"), str(tmp_path / "store"), "--crop", "8,4,16,24", "--size", "8x12"]
    assert shards([*words, "--val-fraction", "0", "--test-fraction", "0"]) == 0
    path = forecast_of(persistence, tmp_path / "store", tmp_path / "forecast.nc")
    with rasterio.open(path) as image:
        assert image.bounds == pytest.approx((8e3, -48e3, 56e3, -16e3)) and image.res == (4000, 4000)
    assert cf_problems(path) == []


def test_coordinates_have_no_fill_value(tmp_path: Path, persistence: Trained) -> None:
    h5py = pytest.importorskip("h5py")
    place_archive(tmp_path / "in", "odim")
    path = forecast_of(persistence, tmp_path / "in", tmp_path / "forecast.nc")
    with h5py.File(path) as file:
        filled = {name for name in file if "_FillValue" in file[name].attrs}
        assert filled == {"radar_reflectivity"}
        assert {"x", "y", "time", "lead_time", "forecast_reference_time", "spatial_ref"} < set(file)


def test_a_zarr_forecast_opens_without_a_warning(tmp_path: Path, persistence: Trained) -> None:
    place_archive(tmp_path / "in", "odim")
    path = forecast_of(persistence, tmp_path / "in", tmp_path / "forecast.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xarray.open_zarr(path, decode_coords="all") as data:
            assert data.x.values[:2].tolist() == pytest.approx([1000, 3000], abs=1)
            assert data.spatial_ref.attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"
            assert data.radar_reflectivity.dims == ("time", "y", "x")
