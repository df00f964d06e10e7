"""A run directory: everything about one run, and the only argument a job receives. Does not import torch.

    runs/<sweep>/<name>-<hash8>/
      config.yaml  env.json            resolved config; versions, git state, command, what it was trained on
      model.py                         a model from a file: a copy of it, which the run's jobs use
      submit.sbatch  evaluate.sbatch   (Slurm) texts that one can sbatch again by hand
      checkpoints/step-00001000/  latest  best
      logs/                            one file per job and rank
      metrics.jsonl   tb/              one line per logged step; TensorBoard
      wandb.json  mlflow.json  wandb/  the run's id there and what was sent; files of W&B (toolkit/trackers)
      events.jsonl                     one line per start, stop, restart, failure and end (events.py)
      state.json  DONE | FAILED        how the run stands (status.py): no scheduler is needed to know
      heartbeat/rank-N.json            what each rank last did; rank-N.stacks: where a hung one was
      job.lock                         who works on it, or did last (lock.py)
      eval/                            <split>-<best|last|ema>.json and the frames shown in the report; scored otherwise
                                       than by config.yaml: <split>+<what differs>-<which>.json beside them, and
                                       <split>+<what differs>.request.yaml where a sweep asked for it
      analysis/                        features-<split>-<best|last>.npz: what the model remembers, see toolkit/analysis

Small files are replaced whole (write, fsync, rename), so a reader never sees half of one.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from toolkit.atomic import write_atomic
from toolkit.config import RunConfig, load_config
from toolkit.config.tree import flatten, to_yaml
from toolkit.errors import EXIT_MEANING, EXIT_OK, ConfigError
from toolkit.models.plugins import FileModel, add_file, loaded, read_file
from toolkit.rundir.events import append_event, read_events, timestamp
from toolkit.rundir.metrics import logged_steps
from toolkit.rundir.records import Types, read_object, read_text
from toolkit.shipped import command
from toolkit.wording import some

CHECKPOINTS = ("best", "last", "ema")  # those that can be scored; every run has the first two
ALWAYS = CHECKPOINTS[:2]
REQUEST = ".request.yaml"
STATE_TYPES: Types = {
    **dict.fromkeys(("step", "steps", "pid", "restarts", "skipped", "save_errors", "peak_memory"), int),
    **dict.fromkeys(("seq_per_s", "data_wait", "eta_s", "updated", "started"), float),
    **dict.fromkeys(("host", "phase", "slow"), str),
    "val": dict,
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunDir:
    """Paths and small records of one run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def model_file(self) -> Path:
        """The copy of the file that a model is from; commands run it only where the user names it."""
        return self.path / "model.py"

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
        """Return the run's resolved config.

        Raises:
            ConfigError: when the folder holds none, or one that can't be used.
        """
        if not self.path.is_dir():
            raise ConfigError(f"{self.path}: no such folder; {command('status', 'FOLDER')} shows the runs of a sweep")
        if not self.config_file.exists():
            below = sorted(file.parent.name for file in self.path.glob("*/config.yaml"))
            hint = f"runs in there: {some(below, 3)}" if below else f"start one: {command('sweep', 'FILE')}"
            raise ConfigError(f"{self.path}: not a run directory (no config.yaml); {hint}")
        return load_config(self.config_file)

    def load_model_file(self, given: Path | None) -> None:
        """Let this process run the file of the run's model, which the user has named; None: none is named.

        Raises:
            ConfigError: the model is not from a file, or from one with another text.
        """
        if given is not None:
            check_model_file(self.config(), given, str(self.path))

    @staticmethod
    def create(path: Path, config: RunConfig) -> RunDir:
        """Make the folder, or open it when it already holds this very config.

        Raises:
            ConfigError: when the folder holds another run or something else.
        """
        run = RunDir(path)
        if run.config_file.exists():
            if run.config().hash8() != config.hash8():
                own = run.config()
                if own.hash8(scoring=False) == config.hash8(scoring=False):
                    raise ConfigError(
                        f"{path}: holds this run with another scoring: {differences(own, config)}; it needs no other "
                        f"training: {command('evaluate', path)} scores it in any way (see --help)"
                    )
                raise ConfigError(
                    f"{path}: holds another run ({own.hash8()}, this one is {config.hash8()}): "
                    f"{differences(own, config)}; choose another --out, or delete that folder"
                )
            return run
        # A creation that was killed leaves env.json or a temporary file; config.yaml, written last, makes it a run.
        began = ("env.json", run.model_file.name)
        if path.exists() and any(item.name not in began and not item.name.endswith(".tmp") for item in path.iterdir()):
            raise ConfigError(f"{path}: exists and is not a run directory: choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        write_atomic(path / "env.json", json.dumps(environment(), indent=2) + "\n")
        if isinstance(config.model, FileModel):
            write_atomic(run.model_file, loaded(config.model).text.decode())
        write_atomic(run.config_file, config.to_yaml())
        return run

    def logged_steps(self) -> list[dict[str, Any]]:
        """Return the records of logged training steps that have a rate; a repeated step stands there once."""
        return logged_steps(self.metrics_file)

    def rate(self) -> float | None:
        """Return sequences per second: the median of the logged steps, the first left out."""
        rates = [float(line["seq_per_s"]) for line in self.logged_steps()]
        return statistics.median(rates[1:] or rates) if rates else None

    def read_env(self) -> dict[str, Any]:
        """Return what `environment` gave when the run was made; empty where env.json can't be read."""
        return read_object(self.path / "env.json")

    def note_env(self, **values: object) -> None:
        """Merge into env.json what only a start of the training knows: its device."""
        self._write("env.json", json.dumps({**self.read_env(), **values}, indent=2) + "\n")

    def read_state(self) -> dict[str, Any]:
        """Return the last state that the run wrote; empty before its first, and where state.json can't be read."""
        return read_object(self.path / "state.json", STATE_TYPES)

    def write_state(self, **values: object) -> bool:
        """Merge values into the state (None drops a key), with host, pid and time; returns whether it was written."""
        state = {
            **self.read_state(),
            **values,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "updated": time.time(),
        }
        kept = {key: value for key, value in state.items() if value is not None}
        return self._write("state.json", json.dumps(kept, indent=1) + "\n")

    def _write(self, name: str, text: str) -> bool:
        """Replace a status file of the run; a disk that refuses it is logged and ends no run."""
        try:
            write_atomic(self.path / name, text)
        except OSError as error:
            logger.warning("%s: can't be written (%s); the run continues without", self.path / name, error.strerror)
            return False
        return True

    def mark_done(self) -> None:
        """Mark the training as complete."""
        self.clear_failed()
        write_atomic(self.path / "DONE", timestamp() + "\n")
        append_event(self.path, "done", exit_code=EXIT_OK)

    def mark_failed(self, reason: str, code: int | None = None) -> None:
        """Mark the run as failed, until its next start. The exit code distinguishes kinds of failure."""
        known = f"\nexit code {code} ({EXIT_MEANING.get(code, 'unknown')})" if code is not None else ""
        append_event(self.path, "fail", cause=reason.rstrip(), exit_code=code)
        self._write("FAILED", reason.rstrip() + known + "\n")

    def clear_failed(self) -> None:
        (self.path / "FAILED").unlink(missing_ok=True)

    @property
    def done(self) -> bool:
        return (self.path / "DONE").is_file()

    def failure(self) -> str | None:
        """Return why the run failed, or None. Where the marker is empty (a full disk), the last event is used."""
        marker = self.path / "FAILED"
        if not marker.is_file():
            return None
        if text := read_text(marker).strip():
            return text
        causes = [str(event.get("cause", "")) for event in read_events(self.path, "fail")]
        return next((cause for cause in reversed(causes) if cause), "no reason was recorded")

    @property
    def scored_checkpoints(self) -> tuple[str, ...]:
        """The checkpoints that are scored: best and last, and `ema` where the config sets `train.ema`.

        Read from the text of config.yaml, because the status of a thousand runs is read at once.
        """
        averaged = re.search(r"^ +ema: *[0-9.]", read_text(self.config_file), re.MULTILINE)
        return CHECKPOINTS if averaged else ALWAYS

    def scores(self) -> dict[str, Path]:
        """Return evaluation results by name, {'test-best': .../eval/test-best.json}; those of other scorings last."""
        found = sorted(self.eval.glob("*-*.json"), key=lambda path: ("+" in path.stem, path.stem))
        return {path.stem: path for path in found}

    def requests(self) -> dict[str, Path]:
        """Return the scorings that a sweep asked for beside that of config.yaml, by the first part of their names."""
        return {path.name.removesuffix(REQUEST): path for path in sorted(self.eval.glob(f"*{REQUEST}"))}

    def request_scoring(self, name: str, values: Mapping[str, object]) -> None:
        """Ask for another scoring, by the section `eval` that it has; what is there already stays."""
        self.eval.mkdir(exist_ok=True)
        write_atomic(self.eval / f"{name}{REQUEST}", to_yaml({"eval": dict(values)}))


def check_model_file(config: RunConfig, given: Path, where: str) -> None:
    """Let this process run the file that the user has named for the model of a run or an export.

    Raises:
        ConfigError: the model is not from a file, or from one with another text.
    """
    if not isinstance(config.model, FileModel):
        raise ConfigError(f"{where}: {config.model.name} is not a model from a file: leave --model-file out")
    file = read_file(given)
    if file.sha256 != config.model.sha256:
        raise ConfigError(
            f"{given}: has SHA-256 {file.sha256[:12]}..., the model of {where} is from a file {config.model.name} with "
            f"{config.model.sha256[:12]}...: name that file; a run directory keeps a copy, model.py"
        )
    add_file(file)


def differences(there: RunConfig, asked: RunConfig, limit: int = 4) -> str:
    """Return what sets two runs apart, for a message: `train.steps is 200 there, 8 here`."""
    one, two = flatten(there.identity()), flatten(asked.identity())  # without what is at its default
    keys = sorted(key for key in {*one, *two} if one.get(key) != two.get(key))
    one, two = flatten(there.model_dump(mode="json")), flatten(asked.model_dump(mode="json"))
    pairs = [[json.dumps(flat[key]) if key in flat else "absent" for flat in (one, two)] for key in keys[:limit]]
    shown = [f"{key} is {mine} there, {other} here" for key, (mine, other) in zip(keys, pairs, strict=False)]
    return "; ".join(shown + [f"and {len(keys) - limit} keys more"] * (len(keys) > limit))


def environment() -> dict[str, object]:
    """Return what made this run: versions, host, command, working directory and the state of the git checkout."""
    return {
        "created": timestamp(),
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
