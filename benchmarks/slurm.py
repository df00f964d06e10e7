"""What launching costs beside the cluster's own time, on slurm/devcluster: a plan, a thousand runs, a table, a start.

    python benchmarks/slurm.py               all, into benchmarks/slurm-DATE-MACHINE.{md,json}; two minutes
    python benchmarks/slurm.py --quick       100 runs and one start, printed only

Needs Slurm on this machine (slurm/devcluster/cluster install). Figures are medians over the repetitions that the table
names; the smallest and greatest stand beside them, and the processor time of our own process, which depends less on
what else the machine does. A start is taken apart by the moments that it leaves on disk; of the time from the first
line of the job's script to the first optimizer step, ours is what is neither imports (Python tells what they took, in
these very processes) nor the step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose slurm.py and shards.py are not the packages

from benchmarks.report import write_report  # noqa: E402
from toolkit.rundir.events import read_starts  # noqa: E402

CLUSTER = ROOT / "slurm" / "devcluster" / "cluster"
BASE = """\
model: {name: convlstm, layers: 1, hidden: 8, patch: 8}
data: {store: store, context: 4, horizon: 4}
train: {steps: 3, batch: 2, log_every: 1, validate_every: 100, checkpoint: {every: 100}, images: 0}
"""
HELD = "gpus_per_node: 1\ncpus_per_task: 1\nenv: {OMP_NUM_THREADS: 1}\nsbatch: {hold: true}\n"
TIMED = """\
gpus_per_node: 0
cpus_per_task: 1
setup: ['date +%s.%N >"$run/script"']
env: {OMP_NUM_THREADS: 1, PYTHONPROFILEIMPORTTIME: 1}
"""


class Took(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float


class Bench:
    """A folder with a store and a cluster to measure on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "DEVCLUSTER": str(folder / "cluster"),
            "CONF": "MaxArraySize=1001",
            "OWNER": str(os.getpid()),
            "PYTHONPATH": str(ROOT),
        }

    def cluster(self, *arguments: object) -> str:
        return self.call(str(CLUSTER), *arguments)[1]

    def call(self, *command: object) -> tuple[Took, str]:
        """(time, output) of a command that succeeds."""
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        took = Took(time.perf_counter() - began, cpu)
        if done.returncode:
            sys.exit(f"{command} returned {done.returncode}\n{done.stdout}{done.stderr}")
        return took, done.stdout

    def login(self, *command: object) -> tuple[Took, str]:
        """The same on the cluster's login node; what entering it takes is not counted."""
        inner = (
            "import resource, subprocess, sys, time; began = time.perf_counter(); "
            "code = subprocess.call(sys.argv[1:]); wall = time.perf_counter() - began; "
            "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
            "print('took', wall, used.ru_utime + used.ru_stime); sys.exit(code)"
        )
        _, output = self.call(CLUSTER, "exec", sys.executable, "-c", inner, *command)
        text, _, took = output.rpartition("took ")
        wall, cpu = map(float, took.split())
        return Took(wall, cpu), text

    def prepare(self, frames: int) -> None:
        """A store, and what the paper's sweep would find."""
        arguments = ["--train", 8, "--val", 2, "--test", 2, "--size", 16, "--length", frames]
        self.call(sys.executable, "-m", "shards", "convert", "moving-mnist", "store", *arguments)
        from launch.sweeps.spec import plan_sweep

        for store in {run.config.data.store for run in plan_sweep(ROOT / "configs" / "sweeps" / "paper.yaml").runs}:
            (self.folder / store).mkdir(parents=True)
            manifest = {"frames": {"channels": 1, "height": 64, "width": 64}}
            (self.folder / store / "manifest.json").write_text(json.dumps(manifest))
        for name, text in {"base.yaml": BASE, "held.yaml": HELD, "timed.yaml": TIMED}.items():
            (self.folder / name).write_text(text)


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))  # by name: the paths of sockets are short
    made = Bench(folder)
    try:
        made.cluster("up")
        yield made
    finally:
        subprocess.run([str(CLUSTER), "down"], env=made.environment, capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def dry_runs(bench: Bench, times: int) -> dict[str, Any]:
    """`--dry-run` of the paper's sweep, with the planner's columns."""
    command = [sys.executable, ROOT / "launch" / "sweep.py", "--dry-run"]
    took, shown = zip(*(bench.call(*command) for _ in range(times)), strict=True)
    heavy = "import sys; from launch import sweep; sweep.main(['--dry-run']); print('torch' in sys.modules)"
    assert bench.call(sys.executable, "-c", heavy)[1].endswith("False\n")
    return {"seconds": took, "runs": int(shown[0].split()[1])}


def submissions(bench: Bench, runs: int, times: int) -> dict[str, Any]:
    """A new sweep submitted, its table while it waits, and its end."""
    tools = bench.folder / "tools"
    tools.mkdir()
    real = bench.cluster("exec", "which", "sbatch").strip()
    (tools / "sbatch").write_text(f'#!/bin/bash\necho >>{bench.folder}/calls\nexec {real} "$@"\n')
    (tools / "sbatch").chmod(0o755)
    path = f"PATH={tools}:{os.environ['PATH']}"
    found: dict[str, Any] = {"runs": runs, "submit": [], "status": [], "again": [], "cancel": [], "calls": []}
    for number in range(times):
        (bench.folder / f"many{number}.yaml").write_text(f"base: base.yaml\nseeds: {runs}\n")
        sweep = [sys.executable, ROOT / "launch" / "sweep.py", f"many{number}.yaml", "--cluster", "slurm"]
        options = ["--profile", "held.yaml", "--no-report"]
        (bench.folder / "calls").write_text("")
        found["submit"].append(bench.login("env", path, *sweep, *options)[0])
        found["calls"].append(len((bench.folder / "calls").read_text()))
        folder = f"runs/many{number}"
        for _ in range(3):
            took, shown = bench.login(sys.executable, ROOT / "launch" / "status.py", folder)
            assert f"{runs} runs: {runs} queued" in shown, shown[-300:]
            found["status"].append(took)
        found["again"].append(bench.login(*sweep, *options)[0])
        took, shown = bench.login(*sweep, "--cancel")
        assert f"{runs} runs waited" in shown, shown
        found["cancel"].append(took)
    return found


def tables(bench: Bench, runs: int, times: int) -> list[Took]:
    """Status of runs that have been worked on: done, running, failed, new."""
    folder = bench.folder / "runs" / "many0"
    state = {"phase": "training", "step": 120, "steps": 300, "seq_per_s": 38.2, "eta_s": 75.0, "loss": 0.01}
    for index, file in enumerate(sorted(folder.glob("*/config.yaml"))):
        run, kind = file.parent, index % 10
        if kind < 9:
            text = json.dumps({**state, "val": {"mse": 61.5}, "host": "far", "pid": 1, "updated": time.time()})
            (run / "state.json").write_text(text)
            (run / "job.lock").write_text(json.dumps({"pid": 1, "host": "far", "started": 1.0, "job": "by hand"}))
        if kind == 8:
            (run / "FAILED").write_text("rank 0: no\nexit code 4 (the loss)\n")
        if kind < 6:
            (run / "DONE").touch()
            (run / "eval").mkdir()
            for which in ("best", "last"):
                (run / "eval" / f"test-{which}.json").write_text("{}")
    command = [sys.executable, ROOT / "launch" / "status.py", folder]
    took, shown = zip(*(bench.login(*command) for _ in range(times)), strict=True)
    tenth = runs // 10
    total = f"{runs} runs: {6 * tenth} done, {2 * tenth} running, {tenth} not finite, {tenth} new"
    assert total in shown[0], shown[0][-200:]
    return list(took)


def starts(bench: Bench, times: int) -> dict[str, list[float]]:
    """One run at a time, from the call of sweep.py to its first step, by the moments that it leaves."""
    found: dict[str, list[float]] = {}
    for number in range(times):
        (bench.folder / f"one{number}.yaml").write_text(f"base: base.yaml\nset: {{seed: {number + 1}}}\n")
        sweep = [sys.executable, ROOT / "launch" / "sweep.py", f"one{number}.yaml", "--cluster", "slurm"]
        called = time.time()
        bench.login(*sweep, "--profile", "timed.yaml", "--no-report")
        (run,) = (path.parent for path in (bench.folder / "runs" / f"one{number}").glob("*/config.yaml"))
        deadline = time.monotonic() + 120
        while not (run / "DONE").exists():
            assert time.monotonic() < deadline, f"{run} did not end"
            time.sleep(0.2)
        while bench.cluster("exec", "squeue", "--noheader"):  # it is scored yet
            time.sleep(0.5)
        (noted,) = bench.folder.glob(f"runs/one{number}/slurm/*/job")
        accepted, script = noted.stat().st_mtime, float((run / "script").read_text())
        (start,) = read_starts(run)
        first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        step = 2 / first["seq_per_s"]
        moments = {
            "sweep.py to sbatch's answer": accepted - called,
            "Slurm: to the first line of the script": script - accepted,
            "srun and job.py": start.began - script,
            "train.py: to the first step": start.ready - start.began,
            "the first step": first["time"] - start.ready,
        }
        (batch,) = run.glob("logs/*_batch.log")
        (log,) = run.glob("logs/*_0_0.log")
        imports = {"imports of job.py": imported(batch), "imports of train.py": imported(log)}
        ours = first["time"] - script - step - sum(imports.values())
        for name, seconds in {**moments, **imports, "ours": ours}.items():
            found.setdefault(name, []).append(seconds)
    return found


def imported(log: Path) -> float:
    """Seconds that a process spent importing before its first step, as Python itself has written into its log."""
    before = log.read_text().partition("step 1/")[0]
    return sum(int(own) for own in re.findall(r"^import time: +(\d+) \|", before, re.MULTILINE)) / 1e6


def row(what: str, times: Sequence[float | Took], target: float | None = None, note: str = "") -> list[str]:
    seconds = [time.wall if isinstance(time, Took) else time for time in times]
    middle = statistics.median(seconds)
    cpu = [time.cpu for time in times if isinstance(time, Took)]
    spread = f"{min(seconds):.2f} to {max(seconds):.2f} ({len(seconds)})"
    met = "" if target is None else "yes" if middle < target else "no"
    used = f"{statistics.median(cpu):.2f}" if cpu else ""
    return [what, f"{middle:.2f}", spread, used, "" if target is None else f"< {target:g}", met, note]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    runs, times = (100, 1) if options.quick else (1000, 3)
    facts: dict[str, Any] = {"load_average": os.getloadavg()[1]}
    with bench() as made:
        made.prepare(frames=8)
        facts["dry_run"] = dry_runs(made, 2 * times - 1)
        facts["many"] = submissions(made, runs, times)
        facts["status"] = tables(made, runs, 2 * times - 1)
        facts["start"] = starts(made, times)
    many, start = facts["many"], dict(facts["start"])
    calls = f"{many['calls'][0]} call of sbatch" + "s" * (many["calls"][0] > 1)
    rows = [
        row(f"--dry-run of the paper's {facts['dry_run']['runs']} runs", facts["dry_run"]["seconds"], 1, "no torch"),
        row(f"{runs:,} new runs submitted", many["submit"], 10, f"{calls}, MaxArraySize 1001"),
        row(f"the same again: {runs:,} found in the queue", many["again"]),
        row(f"status of {runs:,} queued runs, squeue asked", many["status"], 1),
        row(f"status of {runs:,} runs: done, running, failed, new", facts["status"], 1),
        row(f"--cancel of {runs:,} queued runs", many["cancel"]),
        row("one run: ours, from the script to the first step", start.pop("ours"), 2, "without imports and the step"),
        *(row(f"one run: {name}", seconds) for name, seconds in start.items()),
    ]
    head = ["what", "s", "least to most (times)", "CPU s", "target", "met", "note"]
    for line in [head, *rows]:
        print(" | ".join(line))
    if not options.quick:
        notes = [f"Load average of the machine in the five minutes before: {facts['load_average']:.1f}."]
        print(write_report("slurm", "Launching on Slurm", head, rows, facts, notes=notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
