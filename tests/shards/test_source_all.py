"""What holds for every source: no frame in two splits, the right frames in the right order, terms stated, guessed from
the folder, and a plain word when a package is missing."""

import itertools
import json
import pickle
import sys
from datetime import datetime, timedelta

import numpy as np
import pytest

from shards import ShardError, SourceError, UsageError, open_store
from shards.cli import main
from shards.plain import from_plain, to_plain
from shards.sources import SOURCES
from shards.sources.choose import guess
from shards.verify import verify
from tests.support import archives
from tests.support.archives import build, numbered


def gaps(rng: np.random.Generator, count: int) -> list[int]:
    return [int(i) for i in rng.choice(count, int(rng.integers(0, 4)), replace=False)]


def kth(folder, rng):
    persons = rng.choice(np.arange(1, 26), 5, replace=False)
    clips = {}
    for person in sorted(int(p) for p in persons):
        cuts = sorted(rng.choice(np.arange(2, 20), 3, replace=False).tolist())
        action = ("boxing", "walking")[person % 2]
        clips[f"person{person:02d}_{action}_d1"] = [(1, cuts[0]), (cuts[0], cuts[1]), (cuts[1] + 1, cuts[2] + 1)]
    val = ",".join(str(p) for p in persons[:2] if p <= 16)
    return archives.write_kth(folder, clips, 21), ["--size", "none", "--val-persons", val]


def kth_frames(folder, rng):
    number = 0
    for person in (1, 16, 17, 25):
        for i in (*range(1, 6), *range(9, 12)):
            archives.save(folder / f"boxing/person{person:02d}_boxing_d1/image_{i:04d}.png", numbered(number))
            number += 1
    return set(range(number)), ["--size", "none"]


def radar(folder, rng):
    return archives.write_gifs(folder, archives.radar_times(40, skip=gaps(rng, 40))), ["--crop", "none"]


def radar_images(folder, rng):
    times = archives.radar_times(30, 6, gaps(rng, 30))
    for number, time in enumerate(times):
        archives.save(folder / f"{time:%Y%m}" / f"z_{time:%Y%m%d%H%M%S}.png", numbered(number))
    return set(range(len(times))), ["--mode-by", "season"]


def hko7(folder, rng):
    return archives.write_hko7(folder, archives.radar_times(30, 6, gaps(rng, 30))), ["--event-frames", "7"]


def sevir(folder, rng):
    days = sorted(rng.choice(320, 6, replace=False).tolist())
    times = [datetime(2018, 9, 1) + timedelta(days=int(day)) for day in days]
    return archives.write_sevir(folder, times), []


def cikm(folder, rng):
    return archives.write_cikm(folder, {"train": 4, "testA": 1, "testB": 1}), ["--val-fraction", "0.3"]


def cf(folder, rng):
    times = archives.radar_times(30, 10, gaps(rng, 30))
    values = np.array([numbered(i) for i in range(len(times))]) * 0.25
    archives.write_cf(folder / "a.nc", times, values, "dBZ")
    return set(range(len(times))), ["--event-frames", "9"]


def images(folder, rng):
    number = 0
    for sequence in range(12):
        for i in range(int(rng.integers(1, 12))):
            archives.save(folder / f"s{sequence}" / f"frame{i}.png", numbered(number))
            number += 1
    return set(range(number)), ["--event-frames", "4", "--split-seed", str(rng.integers(9))]


def video(folder, rng):
    number = 0
    for sequence in range(8):
        length = int(rng.integers(1, 30))
        archives.write_video(folder / f"{sequence}.mkv", [numbered(number + i) for i in range(length)])
        number += length
    return set(range(number)), ["--event-frames", "6", "--channels", "grey"]


def moving_mnist_file(folder, rng):
    frames = np.array([[numbered(20 * n + t) for n in range(30)] for t in range(20)])
    folder.mkdir()
    np.save(folder / "mnist_seq.npy", frames)
    return {20 * n + t for n in range(30) for t in range(20)}, [
        "--layout",
        "tnhw",
        "--split-seed",
        str(rng.integers(9)),
    ]


def arrays(folder, rng):
    folder.mkdir()
    for part in range(2):
        sequences = [[numbered(1000 * part + 20 * n + t) for t in range(20)] for n in range(10)]
        np.save(folder / f"part{part}.npy", np.array(sequences))
    options = ["--layout", "nthw", "--split-seed", str(rng.integers(9)), "--event-frames", "7"]
    return {1000 * part + 20 * n + t for part in range(2) for n in range(10) for t in range(20)}, options


ARCHIVES = {
    "kth": ("kth", kth),
    "kth frames": ("kth", kth_frames),
    "radar": ("radar", radar),
    "radar images": ("radar", radar_images),
    "hko7": ("hko7", hko7),
    "sevir": ("sevir", sevir),
    "cikm": ("cikm", cikm),
    "cf": ("cf", cf),
    "images": ("images", images),
    "video": ("video", video),
    "moving-mnist-file": ("moving-mnist-file", moving_mnist_file),
    "arrays": ("arrays", arrays),
}


def test_every_source_is_here():
    assert {name for name, _ in ARCHIVES.values()} | {"moving-mnist"} == set(SOURCES)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("archive", ARCHIVES)
def test_no_frame_is_in_two_splits_and_none_is_lost(tmp_path, archive, seed):
    name, write = ARCHIVES[archive]
    written, options = write(tmp_path / "in", np.random.default_rng(seed))
    built = build(name, tmp_path / "in", *options)
    source = pickle.loads(pickle.dumps(built))
    handed_out = from_plain(json.loads(json.dumps(to_plain(built))), "shards")  # as jobs of a cluster get it
    assert (handed_out.describe(), handed_out.plan()) == (source.describe(), source.plan())
    events = next(iter(source.plan().splits.values()))
    planned = from_plain(json.loads(json.dumps(to_plain(events))), "shards")
    assert planned == events and np.array_equal(handed_out.read(planned[-1]).frames, source.read(events[-1]).frames)
    threshold = {"radar": 100 if archive == "radar images" else 150}.get(name, 110)
    met: dict[str, set[int]] = {}
    for split, events in source.plan().splits.items():
        met[split] = set()
        assert [event.key for event in events] == sorted({event.key for event in events})
        for event in events:
            numbers = archives.numbers_of(source.read(event).frames, threshold)
            assert numbers == list(range(numbers[0], numbers[0] + event.length))
            met[split].update(numbers)
    for one, other in itertools.combinations(met, 2):
        assert not met[one] & met[other]
    assert set().union(*met.values()) == written


@pytest.mark.parametrize("archive", ARCHIVES)
def test_any_archive_is_recognised_converted_and_whole(tmp_path, capsys, archive):
    name, write = ARCHIVES[archive]
    _, options = write(tmp_path / "in", np.random.default_rng(7))
    assert main(["convert", "auto", str(tmp_path / "in"), str(tmp_path / "out"), *options]) == 0
    assert f"in looks like {name}: " in capsys.readouterr().err
    assert verify(tmp_path / "out") == []
    manifest = open_store(tmp_path / "out").manifest
    assert manifest.source.licence and manifest.source.citation and manifest.scale.quantity
    assert manifest.conversion["source"] == name


def test_what_auto_says(tmp_path):
    kth(tmp_path / "kth", np.random.default_rng(0))
    assert guess(tmp_path / "kth", SOURCES) == ("kth", "5 avi files and 00sequences.txt")
    archives.save(tmp_path / "images/a/1.png", numbered(0))
    archives.save(tmp_path / "images/b/1.png", numbered(0))
    assert guess(tmp_path / "images", SOURCES) == ("images", "2 images in 2 folders")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "looks like no archive known here; it is empty; name one of moving-mnist, "),
        (["notes.txt"], "it has notes.txt; name one of"),
        (["manifest.json"], "it is a store already"),
        (["train-images-idx3-ubyte.gz"], "convert moving-mnist OUTPUT --digits"),
        (["person01_boxing_d1_uncomp.avi", "CATALOG.csv"], r"could be several \(kth: 1 avi file.*; sevir: CATALOG.csv"),
    ],
)
def test_what_auto_cannot_tell(tmp_path, files, message):
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(UsageError, match=message):
        guess(tmp_path, SOURCES)


def test_auto_of_what_is_not_there(tmp_path, capsys):
    assert main(["convert", "auto", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", "auto", "--help"])
    assert "docs/new-dataset.md" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("archive", "package", "extra"),
    [("kth", "av", "video"), ("video", "av", "video"), ("sevir", "h5py", "radar"), ("cf", "xarray", "cf")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, archive, package, extra):
    name, write = ARCHIVES[archive]
    _, options = write(tmp_path / "in", np.random.default_rng(1))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ShardError, match=rf"{package}.*pip install 'modernn-toolkit\[{extra}\]'"):
        build(name, tmp_path / "in", *options)


@pytest.mark.parametrize("name", [name for name in SOURCES if SOURCES[name].input_help is not None])
def test_an_input_that_is_absent_or_empty(tmp_path, name):
    with pytest.raises((SourceError, UsageError), match=r"nowhere"):
        build(name, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises((SourceError, UsageError), match=r"empty"):
        build(name, tmp_path / "empty")
