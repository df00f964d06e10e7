"""Runs that are really killed and started again, on other numbers of ranks too: they end as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.process import ROOT, one_thread
from toolkit.rundir import RunDir

Crash = Callable[[Iterable[dict[str, Any]]], list[dict[str, Any]]]
CLOCKS = {"time", "seq_per_s", "data_wait"}


@pytest.fixture(scope="module")
def crash(tmp_path_factory: pytest.TempPathFactory) -> Crash:
    """crash(jobs): run tests/support/crash.py; jobs and results as it describes."""

    def run(jobs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("jobs")
        (folder / "jobs.json").write_text(json.dumps(list(jobs)))
        command = [sys.executable, "-m", "tests.support.crash", "jobs.json", "results.json"]
        command[-2:] = [str(folder / name) for name in command[-2:]]
        done = subprocess.run(command, cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr[-4000:]
        results = json.loads((folder / "results.json").read_text())
        for result in results:
            result["told"] = done.stdout + done.stderr
        return results

    return run


def background(on: bool) -> list[str]:
    return [f"train.checkpoint.async_save={str(on).lower()}"]


@pytest.fixture(scope="module")
def undisturbed(tiny_config: Path, crash: Crash, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """By async_save: the folder of a run that nothing happened to, and how many writes its checkpoints took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    jobs = [{"config": str(tiny_config), "run": str(folder / str(on)), "set": background(on)} for on in (True, False)]
    results = crash(jobs)
    assert [result["codes"] for result in results] == [[0], [0]], results[0]["told"][-4000:]
    return {on: (folder / str(on), result["writes"]) for on, result in zip((True, False), results, strict=True)}


def lines_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without clocks."""
    lines = [json.loads(line) for line in RunDir(run).metrics_file.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def samples_of(run: Path) -> dict[int, str]:
    return {line["step"]: line["samples"] for line in lines_of(run) if line["kind"] == "train"}


def last_files(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((run / "checkpoints" / "step-00000006").iterdir())}


def scalars_in_tensorboard(run: Path, tag: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tb"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def assert_same_end(run: Path, whole: Path) -> None:
    """Weights, moments, best, every metrics line, the samples of every step, TensorBoard: as if nothing had been."""
    assert RunDir(run).done
    assert last_files(run) == last_files(whole)
    assert lines_of(run) == lines_of(whole)
    assert (run / "checkpoints/best").read_text() == (whole / "checkpoints/best").read_text()
    assert scalars_in_tensorboard(run, "train/loss") == [1, 2, 3, 4, 5, 6]
    assert scalars_in_tensorboard(run, "val/mse") == [3, 6]
    assert not list((run / "checkpoints").glob(".*"))


def test_training_while_saving_gives_the_same_run_bit_for_bit(undisturbed: dict[bool, Any]) -> None:
    (background_run, _), (plain, _) = undisturbed[True], undisturbed[False]
    assert_same_end(background_run, plain)
    assert len(set(samples_of(plain).values())) == 6


def killed_and_restarted(
    undisturbed: dict[bool, Any], tiny_config: Path, crash: Crash, folder: Path, points: Callable[[int], Iterable[int]]
) -> None:
    """Kill a run at the given writes, counted over all its checkpoints; start it again; compare."""
    runs = [
        {"config": str(tiny_config), "run": str(folder / f"{on}{n}"), "set": background(on), "kill_at_write": n}
        for on in (True, False)
        for n in points(undisturbed[on][1])
    ]
    again = [{"config": run["config"], "run": run["run"]} for run in runs]
    results = crash(job for pair in zip(runs, again, strict=True) for job in pair)
    for run, first, second in zip(runs, results[::2], results[1::2], strict=True):
        assert first["codes"] == [-9], (run, first["told"][-4000:])
        assert second["codes"] == [0], (run, second["told"][-4000:])
        assert_same_end(Path(run["run"]), undisturbed[False][0])


def test_a_run_killed_while_it_saves_ends_as_if_nothing_had_been(
    undisturbed: dict[bool, Any], tiny_config: Path, crash: Crash, tmp_path: Path
) -> None:
    killed_and_restarted(undisturbed, tiny_config, crash, tmp_path, lambda writes: (writes // 3, 4 * writes // 5))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_all_over_its_saves_ends_as_if_nothing_had_been(
    undisturbed: dict[bool, Any], tiny_config: Path, crash: Crash, tmp_path: Path
) -> None:
    """Every fifth write of every checkpoint; every single one of a save: test_checkpoint.py."""
    killed_and_restarted(undisturbed, tiny_config, crash, tmp_path, lambda writes: range(1, writes + 1, 5))


def test_a_full_disk_ends_the_run_or_is_outlived(
    undisturbed: dict[bool, Any], tiny_config: Path, crash: Crash, tmp_path: Path
) -> None:
    """Two ranks under a quota that is lifted before step 5, or never."""
    base = {"config": str(tiny_config), "ranks": 2}
    outlived = {**base, "run": str(tmp_path / "outlived"), "set": ["train.checkpoint.on_error=continue"]}
    never = {**outlived, "run": str(tmp_path / "never")}
    ended = {**base, "run": str(tmp_path / "ended")}
    jobs = [{**outlived, "full_until_step": 4}, {**never, "full_until_step": 9}, {**ended, "full_until_step": 9}, ended]
    results = crash(jobs)
    told = results[0]["told"]
    assert [result["codes"] for result in results] == [[0, 0], [1, 1], [1, 1], [0, 0]], told[-4000:]
    assert f"{tmp_path / 'outlived/checkpoints/step-00000002'}: not written: File too large (needs " in told
    assert "1 save failed, training continues without" in told
    assert RunDir(tmp_path / "outlived").read_state()["save_errors"] >= 2
    assert not RunDir(tmp_path / "never").done  # a run doesn't end without its last checkpoint
    assert f"CheckpointError: {tmp_path / 'ended/checkpoints/step-00000002'}: not written" in told
    assert lines_of(tmp_path / "ended") == lines_of(tmp_path / "outlived")
    assert last_files(tmp_path / "ended") == last_files(tmp_path / "outlived")
    assert samples_of(tmp_path / "ended") == samples_of(undisturbed[True][0])


def elastic(
    legs: list[tuple[int, int]], undisturbed: dict[bool, Any], tiny_config: Path, crash: Crash, run: Path
) -> None:
    """Train legs of (ranks, ZeRO stage); all ranks are killed after the checkpoint of each leg's last step."""
    ends = [6 * (i + 1) // len(legs) for i in range(len(legs))]
    base = {"config": str(tiny_config), "run": str(run), "set": ["train.checkpoint.every=1", *background(False)]}
    jobs = [
        {**base, "ranks": ranks, "zero": stage, "kill_at_step": end}
        for (ranks, stage), end in zip(legs, ends, strict=True)
    ]
    results = crash(jobs)
    for (ranks, _), result in list(zip(legs, results, strict=True))[:-1]:
        assert result["codes"] == [-9] * ranks, result["told"][-4000:]
    assert results[-1]["codes"] == [0] * legs[-1][0], results[-1]["told"][-4000:]
    for end in ends[:-1]:
        assert f"resuming from step {end}\n" in results[0]["told"]
    whole = undisturbed[False][0]
    assert samples_of(run) == samples_of(whole)
    losses, expected = ([line["loss"] for line in lines_of(path) if line["kind"] == "train"] for path in (run, whole))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert scalars_in_tensorboard(run, "train/loss") == [1, 2, 3, 4, 5, 6]
    ours, theirs = (torch.load(p / "checkpoints/step-00000006/weights.pt", weights_only=True) for p in (run, whole))
    for name, weight in theirs.items():
        assert torch.allclose(ours[name], weight, rtol=1e-4, atol=1e-6), name


def test_a_run_goes_on_with_other_numbers_of_ranks_and_zero_stages(
    undisturbed: dict[bool, Any], tiny_config: Path, crash: Crash, tmp_path: Path
) -> None:
    elastic([(4, 2), (1, 0), (2, 1)], undisturbed, tiny_config, crash, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "legs",
    [
        [(4, 0), (2, 0), (1, 0), (4, 0)],
        [(4, 1), (2, 1), (1, 1), (4, 1)],
        [(4, 2), (2, 2), (1, 2), (4, 2)],
        [(4, 3), (2, 3), (1, 3), (4, 3)],
        [(1, 0), (4, 1), (1, 2), (2, 0), (2, 2), (1, 1)],
        [(4, 3), (2, 0), (2, 3), (1, 1), (4, 3), (1, 2)],
    ],
    ids=str,
)
def test_four_ranks_two_one_four(
    undisturbed: dict[bool, Any], tiny_config: Path, crash: Crash, tmp_path: Path, legs: list[tuple[int, int]]
) -> None:
    elastic(legs, undisturbed, tiny_config, crash, tmp_path / "run")
