"""Products of a forecast: probabilities and accumulations, against plain loops, and as CF files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.georeference import grid_of
from shards.manifest import Scale
from shards.recent import Archive, open_archive
from tests.support.forecasts import SVG, MakeRun
from tests.support.judges import cf_problems
from toolkit.errors import ConfigError
from toolkit.forecast.files import as_dataset, write_forecast
from toolkit.forecast.make import Forecast, Request, make_forecast
from toolkit.forecast.products import Products, accumulation, probability, rain_rate
from toolkit.forecast.trained import Trained, load_trained

xarray = pytest.importorskip("xarray")
STEREO = "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60 +a=6378137 +b=6356752"
PLACE = grid_of(np.arange(32) + 0.5, -np.arange(24) - 3500.5, STEREO, "km")
DBZ = Scale("radar reflectivity", "dBZ", -10.0, 0.5, max_code=254, missing_code=255)


@pytest.fixture(params=[1, 6], ids=["one member", "six members"])
def forecast(request: pytest.FixtureRequest, persistence: Trained, archive: Archive) -> Forecast:
    """A forecast of random reflectivities, of which some pixels are missing."""
    placed = dataclasses.replace(archive, description=dataclasses.replace(archive.description, grid=PLACE))
    made = make_forecast(persistence, placed, archive.up_to(archive.series()[-1], 1, 300.0), Request(lead=3))
    random = np.random.default_rng(1)
    units = random.random((request.param, 3, 1, 24, 32)).astype(np.float32)
    units[:, 0, 0, :4, :4] = np.float32(80 / 254)  # exactly 30 dBZ
    inflow = np.zeros(units.shape[1:], dtype=bool)
    inflow[1:, 0, :, :5] = True
    values = np.where(made.unseen | inflow, np.nan, DBZ.offset + DBZ.gain * 254 * units).astype(np.float32)
    return dataclasses.replace(made, units=units, values=values, inflow=inflow, scale=DBZ)


@pytest.mark.parametrize("side", [1, 3, 31])
def test_probability_is_the_share_of_members_and_neighbours(forecast: Forecast, side: int) -> None:
    found = probability(forecast, 30.0, side)
    codes, seen = forecast.units.astype(np.float64) * 254, ~forecast.missing
    for t, y, x in ((0, 2, 2), (1, 0, 31), (2, 12, 6), (0, 23, 16)):
        rows, columns = slice(max(0, y - side // 2), y + side // 2 + 1), slice(max(0, x - side // 2), x + side // 2 + 1)
        there = seen[t, 0, rows, columns]
        reached = codes[:, t, 0, rows, columns][:, there] >= 80 - 1e-4
        assert found[t, 0, y, x] == pytest.approx(reached.mean())
    assert np.array_equal(np.isnan(found), forecast.missing) and forecast.missing.any()
    assert found[0, 0, 1, 1] == 1.0 or side > 1
    assert np.nanmin(found) >= 0 and np.nanmax(found) <= 1


def test_rain_rates_by_hand() -> None:
    """Z = 200 R^1.6: 23.0 dBZ is 1 mm/h, 39.0 dBZ 10 mm/h, 7.0 dBZ 0.1 mm/h; less is no rain."""
    dbz = np.array([10 * np.log10(200), 10 * np.log10(200 * 10**1.6), 10 * np.log10(200 * 0.1**1.6), 6.9, -10, np.nan])
    np.testing.assert_allclose(rain_rate(dbz, "dBZ", (200, 1.6)), [1, 10, 0.1, 0, 0, np.nan], rtol=1e-6)
    np.testing.assert_allclose(rain_rate(np.array([np.nan, 0.05, 3.0]), "mm/h", (1, 1)), [np.nan, 0, 3])


def test_the_accumulation_is_the_sum_of_rates_and_missing_where_one_is(forecast: Forecast) -> None:
    found = accumulation(forecast, (316, 1.5))
    with np.errstate(invalid="ignore"):
        rates = (10 ** (forecast.values.astype(np.float64) / 10) / 316) ** (1 / 1.5)
        rates[rates < 0.1] = 0
    np.testing.assert_allclose(found, rates.sum(1) * 300 / 3600, rtol=1e-5)
    assert np.array_equal(np.isnan(found[0]), forecast.missing.any(0))


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_products_are_in_the_same_file(forecast: Forecast, tmp_path: Path, suffix: str) -> None:
    path, members = tmp_path / f"forecast{suffix}", len(forecast.values)
    asked = Products((20.0, 30.0), accumulation=True, neighbourhood=5 if members > 1 else None)
    write_forecast(forecast, path, asked)
    with xarray.open_zarr(path) if suffix == ".zarr" else xarray.open_dataset(path) as data:
        chance, rain = data["exceedance_probability"], data["accumulation"]
        assert chance.dims == ("threshold", "time", "y", "x") and chance.attrs["units"] == "1"
        assert data.threshold.values.tolist() == [20.0, 30.0] and data.threshold.attrs["units"] == "dBZ"
        assert data.threshold.attrs["standard_name"] == "equivalent_reflectivity_factor"
        side = 5 if members > 1 else 15
        np.testing.assert_array_equal(chance.values[1], probability(forecast, 30.0, side)[:, 0])
        assert chance.attrs["cell_methods"] == "area: mean" and f"{side} x {side} pixels" in chance.attrs["comment"]
        assert ("over 6 members" in chance.attrs["comment"]) == (members > 1)
        assert rain.dims == (*(("realization",) if members > 1 else ()), "accumulation_time", "y", "x")
        np.testing.assert_array_equal(rain.values.reshape(members, 24, 32), accumulation(forecast, (200, 1.6))[:, 0])
        assert rain.attrs["standard_name"] == "lwe_thickness_of_precipitation_amount" and rain.attrs["units"] == "mm"
        assert "Z = 200 R^1.6" in rain.attrs["comment"] and rain.attrs["grid_mapping"] == "spatial_ref"
        bounds = data[rain.accumulation_time.attrs["bounds"]].values
        assert bounds[0].tolist() == [data.forecast_reference_time.values.item(), data.time.values[-1].item()]
        assert "accumulation_time" in rain.coords and "lead_time" not in rain.coords
    if suffix == ".nc":
        assert cf_problems(path) == []
        h5netcdf = pytest.importorskip("h5netcdf")
        with h5netcdf.File(path) as raw:
            assert raw["radar_reflectivity"].attrs["coordinates"] == "forecast_reference_time lead_time"


def test_what_has_no_product_is_refused(persistence: Trained, archive: Archive, make_run: MakeRun) -> None:
    made = make_forecast(persistence, archive, archive.up_to(archive.series()[-1], 1, 300.0), Request(lead=3))
    vil = dataclasses.replace(made, scale=Scale("vertically integrated liquid", "1", 0.0, 1.0, mapping="sevir-vil"))
    cases = [
        (made, Products((200.0,)), "200 is outside of this store"),
        (made, Products((30.0,), neighbourhood=4), "--neighbourhood 4: .* use 5"),
        (vil, Products(accumulation=True), "vertically integrated liquid in kg m-2, which has no sum in mm"),
        (dataclasses.replace(made, step_seconds=None), Products(accumulation=True), "no time stamps"),
    ]
    for forecast, asked, message in cases:
        with pytest.raises(ConfigError, match=message):
            as_dataset(forecast, asked)


def test_an_ensemble_of_clips_without_a_clock(make_run: MakeRun, tmp_path: Path) -> None:
    from tests.support.archives import numbered, save

    for number in range(6):
        save(tmp_path / "in" / "a" / f"{number}.png", numbered(number, size=(24, 32)))
    trained = load_trained(make_run("svg_lp", **SVG), "best", torch.device("cpu"))
    archive = open_archive(tmp_path / "in", {"source": "images", "channels": "grey"})
    trained = dataclasses.replace(trained, scale=archive.description.scale)
    made = make_forecast(trained, archive, archive.up_to(archive.series()[-1], 4, None), Request(2, samples=3))
    data = as_dataset(made, Products((0.5,)))
    assert data["exceedance_probability"].dims == ("threshold", "lead", "y", "x")
    thirds = 3 * data["exceedance_probability"].values.astype(np.float64)
    np.testing.assert_allclose(thirds, thirds.round(), atol=1e-6)
