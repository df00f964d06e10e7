"""CF datasets: which variable, how values become codes, which way is north, folders of files, and bad files."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from shards import SourceError, UsageError, open_store
from shards.cli import main
from shards.sources.cf_layout import opened, reading
from shards.sources.units import amount_factor, rate_factor
from tests.support import archives
from tests.support.archives import build, radar_times

xarray = pytest.importorskip("xarray")
ALL_TRAIN = ("--val-fraction", "0", "--test-fraction", "0")


@pytest.fixture(autouse=True)
def _fresh():
    opened.cache_clear()


def rain(frames: int) -> np.ndarray:
    values = np.random.default_rng(0).gamma(0.3, 6.0, (frames, 12, 10)).astype(np.float32)
    values[:, 0, 0] = np.nan
    return values


@pytest.mark.parametrize("name", ["radar.zarr", "radar.nc"])
def test_rain_rates_become_dbz_and_north_is_up(tmp_path, name, capsys):
    values = rain(12)
    archives.write_cf(tmp_path / name, radar_times(12, 5), values, "mm h-1", south=True)
    arguments = ["convert", "auto", str(tmp_path / name), str(tmp_path / "out")]
    assert main([*arguments, *ALL_TRAIN, "--event-frames", "6"]) == 0
    said = capsys.readouterr().err
    assert "looks like cf: " in said and "becomes dBZ by Z = 200 R^1.6" in said and "rows are turned" in said
    store = open_store(tmp_path / "out")
    assert (store.manifest.step_seconds, store.manifest.scale.unit) == (300.0, "dBZ")
    assert store.manifest.source.licence == "CC BY 4.0" and store.manifest.source.citation == "A weather service"
    assert store.manifest.conversion["variable"] == "rain"
    stored = store.manifest.scale.to_physical(store.read("train", 1, 0, 6))[:, 0]
    expected = np.clip(10 * np.log10(np.maximum(200 * values[6:, ::-1].astype(np.float64) ** 1.6, 1)), 0, 63.5)
    seen = ~np.isnan(expected)
    assert np.array_equal(np.isnan(stored), ~seen)
    assert np.abs(stored[seen] - expected[seen]).max() <= 0.125 + 1e-5


def test_a_range_of_other_values_and_what_it_clips(tmp_path):
    values = np.linspace(180, 320, 10 * 12 * 10).reshape(10, 12, 10)
    archives.write_cf(tmp_path / "t.nc", radar_times(10, 60), values, "K", name="tb")
    with pytest.raises(UsageError, match=r"tb is in K, which says not how to code it; give the range .*--range 0,60"):
        build("cf", tmp_path / "t.nc")
    source = build("cf", tmp_path / "t.nc", "--range", "200,300", *ALL_TRAIN)
    (event,) = source.plan().splits["train"]
    raw = source.read(event)
    assert raw.details["clipped"] == pytest.approx(((values < 200) | (values > 300)).mean(), abs=0.01)
    stored = source.describe().scale.to_physical(raw.frames)[:, 0]
    assert np.abs(stored - np.clip(values, 200, 300)).max() <= 100 / 254 / 2 + 1e-4
    with pytest.raises(UsageError, match="--range '3,1': give LOW,HIGH"):
        build("cf", tmp_path / "t.nc", "--range", "3,1")


def test_units_of_rain():
    rates = {
        "mm h-1": 1,
        "mm/h": 1,
        "mm hr**-1": 1,
        "kg m-2 s-1": 3600,
        "kg m**-2 s**-1": 3600,
        "kg.m-2.s-1": 3600,
        "kg m^-2 s^-1": 3600,
        "m s-1": 3.6e6,
    }
    assert {unit: rate_factor(unit) for unit in rates} == rates
    assert rate_factor("mm") is None and amount_factor("kg m**-2") == 1 and amount_factor("m") == 1000


def test_a_folder_of_files_in_order_of_time_and_with_a_gap(tmp_path):
    times = radar_times(18, 10, skip=(7,))
    values = rain(17)
    archives.write_cf(tmp_path / "z.nc", times[:9], values[:9], "mm/h")
    archives.write_cf(tmp_path / "a.nc", times[9:], values[9:], "mm/h")
    source = build("cf", tmp_path, *ALL_TRAIN)
    events = source.plan().splits["train"]
    assert [event.length for event in events] == [7, 10]
    codes = source.read(events[1]).frames[:, 0]
    assert np.array_equal(codes, source.scale.to_code(_dbz(values[7:])))
    archives.write_cf(tmp_path / "b.nc", times[:2], values[:2], "mm/h")
    with pytest.raises(SourceError, match=r"two frames for 2017-05-30T22:00:00Z: b.nc#0 and z.nc#0"):
        build("cf", tmp_path)


def _dbz(rate: np.ndarray) -> np.ndarray:
    return np.where(rate > 0, 10 * (np.log10(200) + 1.6 * np.log10(np.maximum(rate.astype(np.float64), 1e-30))), rate)


def test_which_variable(tmp_path):
    times = radar_times(4)
    archives.write_cf(tmp_path / "a.zarr", times, rain(4), "dBZ", name="one")
    with xarray.open_zarr(tmp_path / "a.zarr") as data:
        data = data.load()
    shutil.rmtree(tmp_path / "a.zarr")
    data.assign(two=data.one, mask=data.one[0]).to_zarr(tmp_path / "a.zarr", zarr_format=2)
    with pytest.raises(
        UsageError, match=r"2 variables with time, y and x; name one with --variable; it holds mask\['y"
    ):
        build("cf", tmp_path / "a.zarr")
    assert build("cf", tmp_path / "a.zarr", "--variable", "two").describe().name == "two"
    with pytest.raises(UsageError, match=r"--variable mask: .* has one, two with a decoded time axis"):
        build("cf", tmp_path / "a.zarr", "--variable", "mask")


def test_our_own_zarr_stores_are_cf(tmp_path):
    archives.write_gifs(tmp_path / "in", radar_times(10))
    assert main(["convert", "radar", str(tmp_path / "in"), str(tmp_path / "a"), "--crop", "8", "--format", "zarr"]) == 0
    source = build("cf", tmp_path / "a", "--group", "train", "--variable", "frames", *ALL_TRAIN)
    (event,) = source.plan().splits["train"]
    assert np.array_equal(source.read(event).frames, open_store(tmp_path / "a").read("train", 0, 0, 8))


def test_bad_files(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"CDF, not really")
    with pytest.raises(SourceError, match=r"a.nc: xarray can't open it|a.nc: .*modernn-toolkit\[cf\]"):
        build("cf", tmp_path / "a.nc")
    archives.write_cf(tmp_path / "b.nc", radar_times(1), rain(1), "dBZ")
    with pytest.raises(UsageError, match=r"1 frame, which have no time step; say --step SECONDS"):
        build("cf", tmp_path / "b.nc")
    archives.write_cf(tmp_path / "c" / "1.nc", radar_times(3), rain(3), "dBZ")
    source = build("cf", tmp_path / "c", *ALL_TRAIN)
    opened.cache_clear()
    (tmp_path / "c" / "1.nc").unlink()
    with pytest.raises(SourceError, match=r"1.nc: not there any more"):
        source.read(source.plan().splits["train"][0])


def test_the_package_is_imported_only_when_it_is_needed():
    code = "import sys, shards.sources; print({'xarray', 'h5py', 'av', 'eccodes', 'zarr', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("variable", ["rain", "time", "y"])
def test_damaged_values_of_a_variable_or_a_coordinate(tmp_path, variable):
    """They are read when they are needed, and by libraries that raise what they like."""
    h5py = pytest.importorskip("h5py")
    archives.write_cf(tmp_path / "in/a.nc", radar_times(12, 5), rain(12), "mm h-1")
    with xarray.open_dataset(tmp_path / "in/a.nc", engine="h5netcdf") as data:
        packed = data.load()
    packed.to_netcdf(tmp_path / "in/a.nc", engine="h5netcdf", encoding={variable: {"zlib": True}})
    with h5py.File(tmp_path / "in/a.nc") as file:
        chunk = file[variable].id.get_chunk_info(0)
    broken = bytearray((tmp_path / "in/a.nc").read_bytes())
    broken[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    (tmp_path / "in/a.nc").write_bytes(broken)

    def read():
        source = build("cf", tmp_path / "in", *ALL_TRAIN)
        source.read(source.plan().splits["train"][0])

    with pytest.raises(SourceError, match=r"a\.nc: .*fetch the file again"):
        read()


@pytest.mark.parametrize(
    "error", [RuntimeError("NetCDF: HDF error"), AttributeError("x\ny"), OverflowError()], ids=repr
)
def test_what_libraries_of_netcdf_raise_names_the_file(tmp_path, error):
    told = r"a\.nc: its values can't be read \((NetCDF: HDF error|x|OverflowError)\)"
    with pytest.raises(SourceError, match=told), reading(tmp_path / "a.nc", "its values can't be read"):
        raise error
    with pytest.raises(UsageError, match="ours"), reading(tmp_path / "a.nc", "its values can't be read"):
        raise UsageError("ours")
