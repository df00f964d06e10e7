"""netCDF as services write it: time anywhere, one frame a file, latitudes in two dimensions, valid ranges, units."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from shards import SourceError, UsageError, open_store
from shards.cli import main
from shards.sources.cf_layout import opened
from tests.support.archives import build, radar_times
from tests.support.radar_files import wet

xarray = pytest.importorskip("xarray")
ALL_TRAIN = ("--val-fraction", "0", "--test-fraction", "0")
COUNT = 6


@pytest.fixture(autouse=True)
def _fresh():
    opened.cache_clear()


def times(count: int = COUNT) -> np.ndarray:
    return np.array(radar_times(count), dtype="datetime64[ns]")


def dataset(values: np.ndarray, unit: str = "dBZ", dims=("time", "y", "x"), **attributes):
    array = xarray.DataArray(values, dims=dims, coords={"time": times()}, attrs={"units": unit, **attributes})
    return xarray.Dataset({"dbz": array})


def write(data, path: Path, **encoding) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    return path


def stored(path: Path, *options: str) -> np.ndarray:
    """Physical values [T, H, W] of everything."""
    source = build("cf", path, *ALL_TRAIN, *options)
    events = source.plan().splits["train"]
    frames = np.concatenate([source.read(event).frames for event in events])
    return source.describe().scale.to_physical(frames)[:, 0]


GOES = {
    "grid_mapping_name": "geostationary",
    "perspective_point_height": 35786023.0,
    "semi_major_axis": 6378137.0,
    "semi_minor_axis": 6356752.31414,
    "longitude_of_projection_origin": -75.0,
    "sweep_angle_axis": "x",
}
DBZ = (wet(COUNT) / 4.0).astype(np.float32)


@pytest.mark.parametrize(
    "dims", [("y", "x", "time"), ("y", "time", "x"), ("time", "y", "x"), ("x", "y", "time"), ("x", "time", "y")]
)
def test_time_in_any_place(tmp_path: Path, dims: tuple[str, ...]) -> None:
    data = dataset(DBZ).transpose(*dims)
    assert np.array_equal(stored(write(data, tmp_path / "a.nc")), DBZ)


def test_one_frame_a_file_with_a_scalar_time(tmp_path: Path) -> None:
    data = dataset(DBZ)
    for i in range(COUNT):
        write(data.isel(time=i), tmp_path / "scalar" / f"frame{i}.nc")
        write(data.isel(time=[i]), tmp_path / "one" / f"frame{i}.nc")
    assert np.array_equal(stored(tmp_path / "scalar"), DBZ) and np.array_equal(stored(tmp_path / "one"), DBZ)
    with pytest.raises(UsageError, match="1 frame, which have no time step; say --step SECONDS"):
        build("cf", tmp_path / "scalar" / "frame0.nc")
    lone = build("cf", tmp_path / "scalar" / "frame0.nc", *ALL_TRAIN, "--step", "300")
    assert [event.length for event in lone.plan().splits["train"]] == [1]


@pytest.mark.parametrize("south_first", [True, False])
def test_latitudes_of_two_dimensions_say_which_way_is_north(tmp_path: Path, south_first: bool) -> None:
    lat = 50 - 0.01 * np.add.outer(np.arange(32.0), 0.1 * np.arange(40))
    data = dataset(DBZ).assign_coords(latitude=(("y", "x"), lat[::-1] if south_first else lat))
    source = build("cf", write(data, tmp_path / "a.nc"), *ALL_TRAIN)
    turned = [note for note in source.notes if "rows are turned: by the latitudes latitude" in note]
    assert len(turned) == south_first
    opened.cache_clear()
    assert np.array_equal(stored(tmp_path / "a.nc"), DBZ[:, ::-1] if south_first else DBZ)


def test_an_unknown_north_is_reported(tmp_path: Path) -> None:
    source = build("cf", write(dataset(DBZ), tmp_path / "a.nc"), *ALL_TRAIN)
    assert any("which way is north is unknown: y has no coordinate" in note for note in source.notes)
    assert any("the store has no grid" in note for note in source.notes)


def test_columns_from_east_to_west_are_turned(tmp_path: Path) -> None:
    data = dataset(DBZ).assign_coords(x=-np.arange(40.0), y=-np.arange(32.0))
    source = build("cf", write(data, tmp_path / "a.nc"), *ALL_TRAIN)
    assert any("columns are turned: x descends" in note for note in source.notes)
    opened.cache_clear()
    assert np.array_equal(stored(tmp_path / "a.nc"), DBZ[..., ::-1])


def test_valid_range_of_values(tmp_path: Path) -> None:
    values = DBZ.copy()
    values[:, 0], values[:, 1], values[:, 2] = -888, 9e4, 63
    gone = np.zeros(values.shape, bool)
    gone[:, :2] = True
    for name, attributes in (
        ("range", {"valid_range": np.array([0.0, 63.0], np.float32)}),
        ("ends", {"valid_min": np.float32(0), "valid_max": np.float32(63)}),
    ):
        found = stored(write(dataset(values, **attributes), tmp_path / f"{name}.nc"))
        assert np.array_equal(np.isnan(found), gone) and np.array_equal(found[~gone], values[~gone])


def test_valid_range_of_packed_numbers(tmp_path: Path) -> None:
    """By CF an attribute of the packed type is of packed numbers: 0..126 are 0..63 dBZ here."""
    values = DBZ.copy()
    values[:, 0], values[:, 1] = 63.5, 63.0
    packed = {"dtype": "int16", "scale_factor": 0.25, "add_offset": 0.0, "_FillValue": np.int16(-1)}
    data = dataset(values, valid_range=np.array([0, 252], np.int16))
    found = stored(write(data, tmp_path / "a.nc", dbz=packed))
    assert np.isnan(found[:, 0]).all() and np.array_equal(found[:, 1:], values[:, 1:])


def test_no_echo_as_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN at low dBZ: reported, and with --no-echo zero the plain result; what is outside valid_range stays missing."""
    plain = np.where(DBZ <= 15, 0, DBZ).astype(np.float32)
    values = np.where(DBZ <= 15, np.nan, DBZ).astype(np.float32)
    values[:, 0] = -888
    write(dataset(values, valid_range=np.array([0.0, 70.0], np.float32)), tmp_path / "a.nc")
    words = ["convert", "cf", str(tmp_path / "a.nc")]
    assert main([*words, str(tmp_path / "missing"), *ALL_TRAIN]) == 0
    told = capsys.readouterr()
    share = open_store(tmp_path / "missing").splits["train"].missing
    assert share == pytest.approx(np.isnan(np.where(values == -888, np.nan, values)).mean(), abs=1e-6)
    assert f"missing {share:.1%}" in told.out
    assert "change between missing and observed from one frame to the next" in told.err and "--no-echo zero" in told.err
    assert main(["info", str(tmp_path / "missing")]) == 0 and f"missing {share:.1%}" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "missing")]) == 0
    assert f"train: missing {share:.1%} of the pixels" in capsys.readouterr().out
    opened.cache_clear()
    found = stored(tmp_path / "a.nc", "--no-echo", "zero")
    assert np.isnan(found[:, 0]).all() and np.array_equal(found[:, 1:], plain[:, 1:])


def test_clipped_pixels_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = DBZ.copy()
    values[:, :8] = 70
    values[:, 8:16] = -20  # no echo: not clipped
    write(dataset(values), tmp_path / "a.nc")
    assert main(["convert", "cf", str(tmp_path / "a.nc"), str(tmp_path / "s"), *ALL_TRAIN]) == 0
    assert open_store(tmp_path / "s").splits["train"].clipped == 0.25
    assert "clipped 25.0%" in capsys.readouterr().out


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "julian"])
def test_calendars_without_real_days_are_refused_by_name(tmp_path: Path, calendar: str) -> None:
    h5py = pytest.importorskip("h5py")
    path = write(dataset(DBZ), tmp_path / "a.nc")
    with h5py.File(path, "r+") as file:
        file["time"].attrs["calendar"] = np.bytes_(calendar)
    with pytest.raises(SourceError, match=f"a.nc: time has the calendar {calendar}; frames need times of real days"):
        build("cf", path)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("kg m**-2 s**-1", 3600), ("kg m-2 s-1", 3600), ("mm hr-1", 1), ("mm", 12), ("kg m-2", 12), ("m", 12_000)],
)
def test_units_of_rain_and_amounts_of_a_step(tmp_path: Path, unit: str, factor: float) -> None:
    rate = wet(COUNT) / 10.0
    path = write(dataset(rate / factor, unit=unit, long_name="rain"), tmp_path / "a.nc")
    expected = np.clip(10 * np.log10(200 * rate**1.6), 0, 63.5)
    assert np.abs(stored(path) - expected).max() <= 0.125 + 1e-5
    opened.cache_clear()
    said = [note for note in build("cf", path, *ALL_TRAIN).notes if "300 s each" in note]
    assert len(said) == (factor >= 12 and unit in ("mm", "kg m-2", "m"))


def test_amounts_of_the_files_own_period(tmp_path: Path) -> None:
    """Bounds of time say that an amount is of ten minutes, though a frame comes every five."""
    rate = wet(COUNT) / 10.0
    data = dataset(rate / 6, unit="mm")
    stop = data.time.values
    data["time_bnds"] = (("time", "two"), np.stack([stop - np.timedelta64(600, "s"), stop], -1))
    data["time"].attrs["bounds"] = "time_bnds"
    data["time"].encoding["units"] = "seconds since 1970-01-01"
    expected = np.clip(10 * np.log10(200 * rate**1.6), 0, 63.5)
    assert np.abs(stored(write(data, tmp_path / "a.nc")) - expected).max() <= 0.125 + 1e-5


def test_files_of_other_grids_or_units_are_named(tmp_path: Path) -> None:
    axes = {"x": np.arange(40.0), "y": -np.arange(32.0)}
    first = dataset(DBZ).assign_coords(axes)
    later = first.assign_coords(time=first.time + np.timedelta64(1800, "s"))
    other = later.assign_coords(x=100 + np.arange(40.0))
    write(first, tmp_path / "a" / "1.nc")
    write(other, tmp_path / "a" / "2.nc")
    with pytest.raises(SourceError, match=r"1.nc and 2.nc differ in the columns' coordinate; convert them as two"):
        build("cf", tmp_path / "a")
    later.dbz.attrs["units"] = "mm/h"
    write(first, tmp_path / "b" / "1.nc")
    write(later, tmp_path / "b" / "2.nc")
    with pytest.raises(SourceError, match=r"1.nc and 2.nc differ in the units \(dBZ and mm/h\)"):
        build("cf", tmp_path / "b")


def test_texts_of_a_file_are_kept_in_one_line_and_not_endless(tmp_path: Path) -> None:
    data = dataset(DBZ)
    data.attrs = {"title": "Rain\n\t of  today\x1b[2J", "license": ["CC BY", "4.0"], "references": "x" * 20_000}
    path = write(data, tmp_path / "in.nc")
    assert main(["convert", "cf", str(path), str(tmp_path / "out"), *ALL_TRAIN]) == 0
    source = open_store(tmp_path / "out").manifest.source
    assert (source.name, source.licence) == ("Rain of today\\x1b[2J", "CC BY 4.0")
    assert len(source.citation) == 2000 and source.citation.endswith("xxx ...")


@pytest.mark.parametrize("option", ["--range=0,inf", "--range=nan,60", "--range=60,0", "--step=inf", "--step=-300"])
def test_numbers_of_options_that_are_none(tmp_path: Path, option: str) -> None:
    path = write(dataset(DBZ), tmp_path / "in.nc")
    with pytest.raises(UsageError, match=option.partition("=")[0]):
        build("cf", path, *ALL_TRAIN, option)


def test_an_image_of_the_full_disk_has_no_grid_and_says_why(tmp_path: Path) -> None:
    pytest.importorskip("pyproj")
    data = dataset(DBZ, grid_mapping="geos").assign_coords(
        x=np.linspace(-5.4e6, 5.4e6, DBZ.shape[2]), y=np.linspace(5.4e6, -5.4e6, DBZ.shape[1])
    )
    data["geos"] = xarray.DataArray(0, attrs=GOES)
    source = build("cf", write(data, tmp_path / "a.nc"), *ALL_TRAIN)
    assert source.describe().grid is None
    assert "the store has no grid: a corner lies off the earth" in "; ".join(source.plan().notes)


@pytest.mark.parametrize(("unit", "factor"), [("rad", 1.0), ("radian", 1.0), ("microradian", 1e6), ("m", 35786023.0)])
def test_scanning_angles_of_a_geostationary_view(tmp_path: Path, unit: str, factor: float) -> None:
    """GOES-R: the pixel of 33.846162 N, 84.690932 W is at x -0.024052 rad, y 0.095340 rad (PUG 5.1.2.8)."""
    pytest.importorskip("pyproj")
    angle = 56e-6  # of a pixel of 2 km
    x, y = -0.024052 + angle * np.arange(DBZ.shape[2]), 0.095340 - angle * np.arange(DBZ.shape[1])
    data = dataset(DBZ, grid_mapping="goes").assign_coords(
        x=("x", x * factor, {"units": unit}), y=("y", y * factor, {"units": unit})
    )
    data["goes"] = xarray.DataArray(0, attrs=GOES)
    grid = build("cf", write(data, tmp_path / "a.nc"), *ALL_TRAIN).describe().grid
    assert grid is not None and grid.unit == "m" and grid.metres_per_pixel == pytest.approx((2004.0, 2004.0), abs=0.1)
    system = pyproj_of(grid)
    assert system.transform(grid.x0, grid.y0) == pytest.approx((-84.690932, 33.846162), abs=2e-4)


def pyproj_of(grid):
    pyproj = pytest.importorskip("pyproj")
    return pyproj.Transformer.from_crs(pyproj.CRS(grid.crs_wkt), pyproj.CRS(4326), always_xy=True)


@pytest.mark.parametrize(
    ("units", "mapping", "message"),
    [
        (("rad", "rad"), {"grid_mapping_name": "transverse_mercator"}, "coordinates are in 'rad', those of the proj"),
        (("degrees", "degrees"), {"grid_mapping_name": "transverse_mercator"}, "coordinates are in 'degrees'"),
        (("km", "km"), {"grid_mapping_name": "latitude_longitude"}, "coordinates are in 'km'"),
        (("furlong", "furlong"), GOES, "coordinates are in 'furlong'"),
        (("km", "m"), GOES, "x is in km, y in m"),
    ],
)
def test_a_grid_of_unknown_units_is_left_out_with_the_reason(tmp_path: Path, units, mapping, message: str) -> None:
    pytest.importorskip("pyproj")
    data = dataset(DBZ, grid_mapping="crs").assign_coords(
        x=("x", 0.001 * np.arange(DBZ.shape[2]), {"units": units[0]}),
        y=("y", -0.001 * np.arange(DBZ.shape[1]), {"units": units[1]}),
    )
    data["crs"] = xarray.DataArray(0, attrs=mapping)
    source = build("cf", write(data, tmp_path / "a.nc"), *ALL_TRAIN)
    assert source.describe().grid is None
    assert f"the store has no grid: {message}" in "; ".join(source.plan().notes)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_rotated_pole(tmp_path: Path, mapped: bool) -> None:
    """COSMO's: the pole at 43 N, 170 W, so that the rotated origin lies at 47 N, 10 E."""
    pyproj = pytest.importorskip("pyproj")
    data = dataset(DBZ, dims=("time", "rlat", "rlon"), **({"grid_mapping": "rotated_pole"} if mapped else {}))
    rlon, rlat = 0.01 * (np.arange(40) - 20), 0.01 * (16 - np.arange(32))
    data = data.assign_coords(
        rlon=("rlon", rlon, {"units": "degrees", "standard_name": "grid_longitude"}),
        rlat=("rlat", rlat, {"units": "degrees", "standard_name": "grid_latitude"}),
    )
    pole = {"grid_north_pole_latitude": 43.0, "grid_north_pole_longitude": -170.0}
    data["rotated_pole"] = xarray.DataArray(0, attrs={"grid_mapping_name": "rotated_latitude_longitude", **pole})
    path = write(data, tmp_path / "in.nc")
    assert main(["convert", "cf", str(path), str(tmp_path / "out"), *ALL_TRAIN, "--format", "zarr"]) == 0
    grid = open_store(tmp_path / "out").manifest.grid
    if not mapped:
        assert grid is None
        return
    assert pyproj_of(grid).transform(0, 0) == pytest.approx((10, 47))
    assert grid.corners[0][0] == pytest.approx(9.70, abs=0.01) and grid.corners[0][1] == pytest.approx(47.16, abs=0.01)
    assert grid.metres_per_pixel == pytest.approx((1113, 1113), abs=8)
    with xarray.open_zarr(tmp_path / "out", group="train", decode_coords="all") as found:
        names = {axis: (found[axis].standard_name, found[axis].units) for axis in "xy"}
        assert names == {"x": ("grid_longitude", "degrees"), "y": ("grid_latitude", "degrees")}
        attributes = found.spatial_ref.attrs
    assert attributes["grid_mapping_name"] == "rotated_latitude_longitude"
    assert not {"undefined", "unknown", "unnamed"} & set(map(str, attributes.values()))
    assert pyproj.CRS.from_cf(
        {key: value for key, value in attributes.items() if "wkt" not in key and key[-3:] != "ref"}
    )


@pytest.mark.parametrize(
    ("unit", "names", "rain"),
    [
        ("m", {"standard_name": "lwe_thickness_of_precipitation_amount"}, True),
        ("m", {"long_name": "Total Rainfall"}, True),
        ("kg m-2", {"long_name": "accumulated rain"}, True),
        ("m s-1", {"long_name": "RAIN rate"}, True),
        ("mm", {}, True),
        ("m", {"long_name": "echo top height"}, False),
        ("m", {"long_name": "terrain height"}, False),
        ("cm", {"long_name": "level of the training lake"}, False),
        ("m/s", {"standard_name": "radial_velocity_of_scatterers_away_from_instrument"}, False),
        ("kg m-2", {"long_name": "precipitable water"}, False),
        ("kg m-2", {"long_name": "vertically integrated liquid"}, False),
    ],
)
def test_units_of_rain_and_of_much_else(tmp_path: Path, unit: str, names: dict[str, str], rain: bool) -> None:
    path = write(dataset(DBZ / 1000, unit, **names), tmp_path / "a.nc")
    if rain:
        assert build("cf", path, *ALL_TRAIN).describe().scale.unit == "dBZ"
        return
    with pytest.raises(UsageError, match=f"dbz is in {unit}, which rain has, and much else.* --range 0,60"):
        build("cf", path, *ALL_TRAIN)
    assert build("cf", path, *ALL_TRAIN, "--range", "0,1").describe().scale.unit == unit


@pytest.mark.parametrize(
    ("value", "unit"), [(-9999.0, "dBZ"), (np.inf, "dBZ"), (9.96921e36, "mm h-1"), (-999.0, "mm h-1")]
)
def test_an_undeclared_missing_value(tmp_path: Path, value: float, unit: str) -> None:
    values = DBZ.copy()
    values[:, 2, 3] = value
    file = write(dataset(values, unit), tmp_path / "a.nc", dbz={"_FillValue": None})
    with pytest.raises(
        SourceError, match=rf"{COUNT} of .* numbers of dbz are not in .*--missing={re.escape(f'{value:g}')}"
    ):
        stored(file)
    opened.cache_clear()
    found = stored(file, f"--missing={value:g}")
    assert np.isnan(found[:, 2, 3]).all()
    assert np.isnan(found).sum() == COUNT


def test_infinite_numbers_of_another_quantity(tmp_path: Path) -> None:
    values = DBZ.copy()
    values[0, 0, 0] = -np.inf
    file = write(dataset(values, "K"), tmp_path / "a.nc", dbz={"_FillValue": None})
    with pytest.raises(SourceError, match=r"1 of .* are infinite, the first -inf"):
        stored(file, "--range=0,100")
    opened.cache_clear()
    assert np.isnan(stored(file, "--range=0,100", "--missing=-inf")[0, 0, 0])
