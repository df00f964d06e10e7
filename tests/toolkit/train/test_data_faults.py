"""A store that stalls, is damaged or is replaced while a run trains: what was trained is saved, and the cause named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.process import PATIENCE_S, ROOT, one_thread
from tests.support.process_pool import ProcessPool
from tests.support.training_faults import difference, free_port
from toolkit.checkpoint import checkpoint
from toolkit.rundir import RunDir

LONG = 600.0


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with ProcessPool() as started:
        yield started


@pytest.fixture(scope="module")
def config(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No checkpoint but those that a fault or the end makes."""
    tree = yaml.safe_load(tiny_config.read_text())
    tree["train"]["checkpoint"] = {"every": 1000}
    tree["train"]["validate_every"] = 5
    tree["eval"] = {"batch": 1}
    path = tmp_path_factory.mktemp("configs") / "rare.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def whole(pool: ProcessPool, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert pool.run(["--config", config, "--out", folder / "run"], folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"


def told(log: Path, ranks: int) -> str:
    return "\n".join(log.with_name(f"{log.name}.{rank}").read_text() for rank in range(ranks))


def until(log: Path, words: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not (log.exists() and words in log.read_text()):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.02)


def start(pool: ProcessPool, ranks: int, config: Path, run: Path, log: Path, fault: str, *options: str) -> list[int]:
    words = [word for option in options for word in ("--set", option)]
    return pool.ranks(ranks, free_port(), ["--config", config, "--out", run, *words], log, fault)


@pytest.mark.parametrize(("ranks", "zero", "graph"), [(1, 0, "off"), (2, 0, "on"), (2, 3, "off")])
def test_a_stop_while_waiting_for_data_saves_the_last_step(
    pool: ProcessPool, config: Path, whole: Path, tmp_path: Path, ranks: int, zero: int, graph: str
) -> None:
    """The last rank's store stalls; the others wait for it in a collective."""
    run, log = tmp_path / "run", tmp_path / "log"
    options = [f"train.zero={zero}", f"train.graph={graph}"]
    pids = start(pool, ranks, config, run, log, f"stall {ranks - 1} 3 {LONG}", *options)
    until(log.with_name("log.0"), "step 3/6")
    time.sleep(1)
    began = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    assert [pool.wait(pid) for pid in pids] == [3] * ranks, told(log, ranks)
    assert time.monotonic() - began < 120  # the store stalls for 600 s
    assert checkpoint.pointed(run / "checkpoints", "latest") == 3
    again = [pool.wait(pid) for pid in pool.ranks(ranks, free_port(), ["--run", run], log)]
    assert again == [0] * ranks, told(log, ranks)
    if (ranks, graph) == (1, "off"):
        assert difference(whole, run, 6) is None


def test_a_stopped_reader_process_does_not_outlive_its_training(
    pool: ProcessPool, config: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    (pid,) = start(pool, 1, config, run, log, "", "data.num_workers=1", "train.steps=100000")
    until(log.with_name("log.0"), " 3/100000")
    group = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _group(path) == pid]
    os.kill(max(group), signal.SIGSTOP)  # the youngest reads
    time.sleep(3)
    os.kill(pid, signal.SIGTERM)
    assert pool.wait(pid) == 3, told(log, 1)
    step = checkpoint.pointed(run / "checkpoints", "latest")
    assert step is not None and step >= 3
    assert RunDir(run).read_state()["step"] == step
    deadline = time.monotonic() + PATIENCE_S
    while any(_group(Path(f"/proc/{member}")) == pid for member in group):
        assert time.monotonic() < deadline, "a process is left behind"
        time.sleep(0.1)


def _group(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[2])
    except OSError:
        return -1


@pytest.mark.parametrize("ranks", [2])
def test_a_store_that_stalls_too_long_ends_the_run_after_a_checkpoint(
    pool: ProcessPool, config: Path, tmp_path: Path, ranks: int
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    pids = start(pool, ranks, config, run, log, f"stall {ranks - 1} 3 {LONG}", "train.watchdog.step=20")
    assert [pool.wait(pid) for pid in pids] == [6] * ranks, told(log, ranks)
    assert checkpoint.pointed(run / "checkpoints", "latest") == 3
    assert "no data for 18 s: the store's file system or server stalls" in told(log, ranks)
    assert "no data for 18 s" in str(RunDir(run).failure())


@pytest.mark.parametrize("fault", ["stall 0 5 2.5", "stall-val 0 0 2.5"])
def test_slow_reads_in_a_row_are_no_hang(pool: ProcessPool, config: Path, tmp_path: Path, fault: str) -> None:
    """Of the micro-batches of a step, and of the windows of a batch of the validation."""
    run, log = tmp_path / "run", tmp_path / "log"
    options = ["train.watchdog.step=4", "train.micro_batch=1", "eval.batch=2", "train.steps=6"]
    (pid,) = start(pool, 1, config, run, log, fault, *options)
    assert pool.wait(pid) == 0, told(log, 1)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("fault", "step"), [("damage", 3), ("damage-val", 5)])
def test_damaged_data_end_the_run_after_a_checkpoint(
    pool: ProcessPool, config: Path, whole: Path, tmp_path: Path, ranks: int, fault: str, step: int
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    pids = start(pool, ranks, config, run, log, f"{fault} {ranks - 1} 3")
    codes = [pool.wait(pid) for pid in pids]
    assert codes[-1] == 5 and codes[0] in (1, 5), told(log, ranks)
    assert checkpoint.pointed(run / "checkpoints", "latest") == step
    assert "000000.tar: damaged by the test" in told(log, ranks)
    assert "Traceback" not in told(log, ranks)
    assert pool.run(["--run", run], tmp_path / "again") == 0, (tmp_path / "again").read_text()
    if ranks == 1:
        assert difference(whole, run, 6) is None


def test_a_stop_while_a_validation_waits_for_data(pool: ProcessPool, config: Path, whole: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    (pid,) = start(pool, 1, config, run, log, f"stall-val 0 0 {LONG}")
    until(log.with_name("log.0"), "step 5/6")
    time.sleep(2)
    os.kill(pid, signal.SIGTERM)
    assert pool.wait(pid) == 3, told(log, 1)
    assert checkpoint.pointed(run / "checkpoints", "latest") == 5
    assert pool.run(["--run", run], tmp_path / "again") == 0, (tmp_path / "again").read_text()
    assert difference(whole, run, 6) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_is_one_message_whoever_reads_it(
    pool: ProcessPool, tiny_store: Path, config: Path, tmp_path: Path, workers: int
) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    (tar,) = (store / "train").glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    run, log = tmp_path / "run", tmp_path / "log"
    (pid,) = start(pool, 1, config, run, log, "", f"data.store={store}", f"data.num_workers={workers}")
    assert pool.wait(pid) == 5, told(log, 1)
    assert "000000.tar: the frames of" in told(log, 1) and "was written" in told(log, 1)
    assert "Traceback" not in told(log, 1)
    steps = checkpoint.steps_in(run / "checkpoints")
    made = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] if steps else []
    assert steps == made[-1:]


# A store that is replaced


def convert(store: Path, seed: int) -> None:
    command = [
        sys.executable,
        "-m",
        "shards",
        "convert",
        "moving-mnist",
        str(store),
        "--seed",
        str(seed),
        "--overwrite",
    ]
    options = ["--train", "6", "--val", "2", "--test", "3", "--modes", "1,2", "--size", "16", "--length", "8"]
    subprocess.run([*command, *options], check=True, cwd=ROOT, capture_output=True)


def digest_of(store: Path) -> str:
    return str(json.loads((store / "manifest.json").read_text())["digest"])


def test_a_run_is_not_resumed_or_scored_on_another_store(
    pool: ProcessPool, config: Path, tiny_store: Path, tmp_path: Path
) -> None:
    store, run, log = tmp_path / "store", tmp_path / "run", tmp_path / "log"
    shutil.copytree(tiny_store, store)
    (pid,) = start(pool, 1, config, run, log, "damage 0 3", f"data.store={store}")
    assert pool.wait(pid) == 5
    digests = [digest_of(store)]
    shutil.rmtree(store)
    convert(store, 7)
    digests.append(digest_of(store))
    assert digests[0] != digests[1]
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}
    assert pool.run(["--run", run], tmp_path / "again") == 5
    for script in ("evaluate", "analyse"):
        command = [sys.executable, str(ROOT / "launch" / f"{script}.py"), str(run)]
        done = subprocess.run(command, cwd=ROOT, env=one_thread(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 5, done.stderr
        assert all(digest in done.stderr for digest in digests), done.stderr
    text = (tmp_path / "again").read_text()
    assert all(digest in text for digest in digests) and "Traceback" not in text
    assert before == {path: path.read_bytes() for path in (run / "checkpoints").rglob("*") if path.is_file()}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_replaced_while_it_is_read_is_named_as_that(
    pool: ProcessPool, config: Path, tiny_store: Path, tmp_path: Path, workers: int
) -> None:
    store, run, log = tmp_path / "store", tmp_path / "run", tmp_path / "log"
    shutil.copytree(tiny_store, store)
    convert(tmp_path / "other", 7)
    options = [
        f"data.store={store}",
        f"data.num_workers={workers}",
        "train.steps=100000",
        "train.validate_every=100000",
    ]
    (pid,) = start(pool, 1, config, run, log, "", *options, "data.on_error=skip")
    until(log.with_name("log.0"), " 3/100000")
    digests = [digest_of(store), digest_of(tmp_path / "other")]
    for file in sorted((tmp_path / "other").rglob("*"), reverse=True):
        if file.is_file():
            shutil.copyfile(file, store / file.relative_to(tmp_path / "other"))
    assert pool.wait(pid) == 5, told(log, 1)[-3000:]
    text = told(log, 1)
    assert "the store was replaced while it was read" in text and all(digest in text for digest in digests)
    assert checkpoint.steps_in(run / "checkpoints")
