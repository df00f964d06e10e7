"""An archive is one thing: files of several radars or products are counted, and tiles decode a file once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from shards import SourceError, UsageError, open_store
from shards.cli import main
from shards.recent import open_archive
from shards.sources import radar as radar_source
from tests.support.archives import build, radar_times, save, write_bom
from tests.support.radar_files import ONE_SPLIT, only_event, wet, write_radolan

RADAR_66, RADAR_2 = wet(20), wet(14) + 3


@pytest.fixture
def two_radars(tmp_path: Path) -> Path:
    """BoM's radar 66 every 600 s and radar 2 every 360 s, in one tree."""
    pytest.importorskip("h5py")
    write_bom(tmp_path / "66", radar_times(20, 10), RADAR_66, 600)
    for path in list((tmp_path / "66").iterdir()):
        path.rename(path.with_name(path.name.replace("2_2017", "66_2017")))
    write_bom(tmp_path / "2", radar_times(14, 6), RADAR_2, 360)
    return tmp_path


def test_two_radars_in_one_tree(two_radars: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"several radars or products \(radar 2 prcp-c10: 14 files; radar 66 prcp-c10: 20"
    ):
        build("radar", two_radars)
    source = build("radar", two_radars, *ONE_SPLIT, "--radar", "66")
    assert (len(source.frames), source.step_seconds) == (20, 600)
    assert any("left out by --radar or --product: 14 files" in note for note in source.notes)
    with pytest.raises(
        UsageError, match=r"--radar 3: no such files \(.*\); convert one after another with --radar 2 or"
    ):
        build("radar", two_radars, "--radar", "3")
    words = ["convert", "radar", str(two_radars), str(tmp_path / "s"), "--radar", "2"]
    assert main([*words, *ONE_SPLIT]) == 0
    manifest = open_store(tmp_path / "s").manifest
    assert manifest.conversion["radar"] == "2" and manifest.splits["train"].frames == 14
    assert len(open_archive(two_radars, manifest.conversion).frames) == 14  # a forecast takes the same radar


def test_a_name_that_its_header_contradicts(two_radars: Path) -> None:
    import h5py

    path = sorted((two_radars / "66").iterdir())[3]
    with h5py.File(path, "r+") as file:
        file.attrs["station_id"] = np.array([2], np.uint32)
    source = build("radar", two_radars, *ONE_SPLIT, "--radar", "66")
    with pytest.raises(
        SourceError, match=r"66_.*nc: the header's station_id is 2, expected 66, as the file's name says"
    ):
        source.read(only_event(source))


def test_two_products_in_one_tree(tmp_path: Path) -> None:
    cells = wet(3, 20, 30)
    write_radolan(tmp_path, radar_times(3), cells, "RX")
    write_radolan(tmp_path, radar_times(3), cells.astype(np.uint16), "RY")
    with pytest.raises(
        UsageError, match=r"radar 10000 rx: 3 files; radar 10000 ry: 3 files.* --product rx or --product ry"
    ):
        build("radar", tmp_path)
    assert len(build("radar", tmp_path, "--product", "RY").frames) == 3


def test_tiles_decode_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for time, frame in zip(radar_times(8), wet(8, 384, 384), strict=True):
        save(tmp_path / "in" / f"x_{time:%Y%m%d%H%M%S}.png", frame)
    read: list[Path] = []
    plain = radar_source.GreyImages.read

    def counted(self, path: Path):
        read.append(path)
        return plain(self, path)

    monkeypatch.setattr(radar_source.GreyImages, "read", counted)
    words = ["convert", "radar", str(tmp_path / "in"), str(tmp_path / "s"), "--tiles", "64", "--split", "train=.."]
    assert main(words) == 0
    store = open_store(tmp_path / "s")
    assert store.splits["train"].events == 36 and len(read) == 8
    assert store.manifest.grid is None
    event = store.events("train")[7]
    assert np.array_equal(store.read("train", 7, 0, 8)[:, 0], wet(8, 384, 384)[:, 64:128, 64:128]), event


def test_a_readers_header_has_no_say_in_equality(tmp_path: Path) -> None:
    """The first file is kept from the scan to the first event, and only for the very file that was read."""
    for time, frame in zip(radar_times(2), wet(2), strict=True):
        save(tmp_path / f"x_{time:%Y%m%d%H%M%S}.png", frame)
    source = build("radar", tmp_path, *ONE_SPLIT)
    first = tmp_path / source.frames[0].file
    save(first, np.full((32, 40), 7, np.uint8))  # changed after the scan
    assert (source.read(only_event(source)).frames[0] == 7).all()
    other = dataclasses.replace(source, no_echo="zero")
    assert np.array_equal(other.read(only_event(other)).frames, source.read(only_event(source)).frames)
