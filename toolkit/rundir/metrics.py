"""metrics.jsonl: one JSON object a line for each logged step and validation."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.atomic import write_atomic
from toolkit.rundir.records import damaged_lines, keep_typed, read_lines

logger = logging.getLogger(__name__)


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run's metrics.jsonl that name their step and kind; numbers may be NaN or infinite."""
    for record in read_lines(path):
        record = keep_typed(record, {"step": int, "kind": str})
        if "step" in record and "kind" in record:
            yield record


def logged_steps(path: Path) -> list[dict[str, Any]]:
    """Return the records of logged training steps that have a rate; a repeated step stands there once."""
    steps = [line for line in read_metrics(path) if line["kind"] == "train"]
    return [keep_typed(line, {"data_wait": float}) for line in steps if _is_positive(line.get("seq_per_s"))]


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-9 <= value <= 1e12


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which are run again, and what is no record (logged beyond a half line).

    A disk that refuses it ends no run.
    """
    if not path.exists():
        return
    kept = [json.dumps(record) + "\n" for record in read_metrics(path) if record["step"] <= step]
    if (damaged := damaged_lines(path)) > 1:
        logger.warning("%s: %d lines that can't be read are dropped", path, damaged)
    try:
        write_atomic(path, "".join(kept))
    except OSError as error:
        logger.warning("%s: can't be rewritten (%s): lines after step %d may stand twice", path, error.strerror, step)


def validation_of(path: Path, step: int) -> dict[str, Any] | None:
    """Return the record of the validation of a step, if there is one."""
    return next((line for line in read_metrics(path) if line["kind"] == "val" and line["step"] == step), None)
