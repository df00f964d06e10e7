"""Real trainings on a real Slurm that last as long as a test wants, and what became of them.

They are submitted from a copy of the checkout that differs in one thing: each step sleeps for as long as a file says.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.support.devcluster import DevCluster
from tests.support.process import ROOT, eventually
from tests.support.training_faults import STEPS, TREE
from toolkit.atomic import write_atomic
from toolkit.rundir import RunDir, lock

MODERNN = {"name": "modernn", "layers": 1, "hidden": 8, "slots": 2, "patch": 8}
PARKED_S = 40.0  # a step of a run that is to stay where it is; less than the watchdog allows
CONVLSTM = {"name": "convlstm", "layers": 1, "hidden": 8, "patch": 8}
PACED = '''

_draw = draw_noise


def draw_noise(*given):  # type: ignore[no-untyped-def]
    """Wait as long as the test wants, then go on."""
    import os
    import time

    def pace():  # type: ignore[no-untyped-def]
        with open(os.environ["PACE"]) as file:
            return float(file.read())

    began = time.monotonic()
    while time.monotonic() - began < pace():
        time.sleep(0.02)
    return _draw(*given)
'''


@dataclass(frozen=True)
class PacedSweeps:
    """A folder on a cluster: a store, a copy of the checkout, sweeps."""

    cluster: DevCluster
    folder: Path

    @staticmethod
    def prepare(cluster: DevCluster, folder: Path) -> PacedSweeps:
        convert = [sys.executable, "-m", "shards", "convert", "moving-mnist", str(folder / "store")]
        options = ["--train", "7", "--val", "2", "--test", "2", "--modes", "1,2", "--size", "16", "--length", "4"]
        subprocess.run([*convert, *options], check=True, cwd=ROOT, capture_output=True)
        for name in ("launch", "toolkit", "shards", "configs", "slurm"):
            shutil.copytree(ROOT / name, folder / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
        with open(folder / "checkout" / "toolkit" / "train" / "sampling.py", "a") as file:
            file.write(PACED)
        return PacedSweeps(cluster, folder)

    def pace(self, name: str, seconds: float) -> None:
        """How long each step of a sweep sleeps from now on."""
        write_atomic(self.folder / f"{name}.pace", str(seconds))

    def submit(
        self,
        name: str,
        *options: object,
        pace: float = 0.0,
        steps: int = STEPS,
        models: tuple[Mapping[str, object], ...] = (MODERNN,),
        seeds: int = 1,
        **profile: object,
    ) -> list[Trial]:
        """Submit a sweep of ranks on CPUs; `profile` goes over slurm/profiles/devcluster.yaml."""
        self.pace(name, pace)
        data = {**TREE["data"], "store": "store"}  # type: ignore[dict-item]
        base = {**TREE, "data": data, "train": {**TREE["train"], "steps": steps}}  # type: ignore[dict-item]
        base.pop("model")
        self._write(f"{name}.base.yaml", base)
        sweep = {"base": f"{name}.base.yaml", "seeds": seeds, "list": [{"model": dict(model)} for model in models]}
        self._write(f"{name}.yaml", sweep)
        environment = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PACE": str(self.folder / f"{name}.pace")}
        tree = {"cpus_per_task": 1, "time": 120, "gpus_per_node": 0, "env": environment, **profile}
        self._write(f"{name}.profile.yaml", tree)
        self.sweep(name, *options, "--no-report")
        folders = sorted(file.parent for file in self.folder.glob(f"runs/{name}/*/config.yaml"))
        return [Trial(self, name, RunDir(folder)) for folder in folders]

    def _write(self, name: str, tree: object) -> None:
        (self.folder / name).write_text(yaml.safe_dump(tree))

    def sweep(self, name: str, *options: object) -> str:
        """launch/sweep.py of the copy, on the login node; what it says."""
        checkout = self.folder / "checkout"
        script = [sys.executable, checkout / "launch" / "sweep.py", self.folder / f"{name}.yaml"]
        place = ["--cluster", "slurm", "--profile", self.folder / f"{name}.profile.yaml"]
        return self.cluster.run("env", "-C", self.folder, f"PYTHONPATH={checkout}", *script, *place, *options)


@dataclass(frozen=True)
class Trial:
    """One run and its job."""

    sweeps: PacedSweeps
    name: str
    run: RunDir

    @property
    def job(self) -> str:
        """Its job as squeue shows it."""
        return str(lock.read_lock(self.run.path)["job"]).rpartition("_")[0]

    @property
    def start(self) -> int:
        """How often Slurm has started its job before."""
        return int(str(lock.read_lock(self.run.path)["job"]).rpartition("_")[2])

    @property
    def step(self) -> int:
        try:
            return int(self.run.read_state().get("step", 0))
        except ValueError:
            return 0

    def nodes(self, start: int) -> list[str]:
        """The nodes of a start, by its own log."""
        (log,) = self.run.logs.glob(f"*_{start}_batch.log")
        names = log.read_text().splitlines()[0].rpartition(" on ")[2]
        return self.sweeps.cluster.run("scontrol", "show", "hostnames", names).split()

    def scontrol(self, *arguments: object) -> str:
        return self.sweeps.cluster.run("scontrol", *arguments)

    def wait(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Until it holds; if it never does, the logs are shown."""
        try:
            eventually(condition, seconds)
        except AssertionError as error:
            raise AssertionError(f"{self.name}: {error}\n{self.tell()}") from None

    def at_work(self, start: int = 0, steps: int = 3) -> None:
        """Until so many steps are done, by this start."""
        self.wait(lambda: self.started(start) and self.step >= steps)

    def started(self, start: int) -> bool:
        """Whether this start has the run."""
        record = lock.read_lock(self.run.path)
        begun = "job" in record and self.start >= start
        return begun and self.run.read_state().get("updated", 0.0) > float(record["started"])

    def go(self) -> None:
        """On, but not so fast that it is through before a test has looked."""
        self.sweeps.pace(self.name, 0.3)

    def finish(self) -> None:
        """At full speed to the end, and until the job has left the queue."""
        self.sweeps.pace(self.name, 0.0)
        self.wait(lambda: self.run.done and len(self.run.scores()) == 2)
        self.wait(lambda: not self.live())

    def live(self) -> bool:
        """Whether the queue has its job."""
        return self.job in self.sweeps.cluster.queue()

    def tell(self) -> str:
        """State and logs, for messages of tests."""
        logs = sorted(self.run.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
        parts = [f"--- {path.name}\n{path.read_text()[-1500:]}" for path in logs]
        queue = self.sweeps.cluster.run("squeue", "--format=%i %j %T %r %N", check=False)
        nodes = self.sweeps.cluster.run("sinfo", "-N", "-p", "main", "-o", "%N %T %E", check=False)
        return "\n".join([f"{time.strftime('%T')} {self.run.read_state()}", *parts, queue, nodes])
