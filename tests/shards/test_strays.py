"""Files that are nearly an archive's: another product's pictures, stray videos; and output that nobody reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards import SourceError, UsageError
from shards.cli import main
from shards.sources import SOURCES
from shards.sources.choose import guess
from tests.support.archives import build, numbered, radar_times, save, write_gifs, write_kth, write_video
from tests.support.radar_files import wet


def test_another_product_of_meteoswiss_is_named(tmp_path: Path) -> None:
    for time, frame in zip(radar_times(3), wet(3), strict=True):
        save(tmp_path / f"RZC{time:%y%j%H%M}0_00005.801.gif", frame)
    with pytest.raises(UsageError, match=r"3 files named like a radar product of MeteoSwiss .* first is RZC.*: AQC is"):
        guess(tmp_path, SOURCES)
    write_gifs(tmp_path, radar_times(3))
    assert guess(tmp_path, SOURCES)[0] == "radar"
    assert any(
        "3 other files skipped, the first is RZC" in note for note in build("radar", tmp_path, "--crop", "none").notes
    )


def test_a_stray_video_among_kths_is_named(tmp_path: Path) -> None:
    pytest.importorskip("av")
    write_kth(tmp_path, {"person01_boxing_d1": [(1, 20)]}, 24)
    write_video(tmp_path / "holiday.avi", [numbered(i) for i in range(4)])
    notes = build("kth", tmp_path).plan().notes
    assert any("1 other file skipped, the first is holiday.avi" in note for note in notes)


def test_a_deep_image_that_is_named_with_a_time(tmp_path: Path) -> None:
    (time,) = radar_times(1)
    save(tmp_path / f"x_{time:%Y%m%d%H%M%S}.png", np.full((16, 16), 4000, np.uint16))
    with pytest.raises(SourceError, match=r"x_20170530220000.png: .*(more than 8 bits|pixels of kind I)"):
        build("radar", tmp_path)


def test_output_that_nobody_reads_ends_quietly(tmp_path: Path) -> None:
    write_gifs(tmp_path / "in", radar_times(4))
    assert main(["convert", "radar", str(tmp_path / "in"), str(tmp_path / "s"), "--crop", "none"]) == 0
    command = f"{sys.executable} -m shards info {tmp_path / 's'} | true"
    for _ in range(3):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert done.stderr == ""
