"""metrics.jsonl: one JSON object a line for each logged step and validation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.atomic import write_atomic


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of JSON lines, none where there is no file; what a kill cut short is left out."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def forget_after(path: Path, step: int) -> None:
    """Drop lines of steps after `step` (they will be run again), and a half line that a kill left."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # the half line; its step is run again
    write_atomic(path, "".join(kept))


def has_validation(path: Path, step: int) -> bool:
    """Whether the validation of a step was written down."""
    return any(record["kind"] == "val" and record["step"] == step for record in read_lines(path))
