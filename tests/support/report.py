"""What tests of the report share."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from toolkit.evaluate.ensemble import Ensemble

FAILURE = "NonFiniteError: the loss is <NaN> & more"


def read_csv(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((root / "report" / "table.csv").read_text())))


def score_as(sweep: Path, group: str, seed: int, ensemble: Ensemble) -> None:
    for file in (sweep / f"{group}-seed{seed}" / "eval").glob("*.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "ensemble": ensemble.described()}))
