"""The frames that an evaluation kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.manifest import Codes, Scale
from toolkit.errors import ToolkitError


@dataclass(frozen=True)
class Samples:
    """Frames by the key of their sequence; see `toolkit.evaluate.run.sample_frames`."""

    context: Mapping[str, Codes]  # [Tc, C, H, W]
    truth: Mapping[str, Codes]  # [T, C, H, W]
    prediction: Mapping[str, Codes]
    mse: Mapping[str, float]
    mode: Mapping[str, str]
    time: Mapping[str, str]  # of the first context frame, ISO-8601 UTC; "" without a clock
    scale: Scale

    @property
    def keys(self) -> list[str]:
        return list(self.truth)


def load_samples(path: Path) -> Samples:
    """Read `eval/*.samples.npz`.

    Raises:
        ToolkitError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
        keys = [str(key) for key in found["key"]]
        found.setdefault("time", np.full(len(keys), ""))  # evaluations of before 2026-11-23 kept none

        def by_key(name: str) -> dict[str, Any]:
            return dict(zip(keys, found[name], strict=True))

        return Samples(
            context=by_key("context"),
            truth=by_key("truth"),
            prediction=by_key("prediction"),
            mse={key: float(value) for key, value in by_key("mse").items()},
            mode={key: str(mode) for key, mode in by_key("mode").items()},
            time={key: str(time) for key, time in by_key("time").items()},
            scale=Scale(**{"quantity": "", **json.loads(str(found["scale"]))}),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ToolkitError(f"{path}: not a file of sample frames ({error}); run launch/evaluate.py --force") from None
