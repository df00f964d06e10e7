"""SEVIR: the catalog and what may be wrong with it, the axes of the files, times, and levels against kg/m2."""

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import Manifest, ManifestError, SourceError, UsageError, open_store
from shards.cli import main
from shards.sources.sevir import LEVELS
from shards.sources.sevir_catalog import read_catalog
from tests.support import archives
from tests.support.archives import SEVIR_COLUMNS, build, numbered, sevir_line

TIMES = [datetime(2018, 12, 31, 22), datetime(2019, 2, 1, 12), datetime(2019, 6, 1)]


def test_published_splits_times_and_axes(tmp_path):
    archives.write_sevir(tmp_path, TIMES)
    source = build("sevir", tmp_path, "--mode-by", "season")
    plan = source.plan()
    assert {name: [(e.key, e.start_time, e.mode) for e in events] for name, events in plan.splits.items()} == {
        "train": [("20181231T220000Z-S000000", "2018-12-31T20:00:00Z", "dec-feb")],
        "val": [("20190201T120000Z-S000001", "2019-02-01T10:00:00Z", "dec-feb")],
        "test": [("20190601T000000Z-S000002", "2019-05-31T22:00:00Z", "jun-aug")],
    }
    (event,) = plan.splits["val"]
    frames = source.read(event).frames
    assert frames.shape == (49, 1, 16, 16) and event.times is None
    assert np.array_equal(frames[7, 0], numbered(49 + 7))  # time comes first, and north is up
    assert source.read(event).details == {"id": "S000001"} and source.describe().step_seconds == 300


def test_modes_by_type_of_storm(tmp_path):
    lines = [sevir_line(f"S{i:06d}", i, "2019-02-01 12:00:00") for i in range(2)]
    lines[0] = lines[0].replace(",,,,", ",1,2,Thunderstorm Wind,", 1)
    archives.write_sevir(tmp_path, TIMES[:2], lines=lines)
    source = build("sevir", tmp_path, "--mode-by", "event-type")
    assert [event.mode for event in source.plan().splits["val"]] == ["thunderstorm-wind", "random"]
    assert source.describe().modes == ("random", "thunderstorm-wind")


def test_sevir_lr_has_every_second_time(tmp_path):
    archives.write_sevir(tmp_path, TIMES, frames=25)
    source = build("sevir", tmp_path)
    assert (source.describe().name, source.describe().step_seconds) == ("sevir-lr-vil", 600)
    (event,) = source.plan().splits["val"]
    assert (event.length, event.start_time, event.times) == (25, "2019-02-01T10:00:00Z", None)
    assert np.array_equal(source.read(event).frames[3, 0], numbered(49 + 3))


def test_offsets_that_are_not_on_fives(tmp_path):
    lines = [
        sevir_line("S000000", 0, "2019-02-01 12:00:00", first=-121),
        sevir_line("S000001", 1, "2019-02-01 12:00:00"),
    ]
    lines[1] = lines[1].replace("-120:-115", "-119:-115")
    archives.write_sevir(tmp_path, TIMES[:2], lines=lines)
    first, second = build("sevir", tmp_path).plan().splits["val"]
    assert (first.start_time, first.times) == ("2019-02-01T09:59:00Z", None)
    assert second.times is not None and second.times[:2] == ("2019-02-01T10:01:00Z", "2019-02-01T10:05:00Z")


def test_missing_pixels_and_ids_that_occur_twice(tmp_path, capsys):
    time = "2019-02-01 12:00:00"
    lines = [sevir_line(f"S{i:06d}", i, time, missing) for i, missing in enumerate((0.0, 0.25, 0.0))]
    lines += [sevir_line("S000002", 2, time)]
    archives.write_sevir(tmp_path / "in", [TIMES[1]] * 3, lines=lines)
    assert main(["convert", "sevir", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "1 ids have several vil rows and are left out, the first is S000002" in said
    assert "1 of 2 events have more than --max-missing 0 missing" in said
    assert "no event in the published period of train and test; choose others with --split" in said
    assert [event.key for event in open_store(tmp_path / "out").events("val")] == ["20190201T120000Z-S000000"]
    assert sum(map(len, build("sevir", tmp_path / "in", "--max-missing", "0.5").plan().splits.values())) == 2
    archives.write_sevir(tmp_path / "in", [TIMES[1]] * 3, lines=lines[1:2])
    with pytest.raises(SourceError, match=r"all 1 events have missing pixels, the least 0.250 .* raise --max-missing"):
        build("sevir", tmp_path / "in")


def test_other_periods(tmp_path):
    archives.write_sevir(tmp_path, TIMES)
    plan = build("sevir", tmp_path, "--split", "train=..2018-12", "--split", "test=2019-06..").plan()
    assert list(plan.splits) == ["train", "test"] and "in no --split, so left out: 1 event" in plan.notes
    with pytest.raises(UsageError, match="--split val: no frame lies in it"):
        build("sevir", tmp_path, "--split", "val=2021-01..").plan()


GOOD = sevir_line("S000000", 0, "2019-02-01 12:00:00")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            GOOD.replace("2019-02-01 12:00:00", "yesterday"),
            "line 3, column time_utc: 'yesterday' is no time of an event",
        ),
        (
            GOOD.replace("2019-02-01 12:00:00", "13/1/19 1:00"),
            "column time_utc: '13/1/19 1:00' is no time of an event in",
        ),
        (
            GOOD.replace("2019-02-01 12:00:00", "9/1/19 1:00"),
            "column time_utc: '9/1/19 1:00' is no time of an event in",
        ),
        (GOOD.replace("S000000", "#REF!"), "column id: '#REF!' is no SEVIR id"),
        (GOOD.replace(",0,vil", ",1.0E+03,vil"), r"column file_index: '1.0E\+03' is no row number"),
        (GOOD.replace("-120:-115", "#NAME?:-115"), "column minute_offsets: '#NAME.*is no list of minutes"),
        (GOOD.removesuffix("0.0") + "12", "column pct_missing: '12' is no share of missing pixels, 0..1"),
        (GOOD.removesuffix(",0.0"), "column pct_missing: empty"),
        (GOOD.replace("vil/2019", "../../etc"), "column file_name: .* is no path below data/"),
    ],
)
def test_a_catalog_with_a_bad_field(tmp_path, line, message):
    path = tmp_path / "CATALOG.csv"
    path.write_text("\n".join([SEVIR_COLUMNS, GOOD, line]) + "\n")
    with pytest.raises(SourceError, match=f"CATALOG.csv: line 3, {message}" if "line" not in message else message):
        read_catalog(path, "vil")


def test_a_catalog_from_a_spreadsheet(tmp_path):
    path = tmp_path / "CATALOG.csv"
    lines = [GOOD.replace("2019-02-01 12:00:00", "5/26/19 0:55"), GOOD.replace("2019-02-01 12:00:00", "6/3/19 10:05")]
    lines[1] = lines[1].replace("S000000", "S000001")
    path.write_text("﻿" + "\n".join([SEVIR_COLUMNS + ",mid_lat", *(f"{line},31.6" for line in lines)]) + "\n")
    rows, notes = read_catalog(path, "vil")
    assert [row.time for row in rows] == [datetime(2019, 5, 26, 0, 55), datetime(2019, 6, 3, 10, 5)]
    assert any("2 dates are read as month/day/year" in note for note in notes)
    path.write_text("\n".join([SEVIR_COLUMNS, lines[1]]) + "\n")
    with pytest.raises(SourceError, match="none tells whether the month or the day comes first"):
        read_catalog(path, "vil")


def test_catalogs_that_are_none(tmp_path):
    path = tmp_path / "CATALOG.csv"
    path.write_text("id,file_name\n")
    with pytest.raises(SourceError, match=r"line 1: no column file_index, img_type, .*; it has id, file_name"):
        build("sevir", tmp_path)
    path.write_text(f"{SEVIR_COLUMNS}\n{GOOD.replace(',vil,', ',vis,')}\n")
    with pytest.raises(SourceError, match=r"no rows of img_type vil; it has vis 1"):
        build("sevir", tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match=r"not a table of text"):
        build("sevir", tmp_path)
    (tmp_path / "CATALOG2.csv").touch()
    with pytest.raises(SourceError, match=r"several catalogs \(CATALOG.csv, CATALOG2.csv\)"):
        build("sevir", tmp_path)


def test_files_that_are_not_the_catalogs(tmp_path):
    h5py = pytest.importorskip("h5py")
    absent = sevir_line("S000009", 0, "2019-03-01 12:00:00", file="vil/2019/SEVIR_VIL_RANDOMEVENTS_2019_0101_0430.h5")
    archives.write_sevir(tmp_path, TIMES[:1], lines=[GOOD, absent])
    source = build("sevir", tmp_path)
    assert any(
        "1 events lie in 1 file that are not here, the first is vil/2019/SEVIR_VIL_RANDOM" in n for n in source.notes
    )
    (event,) = source.plan().splits["val"]
    path = tmp_path / "data" / archives.SEVIR_FILE
    with h5py.File(path, "r+") as file:
        del file["id"]
        file["id"] = np.array([b"R1"])
    with pytest.raises(SourceError, match=r"event 0 is R1, the catalog says S000000"):
        source.read(event)
    archives.write_sevir(tmp_path, TIMES[:1], lines=[GOOD.replace(",0,vil", ",5,vil")])
    source = build("sevir", tmp_path)
    with pytest.raises(SourceError, match=r"1 events, the catalog says that S000000 is number 5"):
        source.read(source.plan().splits["val"][0])
    with h5py.File(path, "w") as file:
        file["vil"] = np.zeros((1, 16, 16, 30), np.uint8)
    with pytest.raises(SourceError, match=r"30 frames per event, expected 49 \(SEVIR\) or 25"):
        build("sevir", tmp_path)
    path.unlink()
    with pytest.raises(SourceError, match=r"none of its 1 files is there, the first is .*0630.h5"):
        build("sevir", tmp_path)


def published(level: float) -> float:
    """kg/m2 as SEVIR's tutorial has it."""
    if level <= 5:
        return 0.0
    return (level - 2) / 90.66 if level <= 18 else float(np.exp((level - 83.9) / 38.9))


def test_levels_and_kilograms():
    levels = np.arange(256, dtype=np.uint8)
    values = LEVELS.to_physical(levels)
    assert LEVELS.physical_unit == "kg m-2" and np.isnan(values[255])
    assert np.allclose(values[:255], [published(level) for level in range(255)], rtol=1e-5)
    assert np.array_equal(LEVELS.to_code(values[6:255]), levels[6:255])
    assert LEVELS.to_code([0.0, np.nan, 1e6]).tolist() == [0, 255, 254]
    assert (LEVELS.offset, LEVELS.gain, LEVELS.unit) == (0.0, 1.0, "1")  # thresholds are levels, as the literature's


@given(st.floats(0, 79))
def test_the_code_is_that_of_the_nearest_level(value):
    code = int(LEVELS.to_code([value])[0])
    assert abs(published(code) - value) <= min(abs(published(level) - value) for level in range(255)) + 1e-5


def test_the_manifest_keeps_the_mapping(tmp_path, capsys):
    archives.write_sevir(tmp_path / "in", TIMES)
    assert main(["convert", "sevir", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert main(["info", str(tmp_path / "out")]) == 0
    assert "codes 0..254 are 0..254, code 255 is missing; in kg m-2 by sevir-vil" in capsys.readouterr().out
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.scale == LEVELS
    with pytest.raises(ManifestError, match=r"the mapping 'mystery' is unknown, should be one of sevir-vil"):
        Manifest.from_json(manifest.to_json().replace("sevir-vil", "mystery", 99))
