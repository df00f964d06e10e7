"""Weights & Biases: one run there for each run directory, which a resumed training continues.

The environment has the rest, as in every script: WANDB_API_KEY or `wandb login`, WANDB_PROJECT (default: the sweep),
WANDB_ENTITY, WANDB_MODE=offline, whose files in `<run>/wandb` are uploaded later by `wandb sync`. Steps are a value of
their own (`step`) and not W&B's count of rows, which only grows: what is sent late would be dropped.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping
from typing import Any

import wandb

from toolkit.config import RunConfig
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir
from toolkit.trackers.base import Picture, Scored, Status, project

logger = logging.getLogger(__name__)


class WeightsAndBiases:
    """A `Service` (background.py). Raises what wandb raises."""

    def __init__(self, run: RunDir, config: RunConfig, record: dict[str, Any]) -> None:
        """Open the run `record['id']`, or a new one.

        Raises:
            ConfigError: no API key; nothing asks for one on the terminal.
        """
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise ConfigError("no API key: run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline")
        self._record = record
        self._run = wandb.init(
            id=record.setdefault("id", secrets.token_hex(8)),
            resume="allow",
            project=os.environ.get("WANDB_PROJECT") or project(run),
            name=run.path.name,
            dir=str(run.path),
            # The run directory has its log, its code's commit and config.yaml; a remote's URL may hold a token.
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True, silent=True, finish_timeout=15),
        )
        record["rows"] = max(record.get("rows", 0), self._run.step)
        self._run.define_metric("*", step_metric="step")
        self._run.config.update(config.model_dump(mode="json"), allow_val_change=True)
        upload = f"offline; upload with wandb sync {run.path}/wandb/offline-run-*"
        logger.info("wandb: run %s, %s", record["id"], upload if self._run.offline else self._run.url)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log one row."""
        self._log({**values, "step": step})

    def image(self, name: str, picture: Picture, step: int) -> None:
        """Log a picture."""
        self._log({name: wandb.Image(picture), "step": step})

    def summary(self, values: Mapping[str, float], step: int) -> None:
        """Set final numbers, which the table of runs shows."""
        self._run.summary.update({f"final/{name}": value for name, value in values.items()})

    def scores(self, scored: Scored) -> None:
        """Set overall scores as final numbers, and log curves over lead time."""
        axis = f"{scored.name}/lead_{scored.unit}"
        self._run.define_metric(f"{scored.name}/*", step_metric=axis)
        for lead, values in scored.by_lead():
            self._log({axis: lead, **{f"{scored.name}/{name}": value for name, value in values.items()}})
        self._run.summary.update({f"{scored.name}/score/{name}": value for name, value in scored.overall.items()})

    def close(self, status: Status) -> None:
        """Upload what is left; a run that is to be resumed is marked as preempted."""
        if status == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)

    def _log(self, row: dict[str, Any]) -> None:
        self._run.log(row, step=self._record["rows"], commit=True)
        self._record["rows"] += 1
