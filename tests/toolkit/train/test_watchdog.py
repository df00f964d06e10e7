"""What a watchdog concludes from heartbeats."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.train import _note_failure
from toolkit.atomic import alive
from toolkit.config import RunConfig
from toolkit.config.sections import WatchdogConfig
from toolkit.errors import EXIT_DATA, EXIT_HANG, EXIT_REQUEUE, PeerError, ToolkitError
from toolkit.rundir import RunDir
from toolkit.rundir.heartbeat import Beat, beats_of, clear_beats, path_of, read_beat, write_beat
from toolkit.train import watchdog
from toolkit.train.watchdog import Watchdog, slow_ranks, stuck


def beat(rank: int, step: int = 3, marks: int = 1, phase: str = "forward", **values: object) -> Beat:
    return Beat(rank, f"node{rank}", 100 + rank, step, marks, phase, 1.0, 2.0, **values)  # type: ignore[arg-type]


def test_the_rank_that_is_furthest_behind_is_the_stuck_one() -> None:
    who, others = stuck({0: beat(0, marks=2), 1: beat(1), 2: beat(2, marks=2)})
    assert who == "rank 1 (process 101 on node1; step 3, phase forward)"
    assert others == "; the other ranks wait for it"
    who, _ = stuck({0: beat(0, step=4, marks=0), 1: beat(1, step=3, marks=9), 2: beat(2, step=4, marks=0)})
    assert who.startswith("rank 1 ")


def test_ranks_that_have_ended_are_not_stuck_and_equal_ones_accuse_the_network() -> None:
    assert stuck({0: beat(0), 1: beat(1, marks=0, ended="ended", code=0)})[0].startswith("rank 0 ")
    who, others = stuck({0: beat(0), 1: beat(1)})
    assert who == "all 2 ranks, at step 3, phase forward,"
    assert "network" in others


@pytest.mark.parametrize(
    ("times", "slow"),
    [
        ({0: 1.0, 1: 3.0}, {1: 3.0}),
        ({0: 1.0, 1: 1.1, 2: 0.9, 3: 2.5}, {3: 2.5}),
        ({0: 1.0, 1: 1.9}, {}),
        ({0: 0.01, 1: 0.05}, {}),  # five times, but who cares
        ({0: 1.0}, {}),
    ],
)
def test_slow_is_against_the_median_of_the_others(times: dict[int, float], slow: dict[int, float]) -> None:
    assert slow_ranks(times) == pytest.approx(slow)


def test_a_record_is_rewritten_in_place_and_half_of_one_is_no_record(tmp_path: Path) -> None:
    clear_beats(tmp_path)
    write_beat(tmp_path, beat(0, verdict="x" * 5000))
    size = path_of(tmp_path, 0).stat().st_size
    write_beat(tmp_path, beat(0, step=4))
    assert path_of(tmp_path, 0).stat().st_size == size
    write_beat(tmp_path, beat(1))
    assert [found.step for found in beats_of(tmp_path).values()] == [4, 3]
    path_of(tmp_path, 1).write_text(path_of(tmp_path, 1).read_text()[:40])
    assert read_beat(path_of(tmp_path, 1)) is None
    assert list(beats_of(tmp_path)) == [0]
    clear_beats(tmp_path)
    assert beats_of(tmp_path) == {}


def test_alive_asks_this_machine_only() -> None:
    assert alive(socket.gethostname(), os.getpid()) is True
    assert alive(socket.gethostname(), 2**22 + 1) is False
    assert alive("elsewhere", 2**22 + 1) is None
    with subprocess.Popen(["true"]) as ended:
        time.sleep(0.3)
        assert alive(socket.gethostname(), ended.pid) is False  # a zombie


@pytest.fixture
def watch(tmp_path: Path) -> Watchdog:
    run = RunDir.create(tmp_path / "run", RunConfig())
    clear_beats(run.path)
    return Watchdog(run, 0, 3, WatchdogConfig(first_step=40, step=8))


def test_a_verdict_and_a_silent_rank_end_rank_0(watch: Watchdog) -> None:
    for rank in (1, 2):
        write_beat(watch.run.path, beat(rank))
    assert watch._look(1.0, wrote=True) is None
    assert watch._look(30.0, wrote=True) is None  # silent, but rank 0 itself gets on
    watch._idle_s = 9.0
    assert watch._look(0.0, wrote=False) is None  # the file system is away
    assert "rank 1 (process 101 on node1; step 3, phase forward) is silent for 30 s" in str(
        watch._look(0.0, wrote=True)
    )
    write_beat(watch.run.path, beat(2, verdict="rank 2 says so"))
    write_beat(watch.run.path, beat(1, step=4))
    assert watch._look(0.0, wrote=True) == "rank 2 says so"


def test_a_rank_that_waits_on_the_gpu_for_one_that_is_gone_ends_with_its_code(
    watch: Watchdog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As over gloo, where a collective raises: over NCCL it doesn't."""
    write_beat(watch.run.path, beat(1, ended="StoreError: a cut shard", code=EXIT_DATA))
    write_beat(watch.run.path, beat(2))
    watch._idle_s = watch._silent_s
    assert watch._gone() is None  # this rank gets on
    watch._idle_s += 1
    gone = watch._gone()
    assert gone is not None
    expected = "rank 0 ends because rank 1 on node1 failed: StoreError: a cut shard"
    assert (str(gone), gone.exit_code) == (expected, EXIT_DATA)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    watch._follow(gone)
    assert codes == [EXIT_DATA]
    assert f"ERROR {expected}" in capsys.readouterr().err
    own = beats_of(watch.run.path)[0]  # what the other ranks end because of
    assert (own.ended, own.code) == (f"PeerError: {expected}", EXIT_DATA)
    assert expected in str(watch.run.failure())


def test_ranks_that_died_here_are_followed_and_those_that_ended_well_are_not(watch: Watchdog) -> None:
    here, nobody = socket.gethostname(), 2**22 + 1
    watch._idle_s = watch._silent_s + 1
    write_beat(watch.run.path, replace(beat(1, ended="ended", code=0), host=here, pid=nobody))
    write_beat(watch.run.path, beat(2, verdict="rank 1 is stuck"))
    assert watch._gone() is None  # a verdict is another matter
    write_beat(watch.run.path, replace(beat(2), host=here, pid=nobody))
    assert "rank 0 ends because another died (killed? out of memory?): rank 2" in str(watch._gone())


def test_ranks_that_an_earlier_training_left_over_have_no_say(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", RunConfig())
    clear_beats(run.path)
    watch = Watchdog(run, 0, 2, WatchdogConfig(first_step=40, step=8), training="new")
    write_beat(run.path, beat(1, verdict="rank 0 is silent", training="old"))
    watch._idle_s = 7.0
    assert watch._look(1.0, wrote=True) is None
    write_beat(run.path, beat(1, training="new"))
    assert watch._look(1.0, wrote=True) is None
    write_beat(run.path, beat(1, verdict="rank 0 is silent", training="old"))  # they take turns at the same file
    assert watch._look(1.0, wrote=True) is None
    assert beats_of(run.path, "new") == {}
    write_beat(run.path, beat(1, verdict="so it is", training="new"))
    assert watch._look(1.0, wrote=True) == "so it is"


def test_allowances_of_the_first_step_and_of_later_ones(watch: Watchdog) -> None:
    watch.begin(40)
    watch._beat()
    watch._idle_s = 30.0
    assert watch._look(0.0, wrote=True) is None
    watch.at(41, "forward")
    watch._beat()
    told = str(watch._look(0.0, wrote=True))
    assert told.startswith(f"rank 0 (process {os.getpid()} on {socket.gethostname()}; step 41, phase forward)")
    assert told.endswith("made no progress for 8 s (train.watchdog.step)")


def test_a_failed_collective_is_blamed_on_the_rank_that_is_the_cause(
    watch: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "BEAT_S", 0.1)
    watch._beat_s = 0.1
    lost = RuntimeError("Connection closed by peer")
    write_beat(watch.run.path, beat(1, ended="StoreError: a cut shard", code=5))
    error = watch.peer_error(lost)
    assert isinstance(error, PeerError)
    assert (error.exit_code, str(error)) == (5, "rank 0 ends because rank 1 on node1 failed: StoreError: a cut shard")
    write_beat(watch.run.path, beat(1, verdict="rank 2 is stuck"))
    error = watch.peer_error(lost)
    assert error is not None
    assert error.exit_code == EXIT_HANG
    assert watch.peer_error(PeerError("known")) is None
    assert watch.peer_error(KeyError("a bug")) is None


@pytest.mark.parametrize(
    "error", [ToolkitError("job.lock: can't be opened"), OSError(errno.ESTALE, "Stale file handle")], ids=str
)
@pytest.mark.parametrize("broken", ["check_lock", "beats_of"])
def test_a_file_system_that_is_away_does_not_end_the_watchdog(
    watch: Watchdog,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: str,
    error: Exception,
) -> None:
    """Its thread continues: heartbeats, and the time without progress, are what they would have been."""
    calls: list[object] = []

    def fail(*_: object) -> dict[int, Beat]:
        calls.append(error)
        if len(calls) < 5:
            raise error
        watch._leave.set()
        return {}

    monkeypatch.setattr(watchdog, broken, fail)
    watch._beat_s, watch._silent_s = 0.01, -1.0
    watch._watch()
    assert len(calls) >= 5
    told = capsys.readouterr().err
    assert told.count("it is tried again") == 1, told


def test_a_rank_that_follows_a_stopped_one_does_not_mark_the_run_as_failed(
    watch: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where some ranks still open the store, with nothing to save, when the job is asked to stop."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    watch._follow(PeerError("rank 0 ends because rank 1 was stopped", EXIT_REQUEUE))
    assert codes == [EXIT_REQUEUE]
    assert watch.run.failure() is None
    _note_failure(watch.run, 0, PeerError("rank 0 ends because rank 1 was stopped", EXIT_REQUEUE))
    assert watch.run.failure() is None
    _note_failure(watch.run, 0, PeerError("rank 0 ends because rank 1 failed", EXIT_DATA))
    assert "rank 1 failed" in str(watch.run.failure())


def test_a_read_may_take_less_than_the_watchdog_allows_in_the_same_phase(watch: Watchdog) -> None:
    """And its wait begins anew with each read, as a validation makes many without a step between."""
    first, later = watch.config.first_step, watch.config.step
    assert first != later
    watch.begin(3)
    before = watch._progress()
    assert watch.begin_read() == pytest.approx(0.9 * first)
    assert watch._progress() != before
    watch.at(4, "between steps")
    watch.at(4, "validation")
    assert watch.begin_read() == pytest.approx(0.9 * later)
