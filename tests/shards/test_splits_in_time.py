"""Default splits of archives with a clock: gaps within a storm, whole storms where there are several, and what is
reported of splits that are too short.
"""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import UsageError, open_store
from shards.cli import main
from shards.sources.splits import Shares
from shards.sources.timeline import Stamped, share_out
from tests.support.archives import build, radar_times, write_gifs
from toolkit.data.windows import WindowSet

START = datetime(2017, 5, 30)
TENTHS = Shares(0.1, 0.1)


def storms_of(*lengths: int, pause: int = 1000) -> list[Stamped]:
    """Frames 300 s apart, with `pause` steps between storms."""
    frames, step = [], 0
    for length in lengths:
        frames += [Stamped(START + timedelta(seconds=300 * (step + i)), str(step + i)) for i in range(length)]
        step += length + pause
    return frames


def lengths(parts: dict[str, list[Stamped]]) -> dict[str, int]:
    return {name: len(part) for name, part in parts.items()}


def test_a_gap_between_splits_of_one_storm() -> None:
    parts, note = share_out(storms_of(240), TENTHS, 20, 300.0)
    assert lengths(parts) == {"train": 160, "val": 20, "test": 20}
    assert note == "left out between splits: 40 frames (--split-gap 20)"
    for one, two in (("train", "val"), ("val", "test")):
        assert parts[two][0].time - parts[one][-1].time == timedelta(seconds=21 * 300)


def test_too_few_frames_for_gaps_is_reported() -> None:
    parts, note = share_out(storms_of(60), TENTHS, 20, 300.0)
    assert lengths(parts) == {"train": 48, "val": 6, "test": 6} and note.startswith("warning: the splits adjoin: 60")
    assert share_out(storms_of(60), TENTHS, 0, 300.0)[1] == ""
    assert share_out(storms_of(60), Shares(0, 0), 20, 300.0) == ({"train": storms_of(60)}, "")


def test_whole_storms_where_there_are_several() -> None:
    parts, note = share_out(storms_of(*[30] * 10), TENTHS, 20, 300.0)
    assert lengths(parts) == {"train": 240, "val": 30, "test": 30}
    assert note == "splits of whole storms: 10 storms more than 20 frames apart"
    tiny = share_out(storms_of(300, 3, 40), TENTHS, 20, 300.0)[0]  # val would get the storm of 3 of its 34 frames
    assert min(lengths(tiny).values()) >= 30
    tiny = share_out(storms_of(300, 40, 3), TENTHS, 20, 300.0)[0]
    assert min(lengths(tiny).values()) >= 30
    uneven = share_out(storms_of(100, 20, 10, 15), TENTHS, 20, 300.0)[0]
    assert lengths(uneven) == {"train": 120, "val": 10, "test": 15}
    two = share_out(storms_of(100, 100), TENTHS, 20, 300.0)[0]  # too few storms: gaps
    assert lengths(two) == {"train": 128, "val": 16, "test": 16}
    thirds = share_out(storms_of(100, 100, 100), TENTHS, 20, 300.0)[0]  # a third would be too little to train on
    assert lengths(thirds) == {"train": 208, "val": 26, "test": 26}


@pytest.mark.parametrize("gap", [1, 2, 3, 19])
@pytest.mark.parametrize("count", range(1, 30))
def test_few_frames_and_a_small_gap(gap: int, count: int) -> None:
    parts, note = share_out(storms_of(count), TENTHS, gap, 300.0)
    assert all(parts.values()) and sum(lengths(parts).values()) <= count
    assert len(parts) == (3 if count >= 3 else 1)
    if not note.startswith("warning"):
        for one, two in itertools.pairwise(parts.values()):
            assert (two[0].time - one[-1].time).total_seconds() > gap * 300


def test_a_gap_of_one_frame_in_a_short_archive(tmp_path: Path) -> None:
    write_gifs(tmp_path, radar_times(4))
    plan = build("radar", tmp_path, "--crop", "none", "--split-gap", "1").plan()
    assert {name: sum(event.length for event in events) for name, events in plan.splits.items()} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }


@given(
    storms=st.lists(st.integers(1, 90), min_size=1, max_size=8),
    gap=st.integers(0, 30),
    pause=st.integers(1, 60),
    val=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_splits_are_apart_in_order_and_not_empty(storms: list[int], gap: int, pause: int, val: float) -> None:
    frames = storms_of(*storms, pause=pause)
    parts, note = share_out(frames, Shares(val, 0.1), gap, 300.0)
    assert all(parts.values())
    joined = [frame for part in parts.values() for frame in part]
    assert joined == sorted(joined, key=lambda frame: frame.time) and set(joined) <= set(frames)
    if not note.startswith("warning"):
        for one, two in zip(list(parts.values()), list(parts.values())[1:], strict=False):
            assert (two[0].time - one[-1].time).total_seconds() > gap * 300


def test_splits_without_a_window_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gifs(tmp_path / "in", radar_times(40))
    words = ["convert", "radar", str(tmp_path / "in"), str(tmp_path / "s"), "--crop", "none"]
    assert main(words) == 0
    told = capsys.readouterr().err
    assert (
        "warning: test: no window of 20 frames (context 10 + horizon 10) fits into its longest unbroken run of 4"
        in told
    )
    assert "warning: train" not in told
    assert "split_gap" not in open_store(tmp_path / "s").manifest.conversion
    assert main([*words[:3], str(tmp_path / "t"), "--crop", "none", "--split-gap", "3"]) == 0
    assert "left out between splits: 6 frames (--split-gap 3)" in capsys.readouterr().err
    assert open_store(tmp_path / "t").manifest.conversion["split_gap"] == 3
    with pytest.raises(UsageError, match="--split-gap 3: 0 frames or more, and only without --split"):
        build("radar", tmp_path / "in", "--split-gap", "3", "--split", "train=..")


def test_windows_have_their_frames_own_times(tmp_path: Path) -> None:
    """Steps of 300, 300, 300 and 380 s: the store's step is 300, and 40 frames drift by more than ten minutes."""
    times, time = [], datetime(2017, 5, 30, 22)
    for i in range(40):
        times.append(time)
        time += timedelta(seconds=380 if i % 4 == 3 else 300)
    from tests.support.archives import numbered, save

    for number, moment in enumerate(times):
        save(tmp_path / "in" / f"x_{moment:%Y%m%d%H%M%S}.png", numbered(number))
    assert main(["convert", "radar", str(tmp_path / "in"), str(tmp_path / "s"), "--split", "train=.."]) == 0
    windows = WindowSet(open_store(tmp_path / "s"), "train", 6, 1)
    assert [windows.time(i) for i in range(len(windows))] == [f"{moment:%Y-%m-%dT%H:%M:%SZ}" for moment in times[:35]]
