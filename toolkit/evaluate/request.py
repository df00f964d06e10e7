"""What to evaluate of a run, and under which name: a run is scored as often as somebody likes. Does not import torch.

A result's name tells what differs from the run's own config, of the split alone for its own scoring:

    test-best                           as config.yaml says
    test+openstl-best                   --protocol openstl
    test+at-0.3,0.5+lpips-last          --thresholds 0.3 0.5 --lpips
    test+store-mmnist-1f0c2a+horizon-30-ema
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.config import RunConfig, make_config
from toolkit.config.tree import merge, read_mapping
from toolkit.rundir import RunDir
from toolkit.wording import exact_number

LONGEST = 150  # characters of a name before it is cut: file systems allow 255 bytes, endings included
Values = Mapping[str, Mapping[str, object]]  # {"eval": {"protocol": "openstl"}, "data": {"horizon": 30}}


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
        which: checkpoints; None: all that are scored of the run.
        values: keys of the sections `eval` and `data` that differ from the run's config.
        limit: use only the first sequences of the split.
        force: evaluate again what is evaluated already.
    """

    which: tuple[str, ...] | None = None
    values: Values = field(default_factory=dict)
    limit: int | None = None
    force: bool = False

    def config(self, own: RunConfig) -> RunConfig:
        """Return the run's config with the values of this request; a store's path is made absolute.

        Raises:
            ConfigError: values that a config can't have.
        """
        if not self.values:
            return own
        made = make_config(merge(own.model_dump(mode="json"), self.values), "evaluate")
        asked, there = _absolute(made.data.store), _absolute(own.data.store)
        return with_store(made, own.data.store if asked == there else asked)


def with_store(config: RunConfig, store: str) -> RunConfig:
    """Return a config with another `data.store`."""
    return config.model_copy(update={"data": config.data.model_copy(update={"store": store})})


def _absolute(store: str) -> str:
    return store if not store or "://" in store else os.path.abspath(store)


def stored_requests(run: RunDir) -> dict[str, Request]:
    """Return the scorings that a sweep asked for, by name (`RunDir.requests`)."""
    found = {}
    for name, path in run.requests().items():
        tree = read_mapping(path)
        found[name] = Request(values={"eval": {str(key): value for key, value in dict(tree["eval"]).items()}})  # type: ignore[call-overload]
    return found


def result_name(own: RunConfig, asked: RunConfig, limit: int | None = None) -> str:
    """Return the name of a scoring: the split, and what differs from the run's own; too long a one ends in a digest."""
    parts = [asked.eval.split]
    if asked.eval.protocol != own.eval.protocol:
        parts.append(asked.eval.protocol)
    if asked.eval.thresholds != own.eval.thresholds:
        parts.append("at-" + (",".join(map(exact_number, asked.eval.thresholds)) or "none"))
    if asked.eval.lpips != own.eval.lpips:
        parts.append("lpips" if asked.eval.lpips else "no-lpips")
    if asked.eval.exclude_inflow != own.eval.exclude_inflow:
        parts.append("no-inflow" if asked.eval.exclude_inflow else "inflow")
    if asked.data.store != own.data.store:
        digest = hashlib.sha256(asked.data.store.encode()).hexdigest()[:6]
        parts.append(f"store-{Path(asked.data.store).name}-{digest}")
    lengths = {key: getattr(asked.data, key) for key in ("context", "horizon")}
    parts += [f"{key}-{frames}" for key, frames in lengths.items() if frames != getattr(own.data, key)]
    ensemble = (asked.eval.ensemble_size, asked.eval.select)
    if own.model.stochastic and ensemble != (own.eval.ensemble_size, own.eval.select):
        parts.append(f"{ensemble[1]}-of-{ensemble[0]}")
    if limit is not None:
        parts.append(f"first-{limit}")
    name = "+".join(re.sub(r"[^A-Za-z0-9_.,-]+", "_", part) for part in parts)
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
