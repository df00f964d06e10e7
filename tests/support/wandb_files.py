"""Read what Weights & Biases keeps of offline runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_runs(folder: Path) -> dict[str, Any]:
    """Return what all offline files of a run directory hold: ids, rows, summary and config."""
    from toolkit.trackers.weights_and_biases import read_records

    found: dict[str, Any] = {"ids": [], "rows": [], "summary": {}, "config": {}, "metrics": {}}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for record in read_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run" and record.run.run_id not in found["ids"][-1:]:
                found["ids"].append(record.run.run_id)
            if kind == "history":
                items = record.history.item
                found["rows"].append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
            for name in ("summary", "config"):
                message = record.run.config if kind == "run" and name == "config" else getattr(record, name)
                if kind == name or (kind == "run" and name == "config"):
                    for item in message.update:
                        found[name][item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
            if kind == "metric":
                found["metrics"][record.metric.name or record.metric.glob_name] = record.metric.step_metric
    return found
