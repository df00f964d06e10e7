"""Images, video, finished Moving MNIST and CIKM: splits by name or drawn, long sequences, bad files."""

import numpy as np
import pytest

from shards import SourceError, UsageError, open_store
from shards.cli import main
from shards.sources.frame_names import natural
from shards.sources.video import videos
from tests.support import archives
from tests.support.archives import build, numbered


def numbers(source, event, threshold: int = 110) -> list[int]:
    return archives.numbers_of(source.read(event).frames, threshold)


def test_images_in_split_folders_with_modes(tmp_path):
    for number, name in enumerate(("train/rain/a", "train/snow/b", "valid/rain/c", "test/snow/d")):
        for i in (8, 9, 10):
            archives.save(tmp_path / name / f"f{i}.png", numbered(100 * number + i))
    source = build("images", tmp_path, "--mode-by", "folder", "--event-frames", "2")
    plan = source.plan()
    assert {
        split: [(e.mode, e.run_offset, numbers(source, e)) for e in part] for split, part in plan.splits.items()
    } == {
        "train": [("rain", 0, [8, 9]), ("rain", 2, [10]), ("snow", 0, [108, 109]), ("snow", 2, [110])],
        "val": [("rain", 0, [208, 209]), ("rain", 2, [210])],
        "test": [("snow", 0, [308, 309]), ("snow", 2, [310])],
    }
    assert source.describe().modes == ("rain", "snow")
    assert len({event.run for part in plan.splits.values() for event in part}) == 4


def test_natural_order():
    assert sorted(["f10", "f2", "f1b", "f1"], key=natural) == ["f1", "f1b", "f2", "f10"]


def test_grey_and_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    for i in range(3):
        archives.save(tmp_path / f"s{i}" / "1.png", rgb)
    source = build("images", tmp_path)
    event = source.plan().splits["train"][0]
    assert np.array_equal(source.read(event).frames[0], rgb.transpose(2, 0, 1))
    grey = build("images", tmp_path, "--channels", "grey", "--crop", "4", "--size", "8x2")
    assert grey.describe().frames.shape == (1, 8, 2) == grey.read(event).frames.shape[1:]
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(build("images", tmp_path, "--channels", "grey").read(event).frames[0, 0] - luma).max() <= 1


def test_sequences_kept_together(tmp_path):
    for person in range(10):
        for take in range(4):
            archives.save(tmp_path / f"person{person:02d}_take{take}" / "1.png", numbered(10 * person + take))
    source = build("images", tmp_path, "--keep-together", r"person\d+")
    splits = source.plan().splits
    persons = {split: {numbers(source, e)[0] // 10 for e in events} for split, events in splits.items()}
    assert sum(map(len, persons.values())) == 10 and {len(persons["val"]), len(persons["test"])} == {1}


def test_bad_images(tmp_path, capsys):
    for name in ("a", "b", "c"):
        archives.save(tmp_path / "in" / name / "1.png", numbered(1))
    archives.save(tmp_path / "in/c/2.png", np.zeros((16, 20), np.uint8))
    arguments = ["convert", "images", str(tmp_path / "in"), str(tmp_path / "out")]
    assert main(arguments) == 5
    assert "c/2.png: frames of 16x20 pixels, the archive's first has 16x16" in capsys.readouterr().err
    (tmp_path / "in/c/2.png").write_bytes(b"\x89PNG nothing")
    assert main(arguments) == 5
    assert "c/2.png: unreadable frame" in capsys.readouterr().err
    archives.save(tmp_path / "in/c/2.png", np.zeros((16, 16), np.uint16))
    assert main(arguments) == 5
    assert "more than 8 bits a pixel" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_video_lossy_with_b_frames_and_seeks(tmp_path):
    """The middle of a long file, found by its time stamp, is what decoding from the start gives."""
    ramp = [numbered(i, 60, 180, (32, 48)) for i in range(60)]
    archives.write_video(tmp_path / "a.mp4", ramp, codec="mpeg4")
    archives.write_video(tmp_path / "b.mkv", ramp[:31])
    source = build(
        "video", tmp_path, "--event-frames", "25", "--channels", "grey", "--val-fraction", "0", "--test-fraction", "0"
    )
    events = source.plan().splits["train"]
    assert [(e.length, e.run_offset) for e in events] == [(25, 0), (25, 25), (10, 50), (25, 0), (6, 25)]
    for event in events:
        assert numbers(source, event, 120) == list(range(event.run_offset, event.run_offset + event.length))
        name, first, _ = event.recipe
        again = videos.read_frames(tmp_path / name, 1, first, event.length, None)
        assert np.array_equal(again, source.read(event).frames)
    assert source.describe().step_seconds == pytest.approx(1 / 25)


def test_video_rates_that_differ(tmp_path):
    for name, rate in (("a", 25), ("b", 10), ("c", 25)):
        archives.write_video(tmp_path / f"{name}.mkv", [numbered(1)] * 3, rate)
    source = build("video", tmp_path)
    assert source.describe().step_seconds is None and source.describe().frames.channels == 3
    assert any("from 10 to 25 frames a second" in note for note in source.notes)
    assert build("video", tmp_path, "--step", "0.1").describe().step_seconds == 0.1


def test_bad_video(tmp_path):
    archives.write_video(tmp_path / "a.mkv", [numbered(1)] * 3)
    archives.write_video(tmp_path / "b.mkv", [numbered(1, size=(16, 20))] * 3)
    with pytest.raises(SourceError, match=r"b.mkv: frames of 16x20 pixels, the archive's first has 16x16"):
        build("video", tmp_path)
    (tmp_path / "b.mkv").write_text("no film")
    with pytest.raises(SourceError, match=r"b.mkv: unreadable video .*ffmpeg -i IN"):
        build("video", tmp_path)
    (tmp_path / "b.mkv").unlink()
    source = build("video", tmp_path, "--val-fraction", "0", "--test-fraction", "0")
    archives.write_video(tmp_path / "a.mkv", [numbered(1)] * 2)
    with pytest.raises(SourceError, match=r"a.mkv: 2 frames could be decoded, 3 were expected"):
        source.read(source.plan().splits["train"][0])


def test_the_canonical_moving_mnist(tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (20, 30, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "mnist_test_seq.npy", frames)
    out = tmp_path / "out"
    assert main(["convert", "moving-mnist-file", str(tmp_path / "mnist_test_seq.npy"), str(out)]) == 0
    store = open_store(out)
    assert {name: split.events for name, split in store.splits.items()} == {"test": 30}
    assert np.array_equal(store.read("test", 11, 0, 20)[:, 0], frames[:, 11])
    assert "30 sequences of 20 frames, all test" in capsys.readouterr().err
    drawn = build("moving-mnist-file", tmp_path, "--val-fraction", "0.2", "--test-fraction", "0.3").plan()
    assert {name: len(events) for name, events in drawn.splits.items()} == {"train": 15, "val": 6, "test": 9}


def test_other_orders_of_axes(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (30, 20, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "seq.npy", frames)
    with pytest.raises(SourceError, match=r"can be read as nthwc or tnhwc; say --layout"):
        build("moving-mnist-file", tmp_path)
    options = ("--val-fraction", "0", "--test-fraction", "0", "--layout", "nthwc")
    source = build("moving-mnist-file", tmp_path, *options)
    event = source.plan().splits["train"][4]
    assert np.array_equal(source.read(event).frames, frames[4].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_several_clip_files_each_with_its_own_offsets(tmp_path, scale):
    """The authors' loader repeats the first file's frames here: it adds its offset to a copy."""
    written = set()
    for mode in (1, 2):
        for part, split in enumerate(("train", "valid", "test")):
            first = 1000 * mode + 100 * part
            written |= archives.write_clips(tmp_path / f"{mode}-digit/mm-{split}.npz", 3, 20, first, scale)
    source = build("moving-mnist-file", tmp_path, "--mode-by", "folder")
    plan = source.plan()
    assert {split: [e.mode for e in events] for split, events in plan.splits.items()} == {
        split: ["1-digit"] * 3 + ["2-digit"] * 3 for split in ("train", "val", "test")
    }
    met = [number for events in plan.splits.values() for event in events for number in numbers(source, event)]
    assert len(met) == len(set(met)) and set(met) == written
    last, first = plan.splits["test"][-1], plan.splits["train"][0]
    assert numbers(source, last)[0] == 2240 and numbers(source, first)[0] == 1000  # backwards too


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda p: np.save(p / "a.npy", np.zeros((3, 4))),
            r"shape 3x4, expected \[T, N, H, W\] such as 20x10000x64x64",
        ),
        (lambda p: np.save(p / "a.npy", np.array([{}]), allow_pickle=True), r"a.npy: unreadable npy file"),
        (lambda p: (p / "a.npy").write_bytes(b"\x93NUMPY\x01\x00"), r"a.npy: unreadable npy file"),
        (lambda p: np.savez(p / "a.npz", x=np.zeros(3)), r"no clips and no input_raw_data; it holds x.npy"),
        (lambda p: (p / "a.npz").write_bytes(b"PK"), r"a.npz: unreadable npz file"),
        (
            lambda p: np.savez(
                p / "a.npz", clips=np.array([[[0, 10]], [[10, 10]]]), input_raw_data=np.zeros((15, 1, 8, 8))
            ),
            r"goes up to frame 20, input_raw_data has 15",
        ),
        (
            lambda p: (
                np.save(p / "a.npy", np.zeros((2, 30, 8, 8), np.uint8)),
                np.save(p / "b.npy", np.zeros((2, 30, 9, 8))),
            ),
            r"two shapes: a.npy has 1x8x8, b.npy 1x9x8",
        ),
    ],
)
def test_numpy_files_that_are_none(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(SourceError, match=message):
        build("moving-mnist-file", tmp_path)


@pytest.mark.parametrize("value", [7, 1.02, -0.1, np.nan, np.inf])
def test_floats_that_leave_their_range(tmp_path, value):
    frames = np.full((2, 50, 8, 8), 0.5, np.float32)
    np.save(tmp_path / "train.npy", frames)
    source = build("moving-mnist-file", tmp_path)
    assert (source.read(source.plan().splits["train"][0]).frames == 128).all()
    frames[1, 4, 0, 0] = value
    (tmp_path / "train.npy").unlink()
    np.save(tmp_path / "train2.npy", frames)
    with pytest.raises(SourceError, match=r"convert arrays .*from .* to |are NaN|are infinite"):
        build("moving-mnist-file", tmp_path)
    np.savez(tmp_path / "a.npz", clips=np.array([[[0, 50]], [[50, 50]]]), input_raw_data=frames.reshape(100, 1, 8, 8))
    (tmp_path / "train2.npy").unlink()
    with pytest.raises(SourceError, match=r"convert arrays .*from .* to |are NaN|are infinite"):
        build("moving-mnist-file", tmp_path)


def test_cikm_lines(tmp_path):
    archives.write_cikm(tmp_path, {"train": 5, "testA": 1})
    source = build("cikm", tmp_path, "--heights", "0.5,3.5")
    plan = source.plan()
    assert {name: len(events) for name, events in plan.splits.items()} == {"train": 4, "val": 1, "test": 1}
    assert "without testB.txt, which are not here" in plan.notes
    (event,) = plan.splits["test"]
    raw = source.read(event)
    assert raw.frames.shape == (15, 2, 101, 101) and (raw.frames[:, 1] == 255).all()
    assert raw.details == {"id": "testA_0", "rain": "0.0"}
    values = source.describe().scale.to_physical(raw.frames)[:, 0]
    assert np.unique(values).tolist() == pytest.approx([20 * 95 / 255 - 10, 200 * 95 / 255 - 10])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("id;rain", "line 2: 1 fields, expected id,rain,numbers"),
        ("id,0,1 2 3", "line 2: 3 numbers, expected 15 x 4 x 101 x 101 = 612060"),
        ("id,0,1 two 3", "line 2: (not all of it are whole numbers|1 numbers)"),
        ("id,0," + " ".join(["300"] * 612060), "line 2: numbers of 300..300, expected -1..255"),
    ],
)
def test_bad_cikm_lines(tmp_path, line, message):
    (tmp_path / "testA.txt").write_text(f"\n{line}\n")
    source = build("cikm", tmp_path)
    with pytest.raises(SourceError, match=f"testA.txt: {message}"):
        source.read(source.plan().splits["test"][0])
    with pytest.raises(UsageError, match="--heights 4: some of"):
        build("cikm", tmp_path, "--heights", "4")
