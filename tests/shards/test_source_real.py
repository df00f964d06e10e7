"""The real archives convert, are whole, and hold what an independent decoding of the raw files gives."""

import gzip
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from shards import Store, open_store
from shards.cli import main
from shards.sources.kth_sequences import read_table
from shards.sources.sevir_catalog import read_catalog
from shards.verify import verify

WHOLE = ("--val-fraction", "0", "--test-fraction", "0", "--event-frames", "100")


def store_of(folder, *arguments: str) -> Store:
    assert main(["convert", *arguments[:1], *map(str, arguments[1:2]), str(folder), *arguments[2:]]) == 0
    assert verify(folder) == []
    return open_store(folder)


def values_of(store: Store, split: str = "train", index: int = 0) -> np.ndarray:
    event = store.events(split)[index]
    return store.manifest.scale.to_physical(store.read(split, index, 0, event.length))[:, 0]


def dbz(rate: np.ndarray, a: float = 200, b: float = 1.6) -> np.ndarray:
    """mm/h -> dBZ within the codes' range; NaN stays."""
    return np.clip(10 * np.log10(np.maximum(a * rate**b, 1.0)), 0, 63.5)


def assert_within_half_a_code(values: np.ndarray, expected: np.ndarray) -> None:
    seen = ~np.isnan(expected)
    assert np.array_equal(np.isnan(values), ~seen)
    assert np.abs(values[seen] - expected[seen]).max() <= 0.125 + 1e-5


def missing_share(store: Store) -> float:
    return float(store.metadata("train", 0)["missing"])


def test_knmi(real_data, tmp_path):
    h5py = pytest.importorskip("h5py")
    store = store_of(tmp_path / "s", "auto", real_data / "radar/knmi", *WHOLE)
    assert [(e.length, e.start_time) for e in store.events("train")] == [(92, "2010-08-26T00:00:00Z")]
    values = values_of(store)
    paths = sorted((real_data / "radar/knmi").rglob("*.h5"))
    for i in (0, 40, 91):
        with h5py.File(paths[i]) as file:
            raw = file["image1/image_data"][240:624, 176:560]
        assert_within_half_a_code(values[i], dbz(np.where(raw == 65535, np.nan, raw * 0.01 * 12)))
    assert missing_share(store) == pytest.approx(0.121, abs=5e-4)  # 88 % valid
    assert (values[40] > 30).sum() > 500


def test_bom(real_data, tmp_path):
    h5py = pytest.importorskip("h5py")
    store = store_of(tmp_path / "s", "auto", real_data / "radar/bom", *WHOLE, "--format", "zarr")
    (event,) = store.events("train")
    assert (event.length, event.start_time) == (61, "2018-06-16T10:00:00Z")
    assert store.manifest.step_seconds == 360
    values = values_of(store)
    paths = sorted((real_data / "radar/bom").rglob("*.nc"))
    for i in (0, 30, 60):
        with h5py.File(paths[i]) as file:
            raw = file["precipitation"][64:448, 64:448].astype(np.float64)
        assert_within_half_a_code(values[i], dbz(raw * 0.05 * 10))
    assert missing_share(store) == 0
    assert np.nanmax(values) < dbz(np.float64(53.1))


def test_mrms(real_data, tmp_path):
    pytest.importorskip("pyproj")  # before eccodes: see radar_grib.py
    eccodes = pytest.importorskip("eccodes")
    name = "PrecipRate_00.00_20190610-000200.grib2"
    (tmp_path / "in").mkdir()
    shutil.copy(real_data / "radar/mrms/20190610" / name, tmp_path / "in")
    store = store_of(tmp_path / "s", "radar", tmp_path / "in", *WHOLE, "--crop", "none", "--size", "none")
    values = values_of(store)[0]
    with (tmp_path / "in" / name).open("rb") as file:
        message = eccodes.codes_grib_new_from_file(file)
        raw = eccodes.codes_get_values(message).reshape(3500, 7000)
        eccodes.codes_release(message)
    assert missing_share(store) == pytest.approx((raw < 0).mean(), abs=1e-6) == pytest.approx(0.36, abs=0.01)
    part = np.s_[0:3500:5, 0:7000:5]
    assert_within_half_a_code(values[part], dbz(np.where(raw[part] < 0, np.nan, raw[part])))


def test_meteoswiss_by_season(real_data, tmp_path, capsys):
    splits = ["--split", "train=2015-05..2015-05", "--split", "test=2016-07..2016-07", "--mode-by", "season"]
    store = store_of(tmp_path / "s", "auto", real_data / "radar/mch", *splits)
    assert {name: [(e.length, e.mode) for e in store.events(name)] for name in store.splits} == {
        "train": [(40, "mar-may")],
        "test": [(40, "jun-aug")],
    }
    # The default crop lies within the radars' reach, but for two pixels of this day.
    absent = 0
    for path in (real_data / "radar/mch/20150515").glob("*.gif"):
        with Image.open(path) as image:
            absent += int((np.asarray(image)[128:512, 163:547] == 255).sum())
    assert absent == 80 and missing_share(store) == pytest.approx(absent / (40 * 384 * 384), abs=1e-6)
    assert "80 files named like AQC" in capsys.readouterr().err


def test_opera(real_data, tmp_path):
    """RATE of the one quantity that is rain; QIND, a quality index, is the file's other dataset."""
    h5py = pytest.importorskip("h5py")
    store = store_of(tmp_path / "s", "auto", real_data / "radar/opera", *WHOLE)
    assert [(e.length, e.start_time) for e in store.events("train")] == [(2, "2018-08-24T18:00:00Z")]
    values = values_of(store)
    for i, path in enumerate(sorted((real_data / "radar/opera").iterdir())):
        with h5py.File(path) as file:
            raw = file["dataset1/data1/data"][...]
        rate = np.where(raw == -8888000, 0, raw)
        rate[raw == -9999000] = np.nan
        assert_within_half_a_code(values[i], dbz(np.maximum(rate, 0)))
    grid = store.manifest.grid
    assert grid.metres_per_pixel == (2000, 2000)
    with h5py.File(path) as file:
        where = dict(file["where"].attrs)
    for corner, name in zip(grid.corners, ("UL", "UR", "LR", "LL"), strict=True):
        assert corner == pytest.approx((where[f"{name}_lon"], where[f"{name}_lat"]), abs=1e-4)
    assert store.splits["train"].missing == pytest.approx(missing_share(store), abs=1e-6)


def test_fmi_geotiff(real_data, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    store = store_of(tmp_path / "s", "auto", real_data / "radar/fmi_geotiff", *WHOLE, "--crop", "3000,2000,500,600")
    (event,) = store.events("train")
    assert event.start_time == "2016-09-28T14:45:00Z"
    with rasterio.open(next((real_data / "radar/fmi_geotiff").iterdir())) as image:
        raw = image.read(1)[3000:3500, 2000:2600].astype(float)
        corner = image.transform @ (2000.5, 3000.5) if hasattr(image.transform, "__matmul__") else None
    assert_within_half_a_code(values_of(store)[0], np.where(raw == 255, np.nan, np.clip(raw / 2 - 32, 0, 63.5)))
    grid = store.manifest.grid
    assert "TM35FIN" in grid.crs_wkt and (raw > 80).any()
    assert corner is None or (grid.x0, grid.y0) == pytest.approx(corner)


def test_radar_of_six_formats_in_one_folder(real_data, tmp_path, capsys):
    assert main(["convert", "auto", str(real_data / "radar"), str(tmp_path / "s")]) == 2
    said = capsys.readouterr().err
    counts = r"frames of several formats \(bom 61, geotiff 1, knmi 92, meteoswiss 80, mrms 3, odim 2\).*--reader"
    assert re.search(counts, said)


def test_sevir_layout(real_data, tmp_path):
    """Not SEVIR's storms but its layout; event 1 begins 43 frames after event 0, so they share six frames."""
    h5py = pytest.importorskip("h5py")
    folder = real_data / "sevir/sevir_like"
    splits = ["--split", "train=..2010-08-26T05:00", "--split", "test=2010-08-26T05:00.."]
    store = store_of(tmp_path / "s", "auto", folder, "--max-missing", "0.2", *splits)
    assert [store.events(split)[0].start_time for split in ("train", "test")] == [
        "2010-08-26T00:00:00Z",
        "2010-08-26T03:35:00Z",
    ]
    with h5py.File(folder / "data/vil/2010/SEVIR_VIL_RANDOMEVENTS_2010_0826_0826.h5") as file:
        raw = file["vil"][:]
    for index, split in enumerate(("train", "test")):
        codes = store.read(split, 0, 0, 49)[:, 0]
        assert np.array_equal(codes, np.moveaxis(raw[index], -1, 0)[:, ::-1])
        assert store.metadata(split, 0)["missing"] == pytest.approx(0.120999, abs=1e-6)
    assert np.array_equal(store.read("train", 0, 43, 49), store.read("test", 0, 0, 6))
    level = raw[0, :, :, 20].astype(np.float64)
    kilograms = np.where(level <= 5, 0, np.where(level <= 18, (level - 2) / 90.66, np.exp((level - 83.9) / 38.9)))
    values = values_of(store, "train")[20, ::-1]
    assert np.array_equal(np.isnan(values), level == 255)
    assert np.allclose(values[level < 255], kilograms[level < 255], rtol=1e-5)


def test_the_catalog_that_went_through_a_spreadsheet(real_data, tmp_path, capsys):
    rows, notes = read_catalog(real_data / "sevir/CATALOG_vil_2019_excerpt.csv", "vil")
    assert (len(rows), sum(row.missing == 0 for row in rows)) == (851, 525)
    assert any("851 dates are read as month/day/year, which agrees with the file names" in note for note in notes)
    assert main(["convert", "sevir", str(real_data / "sevir/CATALOG_vil_2019_excerpt.csv"), str(tmp_path / "s")]) == 5
    assert "none of its 1 files is there, the first is" in capsys.readouterr().err


def table_lines(path) -> dict[str, list[tuple[int, int]]]:
    """00sequences.txt read in another way than the source does."""
    found = re.findall(r"^(person\d\d_\w+_d\d)\s+frames\s+(.+?)\s*$", path.read_text(), re.MULTILINE)
    return {clip: [tuple(map(int, pair)) for pair in re.findall(r"(\d+)-(\d+)", text)] for clip, text in found}


def test_kth_counts_are_the_tables(real_data, tmp_path, capsys):
    store = store_of(tmp_path / "s", "auto", real_data / "kth", "--val-persons", "15")
    said = capsys.readouterr().err
    assert "looks like kth: 7 avi files and 00sequences.txt" in said and "592 of 599 clips" in said
    ranges = table_lines(real_data / "kth/00sequences.txt")
    lengths: dict[str, list[int]] = {}
    for split in store.splits:
        for event in store.events(split):
            lengths.setdefault(event.key.split("-")[0], []).append(event.length)
            person = int(event.key[6:8])
            assert split == ("test" if person >= 17 else "val" if person == 15 else "train")
            assert event.mode == ("hands" if "boxing" in event.key else "torso")
    here = {path.name.removesuffix("_uncomp.avi") for path in (real_data / "kth/avi").iterdir()}
    assert lengths == {clip: [last - first + 1 for first, last in ranges[clip]] for clip in here}
    windows = {clip: (sum(n // 20 for n in part), sum(max(0, n - 19) for n in part)) for clip, part in lengths.items()}
    assert windows == {
        "person07_walking_d2": (18, 337),
        "person09_running_d1": (4, 67),
        "person15_running_d1": (8, 117),
        "person16_boxing_d4": (21, 384),
        "person20_walking_d3": (13, 232),
        "person23_running_d3": (4, 49),
        "person25_boxing_d4": (22, 384),
    }


def test_kths_whole_table(real_data):
    table = read_table(real_data / "kth/00sequences.txt")
    assert (len(table.ranges), sum(map(len, table.ranges.values())), len(table.missing)) == (599, 2391, 1)
    assert {str(clip): sorted(part) for clip, part in table_lines(real_data / "kth/00sequences.txt").items()} == {
        str(clip): list(part) for clip, part in table.ranges.items()
    }


def test_kth_pixels(real_data, tmp_path):
    """Luma straight from the decoder's Y plane, of studio range, at the original size."""
    av = pytest.importorskip("av")
    store = store_of(tmp_path / "s", "kth", real_data / "kth", "--size", "none")
    split, index = next(
        (s, e.index) for s in store.splits for e in store.events(s) if e.key == "person23_running_d3-r002"
    )
    frames = store.read(split, index, 0, 33)[:, 0]
    with av.open(str(real_data / "kth/avi/person23_running_d3_uncomp.avi")) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if 69 <= number <= 101:  # 70-102, counted from 1
                plane = frame.planes[0]
                luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, :160].astype(np.float64)
                full = np.clip((luma - 16) * 255 / 219, 0, 255)
                assert np.abs(frames[number - 69] - full).max() <= 1


def test_other_peoples_video(real_data, tmp_path):
    store = store_of(tmp_path / "s", "auto", real_data / "kth/openstl_32x32", "--channels", "grey")
    assert {name: (split.events, split.frames) for name, split in store.splits.items()} == {
        "train": (2, 150),
        "val": (2, 150),
        "test": (1, 75),
    }
    assert store.manifest.frames.shape == (1, 32, 32)


def test_meteoswiss_crops_as_the_papers_images(real_data, tmp_path):
    """Written as the authors' loader reads them, and read back: the same codes."""
    days = store_of(tmp_path / "a", "radar", real_data / "radar/mch/20160711", *WHOLE)
    codes = days.read("train", 0, 0, 12)[:, 0]
    for i, frame in enumerate(codes):
        path = tmp_path / "png" / f"mch_201607{11 + i // 99:02d}{20 + i // 10:02d}{i % 10 * 6:02d}00.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(frame).save(path)
    again = store_of(tmp_path / "b", "auto", tmp_path / "png", *WHOLE, "--dbz", "0,0.25")
    assert np.array_equal(again.read("train", 0, 0, 12)[:, 0], codes)
    assert again.manifest.step_seconds == 360


def test_mnist_is_told_how(real_data, tmp_path, capsys):
    assert main(["convert", "auto", str(real_data / "mnist"), str(tmp_path / "s")]) == 2
    assert "convert moving-mnist OUTPUT --digits" in capsys.readouterr().err
    with gzip.open(real_data / "mnist/t10k-images-idx3-ubyte.gz") as file:
        assert file.read(4) == b"\0\0\x08\x03"
