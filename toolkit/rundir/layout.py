"""A run directory: everything about one run, and the only thing a job needs to be told. Does not import torch.

    runs/<sweep>/<name>-<hash8>/
      config.yaml  env.json            resolved config; versions, git state, command, what it was trained on
      submit.sbatch                    (Slurm) a text that one can sbatch again by hand
      checkpoints/step-00001000/  latest  best
      logs/                            one file per job and rank
      metrics.jsonl   tb/              one line per logged step; TensorBoard
      starts.jsonl                     one line per start of the training: what the hours went to
      state.json  DONE | FAILED        how the run stands: no scheduler is needed to know
      heartbeat/rank-N.json            what each rank last did; rank-N.stacks: where a hung one was
      job.lock                         who works on it, or did last
      restarts.tsv                     (Slurm) when and why its jobs began again
      eval/                            <split>-<best|last>.json and the frames shown in the report
      analysis/                        features-<split>-<best|last>.npz: what the model remembers, see toolkit/analysis

Small files are replaced whole (write, fsync, rename), so a reader never sees half of one.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from toolkit.atomic import write_atomic
from toolkit.config import RunConfig, load_config
from toolkit.errors import EXIT_MEANING, ConfigError, ToolkitError
from toolkit.rundir.metrics import read_lines
from toolkit.tree import flatten
from toolkit.wording import some

CHECKPOINTS = ("best", "last")  # those that are scored
RESULT_VERSION = 1  # of eval/*.json
STALE_AFTER_S = 120.0  # a live run rewrites state.json at least every few seconds


def read_result(path: Path) -> dict[str, Any]:
    """A file of eval/ or analysis/. Raises ToolkitError where it can't be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ToolkitError(
            f"{path}: can't be read ({error}); delete it and evaluate the run again: launch/evaluate.py"
        ) from None


@dataclass(frozen=True)
class RunDir:
    """Paths and small records of one run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tb"

    @property
    def eval(self) -> Path:
        return self.path / "eval"

    @property
    def analysis(self) -> Path:
        return self.path / "analysis"

    def config(self) -> RunConfig:
        """The run's resolved config.

        Raises:
            ConfigError: when the folder holds none, or one that can't be used.
        """
        if not self.path.is_dir():
            raise ConfigError(f"{self.path}: no such folder; launch/status.py shows the runs of a sweep's folder")
        if not self.config_file.exists():
            below = sorted(file.parent.name for file in self.path.glob("*/config.yaml"))
            hint = f"runs in there: {some(below, 3)}" if below else "make one with launch/sweep.py"
            raise ConfigError(f"{self.path}: not a run directory (no config.yaml); {hint}")
        return load_config(self.config_file)

    @staticmethod
    def create(path: Path, config: RunConfig) -> RunDir:
        """Make the folder, or open it when it already holds this very config.

        Raises:
            ConfigError: when the folder holds another run or something else.
        """
        run = RunDir(path)
        if run.config_file.exists():
            if run.config().hash8() != config.hash8():
                raise ConfigError(
                    f"{path}: holds another run ({run.config().hash8()}, this one is {config.hash8()}): "
                    f"{differences(run.config(), config)}; choose another --run-dir, or delete that folder"
                )
            return run
        # A creation that was killed leaves env.json or a temporary file; config.yaml, written last, makes it a run.
        if path.exists() and any(item.name != "env.json" and not item.name.endswith(".tmp") for item in path.iterdir()):
            raise ConfigError(f"{path}: exists and is not a run directory: choose another --run-dir")
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "env.json", json.dumps(environment(), indent=2) + "\n")
        write_atomic(run.config_file, config.to_yaml())
        return run

    def logged_steps(self) -> list[dict[str, Any]]:
        """The records of logged training steps that have a rate; a repeated step stands there once."""
        return [line for line in read_lines(self.metrics_file) if line.get("kind") == "train" and line.get("seq_per_s")]

    def rate(self) -> float | None:
        """Sequences per second: the median of the logged steps, the first left out."""
        rates = [float(line["seq_per_s"]) for line in self.logged_steps()]
        return statistics.median(rates[1:] or rates) if rates else None

    def read_env(self) -> dict[str, Any]:
        """What `environment` said when the run was made."""
        file = self.path / "env.json"
        return read_result(file) if file.exists() else {}

    def note_env(self, **values: object) -> None:
        """Lay what only a start of the training knows on env.json: its device."""
        write_atomic(self.path / "env.json", json.dumps({**self.read_env(), **values}, indent=2) + "\n")

    def read_state(self) -> dict[str, Any]:
        """The last state that the run wrote; empty before its first."""
        try:
            return dict(json.loads((self.path / "state.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}

    def write_state(self, **values: object) -> None:
        """Lay values on the state (None drops a key) and stamp it with host, pid and time."""
        state = {
            **self.read_state(),
            **values,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "updated": time.time(),
        }
        kept = {key: value for key, value in state.items() if value is not None}
        write_atomic(self.path / "state.json", json.dumps(kept, indent=1) + "\n")

    def mark_done(self) -> None:
        """Training is complete."""
        (self.path / "FAILED").unlink(missing_ok=True)
        write_atomic(self.path / "DONE", time.strftime("%Y-%m-%dT%H:%M:%SZ\n", time.gmtime()))

    def mark_failed(self, reason: str, code: int | None = None) -> None:
        """Training ended with an error; the next start clears this. The exit code tells kinds of failure apart."""
        known = f"\nexit code {code} ({EXIT_MEANING.get(code, 'unknown')})" if code is not None else ""
        write_atomic(self.path / "FAILED", reason.rstrip() + known + "\n")

    def clear_failed(self) -> None:
        (self.path / "FAILED").unlink(missing_ok=True)

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    def failure(self) -> str | None:
        """Why the run failed, or None."""
        try:
            return (self.path / "FAILED").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def standing(self, now: float | None = None) -> str:
        """One word: `done`, `failed`, `running`, `interrupted` (began, silent for two minutes) or `new`."""
        if self.done:
            return "done"
        if self.failure() is not None:
            return "failed"
        updated = self.read_state().get("updated")
        if updated is None:
            return "new"
        silent = (time.time() if now is None else now) - float(updated)
        return "running" if silent < STALE_AFTER_S else "interrupted"

    def scores(self) -> dict[str, Path]:
        """Evaluation results by name, for example {'test-best': .../eval/test-best.json}."""
        return {path.stem: path for path in sorted(self.eval.glob("*-*.json"))}


def differences(there: RunConfig, asked: RunConfig, limit: int = 4) -> str:
    """What sets two runs apart, for a message: `train.steps is 200 there, 8 here`."""
    one, two = flatten(there.identity()), flatten(asked.identity())  # without what is at its default
    keys = sorted(key for key in {*one, *two} if one.get(key) != two.get(key))
    one, two = flatten(there.model_dump(mode="json")), flatten(asked.model_dump(mode="json"))
    said = [[json.dumps(flat[key]) if key in flat else "absent" for flat in (one, two)] for key in keys[:limit]]
    shown = [f"{key} is {mine} there, {other} here" for key, (mine, other) in zip(keys, said, strict=False)]
    return "; ".join(shown + [f"and {len(keys) - limit} keys more"] * (len(keys) > limit))


def environment() -> dict[str, object]:
    """What made this run: versions, host, command, working directory and the state of the git checkout."""
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "cwd": os.getcwd(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": _packages(),
        "git": git_state(Path(__file__).parent),
    }


@functools.cache  # a sweep makes a thousand run directories
def _packages() -> dict[str, str]:
    packages = {}
    for name in ("torch", "deepspeed", "numpy", "webdataset", "zarr", "submitit", "modernn-toolkit"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return packages


@functools.cache
def git_state(folder: Path) -> dict[str, object]:
    """Commit and whether files differ from it; empty outside a checkout or without git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", ".")  # else installed below somebody's checkout of other things
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {}
