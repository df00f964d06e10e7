"""Kills of trainings that have reader processes: none of their processes may be left behind.

    python -m tests.support.reader_kills --kills 200 --seed 1 --log reader-kills.log

Each training, of one or two ranks with one to three readers each, is killed (SIGKILL) at one of MOMENTS, each as often:
all of its ranks, or one of two, whose peer then ends by itself. Then every process of its process groups must be gone:
that of a killed rank within 10 s, of its peer within the watchdog's time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.support.process_pool import ProcessPool
from tests.support.training_faults import free_port, prepare
from toolkit.rundir import RunDir

# What is waited for before the kill; then a random time, where it isn't over in an instant.
MOMENTS = {"any": 4.0, "readers": 0.5, "first batch": 0.0, "training": 1.5, "checkpoint": 0.0, "validation": 0.0}
MOMENT_S = 40.0  # for the moment to come; else the kill comes where the training is
READERS_S = 10.0  # for the readers of a training that is gone
PEER_S = 90.0  # for a rank whose peer was killed


def members(groups: Sequence[int]) -> dict[int, str]:
    """Return the processes of some process groups that still run, with their commands."""
    found = {}
    for path in Path("/proc").iterdir():
        try:
            state, _, group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
            if path.name.isdigit() and int(group) in groups and state != "Z":
                found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")[:120]
        except (OSError, ValueError):
            continue
    return found


def _logs(log: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in sorted(log.parent.glob(f"{log.name}.*")))


def _where(run: Path, told: Path) -> str:
    """Return what a training is doing."""
    if any((run / "checkpoints").glob(".*.tmp")):
        return "checkpoint"
    phase = RunDir(run).read_state().get("phase")
    if phase == "validating":
        return "validation"
    if told.exists() and b"seq/s" in told.read_bytes():
        return "training"
    return "first batch" if phase == "training" else "starting"


def _reached(moment: str, run: Path, told: Path, pids: Sequence[int]) -> bool:
    if moment == "readers":
        return any("forkserver" in command for command in members(pids).values())
    return moment in ("any", _where(run, told))


def kill_trainings(
    pool: ProcessPool, folder: Path, kills: int, seed: int, say: Callable[[str], None], minutes: float = 1e9
) -> Counter[str]:
    """Kill so many trainings, or as many as can be in some minutes; return what they were doing.

    Raises:
        AssertionError: a process is left behind.
    """
    dice, met, config = random.Random(seed), Counter[str](), prepare(folder)
    end = time.monotonic() + 60 * minutes
    for number in range(1, kills + 1):
        if time.monotonic() > end:
            break
        ranks, readers = dice.choice((1, 1, 2)), dice.randint(1, 3)
        one = ranks == 2 and dice.random() < 0.5
        options = ["--set", f"data.num_workers={readers}", "--set", "train.steps=1000000"]
        words = ["--config", config, "--out", folder / f"run{number}", *options]
        log = folder / f"log{number}"
        pids = pool.ranks(ranks, free_port(), words, log)
        moment = list(MOMENTS)[number % len(MOMENTS)]
        run, told = folder / f"run{number}", log.with_name(f"{log.name}.0")
        deadline = time.monotonic() + MOMENT_S
        while not _reached(moment, run, told, pids) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(dice.uniform(0.0, MOMENTS[moment]))
        begun = max(0, len(members(pids)) - ranks)
        where = _where(run, told)
        what = (
            f"{'one' if one else 'all'} of {ranks} ranks ({where}) with {readers} readers each; {begun} processes more"
        )
        assert not any(pid in pool.codes for pid in pids), f"{number}: {what}: ended by itself: {_logs(log)}"
        for pid in pids[:1] if one else pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            pool.wait(pid, PEER_S)
        ended = time.monotonic()
        while (left := members(pids)) and time.monotonic() - ended < READERS_S:
            time.sleep(0.05)
        assert not left, f"{number} (seed {seed}): {what}: left behind: {left}"
        say(f"{number}: {what}: all gone after {time.monotonic() - ended:.1f} s")
        met[f"{'one' if one else 'all'} of {ranks} ranks, {where}{', with readers' if begun > 2 * ranks else ''}"] += 1
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long, with fewer kills")
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    with open(options.log, "w", encoding="utf-8") as log, tempfile.TemporaryDirectory() as name, ProcessPool() as pool:

        def say(text: str) -> None:
            for file in (log, sys.stdout):
                print(f"{time.strftime('%H:%M:%S')} {text}", file=file, flush=True)

        began = time.monotonic()
        try:
            met = kill_trainings(pool, Path(name), options.kills, options.seed, say, options.minutes)
        except AssertionError as error:
            say(f"FAILED: {error}")
            raise SystemExit(1) from None
        say(f"{sum(met.values())} of {options.kills} kills in {time.monotonic() - began:.0f} s: no process left behind")
        for what, count in sorted(met.items()):
            say(f"{count:4} x {what}")


if __name__ == "__main__":
    main()
