"""ODIM HDF5, GeoTIFF, RADOLAN and MRMS reflectivity: values as documented, missing and dry pixels, times and headers.

No RADOLAN or MRMS reflectivity sample is at hand: those files are made in the documented form (radar_files.py). OPERA's
and FMI's real files are read in test_source_real.py.
"""

from __future__ import annotations

import gzip
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from shards import SourceError, UsageError
from shards.cli import main
from tests.support.archives import build, radar_times, save
from tests.support.radar_files import (
    ONE_SPLIT,
    dbz,
    only_event,
    physical,
    wet,
    write_fmi_header,
    write_geotiff,
    write_mrms,
    write_odim,
    write_radolan,
)

h5py = pytest.importorskip("h5py")
TIMES = radar_times(4)


def values_of(source) -> np.ndarray:
    return physical(source, only_event(source))


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    """To half a code where there is a value, and missing in the same places."""
    seen = ~np.isnan(expected)
    return np.array_equal(np.isnan(found), ~seen) and np.abs(found - expected)[seen].max() <= 0.125 + 1e-6


# ------------------------------------------------------------------------------------------------------------ ODIM


@pytest.mark.parametrize("packed", [False, True])
def test_odim_reflectivity(tmp_path: Path, packed: bool) -> None:
    raw = wet(4)
    raw[:, :4], raw[:, 4:8] = 255, 0
    about = {"gain": 0.5, "offset": -32.0, "nodata": 255.0, "undetect": 0.0}
    write_odim(tmp_path, TIMES, {"DBZH": {"data": raw, **about}}, packed=packed)
    source = build("radar", tmp_path, *ONE_SPLIT)
    expected = np.clip(0.5 * raw.astype(float) - 32, 0, 63.5)
    expected[raw == 255] = np.nan
    assert source.reader.name == "odim" and near(values_of(source), expected)
    assert [event.start_time for event in source.plan().splits["train"]] == ["2017-05-30T22:00:00Z"]


@pytest.mark.parametrize(("quantity", "factor"), [("RATE", 1.0), ("ACRR", 12.0)])
def test_odim_rain(tmp_path: Path, quantity: str, factor: float) -> None:
    rain = np.random.default_rng(3).gamma(0.5, 3.0, (4, 32, 40))
    rain[:, 0], rain[:, 1] = -9999000.0, -8888000.0
    write_odim(tmp_path, TIMES, {quantity: {"data": rain, "nodata": -9999000.0, "undetect": -8888000.0}})
    expected = dbz(np.maximum(rain, 0.0) * factor)
    expected[:, 0] = np.nan
    assert near(values_of(build("radar", tmp_path, *ONE_SPLIT)), expected)


def test_odim_with_several_quantities(tmp_path: Path) -> None:
    raw = wet(4)
    fields = {"TH": {"data": raw, "gain": 0.5}, "DBZH": {"data": raw, "gain": 0.25}, "QIND": {"data": raw}}
    write_odim(tmp_path, TIMES, fields)
    with pytest.raises(
        UsageError, match=r"2 datasets of reflectivity or rain; name one with --quantity.*TH \(dataset1"
    ):
        build("radar", tmp_path)
    for asked in ("DBZH", "dataset2", "dbzh"):
        source = build("radar", tmp_path, *ONE_SPLIT, "--quantity", asked)
        assert near(values_of(source), raw * 0.25)
    with pytest.raises(UsageError, match=r"--quantity QIND: neither reflectivity nor rain.*DBZH"):
        build("radar", tmp_path, "--quantity", "QIND")
    with pytest.raises(UsageError, match=r"0 datasets of --quantity VRAD; .* it holds TH .*DBZH .*QIND"):
        build("radar", tmp_path, "--quantity", "VRAD")


def test_odim_that_is_none_or_of_another_kind(tmp_path: Path) -> None:
    write_odim(tmp_path, TIMES[:1], {"DBZH": {"data": wet(1)}})
    (path,) = tmp_path.iterdir()
    with h5py.File(path, "r+") as file:
        file["what"].attrs["object"] = np.bytes_("PVOL")
    with pytest.raises(SourceError, match="the header's object is PVOL, expected a composite"):
        build("radar", tmp_path)
    with h5py.File(path, "w") as file:
        file["image1/image_data"] = np.zeros((3, 3))
    with pytest.raises(SourceError, match="no ODIM HDF5: it has no /what with an object; it holds image1"):
        build("radar", tmp_path)


def test_headers_of_an_archive_agree(tmp_path: Path) -> None:
    write_odim(tmp_path, TIMES[:2], {"DBZH": {"data": wet(2)}})
    write_odim(tmp_path, TIMES[2:], {"TH": {"data": wet(2)}})
    source = build("radar", tmp_path, *ONE_SPLIT)
    with pytest.raises(
        SourceError, match=r"quantity is 'DBZH' in .*2200.*hdf and 'TH' in .*2210.*hdf; convert them as"
    ):
        source.read(only_event(source))
    (tmp_path / "T_PAAH21_C_EUOC_20170530220000.hdf").rename(tmp_path / "T_PAAH21_C_EUOC_20170530214000.hdf")
    with pytest.raises(SourceError, match=r"header's time is 2017-05-30T22:00:00Z, the name says 2017-05-30T21:40:00Z"):
        build("radar", tmp_path)


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("20180606000000.rad.best.comp.rate.qpe_2m.hdf", "2018-06-06T00:00"),
        ("OPERA@20240102T0305@0@DBZH.h5", "2024-01-02T03:05"),
        ("composite_wn_20230101_0005-hd5", "2023-01-01T00:05"),
        ("CPC2012208105_00060.801.h5", "2020-05-01T08:10"),
        ("RZC201221235VL.801.h5", "2020-05-01T12:35"),
        ("2024-01-02_03-05.hdf", "2024-01-02T03:05"),
        ("SEVIR_VIL_STORMEVENTS_2019_0101_0630.h5", None),
        ("RAD_NL25_RAC_24H_202012312355.h5", None),
        ("201809310000.h5", None),
    ],
)
def test_odim_names(name: str, time: str | None) -> None:
    from shards.sources.radar import READERS

    found = READERS["odim"].parse(name)
    assert (found and found.time.isoformat()[:16]) == time


# --------------------------------------------------------------------------------------------------------- GeoTIFF

rasterio = pytest.importorskip("rasterio")
FMI_ITEMS = (
    '<GDALMetadata><Item name="Observation time" format="YYYYMMDDhhmm">{time}</Item><Item name="Quantity" '
    'unit="dBZ">Corrected reflectivity</Item><Item name="Gain">0.5</Item><Item name="Offset">-32</Item>'
    '<Item name="Nodata">255</Item><Item name="Undetect">0</Item></GDALMetadata>'
)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("south_up", [False, True])
def test_geotiff_of_eight_or_sixteen_bits_or_floats(tmp_path: Path, dtype: str, south_up: bool) -> None:
    raw = wet(4).astype(dtype)
    raw[:, :4] = 255
    write_geotiff(tmp_path, TIMES, [raw], gain=0.5, offset=-32.0, nodata=255, south_up=south_up)
    source = build("radar", tmp_path, *ONE_SPLIT)
    expected = np.clip(0.5 * raw.astype(float) - 32, 0, 63.5)
    expected[:, :4] = np.nan
    assert source.reader.name == "geotiff"
    assert near(values_of(source), expected[:, ::-1] if south_up else expected)
    assert any("no unit" in note for note in source.notes)
    assert (source.place.x0, source.place.y0) == (300_125, 6_999_875)


def test_geotiff_with_items_of_metadata(tmp_path: Path) -> None:
    raw = wet(4)
    raw[:, 0], raw[:, 1] = 255, 0
    for time, frame in zip(TIMES, raw, strict=True):
        write_geotiff(
            tmp_path, [time], [frame[None]], tags={"GDAL_METADATA": FMI_ITEMS.format(time=f"{time:%Y%m%d%H%M}")}
        )
    source = build("radar", tmp_path, *ONE_SPLIT)
    expected = np.clip(0.5 * raw.astype(float) - 32, 0, 63.5)
    expected[:, 0] = np.nan
    assert near(values_of(source), expected) and source.facts["unit"] == "dBZ"
    path = sorted(tmp_path.iterdir())[0]
    path.rename(path.with_name(path.name.replace("201705302200", "201705302100")))
    with pytest.raises(SourceError, match=r"the header's time is 2017-05-30T22:00:00Z, the name says 2017-05-30T21:00"):
        build("radar", tmp_path, *ONE_SPLIT)


def test_geotiff_of_rain_and_of_what_is_said(tmp_path: Path) -> None:
    rain = (wet(4) / 50).astype(np.float32)
    write_geotiff(tmp_path / "a", TIMES, [rain], unit="mm/h")
    assert near(values_of(build("radar", tmp_path / "a", *ONE_SPLIT)), dbz(rain.astype(float)))
    write_geotiff(tmp_path / "b", TIMES, [wet(4)])
    with pytest.raises(SourceError, match=r"names neither unit nor gain.*--dbz OFFSET,GAIN"):
        build("radar", tmp_path / "b")
    source = build("radar", tmp_path / "b", *ONE_SPLIT, "--dbz=-10,0.4")
    assert near(values_of(source), np.clip(-10 + 0.4 * wet(4), 0, 63.5))
    write_geotiff(tmp_path / "c", TIMES, [rain], unit="K")
    with pytest.raises(SourceError, match="the header's unit is K, expected dBZ, or a rain rate"):
        build("radar", tmp_path / "c")


@pytest.mark.parametrize("option", ["--dbz=nan,1", "--dbz=0,inf", "--dbz=0,nan", "--dbz=0,0", "--dbz=1", "--step=nan"])
def test_numbers_of_options_that_are_none(tmp_path: Path, option: str) -> None:
    write_geotiff(tmp_path, TIMES, [wet(4)])
    with pytest.raises(UsageError, match=option.partition("=")[0]):
        build("radar", tmp_path, *ONE_SPLIT, option)


def test_geotiff_with_several_bands(tmp_path: Path) -> None:
    write_geotiff(tmp_path, TIMES, [wet(4), wet(4) + 20], gain=0.5, offset=-32.0)
    with pytest.raises(UsageError, match=r"2 bands \(1 band 1, 2 band 2\); name one with --band N"):
        build("radar", tmp_path)
    with pytest.raises(UsageError, match="2 bands"):
        build("radar", tmp_path, "--band", "3")
    source = build("radar", tmp_path, *ONE_SPLIT, "--band", "2")
    assert near(values_of(source), np.clip(0.5 * (wet(4) + 20.0) - 32, 0, 63.5))


def test_geotiff_packed_or_damaged(tmp_path: Path) -> None:
    write_geotiff(tmp_path, TIMES, [wet(4)], gain=0.5, offset=-32.0)
    for path in list(tmp_path.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    source = build("radar", tmp_path, *ONE_SPLIT)
    assert near(values_of(source), np.clip(0.5 * wet(4) - 32, 0, 63.5))
    path = sorted(tmp_path.iterdir())[1]
    whole = path.read_bytes()
    for damage in (
        whole[: len(whole) // 2],
        gzip.compress(b"II*\0 no tiff"),
        gzip.compress(gzip.decompress(whole)[:300]),
    ):
        path.write_bytes(damage)
        with pytest.raises(SourceError, match=r"202205.*tif.gz|2205_FIN.*tif.gz: unreadable frame"):
            source.read(only_event(source))


# --------------------------------------------------------------------------------------------------------- RADOLAN


@pytest.mark.parametrize("packed", ["", ".gz", ".bz2"])
def test_radolan_reflectivity(tmp_path: Path, packed: str) -> None:
    raw = wet(4, 900, 900)
    raw[:, 0], raw[:, 1] = 250, 249
    write_radolan(tmp_path, TIMES, raw, "RX", packed)
    source = build("radar", tmp_path, *ONE_SPLIT)
    expected = np.clip(raw[:, ::-1] / 2 - 32.5, 0, 63.5)
    expected[:, -2:] = np.nan
    assert source.reader.name == "radolan" and near(values_of(source), expected)


def test_radolan_rain_and_its_flags(tmp_path: Path) -> None:
    amount = np.random.default_rng(1).integers(0, 400, (4, 1100, 900)).astype(np.uint16)
    flags = np.zeros_like(amount)
    flags[:, 0], flags[:, 1], flags[:, 2], flags[:, 3] = 0x2000, 0x8000, 0x1000, 0x4000
    write_radolan(tmp_path, TIMES, amount | flags, "RY")
    expected = dbz(amount * 0.01 * 12)  # hundredths of millimetres in five minutes
    expected[:, :2], expected[:, 3] = np.nan, 0.0  # no data, clutter; negative amounts are no rain
    assert near(values_of(build("radar", tmp_path, *ONE_SPLIT)), expected[:, ::-1])


def test_radolan_headers(tmp_path: Path) -> None:
    write_radolan(tmp_path, TIMES[:1], wet(1, 20, 30), "RX")
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    assert build("radar", tmp_path).place is None  # no grid of DWD's has 20 x 30
    path.write_bytes(data.replace(b"RX30", b"WX30"))
    with pytest.raises(SourceError, match="the header's product is WX, expected RX, as the file's name says"):
        build("radar", tmp_path)
    path.write_bytes(data.replace(b"RX30", b"PG30"))
    with pytest.raises(SourceError, match="the header's product is PG, expected one of reflectivity or rain"):
        build("radar", tmp_path)
    path.write_bytes(data[:-7])
    with pytest.raises(SourceError, match="20x30 cells are 600 bytes, it has 593"):
        build("radar", tmp_path)
    path.write_bytes(b"no header at all")
    with pytest.raises(SourceError, match="no RADOLAN header: it begins with b'no header"):
        build("radar", tmp_path)


# ------------------------------------------------------------------------------------------------------------ MRMS


def test_mrms_reflectivity(tmp_path: Path) -> None:
    pytest.importorskip("pyproj")  # before eccodes: see radar_grib.py
    pytest.importorskip("eccodes")
    values = wet(4) / 3.0
    values[:, 0], values[:, 1] = -999, -99
    write_mrms(tmp_path, TIMES, values, "MRMS_MergedReflectivityQCComposite_00.50")
    expected = np.clip(values, 0, 63.5)
    expected[:, 0] = np.nan
    source = build("radar", tmp_path, *ONE_SPLIT)
    assert near(values_of(source), expected)
    path = sorted(tmp_path.iterdir())[0]
    path.rename(path.with_name("PrecipRate_00.00_20170530-220000.grib2"))
    with pytest.raises(UsageError, match=r"preciprate_00.00: 1 file.*--product"):
        build("radar", tmp_path)
    with pytest.raises(
        SourceError, match=r"parameter is \(209, 10, 0\) \(not PrecipRate\), expected that of preciprate"
    ):
        build("radar", tmp_path, "--product", "PrecipRate")


# -------------------------------------------------------------------------------------- one archive, and its names


def test_fmi_headers(tmp_path: Path) -> None:
    write_fmi_header(tmp_path / "a", TIMES, list(wet(4)))
    assert near(values_of(build("radar", tmp_path / "a", *ONE_SPLIT)), np.clip(wet(4) / 2 - 32, 0, 63.5))
    write_fmi_header(tmp_path / "b", TIMES, list(wet(4)), producttype="ETOP")
    with pytest.raises(SourceError, match=r"pgm.gz: the header's producttype is ETOP, expected one of reflectivity"):
        build("radar", tmp_path / "b")
    write_fmi_header(tmp_path / "c", TIMES, list(wet(4)), param="Height")
    with pytest.raises(SourceError, match="the header's param is Height, expected reflectivity"):
        build("radar", tmp_path / "c")
    write_fmi_header(tmp_path / "d", TIMES, list(wet(4)), missingval="41")
    values = values_of(build("radar", tmp_path / "d", *ONE_SPLIT))
    assert np.array_equal(np.isnan(values), wet(4) == 41)


def test_names_of_the_users_own(tmp_path: Path) -> None:
    about = {"gain": 0.5, "offset": -32.0}
    write_odim(tmp_path / "a", TIMES, {"DBZH": {"data": wet(4), **about}}, name="radar-{:%d.%m.%Y_%H%M}.dat")
    with pytest.raises(SourceError, match="no radar frames; it has 4 files"):
        build("radar", tmp_path / "a")
    with pytest.raises(UsageError, match="--name-pattern and --time-format need --reader"):
        build("radar", tmp_path / "a", "--time-format", "%d.%m.%Y_%H%M")
    odim = ["--reader", "odim", *ONE_SPLIT]
    source = build("radar", tmp_path / "a", *odim, "--time-format", "%d.%m.%Y_%H%M")
    assert [frame.time for frame in source.frames] == TIMES and near(values_of(source), np.clip(wet(4) / 2 - 32, 0, 64))
    pattern = r"radar-(?P<time>[\d._]+)\.dat"
    source = build("radar", tmp_path / "a", *odim, "--name-pattern", pattern, "--time-format", "%d.%m.%Y_%H%M")
    assert len(source.frames) == 4
    for wrong, message in (
        (["--time-format", "%H%M"], "needs a year and a day"),
        (["--time-format", "%Y%q"], "needs a year and a day, of %Y"),
        (["--name-pattern", "("], "is no regular expression"),
        (["--name-pattern", "nothing"], "none fits nothing"),
    ):
        with pytest.raises((UsageError, SourceError), match=message):
            build("radar", tmp_path / "a", *odim, *wrong)
    write_odim(tmp_path / "z", TIMES, {"DBZH": {"data": wet(4)}}, name="x{:%Y%m%dT%H%M}.h5")
    for path, time in zip(sorted((tmp_path / "z").iterdir()), TIMES, strict=True):  # two hours ahead of UTC
        path.rename(path.with_name(f"y{time + timedelta(hours=2):%Y%m%dT%H%M}+0200.h5"))
    source = build("radar", tmp_path / "z", *odim, "--time-format", "%Y%m%dT%H%M%z")
    assert [frame.time for frame in source.frames] == TIMES


def test_a_reader_takes_files_of_other_names_by_the_digits_of_a_time(tmp_path: Path, capsys) -> None:
    for time, frame in zip(TIMES, wet(4), strict=True):
        save(tmp_path / "in" / f"{time:%Y-%m-%d_%H%M}.png", frame)
    source = build("radar", tmp_path / "in", *ONE_SPLIT, "--reader", "images", "--missing", "41")
    assert any("aren't named as usual" in note for note in source.notes)
    values = values_of(source)
    assert np.array_equal(np.isnan(values), wet(4) == 41)
    assert near(values, np.where(wet(4) == 41, np.nan, 15 + wet(4) / 2.0))
    assert (
        main(["convert", "radar", str(tmp_path / "in"), str(tmp_path / "s"), "--reader", "images", "--missing", "300"])
        == 2
    )
    assert "--missing 300: grey values are 0..255" in capsys.readouterr().err
    write_odim(tmp_path / "o", TIMES, {"DBZH": {"data": wet(4)}})
    with pytest.raises(UsageError, match="--missing: for images; files of odim"):
        build("radar", tmp_path / "o", "--missing", "3")


def test_a_missing_code_of_white(tmp_path: Path) -> None:
    frames = np.where(wet(4) == 41, 255, wet(4)).astype(np.uint8)
    frames[:, -1] = 255
    for time, frame in zip(TIMES, frames, strict=True):
        save(tmp_path / f"x_{time:%Y%m%d%H%M%S}.png", frame)
    source = build("radar", tmp_path, *ONE_SPLIT, "--missing", "255")
    assert (source.reader.scale.max_code, source.reader.scale.missing_code) == (254, 255)
    assert np.array_equal(np.isnan(values_of(source)), frames == 255)


def test_packed_archives_are_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/RY20170530.tar.gz").write_bytes(b"")
    with pytest.raises(SourceError, match=r"1 packed archive, the first is RY20170530.tar.gz: unpack it first"):
        build("radar", tmp_path / "in")
    write_odim(tmp_path / "in", TIMES, {"DBZH": {"data": wet(4)}})
    assert any("1 packed archive not looked into" in note for note in build("radar", tmp_path / "in").notes)


@pytest.mark.parametrize(
    ("reader", "name", "time", "radar", "product"),
    [
        ("knmi", "RAD_NL25_RAC_RT_202012312355.h5", "2020-12-31T23:55", "NL25", "rac_rt"),
        ("knmi", "RAD_NL25_PCP_NA_202012312355.h5", "2020-12-31T23:55", "NL25", "pcp_na"),
        ("knmi", "RAD_NL25_RAC_MFBS_EM_5min_202012312355_NL.h5", "2020-12-31T23:55", "NL25", "rac_mfbs_em_5min"),
        ("knmi", "RAD_NL25_RAC_24H_202012312355.h5", None, "", ""),
        ("geotiff", "202001011205_FIN-DBZ-3067-250M.tif", "2020-01-01T12:05", "", "*_FIN-DBZ-3067-250M.tif"),
        ("radolan", "raa01-wx_10000-2203151805-dwd---bin.gz", "2022-03-15T18:05", "10000", "wx"),
        ("mrms", "MRMS_MergedReflectivityQCComposite_00.50_20240102-030405.grib2.gz", "2024-01-02T03:04", "", None),
        ("bom", "66_20201031_004000.prcp-c10.nc", "2020-10-31T00:40", "66", "prcp-c10"),
    ],
)
def test_names_say_radar_and_product(reader, name, time, radar, product) -> None:
    from shards.sources.radar import READERS

    found = READERS[reader].parse(name)
    if time is None:
        assert found is None
        return
    assert found.time.isoformat()[:16] == time and found.radar == radar
    assert product is None or found.product == product
