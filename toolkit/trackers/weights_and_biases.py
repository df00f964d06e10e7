"""Weights & Biases: one run there for each run directory, which a resumed training continues.

The environment has the rest, as in every script: WANDB_API_KEY or `wandb login`, WANDB_PROJECT (default: the sweep),
WANDB_ENTITY, WANDB_MODE=offline, whose files in `<run>/wandb` are uploaded later by `wandb sync`. A row of W&B is a
record of metrics.jsonl, and its number (`_step`) that record's: W&B holds back rows for some seconds, and so what a
kill has lost is known and sent again. The optimizer step is a value of its own, `step`, the x axis of the curves.
"""

from __future__ import annotations

import logging
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record

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
        # The rows that are really there: on the server, or in the files of those before that were killed.
        there = max(record.get("closed", 0), rows_on_disk(run, record["id"])) if self._run.offline else self._run.step
        self._rows = record["records"] = there
        for kind in ("train", "val", "skipped"):  # of records in metrics.jsonl
            self._run.define_metric(f"{kind}/*", step_metric="step")
        self._run.config.update(config.model_dump(mode="json"), allow_val_change=True)
        upload = f"offline; upload with wandb sync {run.path}/wandb/offline-run-*"
        logger.info("wandb: run %s, %s", record["id"], upload if self._run.offline else self._run.url)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log one row, which the pictures of that step join."""
        self._run.log({**values, "step": step}, step=self._record["records"])
        self._rows = self._record["records"] + 1

    def image(self, name: str, picture: Picture, step: int) -> None:
        """Log a picture."""
        self._run.log({name: wandb.Image(picture)}, step=max(0, self._rows - 1))

    def summary(self, values: Mapping[str, float], step: int) -> None:
        """Set final numbers, which the table of runs shows."""
        self._run.summary.update({f"final/{name}": value for name, value in values.items()})

    def scores(self, scored: Scored) -> None:
        """Set overall scores as final numbers, and log curves over lead time."""
        axis = f"{scored.name}/lead_{scored.unit}"
        self._run.define_metric(f"{scored.name}/*", step_metric=axis)
        for lead, values in scored.by_lead():
            row = {f"{scored.name}/{name}": value for name, value in values.items()}
            self._run.log({axis: lead, **row}, step=self._rows, commit=True)
            self._rows += 1
        self._run.summary.update({f"{scored.name}/score/{name}": value for name, value in scored.overall.items()})

    def close(self, status: Status) -> None:
        """Upload what is left; a run that is to be resumed is marked as preempted."""
        if status == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)
        self._record["closed"] = self._rows


def rows_on_disk(run: RunDir, name: str) -> int:
    """Return how many rows the files of offline runs of an id hold; what can't be read of them is logged."""
    rows = 0
    for path in sorted(run.path.glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")):
        try:
            rows = max(
                [rows, *(found.history.step.num + 1 for found in read_records(path) if found.HasField("history"))]
            )
        except Exception as error:  # a format of another version
            logger.warning("%s: can't be read (%s): rows may be missing or stand twice", path, error)
    return rows


def read_records(path: Path) -> Iterator[Any]:
    """Yield the records in a file of an offline run: protobuf in LevelDB's log format, whose end may be cut off."""
    block, header, full, first, last = 32_768, 7, 1, 2, 4
    data, at, parts = path.read_bytes(), header, b""
    while at + header <= len(data):
        if block - at % block < header:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + header])
        part = data[at + header : at + header + length]
        at += header + length
        if len(part) < length:
            return
        parts = part if kind in (full, first) else parts + part
        if kind in (full, last):
            yield Record.FromString(parts)
