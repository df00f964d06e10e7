"""A real Slurm on this machine, and a folder on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.fakes import Fakes
from tests.support.process import ROOT, eventually
from toolkit.rundir import lock

SCRIPT = ROOT / "slurm" / "devcluster" / "cluster"


def missing(*names: str) -> list[str]:
    """Programs that this machine lacks."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [name for name in names if shutil.which(name, path=path) is None]


@dataclass(frozen=True)
class DevCluster:
    """A cluster in a folder of its own."""

    folder: Path

    def call(self, *arguments: object, check: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run slurm/devcluster/cluster."""
        environment = {**os.environ, "DEVCLUSTER": str(self.folder), **settings}
        command = [str(SCRIPT), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done

    def run(self, *command: object, check: bool = True) -> str:
        """The output of a command on the login node."""
        return self.call("exec", *command, check=check).stdout

    def queue(self) -> list[str]:
        """Names of the jobs that wait or run."""
        return self.run("squeue", "--noheader", "--array", "--format=%i").split()

    def daemons(self) -> dict[str, str]:
        """Process ids, or `not running`, by name."""
        lines = self.call("status", check=False).stdout.splitlines()
        return dict(line.split(maxsplit=1) for line in lines[: [line[:6] for line in lines].index("SLURM_")])


@dataclass(frozen=True)
class Site:
    """A cluster and a folder on it, with stand-ins for the training that take milliseconds a step."""

    cluster: DevCluster
    fakes: Fakes
    report: bool = False  # whether a job makes it; a matter of seconds each

    @property
    def folder(self) -> Path:
        return self.fakes.folder

    def command(self, *arguments: object) -> list[str]:
        """launch/sweep.py on the login node."""
        script = self.fakes.scripts / "fake_sweep.py"
        options = ["demo.yaml", "--cluster", "slurm", "--profile", "devcluster", *map(str, arguments)]
        if not {"--cancel", "--dry-run"} & {*options} and not self.report:
            options.append("--no-report")
        return [str(SCRIPT), "exec", sys.executable, str(script), *options]

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        settings = {**os.environ, "DEVCLUSTER": str(self.cluster.folder), **environment}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*arguments), cwd=self.folder, env=settings, stdout=pipe, stderr=subprocess.STDOUT, text=True
        )

    def sweep(self, *arguments: object, **environment: str) -> tuple[int, str]:
        """(exit code, output)."""
        with self.start(*arguments, **environment) as process:
            output, _ = process.communicate(timeout=90)
        return process.returncode, output

    def sweep_of(self, runs: int, steps: int = 3, more: str = "") -> None:
        """Write the sweep file: that many seeds, and more of its keys."""
        self.fakes.sweep_file(f"base: base.yaml\nseeds: {runs}\nset: {{train.steps: {steps}}}\n{more}")

    def submit(self, *options: object, **environment: str) -> str:
        """The output of a `sweep` that succeeds."""
        code, output = self.sweep(*options, **environment)
        assert code == 0, output
        return output

    def status(self, *options: str) -> str:
        """What launch/status.py prints of the sweep."""
        return self.cluster.run(sys.executable, ROOT / "launch" / "status.py", self.folder / "runs" / "demo", *options)

    def runs(self) -> list[Path]:
        return self.fakes.runs()

    def starts(self) -> list[int]:
        """How often each run was started."""
        return [len(starts(run)) for run in self.runs()]

    def wait(self) -> None:
        """Until the queue is empty."""
        eventually(lambda: not self.cluster.queue(), 60)


def starts(run: Path) -> list[str]:
    """A line for each process that trained a run: its id and rank."""
    file = run / "starts"
    return file.read_text().splitlines() if file.exists() else []


def live(run: Path) -> bool:
    """Whether a job has the run and its training listens to signals."""
    return lock.holder(run) is not None and (run / "state.json").exists()
