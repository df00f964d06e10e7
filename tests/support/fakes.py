"""Stand-ins for train.py and evaluate.py that keep the contract of a run directory and take milliseconds a step."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import PATIENCE_S, as_from_a_terminal


@dataclass(frozen=True)
class Fakes:
    """The scripts, and a folder to run them in."""

    folder: Path

    @property
    def scripts(self) -> Path:
        return self.folder / "scripts"

    def sweep_file(self, text: str, name: str = "demo") -> Path:
        """A sweep file over a base whose store exists."""
        file = self.folder / f"{name}.yaml"
        file.write_text(text)
        return file

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """launch/sweep.py with the stand-ins, in a session of its own as a terminal would give it."""
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        return subprocess.Popen(
            [sys.executable, str(self.scripts / "fake_sweep.py"), *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=as_from_a_terminal,
        )

    def sweep(self, *arguments: str) -> tuple[int, str]:
        """The same, waited for: (exit code, output)."""
        with self.start(*arguments) as process:
            output, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output

    def runs(self, sweep: str = "demo") -> list[Path]:
        return sorted(path.parent for path in (self.folder / "runs" / sweep).glob("*/config.yaml"))
