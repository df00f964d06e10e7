"""Read the frames that an evaluation kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from shards.manifest import Codes, Scale
from shards.npz import load_npz
from toolkit.errors import CONTENT_ERRORS, ToolkitError
from toolkit.shipped import command


@dataclass(frozen=True)
class Sample:
    """One sequence; see `toolkit.evaluate.run.sample_frames`."""

    context: Codes  # [Tc, C, H, W]
    truth: Codes  # [T, C, H, W]
    prediction: Codes
    mse: float
    mode: str
    time: str  # of the first context frame, ISO-8601 UTC; "" without time stamps


def load_samples(path: Path) -> tuple[dict[str, Sample], Scale]:
    """Read `eval/*.samples.npz`: sequences by key, and the scale of their codes.

    Raises:
        ToolkitError: not a file of sample frames.
    """
    try:
        found = load_npz(path)
        keys = found["key"].tolist()
        found.setdefault("time", np.full(len(keys), ""))  # missing in evaluations from before 2026-11-23
        columns = (found[field.name] for field in fields(Sample))
        samples = {key: Sample(*values) for key, *values in zip(keys, *columns, strict=True)}
        return samples, Scale(**{"quantity": "", **json.loads(str(found["scale"]))})
    except CONTENT_ERRORS as error:
        again = command("evaluate", "--run", path.parents[1], "--force")
        raise ToolkitError(f"{path}: not a file of sample frames ({error}); write it again: {again}") from None
