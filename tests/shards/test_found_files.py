"""Archives as people have them: folders that can't be read, links, leftovers of tools, images of other kinds, gaps in
names, long single sequences. Each is taken as meant, or refused; what is left out is told.
"""

import logging
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards import ShardError, SourceError, UsageError, open_store
from shards.cli import main
from shards.sources.inputs import Listing, walk
from shards.sources.pictures import probe, read_picture
from tests.support import archives
from tests.support.archives import build, image_sequence, numbered

ROOT = Path(__file__).resolve().parents[2]


def notes_of(source) -> str:
    return "; ".join(source.plan().notes)


def numbers(source, event) -> list[int]:
    return archives.numbers_of(source.read(event).frames, 110)


# --- folders


def test_a_folder_that_can_not_be_listed_ends_the_conversion(tmp_path, monkeypatch, capsys):
    for name in "abcd":
        image_sequence(tmp_path / "in" / name, 2)
    scandir = os.scandir

    def refused(path="."):
        if Path(path).name == "c":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    for source in ("images", "auto"):
        assert main(["convert", source, str(tmp_path / "in"), str(tmp_path / "out")]) == 5
        assert f"{tmp_path}/in/c: this folder can't be listed (Permission denied)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_links_to_folders_are_followed_and_cycles_refused(tmp_path):
    image_sequence(tmp_path / "elsewhere/x", 3)
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/a").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "in/deep/b").symlink_to("../../elsewhere/x")  # the same folder twice is no cycle
    assert walk(tmp_path / "in") == [f"{name}/{i:04d}.png" for name in ("a", "deep/b") for i in range(3)]
    (tmp_path / "in/deep/up").symlink_to("..")
    with pytest.raises(SourceError, match=r"in/deep/up: leads back to a folder that it lies in"):
        walk(tmp_path / "in")


@pytest.mark.parametrize("root", [".", "./", "in", "in/../in", "./in/"])
def test_folders_named_from_where_one_is(tmp_path, monkeypatch, root):
    image_sequence(tmp_path / "in/a/b", 2)
    monkeypatch.chdir(tmp_path if "in" in root else tmp_path / "in")
    assert walk(Path(root)) == ["a/b/0000.png", "a/b/0001.png"]
    (tmp_path / "in/a/b/up").symlink_to("..")
    with pytest.raises(SourceError, match="leads back to a folder that it lies in"):
        walk(Path(root))


def test_what_tools_leave_and_what_is_no_file_is_passed_over_and_counted(tmp_path, caplog):
    image_sequence(tmp_path / "a", 3)
    for name in (".ipynb_checkpoints/0000.png", "__MACOSX/a/0000.png", "a/._0000.png", "a/@eaDir/0000.png"):
        archives.save(tmp_path / name, numbered(9))
    (tmp_path / "a/Thumbs.db").write_bytes(b"x")
    os.mkfifo(tmp_path / "a/0003.png")
    logging.getLogger("shards").propagate = True
    with caplog.at_level(logging.WARNING):
        assert walk(tmp_path) == [f"a/{i:04d}.png" for i in range(3)]
    assert "6 entries that are hidden, a tool's or no regular files" in caplog.text
    assert Listing.of(tmp_path).files == tuple(f"a/{i:04d}.png" for i in range(3))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(SourceError, match="no regular file"):
        read_picture(tmp_path / "a.png", 1)


def test_a_link_to_nothing_is_a_frame_that_is_absent(tmp_path):
    image_sequence(tmp_path, 3)
    (tmp_path / "0003.png").symlink_to("gone.png")
    with pytest.raises(SourceError, match=r"0003.png: unreadable frame \(absent"):
        build("images", tmp_path)


def test_names_that_are_not_utf8(tmp_path, capsys):
    image_sequence(tmp_path / "in/a", 3)
    os.rename(tmp_path / "in/a/0001.png", os.fsencode(tmp_path / "in/a/1") + b"\xff.png")
    assert main(["convert", "images", str(tmp_path / "in"), str(tmp_path / "out")]) == 5
    assert "a/1\\udcff.png: a name that isn't UTF-8" in capsys.readouterr().err
    odd = os.fsdecode(b"out\xff")
    for words in (["info", odd], ["convert", "images", str(tmp_path / "in"), odd], ["verify", odd]):
        assert main(words) == 2
        assert "isn't UTF-8" in capsys.readouterr().err


# --- images


def deep_png(path: Path, colour_type: int, channels: int) -> Path:
    """16 bits a channel, big-endian, as PNG has them."""
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (16, 16, channels)).astype(">u2")
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))),
        (b"IEND", b""),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    )
    return path


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_not_halved_in_silence(tmp_path, colour_type, channels):
    path = deep_png(tmp_path / "a/1.png", colour_type, channels)
    for look in (probe, lambda p: read_picture(p, 1), lambda p: build("images", p.parent)):
        with pytest.raises(SourceError, match="more than 8 bits"):
            look(path)


@pytest.mark.parametrize("header", [b"P6\n4 4\n65535\n", b"P5\n4 4\n1000\n"])
def test_deep_pnm(tmp_path, header):
    (tmp_path / "a.ppm").write_bytes(header + bytes(96))
    with pytest.raises(SourceError, match="more than 8 bits"):
        probe(tmp_path / "a.ppm")


def test_deep_tiff(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.tif")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "b.tif")
    for name in "ab":
        with pytest.raises(SourceError, match="more than 8 bits"):
            probe(tmp_path / f"{name}.tif")


@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"<svg/>"])
def test_programs_in_the_clothes_of_images_are_not_run(tmp_path, start, monkeypatch):
    (tmp_path / "a.png").write_bytes(start)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    with pytest.raises(SourceError, match="unreadable frame"):
        read_picture(tmp_path / "a.png", 1)


@pytest.mark.parametrize("suffix", ["tif", "gif", "png"])
def test_a_file_of_many_images_is_a_sequence(tmp_path, suffix):
    pages = [Image.fromarray(numbered(i)) for i in range(25)]
    for name in "abc":
        pages[0].save(tmp_path / f"{name}.{suffix}", save_all=True, append_images=pages[1:])
    source = build("images", tmp_path, "--channels", "grey")
    events = [event for part in source.plan().splits.values() for event in part]
    assert [numbers(source, event) for event in events] == [list(range(25))] * 3
    assert "3 files of several images" in notes_of(source)
    alone = build(
        "images", tmp_path / f"a.{suffix}", "--channels", "grey", "--val-fraction", "0", "--test-fraction", "0"
    )
    assert [numbers(alone, event) for event in alone.plan().splits["train"]] == [list(range(25))]


def test_one_image_in_several_resolutions_is_refused(tmp_path):
    images = [Image.fromarray(np.zeros((side, side), np.uint8)) for side in (16, 8)]
    images[0].save(tmp_path / "a.tif", save_all=True, append_images=images[1:])
    with pytest.raises(SourceError, match="images of two sizes in one file"):
        build("images", tmp_path)


def test_a_stack_where_one_image_is_read_is_refused(tmp_path):
    pages = [Image.fromarray(numbered(i)) for i in range(2)]
    pages[0].save(tmp_path / "radar_20170501120600.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(SourceError, match="2 images in one file"):
        build("radar", tmp_path)


def test_transparent_pixels_are_missing(tmp_path):
    rgba = np.full((16, 16, 4), 255, np.uint8)
    rgba[0, 0] = (9, 8, 7, 0)
    rgba[1, 1] = (9, 8, 7, 128)
    for name in ("a", "b", "c"):
        archives.save(tmp_path / name / "1.png", rgba if name == "b" else rgba[..., :3])
    source = build("images", tmp_path)
    scale = source.describe().scale
    assert (scale.max_code, scale.missing_code) == (254, 255)
    event = next(e for part in source.plan().splits.values() for e in part if e.recipe == ("b/1.png",))
    frame = source.read(event).frames[0]
    assert (frame[:, 0, 0] == 255).all() and frame[:, 1, 1].tolist() == [9, 8, 7] and (frame[:, 2:] == 254).all()
    assert "1 transparent pixel in 1 file are missing (code 255), so values of 255 become 254" in notes_of(source)


def test_an_opaque_alpha_channel_is_no_loss(tmp_path):
    rgba = np.full((16, 16, 4), 255, np.uint8)
    archives.save(tmp_path / "1.png", rgba)
    source = build("images", tmp_path)
    assert (
        source.describe().scale.missing_code is None
        and (source.read(source.plan().splits["train"][0]).frames == 255).all()
    )


def test_channels_are_decided_over_all_files(tmp_path):
    archives.save(tmp_path / "a/1.png", numbered(1))
    archives.save(tmp_path / "a/2.png", np.full((16, 16, 3), (1, 2, 3), np.uint8))
    source = build("images", tmp_path)
    frames = source.read(source.plan().splits["train"][0]).frames
    assert frames.shape[1] == 3 and frames[1, :, 0, 0].tolist() == [1, 2, 3]
    assert "1 grey image among 1 coloured one: all become RGB" in notes_of(source)
    assert "1 coloured image become grey" in notes_of(build("images", tmp_path, "--channels", "grey"))


# --- names


@pytest.mark.parametrize(
    "pattern", ["2023060112{:02d}.png", "cam_2023-06-01T12-{:02d}-00.png", "2023_06_01_12.{:02d}.png"]
)
def test_times_in_names_are_kept_and_gaps_with_them(tmp_path, pattern):
    image_sequence(tmp_path / "in/a", 60, pattern=pattern, skip=(*range(1, 60, 2), 20, 22))
    arguments = ["--val-fraction", "0", "--test-fraction", "0"]
    source = build("images", tmp_path / "in", *arguments)
    assert source.describe().step_seconds == 120
    events = source.plan().splits["train"]
    assert [(e.start_time, e.length, e.run_offset) for e in events] == [
        ("2023-06-01T12:00:00Z", 10, 0),
        ("2023-06-01T12:24:00Z", 18, 0),
    ]
    assert len({event.run for event in events}) == 2
    assert "1 gap by the files' names, 2 frames missing, the first before" in notes_of(source)
    assert main(["convert", "images", str(tmp_path / "in"), str(tmp_path / "out"), *arguments]) == 0
    assert [event.start_time for event in open_store(tmp_path / "out").events("train")] == [
        e.start_time for e in events
    ]
    whole = build("images", tmp_path / "in", *arguments, "--names", "order").plan()
    assert [(e.length, e.start_time) for e in whole.splits["train"]] == [(28, None)]


def test_missing_numbers_are_told_and_end_a_run(tmp_path):
    image_sequence(tmp_path / "a", 40, pattern="frame{}.png", skip=(7, 8, 30))
    source = build("images", tmp_path, "--val-fraction", "0", "--test-fraction", "0")
    events = source.plan().splits["train"]
    assert [numbers(source, event) for event in events] == [list(range(7)), list(range(9, 30)), list(range(31, 40))]
    assert "2 gaps by the files' names, 3 frames missing, the first before a/frame9.png" in notes_of(source)


def test_two_rows_of_numbers_in_a_folder_are_not_joined(tmp_path):
    image_sequence(tmp_path, 5, pattern="left_{:02d}.png")
    image_sequence(tmp_path, 5, first=50, pattern="right_{:02d}.png")
    source = build("images", tmp_path, "--val-fraction", "0", "--test-fraction", "0")
    assert [numbers(source, e) for e in source.plan().splits["train"]] == [[*range(5)], [*range(50, 55)]]


@pytest.mark.parametrize("names", [["b", "a", "c"], ["img_1043", "img_2201", "img_2210", "img_9000"], ["x1y2", "x1y3"]])
def test_names_that_count_nothing_only_give_the_order(tmp_path, names):
    for name in names:
        archives.save(tmp_path / f"{name}.png", numbered(1))
    plan = build("images", tmp_path, "--val-fraction", "0", "--test-fraction", "0").plan()
    assert [event.length for event in plan.splits["train"]] == [len(names)]


# --- one long sequence


def test_one_long_sequence_is_divided_in_time_with_gaps(tmp_path):
    image_sequence(tmp_path / "in", 300)
    source = build("images", tmp_path / "in")
    frames = {
        split: [n for event in part for n in numbers(source, event)] for split, part in source.plan().splits.items()
    }
    assert frames == {"train": [*range(208)], "val": [*range(228, 254)], "test": [*range(274, 300)]}
    assert "frames train 0..207, val 228..253, test 274..299; 40 between them are left out" in notes_of(source)
    few = build("images", tmp_path / "in", "--split-gap", "0", "--val-fraction", "0").plan().splits
    assert {split: sum(e.length for e in part) for split, part in few.items()} == {"train": 270, "test": 30}
    with pytest.raises(UsageError, match="--split-gap -1"):
        build("images", tmp_path / "in", "--split-gap", "-1")


def test_one_short_sequence_is_train_and_says_so(tmp_path):
    image_sequence(tmp_path, 30)
    source = build("images", tmp_path)
    assert list(source.plan().splits) == ["train"]
    assert "all of . is train: 30 frames are too few to be divided in time with gaps of 20" in notes_of(source)


def test_one_long_video(tmp_path):
    pytest.importorskip("av")
    archives.write_video(tmp_path / "a.mkv", [numbered(i) for i in range(300)])
    source = build("video", tmp_path, "--channels", "grey")
    frames = {
        split: [n for event in part for n in numbers(source, event)] for split, part in source.plan().splits.items()
    }
    assert frames == {"train": [*range(208)], "val": [*range(228, 254)], "test": [*range(274, 300)]}


# --- processes


@pytest.mark.parametrize("closed", ["2>&-", "2>&- >&-", "0<&- 2>&-"])
def test_without_a_standard_stream(tmp_path, closed):
    image_sequence(tmp_path / "in", 3)
    command = f"{sys.executable} -m shards convert images {tmp_path}/in {tmp_path}/out {closed}"
    assert subprocess.run(command, shell=True, cwd=ROOT, check=False).returncode == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    again = subprocess.run(f"{command.replace('out', 'no/../x/..')} --size 0", shell=True, cwd=ROOT, check=False)
    assert again.returncode == 2


def test_control_characters_are_escaped_in_errors(tmp_path):
    assert "\n" not in str(ShardError("a\nERROR b\x1b[2K"))
    odd = tmp_path / "a\nerror: all is well\x1b[2K.png"
    odd.write_bytes(b"nothing")
    with pytest.raises(SourceError) as error:
        read_picture(odd, 1)
    assert "a\\nerror: all is well\\x1b[2K.png" in str(error.value)


WITHOUT_A_NAME = """
import os, pwd, sys
def unknown(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"): os.environ.pop(name, None)
from shards.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_user_without_a_name(tmp_path):
    image_sequence(tmp_path / "in", 3)
    words = [sys.executable, "-c", WITHOUT_A_NAME, "convert", "images", str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_place_that_can_not_be_written(tmp_path, monkeypatch, capsys, error):
    image_sequence(tmp_path / "in", 3)

    def refused(self, *arguments, **options):
        raise type(error)(*error.args, str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    assert main(["convert", "images", str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "\nerror: " in f"\n{said}" and error.args[1] in said and str(tmp_path) in said
