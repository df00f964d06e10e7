"""Radar archives: physical values, runs and gaps, splits in time, and what bad archives are told."""

import argparse
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import SourceError, UsageError, open_store
from shards.cli import main
from shards.sources import SOURCES, timeline
from shards.sources.geometry import Crop, parse_crop
from tests.support.archives import write_gif, write_radar

START = datetime(2016, 7, 11, 20, 45)


def radar(folder, *options: str):
    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    SOURCES["radar"].add_arguments(parser)
    return SOURCES["radar"].build(parser.parse_args([str(folder), "--crop", "none", *options]))


def to_store(folder, archive, *options: str):
    assert main(["convert", "radar", str(archive), str(folder), "--crop", "none", *options]) == 0
    return open_store(folder)


def dbz_of_index(index: int) -> float:
    """Independent of the reader: the documented formula for mm/h, then Z = 316 R^1.5, for rain of at least 0 dBZ."""
    rate = 12 * (10 ** ((index - 71.5) / 20) / 316) ** (1 / 1.5)
    return 10 * np.log10(316 * rate**1.5)


def test_values_are_the_archives_to_half_a_code(tmp_path, format):
    write_radar(tmp_path / "in", START, 12)
    store = to_store(tmp_path / "out", tmp_path / "in", "--format", format)
    assert store.manifest.step_seconds == 300.0 and store.manifest.scale.unit == "dBZ"
    values = store.manifest.scale.to_physical(store.read("train", 0, 0, 1)).ravel()[:256]
    for index, value in enumerate(values):
        if index == 255:
            assert np.isnan(value)
        elif index < 2 or index > 250:
            assert value == 0
        else:
            assert abs(value - np.clip(dbz_of_index(index), 0, 63.5)) <= 0.125 + 1e-5


def test_missing_stays_missing_in_the_store(tmp_path):
    write_radar(tmp_path / "in", START, 10)
    store = to_store(tmp_path / "out", tmp_path / "in")
    frames = store.read("train", 0, 0, 8)
    assert (frames == 255).sum() == 8 * 3 and store.metadata("train", 0)["missing"] == pytest.approx(3 / 768, abs=1e-6)


def test_gaps_split_runs_and_runs_split_into_events(tmp_path, capsys):
    write_radar(tmp_path / "in", START, 30, skip=(12, 13))
    store = to_store(
        tmp_path / "out", tmp_path / "in", "--event-frames", "5", "--split", "train=2016-07-11..2016-07-12"
    )
    events = store.events("train")
    assert [(e.length, e.run_offset) for e in events] == [(5, 0), (5, 5), (2, 10), (5, 0), (5, 5), (5, 10), (1, 15)]
    assert len({e.run for e in events}) == 2 and events[2].run == events[0].run == events[0].key
    assert events[1].start_time == "2016-07-11T21:10:00Z"
    assert "28 frames from 2016-07-11T20:45:00Z to 2016-07-11T23:10:00Z, 1 gap in time" in capsys.readouterr().err


def test_without_splits_the_last_fifth_is_kept_for_validation_and_test(tmp_path):
    write_radar(tmp_path / "in", START, 20)
    store = to_store(tmp_path / "out", tmp_path / "in")
    assert {name: split.frames for name, split in store.splits.items()} == {"train": 16, "val": 2, "test": 2}
    times = [store.events(split)[0].start_time for split in ("train", "val", "test")]
    assert times == sorted(times)
    assert len({store.events(split)[0].run for split in store.splits}) == 3  # no window can span two splits


def test_splits_by_time(tmp_path, capsys):
    archive = tmp_path / "in"
    write_radar(archive, datetime(2015, 5, 15, 12), 4)
    write_radar(archive, datetime(2015, 12, 31, 23, 50), 4)
    write_radar(archive, datetime(2017, 3, 1, 12), 3)
    (archive / "readme.txt").touch()
    store = to_store(
        tmp_path / "out", archive, "--split", "train=..2015-12-31", "--split", "test=2016-01-01..2016-12-31T00:00"
    )
    assert [(e.start_time, e.length) for e in store.events("train")] == [
        ("2015-05-15T12:00:00Z", 4),
        ("2015-12-31T23:50:00Z", 2),
    ]
    assert [(e.start_time, e.length) for e in store.events("test")] == [("2016-01-01T00:00:00Z", 2)]
    said = capsys.readouterr().err
    assert "in no --split, so left out: 3 frames" in said and "1 other file skipped, the first is readme.txt" in said


def test_modes_by_day_and_month(tmp_path):
    write_radar(tmp_path, START, 2)
    write_radar(tmp_path, datetime(2015, 5, 15, 12), 2)
    assert radar(tmp_path, "--mode-by", "day").describe().modes == ("2015-05-15", "2016-07-11")
    assert radar(tmp_path, "--mode-by", "month").describe().modes == ("month-05", "month-07")
    assert radar(tmp_path).describe().modes == ()


def test_uneven_steps_keep_their_times():
    frames = [timeline.Stamped(START + timedelta(seconds=s), str(s)) for s in (0, 290, 610, 900)]
    (run,) = timeline.find_runs(frames, 300)
    (event,) = timeline.cut_events(run, 40, 300, "none")
    assert event.times == tuple(timeline.iso(frame.time) for frame in frames)
    (event,) = timeline.cut_events(
        [timeline.Stamped(START + timedelta(seconds=300 * i), "") for i in range(3)], 40, 300, "none"
    )
    assert event.times is None


@given(
    steps=st.lists(st.sampled_from([300, 300, 300, 600, 900]), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 20_000), min_size=2, max_size=2, unique=True),
    length=st.integers(1, 9),
)
def test_every_frame_is_in_one_event_of_one_split(steps, cuts, length):
    times = np.cumsum([0, *steps])
    frames = [timeline.Stamped(START + timedelta(seconds=int(t)), str(t)) for t in times]
    first, second = (START + timedelta(seconds=cut) for cut in sorted(cuts))
    periods = [
        timeline.Period("train", None, first),
        timeline.Period("val", first, second),
        timeline.Period("test", second, None),
    ]
    wanted = [p for p in periods if any(p.holds(f.time) for f in frames)]
    splits, left_out = timeline.assign_splits(frames, wanted)
    met = []
    for part in splits.values():
        for run in timeline.find_runs(part, 300):
            events = timeline.cut_events(run, length, 300, "none")
            assert [e.run_offset for e in events] == list(range(0, len(run), length))
            assert all(e.times is None for e in events)  # nothing is missing inside an event
            met += [file for e in events for file in e.recipe]
    assert left_out == 0 and sorted(met, key=int) == [f.file for f in frames]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train"], "expected NAME=START..END"),
        (["Train=2015-01-01..2016-01-01"], "expected NAME=START..END"),
        (["train=2015-13-01.."], "'2015-13-01' is no ISO date or time"),
        (["train=2015-05-02..2015-05-01"], "ends before it starts"),
        (["train=2015-05-02T00:00+02:00.."], "times are UTC"),
        (["train=2016-01-01..", "test=2016-07-11.."], "2016-07-11T20:45:00Z lies in test and train"),
        (["train=..2010-01-01"], "--split train: no frame lies in it; the archive runs from 2016-07-11T20:45:00Z"),
    ],
)
def test_splits_that_make_no_sense(tmp_path, splits, message):
    write_radar(tmp_path, START, 3)
    with pytest.raises(UsageError, match=message):
        radar(tmp_path, *(part for split in splits for part in ("--split", split))).plan()


@pytest.mark.parametrize(
    ("text", "crop"),
    [
        ("384", Crop(128, 163, 384, 384)),
        ("none", Crop(0, 0, 640, 710)),
        ("1,2,30,40", Crop(1, 2, 30, 40)),
    ],
)
def test_crops(text, crop):
    assert parse_crop(text, (640, 710)) == crop


@pytest.mark.parametrize("text", ["641", "0", "a", "1,2", "600,0,41,10", "-1,0,5,5", ""])
def test_crops_that_make_no_sense(text):
    with pytest.raises(UsageError, match=f"--crop {text}: frames are 640x710 pixels"):
        parse_crop(text, (640, 710))


def test_an_empty_folder(tmp_path):
    with pytest.raises(SourceError, match=r"no radar frames; it has no files; known names: meteoswiss: AQC"):
        radar(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(SourceError, match=r"it has 1 file, the first is a.png"):
        radar(tmp_path)
    with pytest.raises(SourceError, match=r"nowhere is not a folder"):
        radar(tmp_path / "nowhere")


def test_two_frames_of_one_time(tmp_path):
    (path,) = write_radar(tmp_path, START, 1)
    path.with_name(path.name.replace("F_", "V_")).write_bytes(path.read_bytes())
    with pytest.raises(SourceError, match=r"two frames for 2016-07-11T20:45:00Z: .*F_00005.*V_00005.*move one away"):
        radar(tmp_path)


def test_frames_of_two_sizes(tmp_path, capsys):
    write_radar(tmp_path / "in", START, 12)
    odd = write_gif(tmp_path / "in", START + timedelta(minutes=20), np.zeros((24, 40), np.uint8))
    assert main(["convert", "radar", str(tmp_path / "in"), str(tmp_path / "out"), "--crop", "8"]) == 5
    said = capsys.readouterr().err
    assert "frames of two sizes: 20160711/AQC161932045F_00005.801.gif is 24x32 pixels" in said
    assert f"{odd.name} is 24x40" in said and "convert them as two archives" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("damage", ["empty", "half", "text"])
def test_an_unreadable_frame(tmp_path, capsys, damage):
    path = write_radar(tmp_path / "in", START, 12)[5]
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "text": b"<html>not found</html>"}[damage])
    assert main(["convert", "radar", str(tmp_path / "in"), str(tmp_path / "out"), "--crop", "8"]) == 5
    said = capsys.readouterr().err
    assert f"{path.name}: unreadable frame" in said and "convert again" in said
    assert not (tmp_path / "out").exists()
