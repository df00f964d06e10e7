"""What every experiment tracker does (`Tracker`), and what can be checked of one before a run starts. Without torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.config import RunConfig
from toolkit.config.tree import flatten
from toolkit.errors import ConfigError, ToolkitError
from toolkit.rundir import RunDir, read_result
from toolkit.shipped import command

Picture = NDArray[np.uint8]  # [H, W, 3]
Status = Literal["finished", "stopped", "failed"]  # stopped: to be resumed
MLFLOW_URI = "MLFLOW_TRACKING_URI"
OF_DATABASES = ("sqlalchemy", "alembic")  # mlflow-skinny does not bring them


@dataclass(frozen=True)
class Scored:
    """The scores of one checkpoint, read from a file of eval/.

    Attributes:
        name: of the file, `test-best`.
        digest: of its content; a tracker logs the same scores once.
        overall: score by name, over all lead times; without undefined ones.
        leads: the same per lead time, None where undefined.
        unit: of the lead times, `minutes` or `frames`; `interval`: between two of them.
    """

    name: str
    digest: str
    step: int
    overall: Mapping[str, float]
    leads: Mapping[str, Sequence[float | None]]
    unit: str
    interval: int

    @classmethod
    def read(cls, path: Path) -> Scored:
        """Read a result. Raises ToolkitError where it can't be used."""
        found = read_result(path)
        try:
            minutes, rest = divmod(float(found.get("step_seconds") or 0.0), 60)
            clock = minutes >= 1 and not rest
            return cls(
                path.stem,
                hashlib.sha256(path.read_bytes()).hexdigest(),
                int(found["step"]),
                {name: float(value) for name, value in found["overall"].items() if value is not None},
                {name: [_number(value) for value in curve] for name, curve in found["leads"].items()},
                "minutes" if clock else "frames",
                int(minutes) if clock else 1,
            )
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise ToolkitError(
                f"{path}: no evaluation ({type(error).__name__}: {error}); delete it and evaluate the run again: "
                f"{command('evaluate', '--run', path.parents[1])}"
            ) from None

    def by_lead(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield each lead time in `unit` with its scores; undefined ones are left out."""
        for place in range(max(map(len, self.leads.values()), default=0)):
            values = {name: curve[place] for name, curve in self.leads.items()}
            yield (place + 1) * self.interval, {name: value for name, value in values.items() if value is not None}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


class Tracker(Protocol):
    """What a run logs. No method raises for a disk or network that fails."""

    def config(self, config: RunConfig) -> None:
        """Log the hyper-parameters of the run; called at every start of it."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of an optimizer step, named as `train/loss`."""

    def image(self, name: str, picture: Picture, step: int) -> None:
        """Log a picture, uint8 [H, W, 3]."""

    def summary(self, values: Mapping[str, float], step: int) -> None:
        """Log the final numbers of a training."""

    def scores(self, scored: Scored) -> None:
        """Log an evaluation: overall scores and one curve over lead time for each score."""

    def flush(self) -> None:
        """Write what is local to the disk."""

    def close(self, status: Status) -> None:
        """Write what is left, and end."""


def hyperparameters(config: RunConfig) -> dict[str, bool | float | str]:
    """Return all values of a config by key (`train.lr`); lists and null as JSON."""
    flat: dict[str, Any] = flatten(config.model_dump(mode="json"))
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value) for key, value in flat.items()
    }


def check_trackers(config: RunConfig) -> None:
    """Check that the packages of `train.trackers` are installed; TensorBoard is a part of every installation.

    Raises:
        ConfigError: naming the packages that are not.
    """
    for name in config.train.trackers:
        needed: tuple[str, ...] = () if name == "tensorboard" else (name,)
        if name == "mlflow" and "://" in mlflow_uri(None) and not mlflow_uri(None).startswith("http"):
            needed += OF_DATABASES
        if missing := [package for package in needed if not _is_installed(package)]:
            raise ConfigError(
                f"train.trackers: {name} needs {', '.join(missing)}, not installed here: "
                f"pip install {' '.join(missing)}, or leave {name} out"
            )


def _is_installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it; a folder wandb/ of runs is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def project(run: RunDir) -> str:
    """Return the project or experiment that a run belongs to: its sweep, the folder that it is in."""
    return run.path.resolve().parent.name or "runs"


def mlflow_uri(run: RunDir | None) -> str:
    """Return MLflow's tracking URI: MLFLOW_TRACKING_URI, or a database beside the run directories of a sweep."""
    folder = Path("runs") if run is None else run.path.resolve().parent
    return os.environ.get(MLFLOW_URI) or f"sqlite:///{folder / 'mlflow.db'}"


def without_secrets(text: str) -> str:
    """Return a message of a tracker without passwords: jobs keep their logs in the run directory."""
    secret = re.compile("(WANDB|MLFLOW|DATABRICKS|AWS|AZURE)_.*(KEY|TOKEN|PASSWORD|SECRET)")
    for name, value in os.environ.items():
        if value and secret.fullmatch(name):
            text = text.replace(value, f"${name}")
    return re.sub(r"//[^/@\s]+@", "//***@", text)  # of a URL
