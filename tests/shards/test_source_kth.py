"""KTH: the table of ranges with its quirks, persons, modes, sizes, and what damaged archives are told."""

import numpy as np
import pytest

from shards import SourceError, UsageError, open_store
from shards.cli import main
from shards.sources.geometry import resize
from shards.sources.kth_sequences import Clip, read_table
from tests.support import archives
from tests.support.archives import build, numbered

TABLE = """
This database contains sequences of six classes of actions performed by person01 and others

person01_boxing_d1\t\tframes\t1-95, 96-185, 186-245, 246-360
person07_jogging_d4\t\tframes\t200-260, 1-60
person03_walking_d4\t\tframes\t232-338, 338-432
person13_handclapping_d3\t*missing*
"""


def test_the_table_and_its_quirks(tmp_path):
    (tmp_path / "t.txt").write_text(TABLE)
    table = read_table(tmp_path / "t.txt")
    assert table.ranges[Clip(1, "boxing", 1)] == ((1, 95), (96, 185), (186, 245), (246, 360))
    assert table.ranges[Clip(7, "jogging", 4)] == ((1, 60), (200, 260))
    assert table.missing == (Clip(13, "handclapping", 3),)
    assert [note.split(":")[0] for note in table.notes] == [
        "1 clip (person13_handclapping_d3 ...)",
        "1 clip (person07_jogging_d4 ...)",
        "1 clip (person03_walking_d4 ...)",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("person01_boxing_d1 frames 1-95; 96-185", r"line 2: '1-95; 96-185' are no ranges such as 1-95, 96-185"),
        ("person01_boxing_d1 frames 95-1", "'95-1' are no ranges"),
        ("person01_boxing_d1 frames 0-9", "'0-9' are no ranges"),
        ("person01_boxing_d1", "expected person01_boxing_d1 frames 1-95"),
        ("person01_boxing_d1 frames 1-2\nperson01_boxing_d1 frames 1-2", "line 3: person01_boxing_d1 a second time"),
        ("prose", "no line such as `person01_boxing_d1 frames 1-95, ...`"),
    ],
)
def test_a_table_that_is_none(tmp_path, line, message):
    (tmp_path / "t.txt").write_text(f"preamble\n{line}\n")
    with pytest.raises(SourceError, match=message):
        read_table(tmp_path / "t.txt")


CLIPS = {
    "person01_boxing_d1": [(1, 5), (6, 12)],
    "person16_walking_d2": [(3, 9)],
    "person17_jogging_d1": [(2, 12)],
}


def test_events_are_the_ranges(tmp_path):
    archives.write_kth(tmp_path, CLIPS, 12)
    source = build("kth", tmp_path, "--size", "none", "--val-persons", "16")
    plan = source.plan()
    assert {split: [event.key for event in events] for split, events in plan.splits.items()} == {
        "train": ["person01_boxing_d1-r001", "person01_boxing_d1-r002"],
        "val": ["person16_walking_d2-r001"],
        "test": ["person17_jogging_d1-r001"],
    }
    (event,) = plan.splits["val"]
    assert archives.numbers_of(source.read(event).frames, 110) == list(range(12 + 2, 12 + 9))
    assert source.read(event).details == {"first_frame": 3}
    assert source.describe().step_seconds == pytest.approx(0.04)


def test_modes_of_the_paper_and_by_action(tmp_path):
    archives.write_kth(tmp_path, CLIPS, 12)
    source = build("kth", tmp_path)
    assert source.describe().modes == ("hands", "torso")
    assert {event.key[:8]: event.mode for part in source.plan().splits.values() for event in part} == {
        "person01": "hands",
        "person16": "torso",
        "person17": "torso",
    }
    assert build("kth", tmp_path, "--mode-by", "action").describe().modes == ("boxing", "jogging", "walking")
    assert build("kth", tmp_path, "--mode-by", "none").describe().modes == ()


def test_frames_are_resized_to_128_squares(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 120, 160), dtype=np.uint8)
    archives.write_video(tmp_path / "person02_running_d1_uncomp.avi", frames)
    (tmp_path / "00sequences.txt").write_text("person02_running_d1 frames 2-5\n")
    source = build("kth", tmp_path)
    (event,) = source.plan().splits["train"]
    assert np.array_equal(source.read(event).frames[:, 0], resize(frames[1:5], (128, 128)))


def test_without_validation_it_is_said(tmp_path, capsys):
    archives.write_kth(tmp_path / "in", CLIPS, 12)
    assert main(["convert", "kth", str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().err
    assert "no validation split; for one: --val-persons 15,16" in said
    assert "train: 3 events of persons 1, 16" in said
    assert open_store(tmp_path / "out").manifest.frames.shape == (1, 128, 128)


def test_folders_of_frames_are_cut_where_a_number_is_missing(tmp_path):
    for i in (1, 2, 3, 7, 8):
        archives.save(tmp_path / f"walking/person20_walking_d1/image_{i:04d}_x.png", numbered(i))
    source = build("kth", tmp_path, "--size", "none")
    events = source.plan().splits["test"]
    assert [archives.numbers_of(source.read(event).frames, 110) for event in events] == [[1, 2, 3], [7, 8]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-persons", "17"], "person 17 is in --val-persons and in the test split"),
        (["--val-persons", "26"], "--val-persons 26: persons 1 to 25"),
        (["--test-persons", "a-b"], "--test-persons a-b: persons 1 to 25"),
        (["--size", "x"], "--size x: give SIDE for squares"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    archives.write_kth(tmp_path, CLIPS, 12)
    with pytest.raises(UsageError, match=message):
        build("kth", tmp_path, *options)


def test_damaged_archives(tmp_path):
    archives.write_kth(tmp_path / "short", {"person01_boxing_d1": [(1, 5), (6, 13)]}, 12)
    with pytest.raises(SourceError, match=r"boxing_d1_uncomp.avi: 12 frames, 00sequences.txt has a range 6-13"):
        build("kth", tmp_path / "short")
    archives.write_kth(tmp_path / "twice", CLIPS, 12)
    (tmp_path / "twice/copy").mkdir()
    (tmp_path / "twice/copy/person01_boxing_d1_uncomp.avi").touch()
    with pytest.raises(SourceError, match=r"person01_boxing_d1 twice"):
        build("kth", tmp_path / "twice")
    archives.write_kth(tmp_path / "cut", CLIPS, 12)
    path = tmp_path / "cut/person17_jogging_d1_uncomp.avi"
    path.write_bytes(b"RIFF" + bytes(60))
    with pytest.raises(SourceError, match=r"person17_jogging_d1_uncomp.avi: unreadable video"):
        build("kth", tmp_path / "cut")
    path.unlink()
    source = build("kth", tmp_path / "cut")
    assert "1 of 3 clips of 00sequences.txt are not here, first person17_jogging_d1" in source.plan().notes
    (tmp_path / "cut/00sequences.txt").unlink()
    with pytest.raises(SourceError, match=r"0 files 00sequences.txt, expected one"):
        build("kth", tmp_path / "cut")


def test_a_file_that_is_damaged_later(tmp_path):
    archives.write_kth(tmp_path, CLIPS, 12)
    source = build("kth", tmp_path)
    path = tmp_path / "person17_jogging_d1_uncomp.avi"
    archives.write_video(path, [numbered(i) for i in range(8)])
    (event,) = source.plan().splits["test"]
    with pytest.raises(SourceError, match=r"8 frames could be decoded, 00sequences.txt has a range up to 12"):
        source.read(event)
