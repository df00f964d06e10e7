"""`--on-error skip`, and sequences that lie in two splits."""

import numpy as np
import pytest

from shards import open_store
from shards.cli import main
from shards.verify import verify
from tests.support import archives
from tests.support.archives import image_sequence, numbered, numbers_of, radar_times, write_gifs

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
    assert "train and val share 1 windows of one frame" in said and "val and test share 2 windows" in said
    assert "train and test" not in said
