"""Training as real processes among others: who may run, how it stops, and how it ends when something is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.process import PATIENCE_S, ROOT, one_thread
from tests.support.process_pool import ProcessPool
from tests.support.training import call, cut_back, plain_losses
from toolkit.checkpoint import checkpoint, commit
from toolkit.config import load_config
from toolkit.rundir import RunDir
from toolkit.rundir.heartbeat import beats_of

QUICK = ("--set", "train.watchdog.step=4")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool() as started:
        yield started


@pytest.fixture(scope="module")
def config(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny config, validated in several batches."""
    tree = yaml.safe_load(tiny_config.read_text())
    tree["eval"] = {"batch": 1}
    path = tmp_path_factory.mktemp("configs") / "quick.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def text_of(log: Path, ranks: int = 0) -> str:
    if not ranks:
        return log.read_text()
    return "\n".join(log.with_name(f"{log.name}.{rank}").read_text() for rank in range(ranks))


def wait_until(condition: object, what: str, seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def said(log: Path, words: str) -> bool:
    return log.exists() and words in log.read_text()


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    state, _ = checkpoint.load(run / "checkpoints", step, config_hash(run))
    return {
        **state.weights,
        **{f"{name}.{key}": value for name, moments in state.moments.items() for key, value in moments.items()},
    }


def config_hash(run: Path) -> str:
    return RunDir(run).config().hash8(execution=False)


def same(one: Path, other: Path, step: int = 6) -> None:
    """Weights, moments and metrics lines, but for clocks and rates, are equal to the last bit."""
    a, b = weights(one, step), weights(other, step)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert lines(one) == lines(other)


def lines(run: Path) -> list[dict[str, object]]:
    timed = ("time", "seq_per_s", "data_wait")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in timed} for record in records]


@pytest.fixture(scope="module")
def whole(pool: ProcessPool, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing happened to this one: two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    pids = pool.ranks(2, free_port(), ["--config", config, "--out", folder / "run"], folder / "log")
    assert [pool.wait(pid) for pid in pids] == [0, 0], text_of(folder / "log", 2)
    return folder / "run"


# The lock


def test_of_two_trainings_started_at_once_one_trains_and_one_says_who_does(
    pool: ProcessPool, config: Path, tmp_path: Path
) -> None:
    """The one that trains waits at step 2 until the other has ended: on a busy machine that may come late."""
    for attempt in range(2):
        run, ended = tmp_path / f"run{attempt}", tmp_path / f"ended{attempt}"
        RunDir.create(run, load_config(config))
        logs = [tmp_path / f"{attempt}-{name}" for name in "ab"]
        pids = [pool.start(["--run", run], log, f"until 0 2 {ended}") for log in logs]
        wait_until(lambda pids=pids: any(pid in pool.codes for pid in pids), "the end of one")
        ended.touch()
        codes = [pool.wait(pid) for pid in pids]
        assert sorted(codes) == [0, 7], [log.read_text() for log in logs]
        loser = logs[codes.index(7)].read_text()
        winner = pids[codes.index(0)]
        assert f"job by hand (1 rank) (process {winner} on {socket.gethostname()}) is working on this run" in loser
        assert "Traceback" not in loser
        assert RunDir(run).done
        assert RunDir(run).failure() is None
        assert [line["step"] for line in lines(run)] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_several_ranks_are_one_training_and_a_dead_owners_lock_is_free(
    pool: ProcessPool, config: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--config", config, "--out", run]
    first = pool.ranks(2, free_port(), arguments, log, fault="sleep 1 2 2")
    wait_until(lambda: said(tmp_path / "log.0", "step 2/6"), "step 2")
    second = pool.ranks(2, free_port(), arguments, tmp_path / "second")
    assert [pool.wait(pid) for pid in second] == [7, 7]
    assert "rank 0: " in (tmp_path / "second.1").read_text()
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    third = pool.ranks(2, free_port(), arguments, tmp_path / "third")
    assert [pool.wait(pid) for pid in third] == [0, 0], text_of(tmp_path / "third", 2)


def test_a_training_knows_the_lock_of_its_own_job(config: Path, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", load_config(config))
    command = [sys.executable, str(ROOT / "launch" / "jobs" / "job.py"), str(run.path), "--ranks", "2"]
    with subprocess.Popen(command, cwd=ROOT, env=one_thread(), stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr
        for line in job.stderr:
            if "step 1/6" in line:
                by_hand = [sys.executable, str(ROOT / "launch" / "train.py"), "--run", str(run.path)]
                done = subprocess.run(by_hand, cwd=ROOT, env=one_thread(), capture_output=True, text=True, check=False)
                break
        job.stderr.read()
    assert job.returncode == 0
    assert done.returncode in (0, 7)  # 0: the job's training was through before
    if done.returncode == 7:
        assert f"job hand-{job.pid} (process {job.pid} on {socket.gethostname()}) is working" in done.stderr
    assert [line["step"] for line in lines(run.path)] == [1, 2, 3, 3, 4, 5, 6, 6]


# Signals


@pytest.mark.parametrize(
    ("number", "receivers"),
    [(signal.SIGTERM, (0,)), (signal.SIGUSR1, (1,)), (signal.SIGUSR2, (0, 1)), (signal.SIGINT, (1,))],
)
def test_a_signal_to_any_ranks_stops_all_with_one_checkpoint(
    pool: ProcessPool, config: Path, whole: Path, tmp_path: Path, number: signal.Signals, receivers: Sequence[int]
) -> None:
    run = tmp_path / "run"
    arguments = ["--config", config, "--out", run]
    pids = pool.ranks(2, free_port(), arguments, tmp_path / "log", fault="sleep 0 2 0.5")
    wait_until(lambda: said(tmp_path / "log.0", "step 2/6"), "step 2")
    for rank in receivers:
        os.kill(pids[rank], number)
    assert [pool.wait(pid) for pid in pids] == [3, 3], text_of(tmp_path / "log", 2)
    stopped = checkpoint.steps_in(run / "checkpoints")[-1]
    assert text_of(tmp_path / "log.0").count("stopped at step") == 1
    assert RunDir(run).read_state()["step"] == stopped
    assert RunDir(run).failure() is None
    pids = pool.ranks(2, free_port(), arguments, tmp_path / "log")
    assert [pool.wait(pid) for pid in pids] == [0, 0], text_of(tmp_path / "log", 2)
    same(whole, run)


def test_repeated_sigterm_never_kills_a_training(pool: ProcessPool, config: Path, whole: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--config", config, "--out", run]
    pids = pool.ranks(2, free_port(), arguments, log)
    rounds = 1
    while True:  # from the first moment to the last, again and again
        for pid in pids:
            pool.send(pid, signal.SIGTERM if rounds % 2 else signal.SIGUSR1)
        time.sleep(0.03)
        if all(pid in pool.codes for pid in pids):
            codes = [pool.wait(pid) for pid in pids]
            if codes == [0, 0]:
                break
            assert set(codes) <= {3, -signal.SIGTERM, -signal.SIGUSR1}, text_of(log, 2)
            rounds += 1
            if rounds > 3:  # it never gets to a step under this fire; let it
                pids = pool.ranks(2, free_port(), arguments, log)
                assert [pool.wait(pid) for pid in pids] == [0, 0], text_of(log, 2)
                break
            pids = pool.ranks(2, free_port(), arguments, log)
    same(whole, run)


@pytest.mark.parametrize("receiver", [0, 1])
def test_a_stop_cuts_a_validation_short_and_the_next_start_makes_up_for_it(
    pool: ProcessPool, config: Path, whole: Path, tmp_path: Path, receiver: int
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--config", config, "--out", run]
    pids = pool.ranks(2, free_port(), arguments, log, fault="validate 0 0 2.5")  # five seconds on each rank
    wait_until(lambda: RunDir(run).read_state().get("phase") == "validating", "validation")
    os.kill(pids[receiver], signal.SIGTERM)
    assert [pool.wait(pid) for pid in pids] == [3, 3], text_of(log, 2)
    assert [line["kind"] for line in lines(run)] == ["train"] * 3
    assert checkpoint.steps_in(run / "checkpoints")[-1] == 3
    pids = pool.ranks(2, free_port(), arguments, log)
    assert [pool.wait(pid) for pid in pids] == [0, 0], text_of(log, 2)
    same(whole, run)
    assert checkpoint.pointed(run / "checkpoints", "best") == checkpoint.pointed(whole / "checkpoints", "best")


def test_a_signal_to_the_whole_group_leaves_the_readers_to_the_training(
    pool: ProcessPool, config: Path, tmp_path: Path
) -> None:
    """As a terminal and Slurm send it."""
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--config", config, "--out", run, "--set", "data.num_workers=2", "--set", "train.steps=2000"]
    pid = pool.start(arguments, log)
    wait_until(lambda: said(log, " 2/2000"), "step 2")
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        os.killpg(pid, number)
    assert pool.wait(pid) == 3, text_of(log)
    assert "stopped at step" in text_of(log)


def test_a_killed_reader_process_ends_the_run_with_a_clear_error(
    pool: ProcessPool, config: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--config", config, "--out", run, "--set", "data.num_workers=1", "--set", "train.steps=20000"]
    pid = pool.start(arguments, log)
    wait_until(lambda: said(log, " 2/20000"), "step 2")
    # The process group's members, less the training: forkserver, its tracker, the reader. The youngest reads.
    members = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and group_of(path) == pid]
    os.kill(max(members), signal.SIGKILL)
    assert pool.wait(pid) == 1
    assert "one of the 1 reader processes died (" in text_of(log)
    assert "Traceback" not in text_of(log)


def test_a_killed_training_leaves_no_process_behind(pool: ProcessPool, config: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ["--set", "data.num_workers=2", "--set", "train.steps=20000"]
    pid = pool.start(["--config", config, "--out", tmp_path / "run", *options], log)
    wait_until(lambda: said(log, " 2/20000"), "step 2")

    def readers() -> list[Path]:
        return [
            path for path in Path("/proc").iterdir() if path.name.isdigit() and group_of(path) == pid != int(path.name)
        ]

    assert len(readers()) >= 4  # two readers, the forkserver, torch's tracker of resources
    os.kill(pid, signal.SIGKILL)
    assert pool.wait(pid) == -signal.SIGKILL
    wait_until(lambda: not readers(), f"the end of {readers()}", seconds=20)


def group_of(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[2])
    except OSError:
        return -1


def test_a_second_ctrl_c_ends_at_once_but_one_that_arrives_twice_does_not() -> None:
    code = (
        "import time\nfrom toolkit.signals import StopRequest\n"
        "stop = StopRequest('stopping soon'); stop.install()\nprint('ready', flush=True)\nwhile True: time.sleep(0.1)\n"
    )
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            process.send_signal(number)
            time.sleep(0.05)
        assert process.poll() is None
        time.sleep(1.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == -signal.SIGINT
        assert process.stderr.read() == "stopping soon\n"


# Hangs and losses


def test_a_stuck_rank_is_named_with_its_stack_and_ends_all(pool: ProcessPool, config: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--config", config, "--out", run, *QUICK]
    pids = pool.ranks(2, free_port(), arguments, log, fault="sleep 1 3 600")
    assert [pool.wait(pid) for pid in pids] == [6, 6], text_of(log, 2)
    named = f"rank 1 (process {pids[1]} on {socket.gethostname()}; step 3, phase forward) made no progress for 4 s"
    for rank in (0, 1):
        assert named in text_of(tmp_path / f"log.{rank}")
    stacks = (run / "heartbeat" / "rank-1.stacks").read_text()
    assert "in faulty" in stacks  # the function that sleeps
    assert "exit code 6 (hung: a rank made no progress)" in str(RunDir(run).failure())
    assert named in str(RunDir(run).failure())


def test_a_frozen_process_is_named_by_the_others(pool: ProcessPool, config: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--config", config, "--out", run, *QUICK]
    pids = pool.ranks(2, free_port(), arguments, log, fault="sleep 1 2 1")
    wait_until(lambda: said(tmp_path / "log.0", "step 2/6"), "step 2")
    os.kill(pids[0], signal.SIGSTOP)
    assert pool.wait(pids[1]) == 6, text_of(log, 2)
    assert f"rank 0 (process {pids[0]} on" in text_of(tmp_path / "log.1")
    os.kill(pids[0], signal.SIGKILL)
    pool.wait(pids[0])


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_others_which_name_it(
    pool: ProcessPool, config: Path, tmp_path: Path, victim: int
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    pids = pool.ranks(2, free_port(), ["--config", config, "--out", run], log, fault=f"kill {victim} 3")
    assert pool.wait(pids[victim]) == -signal.SIGKILL
    began = time.monotonic()
    assert pool.wait(pids[1 - victim]) == 1
    assert time.monotonic() - began < 120
    told = text_of(tmp_path / f"log.{1 - victim}")
    assert f"rank {1 - victim} ends because another died (killed? out of memory?): rank {victim} (process" in told
    assert re.search(r"step \d, phase", told)
    assert "Traceback" not in told


def test_an_error_on_one_rank_is_what_all_ranks_tell(pool: ProcessPool, config: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    pids = pool.ranks(2, free_port(), ["--config", config, "--out", run], log, fault="error 1 3")
    assert [pool.wait(pid) for pid in pids] == [1, 1]
    assert "rank 0 ends because rank 1 on" in text_of(tmp_path / "log.0")
    assert "KeyError: 'a bug'" in text_of(tmp_path / "log.0")
    assert "rank 1: KeyError: 'a bug'" in str(RunDir(run).failure())


def test_a_slow_rank_is_named_and_left_alone(pool: ProcessPool, tiny_config: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    options = ["--set", "train.watchdog.step=6", "--set", "train.steps=26"]
    arguments = ["--config", tiny_config, "--out", run, *options]
    pids = pool.ranks(2, free_port(), arguments, log, fault="slow 1 0 0.4")
    assert [pool.wait(pid) for pid in pids] == [0, 0], text_of(log, 2)
    assert f"slow: rank 1 on {socket.gethostname()} takes" in text_of(tmp_path / "log.0")
    assert "rank 1 on" in RunDir(run).read_state()["slow"]


def test_heartbeats_tell_how_ranks_ended(whole: Path) -> None:
    beats = beats_of(whole)
    assert sorted(beats) == [0, 1]
    assert {(beat.ended, beat.code, beat.step) for beat in beats.values()} == {("ended", 0, 6)}


@pytest.mark.parametrize(
    ("rank", "address", "message"),
    [
        (
            1,
            "127.0.0.1",
            r"rank 1 of 2 on \S+: MASTER_ADDR 127.0.0.1, MASTER_PORT {port}: nobody answers there",
        ),
        (1, "nowhere.invalid", r"MASTER_ADDR nowhere.invalid, MASTER_PORT {port}: that name is not known here"),
        (0, "127.0.0.1", r"only 1 ranks came to MASTER_ADDR 127.0.0.1, .* within 1 s; missing: rank 1\."),
    ],
)
def test_ranks_that_can_not_meet_say_where_they_tried(
    pool: ProcessPool, config: Path, tmp_path: Path, rank: int, address: str, message: str
) -> None:
    port = free_port()
    meeting = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": address, "MASTER_PORT": port, "MODERNN_RENDEZVOUS_S": 1}
    assert pool.run(["--config", config, "--out", tmp_path / "run"], tmp_path / "log", **meeting) == 1
    text = text_of(tmp_path / "log")
    assert re.search(message.format(port=port), text), text
    assert "Traceback" not in text


def test_a_taken_port_is_said(pool: ProcessPool, config: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        meeting = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        code = pool.run(["--config", config], tmp_path / "log", **meeting, MODERNN_RENDEZVOUS_S=5)
    assert code == 1
    assert f"MASTER_PORT {port}: " in text_of(tmp_path / "log")
    assert "Set another MASTER_PORT" in text_of(tmp_path / "log")


def test_a_stop_while_waiting_for_ranks_is_no_failure(pool: ProcessPool, config: Path, tmp_path: Path) -> None:
    meeting = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    pid = pool.start(["--config", config], tmp_path / "log", **meeting, MODERNN_RENDEZVOUS_S=3)
    time.sleep(1)
    os.kill(pid, signal.SIGTERM)
    assert pool.wait(pid) == 3
    assert "nothing was trained or saved" in text_of(tmp_path / "log")


# What isn't finite


@pytest.mark.parametrize(
    ("kind", "setting"),
    [
        ("loss", "zero=0"),
        ("gradient", "zero=0"),
        ("gradient", "zero=1"),
        ("gradient", "zero=2"),
        ("loss", "zero=3"),
        ("loss", "precision=bf16"),
        ("loss", "graph=on"),
        ("gradient", "graph=on"),
    ],
)
def test_what_is_not_finite_stops_all_ranks_before_the_update(
    pool: ProcessPool, config: Path, tmp_path: Path, kind: str, setting: str
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = ["--config", config, "--out", run, "--set", f"train.{setting}"]
    pids = pool.ranks(2, free_port(), arguments, log, fault=f"{kind} 1 4")
    assert [pool.wait(pid) for pid in pids] == [4, 4], text_of(log, 2)
    for rank in (0, 1):
        text = text_of(tmp_path / f"log.{rank}")
        assert f"step 4: the {kind} is not finite on 1 of 2 ranks; rank 1 has a loss of" in text
        assert re.search(r"from samples train-\S+, train-\S+\. Nothing was updated", text), text
        assert "The last checkpoint is of step 4" in text
        assert "Traceback" not in text
    assert "exit code 4 (the loss or gradient is not finite)" in str(RunDir(run).failure())


@pytest.mark.parametrize(
    ("kind", "setting"),
    [("gradient", "zero=0"), ("loss", "zero=2"), ("gradient", "precision=bf16"), ("gradient", "graph=on")],
)
def test_a_skipped_step_leaves_no_trace_but_is_counted(
    pool: ProcessPool, config: Path, tmp_path: Path, kind: str, setting: str
) -> None:
    """Against plain PyTorch without that step, also across a stop and a new start."""
    run, log = tmp_path / "run", tmp_path / "log"
    options = ["--set", f"train.{setting}", "--set", "train.on_nonfinite=skip"]
    arguments = ["--config", config, "--out", run, *options]
    pids = pool.ranks(2, free_port(), arguments, log, fault=f"{kind} 1 2")
    assert [pool.wait(pid) for pid in pids] == [0, 0], text_of(log, 2)
    assert "this step is skipped; 1 skipped step in this run" in text_of(tmp_path / "log.0")
    assert RunDir(run).read_state()["skipped"] == 1
    shown = lines(run)
    assert [line["step"] for line in shown if line["kind"] == "skipped"] == [3]
    losses = [line["loss"] for line in shown if line["kind"] == "train"]
    bf16 = setting == "precision=bf16"
    expected = plain_losses(load_config(config), bf16=bf16, leave_out=2)
    assert losses == pytest.approx([*expected[:2], *expected[3:]], rel=5e-3 if bf16 else 2e-6)
    if setting in ("zero=2", "graph=on"):
        before = weights(run, 6)
        cut_back(run, 4)
        pids = pool.ranks(2, free_port(), arguments, log)
        assert [pool.wait(pid) for pid in pids] == [0, 0], text_of(log, 2)
        after = weights(run, 6)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert lines(run) == shown


def test_too_many_skipped_steps_in_a_row_end_the_run(pool: ProcessPool, config: Path, tmp_path: Path) -> None:
    options = ["--set", "train.on_nonfinite=skip", "--set", "train.steps=12"]
    arguments = ["--config", config, "--out", tmp_path / "run", *options]
    assert pool.run(arguments, tmp_path / "log", fault="gradient 0 0 20") == 4
    assert "10 steps in a row were skipped before" in text_of(tmp_path / "log")
    assert RunDir(tmp_path / "run").read_state()["skipped"] == 10


def test_patience_survives_the_loss_of_the_best_checkpoint(config: Path, tmp_path: Path) -> None:
    """It counts on from the validation that was the best, and is not exhausted at once."""
    run = tmp_path / "run"
    slow = ["train.lr=1e-12", "train.optimizer=sgd", "train.validate_every=2", "train.patience=2", "train.steps=20"]
    arguments = ["--config", config, "--out", run, *(part for key in slow for part in ("--set", key))]
    done = call(*arguments)
    assert done.returncode == 0 and "early stopping at step 6: no better validation mse since step 2" in done.stderr
    cut_back(run, 4)
    record = run / "checkpoints" / "step-00000002" / "weights.pt"
    record.write_bytes(record.read_bytes()[:-1])
    done = call(run)
    assert done.returncode == 0
    assert "the best so far: weights.pt has" in done.stderr
    # The validation of step 6 counts as the best, then two more follow.
    assert "early stopping at step 10: no better validation mse since step 6" in done.stderr


def test_a_kill_in_the_save_after_a_validation_loses_no_best(config: Path, tmp_path: Path) -> None:
    """A stop left step 4 without its validation; the next start made up for it, and was killed while it saved."""
    keys = ["train.validate_every=2", "train.steps=5", "train.checkpoint.keep_last=4"]
    run = tmp_path / "run"
    done = call("--config", config, "--out", run, *(part for key in keys for part in ("--set", key)))
    assert done.returncode == 0, done.stderr
    lines = (run / "metrics.jsonl").read_text()
    assert [line["step"] for line in map(json.loads, lines.splitlines()) if line.get("best")] == [2, 4, 5]
    cut_back(run, 4)
    folder = run / "checkpoints"
    state, progress = checkpoint.load(folder, 4, config_hash(run))
    _, earlier = checkpoint.load(folder, 2, config_hash(run))
    assert progress.best and earlier.best
    unscored = dataclasses.replace(progress, best=earlier.best, improved=earlier.improved)
    commit.save(folder, state, unscored, config_hash(run))
    cut = [line for line in lines.splitlines(keepends=True) if json.loads(line)["step"] < 5]
    (run / "metrics.jsonl").write_text("".join(cut))
    done = call(run)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(folder, 4, config_hash(run))[1] == progress
    assert (run / "metrics.jsonl").read_text().startswith("".join(cut))  # it is not validated again
