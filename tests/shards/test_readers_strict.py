"""What readers refuse or read to its end: packed files of several members, files cut anywhere, headers whose numbers
are none, bands and datasets that are nearly the one asked for, names with two times.
"""

from __future__ import annotations

import bz2
import gzip
import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from shards import SourceError, UsageError
from shards.manifest import LARGEST_SIDE
from shards.sources import radar_readers
from shards.sources.radar_readers import (
    LARGEST_PIXELS,
    check_pixels,
    content,
    number_in,
    rain_to_dbz,
    side_in,
    time_in,
)
from tests.support.archives import build, radar_times, write_bom, write_knmi
from tests.support.radar_files import (
    ONE_SPLIT,
    only_event,
    physical,
    wet,
    write_fmi_header,
    write_geotiff,
    write_odim,
    write_radolan,
)

TIMES = radar_times(3)
ALL_TRAIN = ONE_SPLIT[:4]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_all_members_of_a_packed_file_are_read(tmp_path: Path, suffix: str, pack) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pack(b"one") + pack(b"") + pack(b"two" * 1_000_000))
    assert content(path) == b"one" + b"two" * 1_000_000
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole[: len(pack(b"one")) - 2], b"no " + whole, b"-"):
        path.write_bytes(damaged)
        with pytest.raises(SourceError, match="unreadable frame"):
            content(path)
    path.write_bytes(pack(b""))
    assert content(path) == b""


def test_a_packed_file_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radar_readers, "LARGEST", 1 << 20)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes(1 << 19)) * 2)
    assert len(content(path)) == 1 << 20
    path.write_bytes(gzip.compress(bytes(1 << 19)) * 2 + gzip.compress(b"x"))
    with pytest.raises(SourceError, match="more than 1048576 bytes unpacked, the most that is read"):
        content(path)


@pytest.mark.parametrize("product", ["RY", "RX"])
def test_radolan_cut_at_any_byte(tmp_path: Path, product: str) -> None:
    write_radolan(tmp_path, TIMES, wet(3, 6, 5).astype(np.uint8 if product == "RX" else np.uint16), product)
    source = build("radar", tmp_path, *ONE_SPLIT)
    path = sorted(tmp_path.iterdir())[1]
    whole = path.read_bytes()
    begin = whole.index(b"\x03") + 1
    for size in (begin, begin + 1, len(whole) - 2, len(whole) - 1, len(whole) + 1, len(whole) + 2):
        path.write_bytes((whole + b"??")[:size])
        said = rf"6x5 cells are {len(whole) - begin} bytes, it has {size - begin}"
        if size > len(whole):
            said = f"more than {len(whole)} bytes unpacked, what its header promises"
        with pytest.raises(SourceError, match=said):
            source.read(only_event(source))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"GP   6x   5", b"GP   0x   5"), (b"INT   5", b"INT" + b"9" * 400), (b"GP   6x", b"GP" + b"9" * 99)],
)
def test_radolan_headers_of_numbers_that_cannot_be(tmp_path: Path, old: bytes, new: bytes) -> None:
    write_radolan(tmp_path, TIMES[:1], wet(1, 6, 5).astype(np.uint16))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(SourceError, match="raa01"):
        build("radar", tmp_path, "--step", "300")


def test_geotiff_items_are_those_of_the_band(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    write_geotiff(tmp_path, TIMES, [wet(3), wet(3)], tags={"quantity": "any"})
    for path in tmp_path.iterdir():
        with rasterio.open(path, "r+") as image:
            image.update_tags(1, gain="1.0", offset="0.0", undetect="40")
            image.update_tags(2, gain="0.5", offset="-10.0", undetect="41")
    for band, gain, offset, undetect in ((1, 1.0, 0.0, 40), (2, 0.5, -10.0, 41)):
        source = build("radar", tmp_path, *ONE_SPLIT, "--band", str(band))
        expected = np.where(wet(3) == undetect, 0, np.clip(gain * wet(3) + offset, 0, 63.5))
        assert np.abs(physical(source, only_event(source)) - expected).max() <= 0.126


def test_a_geotiff_with_damaged_items_prints_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """GDAL quotes them in its complaint, which rasterio's error handler can't decode, nor raise that it can't."""
    rasterio = pytest.importorskip("rasterio")
    write_geotiff(tmp_path, TIMES[:1], [wet(1)], tags={"gain": "0.5"})
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    assert b'<Item name="gain"' in data
    file.write_bytes(data.replace(b'<Item name="gain"', b'<Item \xffame "gain"'))
    printed: list[BaseException | None] = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: printed.append(found.exc_value))
    with rasterio.open(file) as image:
        image.tags()
    assert isinstance(printed.pop(), UnicodeDecodeError)  # so it is without `quiet`
    assert "UnicodeDecodeError" in capfd.readouterr().err
    build("radar", tmp_path, *ALL_TRAIN, "--reader", "geotiff", "--dbz=0,0.5")
    assert not printed
    assert "UnicodeDecodeError" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["gain", "offset", "nodata", "undetect"])
@pytest.mark.parametrize("value", ["abc", "1,5"])
def test_geotiff_items_that_are_no_numbers(tmp_path: Path, name: str, value: str) -> None:
    pytest.importorskip("rasterio")
    write_geotiff(tmp_path, TIMES, [wet(3)], tags={"gain": "0.5", name: value})
    with pytest.raises(SourceError, match=rf"the header's {name} is .*, expected a number"):
        build("radar", tmp_path)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_geotiff_gains_that_are_not_finite(tmp_path: Path, value: str) -> None:
    pytest.importorskip("rasterio")
    write_geotiff(tmp_path, TIMES, [wet(3)], tags={"gain": value})
    with pytest.raises(SourceError, match=rf"the header's gain is {value}, expected a finite number"):
        build("radar", tmp_path)


@pytest.mark.parametrize("name", ["gain", "offset", "nodata", "undetect"])
def test_odim_attributes_that_are_no_numbers(tmp_path: Path, name: str) -> None:
    pytest.importorskip("h5py")
    write_odim(tmp_path, TIMES, {"DBZH": {"data": wet(3), name: np.bytes_("much")}})
    with pytest.raises(SourceError, match=rf"the header's {name} is 'much', expected a number"):
        build("radar", tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("xscale", "wide"), ("xsize", 1 << 40), ("ysize", 2.5), ("UL_lon", np.nan)]
)
def test_odim_places_that_are_none(tmp_path: Path, name: str, value: object) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("pyproj")
    write_odim(tmp_path, TIMES, {"DBZH": {"data": wet(3)}})
    for path in tmp_path.iterdir():
        with h5py.File(path, "r+") as file:
            file["where"].attrs[name] = value
    source = build("radar", tmp_path)
    assert source.describe().grid is None
    assert any("the grid isn't kept: " in note and f"the header's {name} is" in note for note in source.notes)


def test_odim_datasets_by_their_whole_name(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    fields = {f"Q{number}": {"data": wet(3)} for number in range(1, 10)} | {"TH": {"data": wet(3) + 9}}
    fields = {"DBZH": {"data": wet(3)}, **{name: fields[name] for name in [*fields][1:]}}
    write_odim(tmp_path, TIMES, fields)
    for name, added in (("dataset1", 0), ("dataset10", 9), ("dataset10/data1", 9), ("dataset1/data1/data", 0)):
        source = build("radar", tmp_path, *ONE_SPLIT, "--quantity", name)
        assert np.array_equal(physical(source, only_event(source)), np.clip(wet(3) + added, 0, 63.5).round(2))
    for name in ("dataset", "dataset1/data", "dataset2"):
        with pytest.raises(UsageError, match=f"--quantity {name}"):
            build("radar", tmp_path, "--quantity", name)


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("a_202205301200_b.tif", "2022-05-30T12:00"),
        ("202205301200/x_20220530T120000Z.tif", "2022-05-30T12:00"),
        ("a_202205301200_202205301205.tif", None),
        ("a_202205301200_202213301205.tif", None),
        ("a_20220530.tif", None),
    ],
)
def test_names_with_several_times(name: str, time: str | None) -> None:
    found = time_in(name)
    assert (found and found.time) == (datetime.fromisoformat(time) if time else None)


def test_names_with_begin_and_end_need_a_pattern(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    write_geotiff(tmp_path, TIMES, [wet(3)], name="{0:%Y%m%d%H%M}_201705302300.tif", gain=0.5)
    with pytest.raises(SourceError, match="--name-pattern"):
        build("radar", tmp_path)
    pattern = r"(?P<time>\d{12})_\d{12}"
    source = build("radar", tmp_path, *ONE_SPLIT, "--reader", "geotiff", "--name-pattern", pattern)
    assert [event.start_time for event in source.plan().splits["train"]] == ["2017-05-30T22:00:00Z"]


def test_geotiff_units_of_rain_and_of_much_else(tmp_path: Path) -> None:
    pytest.importorskip("rasterio")
    write_geotiff(tmp_path / "v", TIMES, [wet(3)], name="{:%Y%m%d%H%M}_VRAD.tif", unit="m/s", gain=0.5)
    with pytest.raises(SourceError, match=r"is in m/s, which rain has, and much else.*--unit m/s"):
        build("radar", tmp_path / "v")
    assert build("radar", tmp_path / "v", "--unit", "m/s").describe().scale.unit == "dBZ"
    write_geotiff(tmp_path / "r", TIMES, [wet(3)], name="{:%Y%m%d%H%M}_RAIN.tif", unit="m/s", gain=0.5)
    assert build("radar", tmp_path / "r").describe().scale.unit == "dBZ"


@pytest.mark.parametrize(("unit", "factor"), [("m", 12_000.0), ("kg m-2", 12.0), ("mm", 12.0), ("cm", 120.0)])
def test_geotiff_amounts_are_taken_as_the_message_says(tmp_path: Path, unit: str, factor: float) -> None:
    pytest.importorskip("rasterio")
    amount = (wet(3) * 1e-3).astype(np.float32)
    write_geotiff(tmp_path, TIMES, [amount], name="{:%Y%m%d%H%M}_RAIN.tif", unit=unit)
    with pytest.raises(SourceError, match=f"is in {unit}, a unit of amounts") as caught:
        build("radar", tmp_path)
    option = shlex.split(str(caught.value).partition("say ")[2])
    assert option == ["--unit", f"{unit}/5min"]
    source = build("radar", tmp_path, *ONE_SPLIT, *option)
    expected = np.clip(rain_to_dbz(amount * factor), 0, 63.5)
    assert np.abs(physical(source, only_event(source)) - expected).max() <= 0.126
    with pytest.raises(UsageError, match="--unit K: neither dBZ nor a rain rate"):
        build("radar", tmp_path, "--unit", "K")


@pytest.mark.parametrize(
    ("tags", "nodata", "options"),
    [
        ({"gain": "nan?", "offset": ""}, None, ("--dbz", "0,0.5")),  # antenna gain, say
        ({"gain": "0", "nodata": "none"}, 200, ("--dbz", "0,0.5")),
        ({"nodata": "none", "undetect": "", "gain": "0.5"}, None, ()),
        ({"nodata": "outside", "gain": "0.5"}, 200, ()),
    ],
)
def test_geotiff_items_that_nobody_uses(
    tmp_path: Path, tags: dict[str, str], nodata: float | None, options: tuple[str, ...]
) -> None:
    rasterio = pytest.importorskip("rasterio")
    write_geotiff(tmp_path, TIMES, [wet(3), wet(3)], tags=tags, nodata=nodata)
    for path in tmp_path.iterdir():
        with rasterio.open(path, "r+") as image:
            image.update_tags(2, gain="of another band", undetect="x")
    source = build("radar", tmp_path, *ONE_SPLIT, "--band", "1", *options)
    assert np.abs(physical(source, only_event(source)) - np.clip(0.5 * wet(3), 0, 63.5)).max() <= 0.126


def _damaged_headers(tmp_path: Path) -> dict[str, Callable[[], None]]:
    return {
        "geotiff": lambda: write_geotiff(tmp_path, TIMES, [wet(3)], tags={"gain": "0"}),
        "geotiff-band": lambda: write_geotiff(tmp_path, TIMES, [wet(3)], gain=0.0),
        "odim": lambda: write_odim(tmp_path, TIMES, {"DBZH": {"data": wet(3), "gain": 0.0}}),
        "knmi": lambda: write_knmi(tmp_path, TIMES, wet(3), "GEO=0*PV+5"),
        "knmi-inf": lambda: write_knmi(tmp_path, TIMES, wet(3), "GEO=1e999*PV+0"),
        "knmi-text": lambda: write_knmi(tmp_path, TIMES, wet(3), "GEO=e-*PV+."),
        "knmi-code": lambda: [write_knmi(tmp_path, TIMES, wet(3)), _set(tmp_path, "image1/calibration")],
        "bom": lambda: [write_bom(tmp_path, TIMES, wet(3), 600), _set(tmp_path, "precipitation", scale_factor=0.0)],
        "bom-code": lambda: [write_bom(tmp_path, TIMES, wet(3), 600), _set(tmp_path, "precipitation", _FillValue=2.5)],
        "fmi-code": lambda: write_fmi_header(tmp_path, TIMES, wet(3), missingval="254.5"),
        "fmi-text": lambda: write_fmi_header(tmp_path, TIMES, wet(3), missingval="none"),
    }


def _set(folder: Path, name: str, **values: object) -> None:
    import h5py

    for path in folder.iterdir():
        with h5py.File(path, "r+") as file:
            file[name].attrs.update(values or {"calibration_missing_data": 254.5})


@pytest.mark.parametrize(
    ("case", "message"),
    [
        *[(case, "gain is 0.0, expected a number that isn't 0") for case in ("geotiff", "geotiff-band", "odim")],
        ("knmi", "calibration is 0.0, expected a number that isn't 0"),
        ("knmi-inf", "calibration is inf, expected a finite number"),
        ("knmi-text", "calibration is 'e-', expected a number"),
        ("knmi-code", "calibration is 254.5, expected a whole number"),
        ("bom", "scale_factor is 0.0, expected a number that isn't 0"),
        ("bom-code", "_FillValue is 2.5, expected a whole number"),
        ("fmi-code", "missingval is 254.5, expected a whole number"),
        ("fmi-text", "missingval is 'none', expected a number"),
    ],
)
def test_headers_whose_numbers_make_no_values(tmp_path: Path, case: str, message: str) -> None:
    pytest.importorskip("rasterio" if case.startswith("geotiff") else "h5py")
    _damaged_headers(tmp_path)[case]()
    with pytest.raises(SourceError, match=f"the header's {message}"):
        build("radar", tmp_path)


@pytest.mark.parametrize("value", [10**400, -(10**400), [1, 2], 1j, b"x", "1e", None])
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(SourceError, match=r"file: the header's gain is .*, expected a number"):
        number_in(Path("file"), "gain", value)


def test_sides_have_the_bounds_of_stores() -> None:
    assert [side_in(Path("file"), "rows", side) for side in (1, "7", LARGEST_SIDE)] == [1, 7, LARGEST_SIDE]
    for side in (0, -1, LARGEST_SIDE + 1, 2.5, 10**400, float("inf")):
        with pytest.raises(SourceError, match="the header's rows is"):
            side_in(Path("file"), "rows", side)
    check_pixels(Path("file"), (LARGEST_PIXELS >> 12, 1 << 12))
    for shape in ((LARGEST_PIXELS >> 12, (1 << 12) + 1), (LARGEST_SIDE + 1, 1)):
        with pytest.raises(SourceError, match="the header's size is"):
            check_pixels(Path("file"), shape)


def test_objects_and_texts_beside_frames_are_skipped_and_counted(tmp_path: Path) -> None:
    dates, meta = np.array(["2017", "2018"]), np.array([{"a": 1}, None], dtype=object)
    np.savez(tmp_path / "a.npz", data=wet(40, 8, 8), dates=dates, meta=meta)
    source = build("arrays", tmp_path, *ALL_TRAIN)
    assert np.array_equal(source.read(only_event(source)).frames[:, 0], wet(40, 8, 8))
    assert any("2 other arrays skipped, the first is a.npz: dates 2" in note for note in source.plan().notes)
    with pytest.raises(SourceError, match="no array of real numbers named meta in 1 file"):
        build("arrays", tmp_path, "--key", "meta")
    np.savez(tmp_path / "a.npz", meta=np.zeros((4, 8, 8), dtype=object))
    with pytest.raises(
        SourceError, match=r"no array of real numbers with 3 to 5 axes in 1 file; arrays: a.npz: meta 4x8x8 object"
    ):
        build("arrays", tmp_path)


@pytest.mark.parametrize("dtype", ["U3", "float64", "bool", "O"])
def test_clips_that_are_no_integers(tmp_path: Path, dtype: str) -> None:
    clips = np.zeros((2, 3, 2)).astype(dtype)
    np.savez(tmp_path / "a.npz", clips=clips, input_raw_data=wet(30, 8, 8)[:, None])
    with pytest.raises(SourceError, match=r"a.npz: (clips|unreadable npz file)"):
        build("moving-mnist-file", tmp_path)
