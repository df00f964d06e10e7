"""What can happen to a cluster, at random moments of a sweep: every run must end as the undisturbed one, unattended.

    python -m tests.support.slurm_faults --disturbances 20 --seed 1 --log faults.log
    python -m tests.support.slurm_faults --pack 2 --disturbances 20 --seed 1 --log faults-packed.log

Two models x two seeds, each on two ranks of two nodes, in a partition whose jobs others preempt; with --pack
two models x three seeds, that many of them side by side in a job. A disturbance hits one
run that isn't done: stopped by a signal, requeued, preempted, its node set down, crashed, cut off or without its
slurmd; or all of them: the controller is stopped or killed. Nodes and controller come back after a random time.
Nobody calls sweep.py again. At the end weights, Adam's moments, metrics and sample fingerprints are compared to the
last bit with those of a sweep that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.devcluster import DevCluster
from tests.support.slurm_trials import CONVLSTM, MODERNN, PacedSweeps, Trial
from tests.support.training_faults import difference
from toolkit.rundir import lock
from toolkit.rundir.events import read_restarts

NODES = 6
OUT_AT_ONCE = 2  # nodes that are gone at a time: the others can run everything
STEPS = 60
PACE_S = 0.7  # a step, while there is something to disturb
CRAWL_S = 8.0  # a step near the end of the run: it is to be there for the last disturbance
CRAWL_FROM = STEPS - 15
PATIENCE_S = 300.0  # for the whole sweep to end after the last disturbance
NODE_DEEDS = ("down", "crash", "stopd", "cut")
DEEDS = ("stop", "stop batch", "requeue", "preempt", "controller", "controller killed", *NODE_DEEDS)


@dataclass
class FaultInjection:
    """A sweep, what is done to it, and what is broken at the moment."""

    sweeps: PacedSweeps
    seed: int
    say: Callable[[str], None]
    pack: int | None = None  # runs in a job; None: each has two nodes of its own
    counts: Counter[str] = field(default_factory=Counter)
    _broken: dict[str, tuple[float, Callable[[], object]]] = field(default_factory=dict)  # name -> (until, repair)

    def run(self, disturbances: int) -> None:
        """Disturb so often; raises AssertionError when a run isn't done or ends in another way."""
        whole = {trial.run.path.name: trial for trial in self._submit("whole", 0.0)}
        for trial in whole.values():
            trial.finish()
        self.say(f"undisturbed: {len(whole)} runs done")
        trials = self._submit("sweep", PACE_S)
        dice = random.Random(self.seed)
        done = 0
        while done < disturbances:
            time.sleep(dice.uniform(0.5, 7.0))
            self._repair(time.monotonic())
            live = [trial for trial in trials if not trial.run.done]
            self.sweeps.pace("sweep", CRAWL_S if any(trial.step >= CRAWL_FROM for trial in live) else PACE_S)
            assert live, f"all runs ended after {done} disturbances: let steps take longer"
            done += self._disturb(dice, dice.choice(live), dice.choice(DEEDS), done + 1)
        self.say("left alone from now on")
        self._finish(trials)
        for trial in trials:
            fault = difference(whole[trial.run.path.name].run.path, trial.run.path, STEPS)
            assert fault is None, f"{trial.run.path.name} (seed {self.seed}) differs: {fault}\n{trial.tell()}"
            causes = [restart.cause for restart in read_restarts(trial.run.path)]
            self.say(f"{trial.run.path.name}: equal after {len(causes)} restarts: {'; '.join(causes)}")
            self.counts.update(f"restart: {cause}" for cause in causes)

    def _submit(self, name: str, pace: float) -> list[Trial]:
        options = ("--pack", self.pack) if self.pack else ("--nodes", 2, "--ranks", 2)
        models, seeds = (MODERNN, CONVLSTM), 3 if self.pack else 2
        more: dict[str, object] = {"partition": "low", **({"sbatch": {"exclusive": True}} if self.pack else {})}
        return self.sweeps.submit(name, *options, pace=pace, steps=STEPS, models=models, seeds=seeds, **more)

    def _disturb(self, dice: random.Random, trial: Trial, deed: str, number: int) -> bool:
        """Do it if it can be done now."""
        cluster = self.sweeps.cluster
        seconds = dice.uniform(1.0, 25.0)
        if deed.startswith("controller"):
            if "controller" in self._broken:
                return False
            seconds /= 4
            target = "slurmctld"
            if deed == "controller":
                cluster.call("stopctld")
            else:
                os.kill(int(cluster.daemons()["slurmctld"]), signal.SIGKILL)
            self._break("controller", seconds, lambda: cluster.call("startctld"))
        else:
            if lock.holder(trial.run.path) is None or not trial.started(0):
                return False
            job, start = trial.job, trial.start
            nodes = [node for node in self._nodes(trial, start) if node not in self._broken]
            if not nodes or (deed in NODE_DEEDS and len(self._broken) >= OUT_AT_ONCE):
                return False
            node = dice.choice(nodes)
            target = f"{trial.run.path.name[:-9]} ({job}, start {start + 1}, step {trial.step})"
            if deed in NODE_DEEDS:
                target += f", {node} for {seconds:.0f} s"
            self._deeds(deed, job, node, seconds)
        self.counts[deed] += 1
        self.say(f"{number}: {deed}: {target}")
        return True

    def _nodes(self, trial: Trial, start: int) -> list[str]:
        try:
            return [str(lock.read_lock(trial.run.path)["host"])] if self.pack else trial.nodes(start)
        except (ValueError, IndexError):  # its log begins only now
            return []

    def _deeds(self, deed: str, job: str, node: str, seconds: float) -> None:
        cluster = self.sweeps.cluster

        def tell(*command: object) -> None:
            cluster.run(*command, check=False)  # the controller may be away: then nothing happens

        if deed == "stop":
            tell("scancel", "--signal=USR2", job)
        elif deed == "stop batch":
            tell("scancel", "--signal=USR2", "--batch", job)
        elif deed == "requeue":
            tell("scontrol", "requeue", job)
        elif deed == "preempt":
            options = ["--partition=high", f"--nodelist={node}", "--exclusive", "--output=/dev/null"]
            tell("sbatch", *options, f"--wrap=sleep {seconds / 5:.1f}")
        elif deed == "down":
            tell("scontrol", "update", f"nodename={node}", "state=down", "reason=injection")
            self._break(node, seconds, lambda: tell("scontrol", "update", f"nodename={node}", "state=resume"))
        elif deed == "crash":
            cluster.call("crash", node)
            self._break(node, seconds, lambda: cluster.call("start", node))
        elif deed == "stopd":
            cluster.call("stopd", node)
            self._break(node, seconds, lambda: cluster.call("start", node))
        elif deed == "cut":
            cluster.call("cut", node)
            self._break(node, seconds, lambda: cluster.call("heal", node))

    def _break(self, name: str, seconds: float, repair: Callable[[], object]) -> None:
        self._broken[name] = (time.monotonic() + seconds, repair)

    def _repair(self, now: float) -> None:
        for name, (until, repair) in list(self._broken.items()):
            if until <= now:
                repair()
                del self._broken[name]

    def _finish(self, trials: list[Trial]) -> None:
        """Until all runs are done; nodes and controller come back meanwhile, each when its time has come."""
        self.sweeps.pace("sweep", 0.0)
        deadline = time.monotonic() + PATIENCE_S
        while not all(trial.run.done and len(trial.run.scores()) == 2 for trial in trials):
            self._repair(time.monotonic())
            left = [trial for trial in trials if not trial.run.done]
            assert time.monotonic() < deadline, "not done:\n" + "\n".join(trial.tell() for trial in left)
            time.sleep(0.5)
        self._repair(float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disturbances", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pack", type=int, help="runs side by side in a job")
    parser.add_argument("--log", type=Path, help="also here")
    parser.add_argument("--keep", action="store_true", help="leave the runs, to look at them")
    options = parser.parse_args()
    log = open(options.log or os.devnull, "w", encoding="utf-8")  # noqa: SIM115  to the end

    def say(text: str) -> None:
        for file in (log, sys.stdout):
            print(f"{time.strftime('%H:%M:%S')} {text}", file=file, flush=True)

    cluster = DevCluster(Path(tempfile.mkdtemp(prefix="devcluster-", dir="/tmp")))
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    began = time.monotonic()
    code = 0
    try:
        cluster.call("up", NODES=str(NODES), OWNER=str(os.getpid()))
        injection = FaultInjection(PacedSweeps.prepare(cluster, folder), options.seed, say, options.pack)
        try:
            injection.run(options.disturbances)
            packed = f" of a sweep with {options.pack} runs in a job" if options.pack else ""
            took = time.monotonic() - began
            say(f"{options.disturbances} disturbances{packed} in {took:.0f} s: all runs done and equal")
        except AssertionError as error:
            say(f"FAILED: {error}")
            code = 1
        for what, count in sorted(injection.counts.items()):
            say(f"{count:4} x {what}")
    finally:
        cluster.call("down", check=False)
        if options.keep:
            say(f"runs: {folder}, cluster's logs: {cluster.folder}/log")
        else:
            shutil.rmtree(cluster.folder, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
