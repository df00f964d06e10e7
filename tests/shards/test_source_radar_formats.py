"""The readers of radar formats: values as documented, missing data, time stamps, and what damaged files are told."""

import gzip
import sys
from datetime import datetime

import numpy as np
import pytest

from shards import ShardError, SourceError, UsageError
from shards.sources.hko7 import Hko7Png
from shards.sources.radar import READERS
from shards.sources.radar_pictures import read_pgm
from shards.sources.radar_readers import rain_to_dbz
from shards.sources.timeline import Stamped, TimeOptions, commonest_step, mode_label, parse_period
from tests.support import archives
from tests.support.archives import build, numbered, radar_times
from tests.support.radar_files import ONE_SPLIT, dbz, only_event, physical


def test_knmi(tmp_path):
    raw = np.arange(64 * 64).reshape(64, 64).astype(np.uint16)
    raw[0, :9] = 65535
    archives.write_knmi(tmp_path, radar_times(3), [raw, raw, raw])
    source = build("radar", tmp_path, *ONE_SPLIT)
    values = physical(source, only_event(source))
    assert np.array_equal(np.isnan(values[0]), raw == 65535)
    seen = raw != 65535
    assert np.abs(values[0][seen] - dbz(raw[seen] * 0.01 * 12)).max() <= 0.125 + 1e-5


@pytest.mark.parametrize("minutes", [6, 10])
def test_bom_by_its_own_period(tmp_path, minutes):
    raw = np.arange(4096).reshape(64, 64).astype(np.int16)
    raw[3, 3], raw[3, 4] = -1, -2
    archives.write_bom(tmp_path, radar_times(4, minutes), [raw] * 4, 60 * minutes)
    source = build("radar", tmp_path, *ONE_SPLIT)
    assert source.describe().step_seconds == 60 * minutes
    values = physical(source, only_event(source))[0]
    assert np.isnan(values[3, 3]) and np.isnan(values).sum() == 1
    assert values[3, 4] == 0  # the stray -0.1 mm
    seen = raw >= 0
    assert np.abs(values[seen] - dbz(raw[seen] * 0.05 * 60 / minutes)).max() <= 0.125 + 1e-5


def test_fmi(tmp_path):
    raw = np.arange(256, dtype=np.uint8).reshape(8, 32)
    archives.write_fmi(tmp_path, radar_times(3), [raw] * 3)
    source = build("radar", tmp_path, *ONE_SPLIT)
    values = physical(source, only_event(source))[0]
    expected = np.clip((raw.astype(np.float64) - 64) / 2, 0, 63.5)
    assert np.array_equal(np.isnan(values), raw == 255)
    assert np.nanmax(np.abs(values - expected)[raw != 255]) <= 0.125


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P2\n2 2\n255\n0 0 0 0", "no binary PGM: it begins with b'P2"),
        (b"P5\n# a\n2 2 # b\n65535\n" + bytes(8), "its greatest value is 65535"),
        (b"P5\n2 2\n255\n" + bytes(3), "2x2 pixels are 4 bytes, it has 3"),
    ],
)
def test_a_pgm_that_is_none(tmp_path, data, message):
    with pytest.raises(SourceError, match=message):
        read_pgm(tmp_path / "x.pgm", data)


def test_a_pgm_with_comments_anywhere(tmp_path):
    data = b"P5\n# one\n# two\n3\n# three\n1\n# four\n255\n" + b"#\n "
    assert read_pgm(tmp_path / "x.pgm", data).tolist() == [[35, 10, 32]]


def test_the_papers_layout_and_its_scale(tmp_path):
    for number, time in enumerate(radar_times(5, 6)):
        archives.save(tmp_path / "any" / f"x_{time:%Y%m%d%H%M%S}.png", numbered(number, 30, 90))
    source = build("radar", tmp_path, *ONE_SPLIT)
    values = physical(source, only_event(source))
    assert set(np.unique(values)) == {30.0, 60.0}  # (p + 30) / 2
    assert source.describe().step_seconds == 360
    other = build("radar", tmp_path, *ONE_SPLIT, "--dbz", "0,0.25")
    assert set(np.unique(physical(other, only_event(other)))) == {7.5, 22.5}
    with pytest.raises(UsageError, match="--dbz 1: give OFFSET,GAIN"):
        build("radar", tmp_path, "--dbz", "1")


def test_the_papers_modes_and_split(tmp_path):
    """2016/3-5 and 2017/3-4 train, 2017/5 tests; June to August likewise; no event crosses a season."""
    days = [datetime(2016, 5, 31, 23, 54), datetime(2016, 6, 1), datetime(2017, 5, 9), datetime(2017, 6, 9)]
    days += [datetime(2017, 8, 2), datetime(2016, 12, 1)]
    for number, time in enumerate(days):
        archives.save(tmp_path / f"x_{time:%Y%m%d%H%M%S}.png", numbered(number))
    parts = ["train=2016-03..2016-08", "train=2017-03..2017-04", "test=2017-05..2017-05", "train=2017-06..2017-07"]
    parts += ["test=2017-08..2017-08"]
    options = [word for part in parts for word in ("--split", part)]
    source = build("radar", tmp_path, "--mode-by", "season", "--step", "360", *options)
    plan = source.plan()
    assert [(e.start_time[:7], e.mode, e.run_offset) for e in plan.splits["train"]] == [
        ("2016-05", "mar-may", 0),
        ("2016-06", "jun-aug", 1),
        ("2017-06", "jun-aug", 0),
    ]
    assert [(e.start_time[:7], e.mode) for e in plan.splits["test"]] == [("2017-05", "mar-may"), ("2017-08", "jun-aug")]
    assert "in no --split, so left out: 1 frame" in plan.notes
    assert source.describe().modes == ("dec-feb", "jun-aug", "mar-may")


def test_periods_may_be_months():
    period = parse_period("train=2015-12..2015-12")
    assert (period.start, period.end) == (datetime(2015, 12, 1), datetime(2016, 1, 1))
    assert [mode_label(datetime(2015, month, 1), "season") for month in (1, 3, 6, 9, 12)] == [
        "dec-feb",
        "mar-may",
        "jun-aug",
        "sep-nov",
        "dec-feb",
    ]


def test_the_commonest_step_is_the_archives():
    times = [Stamped(time, "") for time in radar_times(30, 10, skip=(4, 9))]
    assert commonest_step(times, 300) == 600
    assert commonest_step(times[:1], 300) == 300


def test_an_unusual_step_is_told(tmp_path):
    archives.write_gifs(tmp_path, radar_times(6, 10))
    assert any(
        "the usual step of this format is 300 s" in note for note in build("radar", tmp_path, "--crop", "8").notes
    )


def test_defaults_are_recorded(tmp_path):
    import argparse

    from shards.sources import SOURCES

    archives.write_fmi(tmp_path, radar_times(3), [np.zeros((400, 390), np.uint8)] * 3)
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    SOURCES["radar"].add_arguments(parser)
    args = parser.parse_args([str(tmp_path)])
    source = SOURCES["radar"].build(args)
    assert (args.reader, args.crop, args.step) == ("fmi", "384", 300.0)
    assert source.describe().frames.shape == (1, 384, 384)


def test_two_formats_in_one_folder(tmp_path):
    archives.write_gifs(tmp_path, radar_times(3))
    archives.write_fmi(tmp_path, radar_times(2), [np.zeros((16, 16), np.uint8)] * 2)
    with pytest.raises(UsageError, match=r"frames of several formats \(meteoswiss 3, fmi 2\)"):
        build("radar", tmp_path)
    assert len(build("radar", tmp_path, "--reader", "fmi", "--crop", "none").frames) == 2


def test_resizing_keeps_missing_apart(tmp_path):
    raw = np.full((32, 32), 100, np.uint8)
    raw[:, :16] = 255
    archives.write_fmi(tmp_path, radar_times(2), [raw] * 2)
    source = build("radar", tmp_path, *ONE_SPLIT, "--size", "48")
    values = physical(source, only_event(source))[0]
    assert values.shape == (48, 48)
    assert set(np.unique(values[~np.isnan(values)])) == {18.0} and np.isnan(values).mean() == 0.5


def test_hko7_values_and_mask(tmp_path):
    mask = np.ones((16, 16), bool)
    mask[2:4] = False
    archives.write_hko7(tmp_path, radar_times(12, 6), mask)
    source = build("hko7", tmp_path, *ONE_SPLIT)
    values = physical(source, only_event(source))
    assert np.isnan(values[:, ~mask]).all() and not np.isnan(values[:, mask]).any()
    assert np.abs(values[0][mask] - (70 * 20 / 255 - 10)).max() < 1e-4
    assert not any("skipped" in note for note in source.notes)
    (tmp_path / "radarPNG/2017/05/30/RAD170530220000.png").unlink()
    archives.save(tmp_path / "radarPNG/2017/05/30/RAD170530220000.png", np.full((16, 16), 255, np.uint8))
    values = physical(source, only_event(source))
    assert np.nanmax(values) == pytest.approx(70 * 254 / 255 - 10, abs=1e-4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"this frame's mask is absent"),
        (lambda path: path.write_bytes(b"no zlib"), r"unreadable mask"),
        (
            lambda path: path.write_bytes(b"x\x9c\x03\x00\x00\x00\x00\x01"),
            r"for 16x16 pixels has 256 bytes, this one 0",
        ),
    ],
)
def test_hko7_damaged_masks(tmp_path, damage, message):
    archives.write_hko7(tmp_path, radar_times(3, 6), np.ones((16, 16), bool))
    damage(tmp_path / "radarPNG_mask/2017/05/30/RAD170530220600.mask")
    source = build("hko7", tmp_path, *ONE_SPLIT)
    with pytest.raises(SourceError, match=message):
        source.read(only_event(source))


@pytest.mark.parametrize(
    ("reader", "name", "time"),
    [
        ("knmi", "RAD_NL25_RAP_5min_201008260735.h5", "2010-08-26T07:35"),
        ("knmi", "RAD_NL25_RAC_MFBS_EM_5min_202012312355_NL.h5", "2020-12-31T23:55"),
        ("knmi", "RAD_NL25_RAC_24H_202012312355.h5", None),
        ("bom", "2_20180616_100600.prcp-cscn.nc", "2018-06-16T10:06"),
        ("bom", "2_20189916_100600.prcp-cscn.nc", None),
        ("fmi", "201609281445_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz", "2016-09-28T14:45"),
        ("mrms", "PrecipRate_00.00_20190610-000200.grib2", "2019-06-10T00:02"),
        ("mrms", "MRMS_PrecipRate_00.00_20190610-000200.grib2.gz", "2019-06-10T00:02"),
        ("images", "x_y_20170501120600.png", "2017-05-01T12:06"),
        ("images", "20170501120600.png", None),
        ("meteoswiss", "AQC153662360F_00005.801.gif", None),
    ],
)
def test_times_in_names(reader, name, time):
    found = READERS[reader].parse(name)
    assert (found and found.time) == (datetime.fromisoformat(time) if time else None)
    assert READERS[reader].parse(READERS[reader].looks_like) is not None
    assert Hko7Png().parse(name) is None


def test_damaged_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    archives.write_knmi(tmp_path, radar_times(3), [np.zeros((16, 16))] * 3)
    paths = sorted(tmp_path.iterdir())
    source = build("radar", tmp_path, *ONE_SPLIT)
    event = only_event(source)
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"201705302205.h5: unreadable frame"):
        source.read(event)
    with h5py.File(paths[1], "w") as file:
        file["image2/image_data"] = np.zeros(3)
    with pytest.raises(SourceError, match=r"no dataset image1/image_data; it holds image2, image2/image_data"):
        source.read(event)
    with h5py.File(paths[1], "w") as file:
        file["image1/image_data"] = np.zeros((16, 16), np.float32)
    with pytest.raises(SourceError, match=r"has type float32, expected uint8 or uint16"):
        source.read(event)
    archives.write_knmi(tmp_path, radar_times(2)[1:], [np.zeros((16, 16))], formula="GEO=log(PV)")
    with pytest.raises(SourceError, match=r"the calibration is 'GEO=log\(PV\)', expected GEO=0.01\*PV\+0.0"):
        source.read(event)
    archives.write_knmi(tmp_path, radar_times(2)[1:], [np.zeros((16, 20))])
    with pytest.raises(SourceError, match=r"frames of two sizes: .*2200.h5 is 16x16 pixels, .*2205.h5 is 16x20"):
        source.read(event)


def test_images_of_another_kind(tmp_path):
    (time,) = radar_times(1)
    archives.save(tmp_path / f"x_{time:%Y%m%d%H%M%S}.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(SourceError, match=r"pixels of kind RGB, expected L"):
        build("radar", tmp_path)


def test_grib_without_its_package(tmp_path, monkeypatch):
    (tmp_path / "PrecipRate_00.00_20190610-000200.grib2").touch()
    monkeypatch.setitem(sys.modules, "eccodes", None)
    with pytest.raises(ShardError, match=r"eccodes.*pip install 'modernn-toolkit\[grib\]'"):
        build("radar", tmp_path)


def test_grib_that_is_none(tmp_path):
    pytest.importorskip("pyproj")  # before eccodes: see radar_grib.py
    pytest.importorskip("eccodes")
    (tmp_path / "PrecipRate_00.00_20190610-000200.grib2.gz").write_bytes(gzip.compress(b"no grib"))
    with pytest.raises(SourceError, match="unreadable frame"):
        build("radar", tmp_path)


def test_rain_becomes_dbz():
    assert rain_to_dbz([1.0, 0.0, -2.0]).tolist() == pytest.approx([10 * np.log10(200), 0, 0])
    assert np.isnan(rain_to_dbz([np.nan]))


def test_two_ways_to_split(tmp_path):
    archives.write_gifs(tmp_path, radar_times(10))
    with pytest.raises(UsageError, match="two ways to divide the archive"):
        build("radar", tmp_path, "--crop", "8", "--split", "train=..", "--val-fraction", "0.1")
    plan = build("radar", tmp_path, "--crop", "8", "--val-fraction", "0", "--test-fraction", "0.3").plan()
    assert {split: sum(e.length for e in events) for split, events in plan.splits.items()} == {"train": 7, "test": 3}
    assert isinstance(build("radar", tmp_path, "--crop", "8").options, TimeOptions)
