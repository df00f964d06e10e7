"""MLflow: one run there for each run directory, which a resumed training continues.

MLFLOW_TRACKING_URI names the server or store; without it, it is the database `mlflow.db` beside the run directories of
a sweep, with the pictures in `mlflow-artifacts/`. MLFLOW_EXPERIMENT_NAME is the experiment (default: the sweep).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from toolkit.config import RunConfig
from toolkit.rundir import RunDir
from toolkit.trackers.base import MLFLOW_URI, Picture, Scored, Status, hyperparameters, mlflow_uri, project

logger = logging.getLogger(__name__)
MOST_PARAMS, LONGEST_PARAM = 100, 6_000  # of MLflow's REST API, in one call
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


def key(name: str) -> str:
    """Return a name that MLflow takes: `csi:30` for `csi@30`, `_` for other characters that it refuses."""
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", ":"))


class MLflow:
    """A `Service` (background.py). Raises what MLflow raises."""

    def __init__(self, run: RunDir, config: RunConfig, record: dict[str, Any]) -> None:
        """Open the run `record['id']`, or a new one, which gets the config as parameters."""
        self._uri = mlflow_uri(run)
        self._client = MlflowClient(self._uri)
        if "id" in record:
            self._client.update_run(record["id"], status="RUNNING")
        else:
            experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or project(run), run)
            record["id"] = self._client.create_run(experiment, run_name=run.path.name).info.run_id
        self._id = str(record["id"])
        if not record.get("configured"):
            self._log_config(config)
            record["configured"] = True
        logger.info("mlflow: run %s", self._id)

    def _experiment(self, name: str, run: RunDir) -> str:
        """Return the id of the experiment; another run of the sweep may create it at the same time."""
        with contextlib.suppress(MlflowException):
            if found := self._client.get_experiment_by_name(name):
                return str(found.experiment_id)
            own = not os.environ.get(MLFLOW_URI)
            folder = (run.path.resolve().parent / "mlflow-artifacts").as_uri() if own else None
            return str(self._client.create_experiment(name, artifact_location=folder))
        found = self._client.get_experiment_by_name(name)
        if found is None:
            raise MlflowException(f"experiment {name!r} can't be created")
        return str(found.experiment_id)

    def _log_config(self, config: RunConfig) -> None:
        values = {name: str(value) for name, value in hyperparameters(config).items()}
        long = [name for name, value in values.items() if len(value) > LONGEST_PARAM]
        if long:
            logger.warning("mlflow: cut to %d characters: %s", LONGEST_PARAM, ", ".join(long))
        params = iter([Param(key(name), value[:LONGEST_PARAM]) for name, value in values.items()])
        while part := list(islice(params, MOST_PARAMS)):
            self._client.log_batch(self._id, params=part)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of a step."""
        now = int(1000 * time.time())
        self._log([Metric(key(name), value, now, step) for name, value in values.items()])

    def image(self, name: str, picture: Picture, step: int) -> None:
        """Log a picture."""
        self._client.log_image(self._id, picture, key=key(name), step=step)

    def summary(self, values: Mapping[str, float], step: int) -> None:
        """Log final numbers."""
        self.scalars({f"final/{name}": value for name, value in values.items()}, step)

    def scores(self, scored: Scored) -> None:
        """Log overall scores, and curves whose step is the lead time."""
        self.scalars({f"{scored.name}/score/{name}": value for name, value in scored.overall.items()}, scored.step)
        for lead, values in scored.by_lead():
            self.scalars({f"{scored.name}/lead_{scored.unit}/{name}": value for name, value in values.items()}, lead)

    def close(self, status: Status) -> None:
        """Set the status of the run."""
        self._client.set_terminated(self._id, STATUS[status])

    def _log(self, metrics: Sequence[Metric]) -> None:
        self._client.log_batch(self._id, metrics=metrics)
