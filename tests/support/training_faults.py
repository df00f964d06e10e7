"""Kills and stops at random moments: a training that is disturbed again and again must end as the undisturbed one.

    python -m tests.support.training_faults --disturbances 200 --seed 1 --log faults.log

Each launch of two ranks is disturbed once, at a random moment from its first instant on: SIGKILL to all ranks or to
one, or one to three signals that ask for a checkpoint to a random choice of ranks. When a run is done, its weights,
Adam's moments, metrics lines (samples, losses, scores; not clocks and rates) and pointers are compared to the last bit
with those of an undisturbed one, and a new run begins.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.support.process import ROOT
from tests.support.process_pool import ProcessPool, free_port
from toolkit.checkpoint import checkpoint
from toolkit.rundir import RunDir

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
STEPS = 24
TREE = {
    "model": {"name": "modernn", "layers": 1, "hidden": 8, "slots": 2, "patch": 8},
    "data": {"context": 2, "horizon": 2},
    "train": {
        "steps": STEPS,
        "batch": 4,
        "lr": 3e-3,
        "validate_every": 7,
        "checkpoint": {"every": 2},
        "log_every": 1,
        "images": 0,
        "watchdog": {"first_step": 120.0, "step": 60.0},
    },
    "eval": {"batch": 1},
}


def full_state(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and Adam's moments of a checkpoint, by name."""
    config = RunDir(run).config().hash8(execution=False)
    state, _ = checkpoint.load(run / "checkpoints", step, config)
    moments = {f"{name}.{key}": value for name, both in state.moments.items() for key, value in both.items()}
    return {**state.weights, **moments}


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without clocks and rates."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key not in ("time", "seq_per_s", "data_wait")}
        for record in records
    ]


def difference(one: Path, other: Path, step: int) -> str | None:
    """What differs between two runs that should be the same to the last bit, or None."""
    a, b = full_state(one, step), full_state(other, step)
    if a.keys() != b.keys():
        return f"names of tensors: {sorted(a.keys() ^ b.keys())}"
    for name in a:
        if not torch.equal(a[name], b[name]):
            return f"{name} differs by up to {(a[name] - b[name]).abs().max():.3g}"
    if lines(one) != lines(other):
        pairs = zip(lines(one), lines(other), strict=False)
        return f"metrics.jsonl: {next((pair for pair in pairs if pair[0] != pair[1]), 'a different number of lines')}"
    for pointer in ("latest", "best"):
        if checkpoint.pointed(one / "checkpoints", pointer) != checkpoint.pointed(other / "checkpoints", pointer):
            return f"the pointer {pointer}"
    return None


@dataclass
class FaultInjection:
    """The disturbances, and a count of what they met."""

    pool: ProcessPool
    folder: Path
    config: Path
    seed: int
    say: Callable[[str], None]
    ranks: int = 2
    counts: Counter[str] = field(default_factory=Counter)

    def run(self, disturbances: int) -> None:
        """Disturb so often; raises AssertionError when a run ends in another way than the undisturbed one."""
        whole = self.folder / "whole"
        codes, _ = self._launch(whole, None)
        assert codes == [0] * self.ranks, self._tail()
        dice = random.Random(self.seed)
        done = chains = 0
        while done < disturbances:
            run = self.folder / f"chain{chains}"
            chains += 1
            began = done
            while not RunDir(run).done:
                deed = self._roll(dice) if done < disturbances else None
                codes, met = self._launch(run, deed)
                done += deed is not None
                self._judge(codes, deed)
                self.say(f"chain {chains}, {done}: {deed or 'left alone'}; met {met}; codes {codes}")
                self.counts[f"{deed.kind if deed else 'none'}: codes {sorted(codes)}"] += 1
                if deed is not None:
                    self.counts[f"met in: {met.partition(',')[0]}"] += 1
            fault = difference(whole, run, STEPS)
            assert fault is None, f"chain {chains} (seed {self.seed}) differs: {fault}"
            self.say(f"chain {chains}: {done - began} disturbances, equal to the undisturbed run")

    def _roll(self, dice: random.Random) -> Deed:
        kind = dice.choice(("kill all", "kill one", "kill all", "stop"))
        ranks = list(range(self.ranks))
        if kind == "kill one":
            ranks = [dice.choice(ranks)]
        if kind == "stop":
            ranks = dice.sample(ranks, dice.randint(1, self.ranks))
        signals = [dice.choice(STOPS) for _ in range(dice.randint(1, 3))] if kind == "stop" else [signal.SIGKILL]
        # Mostly between steps, in saves and validations; now and then while it starts.
        return Deed(kind, ranks, signals, starting=dice.random() < 0.2, wait_s=dice.random())

    def _launch(self, run: Path, deed: Deed | None) -> tuple[list[int], str]:
        log = self.folder / "log"
        size = log.with_name("log.0").stat().st_size if log.with_name("log.0").exists() else 0
        pids = self.pool.ranks(self.ranks, free_port(), ["--config", self.config, "--out", run], log)
        met = "nothing"
        if deed is not None:
            if not deed.starting:
                self._first_step(log.with_name("log.0"), size, pids)
            time.sleep(deed.wait_s * (1.5 if deed.starting else 0.8))
            met = self._where(run)
            for rank in deed.ranks:
                for number in deed.signals:
                    self.pool.send(pids[rank], number)
        try:
            return [self.pool.wait(pid, 120) for pid in pids], met
        except AssertionError as error:
            for pid in pids:
                self.pool.send(pid, signal.SIGQUIT)
            time.sleep(1)
            stacks = "\n".join(path.read_text() for path in sorted((run / "heartbeat").glob("*.stacks")))
            raise AssertionError(f"{deed}; met {met}: {error}\n{self._tail()}\n{stacks}") from None

    def _first_step(self, log: Path, size: int, pids: list[int]) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not any(pid in self.pool.codes for pid in pids):
            if b"seq/s" in log.read_bytes()[size:]:
                return
            time.sleep(0.01)

    def _where(self, run: Path) -> str:
        if (run / "checkpoints").exists() and any((run / "checkpoints").glob(".*.tmp")):
            return "a save"
        try:
            state = RunDir(run).read_state()
        except (ValueError, OSError):
            return "state.json"
        return f"{state.get('phase', 'the start')}, step {state.get('step', 0)}"

    def _judge(self, codes: list[int], deed: Deed | None) -> None:
        """Every rank ends as it should; a hang would have run into the time limit of `wait`."""
        killed = -int(signal.SIGKILL)
        if deed is None:
            fits = all(code == 0 for code in codes)
        elif deed.kind == "kill all":
            fits = all(code in (killed, 0) for code in codes)
        elif deed.kind == "kill one":
            # The others fail because of it or were through. Where gloo doesn't notice (while it connects a new group),
            # the watchdog ends them because that rank is silent.
            fits = all(code in ((killed, 0) if rank in deed.ranks else (1, 6, 0)) for rank, code in enumerate(codes))
        else:  # stopped or through; a signal that comes before the handlers ends a rank, and the others with it
            early = any(code < 0 for code in codes) and deed.starting
            fits = len(set(codes)) == 1 and codes[0] in (0, 3) if not early else True
        assert fits, f"{deed}: codes {codes}\n{self._tail()}"

    def _tail(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("log.*")))


@dataclass(frozen=True)
class Deed:
    """One disturbance."""

    kind: str
    ranks: list[int]
    signals: list[signal.Signals]
    starting: bool
    wait_s: float

    def __str__(self) -> str:
        names = "+".join(number.name for number in self.signals)
        return f"{names} to {self.ranks} {'while starting' if self.starting else 'after a step'}"


def prepare(folder: Path) -> Path:
    """A store and a config whose steps take milliseconds."""
    store = folder / "store"
    command = [sys.executable, "-m", "shards", "convert", "moving-mnist", str(store)]
    options = ["--train", "7", "--val", "2", "--test", "2", "--modes", "1,2", "--size", "16", "--length", "4"]
    subprocess.run([*command, *options], check=True, cwd=ROOT, capture_output=True)
    tree = {**TREE, "data": {**TREE["data"], "store": str(store)}}  # type: ignore[dict-item]
    path = folder / "faults.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disturbances", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, required=True)
    options = parser.parse_args()
    with open(options.log, "w", encoding="utf-8") as log, tempfile.TemporaryDirectory() as name, ProcessPool() as pool:

        def say(text: str) -> None:
            for file in (log, sys.stdout):
                print(f"{time.strftime('%H:%M:%S')} {text}", file=file, flush=True)

        folder = Path(name)
        injection = FaultInjection(pool, folder, prepare(folder), options.seed, say)
        began = time.monotonic()
        try:
            injection.run(options.disturbances)
            say(f"{options.disturbances} disturbances in {time.monotonic() - began:.0f} s: all runs equal")
        except AssertionError as error:
            say(f"FAILED: {error}")
            raise SystemExit(1) from None
        finally:
            for what, count in sorted(injection.counts.items()):
                say(f"{count:4} x {what}")


if __name__ == "__main__":
    main()
