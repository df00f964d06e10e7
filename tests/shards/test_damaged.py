"""`--on-error skip`, and sequences that lie in two splits."""

import dataclasses

import numpy as np
import pytest

from shards import SourceError, open_store
from shards.cli import main
from shards.convert import convert as convert_source
from shards.damaged import part_of
from shards.sources import Plan, PlannedEvent, RawEvent, cf
from shards.verify import verify
from tests.support import archives
from tests.support.archives import image_sequence, numbered, numbers_of, radar_times, write_gifs
from tests.support.clips import Clips
from tests.support.radar_files import wet, write_odim

ALL = ["--val-fraction", "0", "--test-fraction", "0"]


def convert(tmp_path, source, *options, inside="in"):
    words = ["convert", source, str(tmp_path / inside), str(tmp_path / "out"), *options]
    return main([*words, *([] if "--val-fraction" in options else ALL)])


def runs_of(store, split="train", threshold=110) -> list[list[int]]:
    """The numbers of frames, by run, as windows would see them: in order, and checked to be unbroken."""
    runs: dict[str, list[int]] = {}
    for event in store.events(split):
        assert event.run_offset == len(runs.get(event.run, []))
        runs.setdefault(event.run, []).extend(numbers_of(store.read(split, event.index, 0, event.length), threshold))
    return list(runs.values())


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("damage", ["header", "pixels", "empty"])
def test_damaged_images_are_gaps(tmp_path, capsys, damage, workers):
    image_sequence(tmp_path / "in/a", 50)
    for i in (17, 18, 40):
        path = tmp_path / f"in/a/{i:04d}.png"
        data = path.read_bytes()
        path.write_bytes({"header": b"\x89PNG", "pixels": data[:50], "empty": b""}[damage])
    assert convert(tmp_path, "images", "--workers", workers) == 5
    assert "unreadable frame" in capsys.readouterr().err and not (tmp_path / "out").exists()
    options = ("--on-error", "skip", "--event-frames", "10", "--workers", workers)
    assert convert(tmp_path, "images", *options) == 0
    assert "left out as damaged" in capsys.readouterr().err
    store = open_store(tmp_path / "out")
    assert runs_of(store) == [[*range(17)], [*range(19, 40)], [*range(41, 50)]] and not verify(tmp_path / "out")
    skipped = store.manifest.conversion["skipped"]
    assert len(skipped) == 3 and all("unreadable frame" in entry["error"] for entry in skipped)
    assert convert(tmp_path, "images", *options) == 0
    assert "already complete" in capsys.readouterr().out


def test_names_without_numbers_have_gaps_too(tmp_path):
    for i, name in enumerate("abcdef"):
        archives.save(tmp_path / f"in/{name}.png", numbered(i))
    (tmp_path / "in/c.png").write_bytes(b"")
    assert convert(tmp_path, "images", "--on-error", "skip") == 0
    assert runs_of(open_store(tmp_path / "out")) == [[0, 1], [3, 4, 5]]


def test_damaged_radar_frames_keep_the_times_of_the_others(tmp_path):
    write_gifs(tmp_path / "in", radar_times(30))
    files = sorted((tmp_path / "in").rglob("*.gif"))
    for i in (5, 29):
        files[i].write_bytes(files[i].read_bytes()[:300])
    assert convert(tmp_path, "radar", "--crop", "none", "--on-error", "skip") == 0
    store = open_store(tmp_path / "out")
    events = store.events("train")
    assert [(e.length, e.start_time) for e in events] == [(5, "2017-05-30T22:00:00Z"), (23, "2017-05-30T22:30:00Z")]
    assert len({event.run for event in events}) == 2


@pytest.mark.parametrize("options", [(), ("--tiles", "16")])
def test_a_damaged_first_frame_is_left_out_like_any_other(tmp_path, options):
    write_gifs(tmp_path / "in", radar_times(9))
    files = sorted((tmp_path / "in").rglob("*.gif"))
    for i in (0, 1, 5):
        files[i].write_bytes(files[i].read_bytes()[:300])
    assert convert(tmp_path, "radar", "--crop", "none", "--on-error", "skip", *options) == 0
    store = open_store(tmp_path / "out")
    assert {event.start_time for event in store.events("train")} == {"2017-05-30T22:10:00Z", "2017-05-30T22:30:00Z"}
    skipped = {tuple(entry["frames"]) for entry in store.manifest.conversion["skipped"]}
    assert skipped == {(0, 1), (1, 2), (5, 6)}


def test_a_first_frame_beyond_the_limit(tmp_path, capsys):
    write_gifs(tmp_path / "in", radar_times(9))
    for path in sorted((tmp_path / "in").rglob("*.gif"))[:3]:
        path.write_bytes(b"")
    assert convert(tmp_path, "radar", "--crop", "none", "--on-error", "skip", "--skip-limit", "2") == 5
    assert "unreadable frame" in capsys.readouterr().err
    assert convert(tmp_path, "radar", "--crop", "none", "--on-error", "skip", "--skip-limit", "3") == 0


@pytest.mark.parametrize("frames", [2, 3, 4])
def test_events_of_as_many_frames_as_their_recipe_has_parts(tmp_path, frames):
    """A tile's recipe is (files, top, left); an array's (block, index, first)."""
    write_gifs(tmp_path / "in", radar_times(2 * frames))
    sorted((tmp_path / "in").rglob("*.gif"))[1].write_bytes(b"")
    options = ("--on-error", "skip", "--tiles", "16", "--event-frames", str(frames))
    assert convert(tmp_path, "radar", "--crop", "none", *options) == 0
    store = open_store(tmp_path / "out")
    assert not verify(tmp_path / "out")
    assert sum(event.length for event in store.events("train")) % (2 * frames - 1) == 0


def test_times_of_headers_are_those_of_the_damaged_events_frames(tmp_path):
    pytest.importorskip("h5py")
    times = radar_times(8)
    write_odim(tmp_path / "in", times, {"DBZH": {"data": wet(8)}})
    files = sorted((tmp_path / "in").iterdir())
    files[4].write_bytes(b"")
    assert convert(tmp_path, "radar", "--on-error", "skip") == 0
    events = open_store(tmp_path / "out").events("train")
    assert [event.length for event in events] == [4, 3]


def test_a_damaged_file_of_a_cf_archive_is_left_out(tmp_path, capsys):
    pytest.importorskip("xarray")
    h5py = pytest.importorskip("h5py")
    for i in range(4):
        archives.write_cf(tmp_path / f"in/{i}.nc", radar_times(16)[4 * i : 4 * i + 4], wet(4), "mm/h")
    for i in (0, 2):
        (tmp_path / f"in/{i}.nc").write_bytes(b"no netCDF")
    assert convert(tmp_path, "cf") == 5
    assert "0.nc" in capsys.readouterr().err
    assert convert(tmp_path, "cf", "--on-error", "skip") == 0
    store = open_store(tmp_path / "out")
    assert [event.length for event in store.events("train")] == [4, 4]
    assert [entry["what"] for entry in store.manifest.conversion["skipped"]] == ["0.nc", "2.nc"]
    archives.write_cf(tmp_path / "in/0.nc", radar_times(16)[:4], wet(4), "mm/h")
    with h5py.File(tmp_path / "in/0.nc", "r+") as file:
        file.move("rain", "other")
    cf.forget_opened()
    assert convert(tmp_path, "cf", "--on-error", "skip", "--overwrite", "--variable", "rain") == 0
    entries = open_store(tmp_path / "out").manifest.conversion["skipped"]
    assert [entry["what"] for entry in entries] == ["0.nc", "2.nc"] and "no rain on time" in entries[0]["error"]
    with h5py.File(tmp_path / "in/0.nc", "r+") as file:
        del file["other"]
    cf.forget_opened()
    assert convert(tmp_path, "cf", "--on-error", "skip", "--overwrite") == 0
    for i in (0, 1, 3):
        (tmp_path / f"in/{i}.nc").write_bytes(b"no netCDF")
    cf.forget_opened()
    assert convert(tmp_path, "cf", "--on-error", "skip", "--overwrite") == 5


class Named(Clips):
    """Two events of five frames, the second of which is damaged at frame 2; keys of any length."""

    keys = ("k" * 80, "l" * 80)

    def plan(self):
        events = [
            PlannedEvent(key, 5, recipe=tuple(f"{key[0]}{i}" for i in range(5)), by_frame=True) for key in self.keys
        ]
        return Plan({"train": events})

    def read(self, event):
        if any(part == "k2" for part in event.recipe):
            raise SourceError("k2: unreadable")
        return RawEvent(np.zeros((event.length, *self.size), np.uint8))


class Between(Named):
    keys = ("k", "k-0")


def test_keys_of_what_is_left_are_keys(tmp_path):
    convert_source(Named(), tmp_path / "s", arguments={}, skip_limit=1)
    keys = [event.key for event in open_store(tmp_path / "s").events("train")]
    assert keys == ["k" * 75 + "-0000", "k" * 75 + "-0003", "l" * 80]
    with pytest.raises(SourceError, match="the key 'k-0' comes after 'k-0003'"):
        convert_source(Between(), tmp_path / "t", arguments={}, skip_limit=2)


class Alike(Clips):
    """Events of long keys that differ at their ends alone, in two splits; frame 1 of each is damaged but the last's."""

    keys = ("k" * 64, "k" * 70, "k" * 75 + "aaaa1", "k" * 75 + "aaaa2", "k" * 75 + "aaaa3", "l")

    def plan(self):
        events = [
            PlannedEvent(key, 3, recipe=tuple(f"{key}/{i}" for i in range(3)), by_frame=True) for key in self.keys
        ]
        return Plan({"train": events[:4], "test": events[4:]})

    def read(self, event):
        for name in event.recipe:
            if name.endswith("/1") and not name.startswith("l"):
                raise SourceError(f"{name}: unreadable")
        last = [int(name.rpartition("/")[2]) for name in event.recipe]
        return RawEvent(_numbered(last, self.size))


def _numbered(numbers, size):
    return np.array([np.full(size, number, np.uint8) for number in numbers])


def test_keys_that_differ_at_their_ends_stay_different(tmp_path, format):
    convert_source(Alike(), tmp_path / "s", arguments={}, skip_limit=5, format=format)
    store = open_store(tmp_path / "s")
    assert verify(tmp_path / "s") == []
    keys = {split: [event.key for event in store.events(split)] for split in ("train", "test")}
    assert [len(keys["train"]), len(keys["test"])] == [8, 3] and len({*keys["train"], *keys["test"]}) == 11
    assert all(names == sorted(names) for names in keys.values()) and keys["test"][-1] == "l"
    assert [store.read("train", i, 0, 1)[0, 0, 0, 0] for i in range(8)] == [0, 2] * 4
    assert len({event.run for event in store.events("train")}) == 8


class Three(Clips):
    """Events of three frames, whose recipe has three texts: the file, the array there and its unit."""

    def plan(self):
        return Plan({"train": [PlannedEvent(key, 3, recipe=(f"{key}.npy", "rain", "mm")) for key in "ab"]})

    def read(self, event):
        file, _, _ = event.recipe
        if file == "a.npy":
            raise SourceError("a.npy: unreadable")
        return RawEvent(np.zeros((3, *self.size), np.uint8))


def test_a_recipe_that_looks_like_a_list_of_frames_is_not_divided(tmp_path):
    convert_source(Three(), tmp_path / "s", arguments={}, skip_limit=3)
    store = open_store(tmp_path / "s")
    assert [event.key for event in store.events("train")] == ["b"]
    (entry,) = store.manifest.conversion["skipped"]
    assert (entry["what"], entry["frames"]) == ("a", [0, 3])


@pytest.mark.parametrize("recipe", ["abc", ("a", "b"), (("a", "b"), 1, 2), (1, 2, 3), (), None, ["a", "b", "c"]])
def test_a_recipe_that_lists_no_frames_though_it_is_said_to(tmp_path, recipe):
    class Wrong(Three):
        def plan(self):
            return Plan({"train": [PlannedEvent("a", 3, recipe=recipe, by_frame=True)]})

    with pytest.raises(SourceError, match="by_frame says that its recipe lists one text for each of 3 frames"):
        convert_source(Wrong(), tmp_path / "s", arguments={})


def test_a_limit_below_zero_is_refused(tmp_path, capsys):
    image_sequence(tmp_path / "in/a", 3)
    assert convert(tmp_path, "images", "--on-error", "skip", "--skip-limit", "-1") == 2
    assert "--skip-limit -1" in capsys.readouterr().err


def test_a_damaged_video_or_array_is_left_out_whole(tmp_path):
    pytest.importorskip("av")
    for i in range(3):
        archives.write_video(tmp_path / f"in/{i}.mkv", [numbered(10 * i + t) for t in range(10)])
        (tmp_path / "arrays").mkdir(exist_ok=True)
        np.save(tmp_path / f"arrays/{i}.npy", np.array([numbered(10 * i + t) for t in range(10)]))
    (tmp_path / "in/1.mkv").write_bytes(b"no film")
    data = (tmp_path / "arrays/1.npy").read_bytes()
    (tmp_path / "arrays/1.npy").write_bytes(data[:-7])
    assert convert(tmp_path, "video", "--on-error", "skip", "--channels", "grey") == 0
    assert runs_of(open_store(tmp_path / "out")) == [[*range(10)], [*range(20, 30)]]
    assert convert(tmp_path, "arrays", "--on-error", "skip", "--overwrite", inside="arrays") == 0
    store = open_store(tmp_path / "out")
    assert runs_of(store) == [[*range(10)], [*range(20, 30)]]
    assert [entry["what"] for entry in store.manifest.conversion["skipped"]] == ["1.npy"]


def test_more_than_the_limit_ends_the_conversion(tmp_path, capsys):
    image_sequence(tmp_path / "in/a", 30)
    for i in range(5, 12):
        (tmp_path / f"in/a/{i:04d}.png").write_bytes(b"")
    assert convert(tmp_path, "images", "--on-error", "skip", "--skip-limit", "6") == 5
    assert "more than 6 damaged frames (--skip-limit)" in capsys.readouterr().err
    assert convert(tmp_path, "images", "--on-error", "skip", "--skip-limit", "7") == 0


def test_all_damaged(tmp_path, capsys):
    for i in range(3):
        archives.save(tmp_path / f"in/{i}.png", numbered(i)).write_bytes(b"")
    assert convert(tmp_path, "images", "--on-error", "skip") == 5
    assert "all of 3 files are damaged" in capsys.readouterr().err


def test_without_damage_nothing_differs(tmp_path):
    image_sequence(tmp_path / "in/a", 12)
    assert convert(tmp_path, "images") == 0
    assert "skipped" not in open_store(tmp_path / "out").manifest.conversion


# --- the same frames in two splits


def test_copies_in_two_splits_are_warned_of(tmp_path, capsys):
    for name, first in (("train/a", 0), ("train/b", 100), ("test/c", 100), ("test/d", 200)):
        image_sequence(tmp_path / "in" / name, 30, first=first)
    words = ["convert", "images", str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "warning: train and test share 21 windows of 10 frames (of 42 in test)" in said
    assert "the first: train 000003-train-b-000000 from frame 0 and test 000000-test-c-000000 from frame 0" in said
    assert main(["verify", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "share 21 windows" in err and "OK: all checksums match" in out


def test_a_sequence_cut_elsewhere_is_found_too(tmp_path, capsys):
    image_sequence(tmp_path / "in/train/a", 60)
    image_sequence(tmp_path / "in/test/b", 20, first=33)
    assert main(["convert", "images", str(tmp_path / "in"), str(tmp_path / "out"), "--event-frames", "25"]) == 0
    assert "train and test share" in capsys.readouterr().err


def test_frames_in_which_nothing_moves_are_no_copies(tmp_path, capsys):
    for name in ("train/a", "test/b"):
        for i in range(20):
            archives.save(tmp_path / f"in/{name}/{i}.png", numbered(7))
    image_sequence(tmp_path / "in/train/c", 20, first=50)
    assert main(["convert", "images", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert "share" not in capsys.readouterr().err


def test_single_frames_are_compared(tmp_path, capsys):
    for split, first in (("train", 0), ("val", 2), ("test", 3)):
        for i in range(3):
            archives.save(tmp_path / f"in/{split}/{i}/0.png", numbered(first + i))
    assert main(["convert", "images", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "train and val share 1 window of one frame" in said and "val and test share 2 windows" in said
    assert "train and test" not in said


def test_one_short_event_does_not_shorten_the_windows_of_all(tmp_path, capsys):
    """Clips of other sequences that share a frame or two are no copies, though one event has but one frame."""
    image_sequence(tmp_path / "in/train/a", 30)
    image_sequence(tmp_path / "in/test/b", 30, first=28)
    image_sequence(tmp_path / "in/test/c", 1, first=90)
    image_sequence(tmp_path / "in/test/d", 4, first=95)
    words = ["convert", "images", str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(words) == 0
    assert "share" not in capsys.readouterr().err
    image_sequence(tmp_path / "in/test/c", 1, first=7)
    image_sequence(tmp_path / "in/test/d", 4, first=20)
    image_sequence(tmp_path / "in/val/e", 2, first=96)
    assert main([*words, "--overwrite"]) == 0
    said = capsys.readouterr().err
    assert "train and test share 1 window of one frame (of 35 in test)" in said
    assert "train and test share 1 window of 4 frames (of 28 in test)" in said
    assert said.count("share") == 2


def test_a_part_without_a_known_step_has_no_known_time():
    event = PlannedEvent("k", 3, start_time="2017-05-30T22:00:00Z", recipe=("a", "b", "c"), by_frame=True)
    assert part_of(event, 0, 2, None).start_time == "2017-05-30T22:00:00Z"
    assert part_of(event, 1, 3, None).start_time is None
    assert part_of(event, 1, 3, 300).start_time == "2017-05-30T22:05:00Z"
    own = dataclasses.replace(event, times=tuple(f"2017-05-30T22:0{minute}:00Z" for minute in (0, 1, 7)))
    part = part_of(own, 2, 3, 300)
    assert (part.start_time, part.times) == ("2017-05-30T22:07:00Z", ("2017-05-30T22:07:00Z",))
