"""What packing saves: node-hours of 153 runs on whole nodes of four GPUs, packed and not; and what submitting costs.

    python benchmarks/packing.py              into benchmarks/packing-DATE-MACHINE.{md,json}; a quarter of an hour
    python benchmarks/packing.py --quick      16 runs of 5 s, printed only

Needs Slurm and accounting on this machine (slurm/devcluster/cluster install). The cluster is slurm/devcluster, its
nodes are given whole and have four pretended GPUs; each training is a stand-in that sleeps for as long as the others.
Node-hours are what accounting says of the jobs. A place counts as busy from the moment when its run is locked until
that lock is let go; busy places are counted from the start of the first job until the last run has begun.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder, whose modules are not the packages

from benchmarks.report import write_report  # noqa: E402
from toolkit.rundir.lock import read_lock  # noqa: E402

CLUSTER = ROOT / "slurm" / "devcluster" / "cluster"
SCRIPTS = ROOT / "tests" / "support" / "scripts"
GPUS = 4
NODES = {"unpacked": 24, "packed": 4}  # node-hours don't depend on it; the processors of this machine do
PROFILE = """\
partition: whole
gpus_per_node: 4
cpus_per_task: 1
time: 600
env: {OMP_NUM_THREADS: 1}
"""
SLEEP = """\
import os, sys, time
from pathlib import Path
run = Path(sys.argv[sys.argv.index("--run") + 1])
if os.environ.get("RANK", "0") == "0":
    time.sleep({seconds})
    (run / "DONE").write_text("")
"""


class Site:
    """A cluster, and a folder with a sweep of stand-ins."""

    def __init__(self, folder: Path, runs: int, seconds: float) -> None:
        self.folder = folder
        self.runs = runs
        self.environment = {**os.environ, "DEVCLUSTER": str(folder / "cluster"), "PYTHONPATH": str(ROOT)}
        scripts = shutil.copytree(SCRIPTS, folder / "scripts")
        (scripts / "train.py").write_text(SLEEP.format(seconds=seconds))
        (folder / "store").mkdir()
        (folder / "store" / "manifest.json").write_text("{}")
        (folder / "base.yaml").write_text("model: {name: modernn}\ndata: {store: store}\ntrain: {steps: 3}\n")
        (folder / "profile.yaml").write_text(PROFILE)
        (folder / "held.yaml").write_text(PROFILE + "sbatch: {hold: true}\n")

    def cluster(self, *arguments: object, **settings: str) -> str:
        command = [str(CLUSTER), *map(str, arguments)]
        environment = {**self.environment, **settings}
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{command} returned {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def sweep(self, name: str, runs: int, *options: object) -> str:
        """Submit a sweep of that many runs."""
        (self.folder / f"{name}.yaml").write_text(f"base: base.yaml\nseeds: {runs}\n")
        command = [sys.executable, self.folder / "scripts" / "fake_sweep.py", f"{name}.yaml", "--cluster", "slurm"]
        return self.cluster("exec", *command, "--no-report", *options)

    def measure(self, kind: str, places: int, *options: object) -> dict[str, Any]:
        """Run the sweep to its end on a cluster of its own; what it took."""
        self.cluster("up", NODES=str(NODES[kind]), GPUS=str(GPUS), CPUS="8", ACCT="dbd", OWNER=str(os.getpid()))
        try:
            began = time.time()
            self.sweep(kind, self.runs, "--profile", "profile.yaml", *options)
            while self.cluster("exec", "squeue", "--noheader"):
                time.sleep(2)
            time.sleep(5)  # accounting lags
            lines = self.cluster(
                "exec", "sacct", "-X", "-n", "-P", "-o", "ElapsedRaw,NNodes,State,JobName", "-S", "00:00:00"
            )
        finally:
            self.cluster("down")
        jobs = [line.split("|") for line in lines.splitlines() if f"|{kind}-" in line]
        records = [read_lock(file.parent) for file in self.folder.glob(f"runs/{kind}/*/config.yaml")]
        spans = [(float(record["started"]), float(record["ended"])) for record in records]
        assert len(spans) == self.runs and all(record["exit"] == 0 for record in records)
        return {
            "nodes": NODES[kind],
            "jobs": len(jobs),
            "states": sorted({job[2] for job in jobs}),
            "node_s": sum(int(elapsed) * int(nodes) for elapsed, nodes, *_ in jobs),
            "wall_s": max(end for _, end in spans) - began,
            "run_s": statistics.mean(end - start for start, end in spans),
            "busy": busy_share(spans, NODES[kind] * places),
        }


def busy_share(spans: Sequence[tuple[float, float]], places: int) -> float:
    """Return the share of the places' time in use, from the first run's beginning to the beginning of the last."""
    first, last = min(start for start, _ in spans), max(start for start, _ in spans)
    used = sum(max(0.0, min(end, last) - start) for start, end in spans)
    return used / (places * (last - first)) if last > first else 1.0


def submissions(site: Site, runs: int, times: int) -> list[float]:
    """Seconds to submit that many packed runs; nothing of them runs."""
    took = []
    site.cluster("up", NODES="2", GPUS=str(GPUS), CONF="MaxArraySize=1001", OWNER=str(os.getpid()))
    try:
        for number in range(times):
            began = time.perf_counter()
            site.sweep(f"many{number}", runs, "--profile", "held.yaml", "--pack", "auto")
            took.append(time.perf_counter() - began)
    finally:
        site.cluster("down")
    return took


def dry_runs(site: Site, times: int) -> list[float]:
    """Seconds of --dry-run of the paper's sweep, packed; torch is not imported."""
    took = []
    command = ["--dry-run", "--no-queue", "--cluster", "slurm", "--gpus-per-node", str(GPUS), "--pack", "auto"]
    for _ in range(times):
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(ROOT / "launch" / "sweep.py"), *command],
            env=site.environment,
            cwd=site.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        took.append(time.perf_counter() - began)
        assert re.search(r"153 runs in 39 jobs", done.stdout), done.stdout[-600:]
    code = f"import sys; from launch import sweep; sweep.main({command!r}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=site.environment, cwd=site.folder, check=True, capture_output=True)
    return took


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="that a training sleeps (default: 20)")
    options = parser.parse_args()
    runs, seconds, many, times = (16, 5.0, 100, 1) if options.quick else (153, options.seconds, 1000, 3)
    folder = Path(tempfile.mkdtemp(prefix="packing-", dir="/tmp"))  # by name: the paths of sockets are short
    try:
        site = Site(folder, runs, seconds)
        facts: dict[str, Any] = {"seconds": seconds, "load_average": os.getloadavg()[1]}
        facts["dry_run_s"] = dry_runs(site, times)
        facts["submit_s"] = submissions(site, many, times)
        facts["packed"] = site.measure("packed", GPUS, "--pack", "auto")
        facts["unpacked"] = site.measure("unpacked", 1, "--gpus-per-node", "1")  # of a node that it has alone
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    packed, alone = facts["packed"], facts["unpacked"]
    submit, dry = statistics.median(facts["submit_s"]), statistics.median(facts["dry_run_s"])
    ratio = packed["node_s"] / alone["node_s"]
    rows = [
        ["node-hours, a run a node", f"{alone['node_s'] / 3600:.3f}", "", "", f"{runs} jobs"],
        ["node-hours, packed", f"{packed['node_s'] / 3600:.3f}", "", "", f"{packed['jobs']} jobs of {GPUS} places"],
        ["packed / not packed", f"{ratio:.3f}", "<= 0.27", yes(ratio <= 0.27), "0.25 is a quarter"],
        ["places busy until the last run began", f"{packed['busy']:.1%}", ">= 95%", yes(packed["busy"] >= 0.95), ""],
        [
            "a run, packed and alone",
            f"{packed['run_s']:.1f} s, {alone['run_s']:.1f} s",
            "",
            "",
            f"sleeps {seconds:g} s",
        ],
        [f"{many:,} packed runs submitted", f"{submit:.2f} s", "< 10 s", yes(submit < 10), ""],
        ["--dry-run of 153 runs, packed", f"{dry:.2f} s", "< 1 s", yes(dry < 1), "no torch"],
    ]
    head = ["what", "measured", "target", "met", "note"]
    for line in [head, *rows]:
        print(" | ".join(line))
    print(json.dumps(facts))
    if not options.quick:
        notes = [f"Load average of the machine in the five minutes before: {facts['load_average']:.1f}."]
        print(write_report("packing", "Packing runs into whole nodes", head, rows, facts, notes=notes))
    return 0


def yes(met: bool) -> str:
    return "yes" if met else "no"


if __name__ == "__main__":
    sys.exit(main())
