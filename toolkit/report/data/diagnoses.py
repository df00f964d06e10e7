"""Read the diagnoses of mode collapse that `analyse` wrote into run directories."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.npz import load_npz
from toolkit.errors import CONTENT_ERRORS, ToolkitError
from toolkit.report.data.collect import Curve, Facts, Run, Sweep
from toolkit.rundir import CHECKPOINTS
from toolkit.shipped import command


@dataclass(frozen=True)
class Diagnosis:
    """One file of toolkit/analysis/diagnose.py."""

    run: Run
    facts: Facts
    points: Mapping[str, NDArray[np.generic]]

    def values(self, mode: str) -> tuple[float, float, float]:
        """Return (mean A-distance to the other modes, drift, collapse score) of a mode."""
        facts = self.facts["modes"][mode]
        between = [distance["value"] for distance in facts["between"].values()]
        return math.fsum(between) / len(between), facts["drift"]["value"], facts["score"]


@dataclass(frozen=True)
class History:
    """The collapse score of a run over training: of the checkpoints that were analysed by their steps."""

    run: Run
    digest: str
    split: str
    scores: Curve


def read_diagnoses(sweep: Sweep) -> list[Diagnosis]:
    """Return for every run the diagnosis of its best checkpoint, or else of its last, or of its highest step.

    Raises:
        ToolkitError: a file cannot be read.
    """
    found = []
    for run in sweep.runs:
        candidates = [
            path for which in CHECKPOINTS for path in sorted((run.folder / "analysis").glob(f"collapse-*-{which}.json"))
        ]
        if candidates := candidates or _of_steps(run)[-1:]:
            found.append(_read(run, candidates[0]))
    return found


def read_histories(sweep: Sweep) -> list[History]:
    """Return the collapse score over training of every run, store and split of which two steps or more were analysed.

    Raises:
        ToolkitError: a file cannot be read.
    """
    found = []
    for run in sweep.runs:
        scores: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for one in (_read(run, path) for path in _of_steps(run)):
            scores.setdefault((one.facts["digest"], one.facts["split"]), []).append(
                (one.facts["step"], one.facts["score"])
            )
        found += [History(run, *where, tuple(sorted(curve))) for where, curve in scores.items() if len(curve) > 1]
    return found


def _of_steps(run: Run) -> list[Path]:
    """Return the diagnoses of a run's checkpoints that were named by their steps, highest step last."""
    found = (path for path in (run.folder / "analysis").glob("collapse-*.json") if _step(path).isdecimal())
    return sorted(found, key=lambda path: (int(_step(path)), path.name))


def _step(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _read(run: Run, path: Path) -> Diagnosis:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return Diagnosis(run, facts, load_npz(path.with_suffix(".npz")))
    except (OSError, *CONTENT_ERRORS) as error:
        raise ToolkitError(
            f"{path}: can't be read ({error}); regenerate it: {command('analyse', '--run', run.folder)}"
        ) from None
