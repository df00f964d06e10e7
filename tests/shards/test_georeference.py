"""Where pixels lie: for every reader the corners that its archive states, through crop, size, store and repacking."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from shards import ManifestError, SourceError, open_store
from shards.cli import main
from shards.georeference import grid_of
from shards.manifest import Manifest
from shards.sources.geometry import Geometry, parse_crop
from tests.support.radar_files import LAEA, PLACED, need_reader, place_archive

pyproj = pytest.importorskip("pyproj")
pytest.importorskip("h5py")
SOURCE = {"cf": "cf"}


def store_of(folder: Path, reader: str, *options: str):
    place = place_archive(folder / "in", reader)
    words = ["convert", SOURCE.get(reader, "radar"), str(folder / "in"), str(folder / "out")]
    assert main([*words, "--val-fraction", "0", "--test-fraction", "0", *options]) == 0
    return open_store(folder / "out"), place


@pytest.mark.parametrize("reader", PLACED)
def test_every_reader_knows_its_corners(tmp_path: Path, reader: str) -> None:
    need_reader(reader)
    store, (crs, upper_left, lower_right) = store_of(tmp_path, reader, "--crop", "none", "--format", "zarr")
    grid = store.manifest.grid
    assert grid is not None and grid.row_order == "north first"
    assert (grid.width, grid.height) == (store.manifest.frames.width, store.manifest.frames.height)
    half = abs(grid.dx) / 2
    found = grid.x0 - grid.dx / 2, grid.y0 - grid.dy / 2
    assert found == pytest.approx(upper_left, abs=half)
    found = grid.x0 + grid.dx * (grid.width - 0.5), grid.y0 + grid.dy * (grid.height - 0.5)
    assert found == pytest.approx(lower_right, abs=half)
    system = pyproj.CRS(crs)
    lonlat = pyproj.Transformer.from_crs(system, system.geodetic_crs, always_xy=True)
    for corner, place in ((grid.corners[0], upper_left), (grid.corners[2], lower_right)):
        assert corner == pytest.approx(lonlat.transform(*place), abs=0.006)  # half a kilometre
    same = pyproj.CRS(grid.crs_wkt)
    assert same.ellipsoid.semi_major_metre == pytest.approx(system.ellipsoid.semi_major_metre)


@pytest.mark.parametrize("reader", PLACED)
def test_a_round_trip_of_stores_keeps_the_grid(tmp_path: Path, reader: str) -> None:
    need_reader(reader)
    store, _ = store_of(tmp_path, reader, "--crop", "4,8,24,16", "--size", "12x8")
    assert main(["repack", str(tmp_path / "out"), str(tmp_path / "zarr"), "--format", "zarr"]) == 0
    assert main(["repack", str(tmp_path / "zarr"), str(tmp_path / "tar"), "--format", "webdataset"]) == 0
    assert (tmp_path / "tar/manifest.json").read_bytes() == (tmp_path / "out/manifest.json").read_bytes()
    xarray = pytest.importorskip("xarray")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xarray.open_zarr(tmp_path / "zarr", group="train", decode_coords="all") as data:
            assert np.array_equal(data.x, store.manifest.grid.x) and np.array_equal(data.y, store.manifest.grid.y)
            assert data.frames.dims == ("time", "channel", "y", "x")
            assert pyproj.CRS(data.spatial_ref.attrs["crs_wkt"]) == pyproj.CRS(store.manifest.grid.crs_wkt)
            assert "_FillValue" not in data.x.encoding or data.x.encoding["_FillValue"] is None
            assert data.groupby("event").mean().sizes["event"] == 1


def test_crop_and_size_move_the_grid() -> None:
    grid = grid_of(1000 + 2000.0 * np.arange(10), -1000 - 2000.0 * np.arange(8), LAEA)
    assert grid.metres_per_pixel == (2000, 2000) and grid.unit == "m"
    cut = Geometry((8, 10), parse_crop("2,4,4,6", (8, 10))).place(grid)
    assert (cut.x0, cut.y0, cut.width, cut.height) == (9000, -5000, 6, 4)
    half = Geometry((8, 10), parse_crop("2,4,4,6", (8, 10)), (2, 3)).place(grid)
    assert (half.x0, half.y0, half.dx, half.dy) == (10000, -6000, 4000, -4000)
    assert half.corners == cut.corners  # resizing moves no corner
    larger = Geometry((8, 10), parse_crop("none", (8, 10)), (16, 20)).place(grid)
    assert (larger.x0, larger.dx, larger.metres_per_pixel) == (500, 1000, (1000, 1000))
    one = Geometry((8, 10), parse_crop("0,0,1,1", (8, 10))).place(grid)
    assert (one.x0, one.dx) == (1000, 2000)
    with pytest.raises(SourceError, match="8x10 pixels, the frames have 9x10"):
        Geometry((9, 10), parse_crop("none", (9, 10))).place(grid)


@pytest.mark.parametrize(
    ("crs", "name"),
    [
        ("EPSG:21781", "oblique_mercator"),
        ("EPSG:2056", "oblique_mercator"),
        ("EPSG:3067", "transverse_mercator"),
        ("EPSG:3413", "polar_stereographic"),
        ("EPSG:3031", "polar_stereographic"),
        ("EPSG:4326", "latitude_longitude"),
        (LAEA, "lambert_azimuthal_equal_area"),
        ("+proj=lcc +lat_1=46 +lat_2=49 +lon_0=2 +lat_0=47", "lambert_conformal_conic"),
        ("+proj=aea +lat_1=-18 +lat_2=-36 +lon_0=145 +lat_0=-38", "albers_conical_equal_area"),
        ("+proj=aeqd +lat_0=52 +lon_0=5", "azimuthal_equidistant"),
        ("+proj=geos +h=35785831 +lon_0=0", "geostationary"),
        ("+proj=gnom +lat_0=52 +lon_0=5", None),  # CF has no name for it: the WKT alone says it
        ("EPSG:28992", None),
    ],
)
def test_cf_parameters_of_a_projection(crs: str, name: str | None) -> None:
    attributes = grid_of(np.arange(3.0), -np.arange(2.0), crs).mapping_attributes()
    assert attributes.get("grid_mapping_name") == name
    assert pyproj.CRS.from_cf(attributes).equals(pyproj.CRS(crs))
    assert "unknown" not in [value for key, value in attributes.items() if not key.endswith(("wkt", "ref"))]
    if crs == "EPSG:3031":
        assert attributes["latitude_of_projection_origin"] == -90


def test_kilometres_and_degrees() -> None:
    km = grid_of(np.arange(4.0) + 0.5, -np.arange(4.0), "EPSG:3067", "km")
    assert (km.x0, km.dx, km.unit) == (500, 1000, "m")
    own = grid_of(np.arange(4.0) + 0.5, -np.arange(4.0), LAEA.replace("units=m", "units=km"), "km")
    assert (own.dx, own.unit, own.metres_per_pixel) == (1, "km", (1000, 1000))
    degrees = grid_of(10 + 0.01 * np.arange(4), 60 - 0.01 * np.arange(4), "EPSG:4326")
    assert degrees.geographic and degrees.metres_per_pixel == pytest.approx((557.7, 1114), rel=1e-3)


@pytest.mark.parametrize(
    ("unit", "metres"),
    [
        ("US_survey_foot", 1200 / 3937), ("US survey foot", 1200 / 3937), ("ft", 0.3048), ("foot", 0.3048),
        ("m", 1.0), ("Metres ", 1.0), ("km", 1000.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("crs", ["EPSG:2263", "EPSG:32118", "EPSG:2222"])
def test_units_of_length_are_those_of_any_projection(crs: str, unit: str, metres: float) -> None:
    """New York in US survey feet and in metres, Arizona in feet."""
    step = 1000.0 / metres
    x, y = 3e5 / metres + step * np.arange(5), 6e4 / metres - step * np.arange(4)
    grid = grid_of(x, y, crs, unit)
    assert grid.metres_per_pixel == pytest.approx((1000.0, 1000.0), rel=1e-5)
    again = grid_of(grid.x, grid.y, grid.mapping_attributes(), grid.axis_attributes("x")["units"])
    assert (again.unit, again.dx, again.x0) == (grid.unit, pytest.approx(grid.dx), pytest.approx(grid.x0))


@pytest.mark.parametrize(
    ("x", "y", "crs", "message"),
    [
        ([0.0, 1.0, 2.1], [1.0, 0.0], LAEA, "x isn't evenly spaced: a pixel lies 0.05 away"),
        ([0.0, 1.0], [0.0, 1.0], LAEA, "y ascends"),
        ([0.0], [1.0, 0.0], LAEA, r"x has the shape \(1,\), expected two"),
        ([0.0, np.nan], [1.0, 0.0], LAEA, "x has the shape"),
        ([-5.4e6, 5.4e6], [5.4e6, -5.4e6], "+proj=geos +h=35785831 +lon_0=0", "a corner lies off the earth"),
        ([0.0, 1.0], [1.0, 0.0], "+proj=nothing", "unknown to pyproj"),
        ([0.0, 1.0], [1.0, 0.0], {"grid_mapping_name": "flat"}, "unknown to pyproj"),
        ([0.0, 1.0], [1.0, 0.0], 'LOCAL_CS["site",UNIT["metre",1]]', "'site'.* is neither geographic nor projected"),
        ([0.0, 1.0], [1.0, 0.0], "+proj=stere +lat_0=900 +lon_0=0 +a=6378140 +b=6356750", "lat_0.* should be <= 90"),
        ([0.0, 1.0], [1.0, 0.0], "EPSG:5773", "Vertical CRS.* is neither geographic nor projected"),
    ],
)
def test_what_is_no_grid(x, y, crs, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        grid_of(x, y, crs)


def test_a_manifest_with_a_damaged_grid(tmp_path: Path) -> None:
    store, _ = store_of(tmp_path, "odim")
    path = tmp_path / "out/manifest.json"
    assert Manifest.from_json(path.read_text()).grid == store.manifest.grid
    for key, value in (("dx", 0), ("x0", "west"), ("corners", [[1, 2]]), ("more", 1), ("width", -3)):
        data = json.loads(path.read_text())
        data["grid"][key] = value
        with pytest.raises(ManifestError, match=r"grid: (no grid|x0 should|unknown keys|width should)"):
            Manifest.from_json(json.dumps(data), sealed=False)
    without = dataclasses.replace(store.manifest, grid=None)
    assert "grid" not in json.loads(without.to_json()) and Manifest.from_json(without.to_json()).grid is None
