"""Names of runs: they say what differs between the runs of one sweep, and nothing else.

`modernn-slots4-lr0.001-seed1`: the model, then the last part of each key that varies with its value, then the seed.
A key of the model's section counts as varying only among runs of the same model; what the choice of model brings along
needs no mention.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.config import RunConfig
from toolkit.config.renamed import ORIGINAL
from toolkit.config.tree import flatten
from toolkit.errors import ConfigError
from toolkit.models.plugins import entry_of

LONGEST_VALUE = 40  # of a text value in a name; its end tells paths apart
LONGEST_GROUP = 160  # a folder's name has at most 255 bytes; the seed, a hash and temporary endings follow


@dataclass(frozen=True)
class Label:
    """A run's name, the same without its seed, and the settings that vary, by dotted key."""

    name: str
    group: str
    settings: Mapping[str, object]


def label_runs(runs: Sequence[tuple[RunConfig, str | None]], origin: str) -> list[Label]:
    """Name every run of a sweep; runs that were given a label are compared with their like only.

    Raises:
        ConfigError: when two different runs would bear one name.
    """
    identities = [flatten(config.identity()) for config, _ in runs]
    several_seeds = len({config.seed for config, _ in runs}) > 1
    varied: dict[str | None, dict[str, set[str]]] = {}
    for label in {label for _, label in runs}:
        alike = [(config, identity) for (config, own), identity in zip(runs, identities, strict=True) if own == label]
        varied[label] = _varied_keys(alike)
    labels = []
    for config, label in runs:
        values = flatten(config.model_dump(mode="json"))
        keys = [key for key in values if key in varied[label][config.model.name]]
        if not _is_trained(config):
            keys = [key for key in keys if not key.startswith("train.")]
        short = _short_keys(sorted(set().union(*varied[label].values())))
        parts = [label] if label else []
        parts += [_part(short[key], values[key], bare=key == "model.name") for key in keys]
        group = _bounded("-".join(parts) or _part("", config.model.name, bare=True))
        name = f"{group}-seed{config.seed}" if several_seeds else group
        labels.append(Label(name, group, {key: values[key] for key in keys}))
    _check_unique(labels, identities, origin)
    return labels


def _is_trained(config: RunConfig) -> bool:
    return entry_of(config.model).trained


def _varied_keys(runs: Sequence[tuple[RunConfig, Mapping[str, object]]]) -> dict[str, set[str]]:
    """For each model, the keys (less the seed) that take more than one value."""

    def differing(identities: Sequence[Mapping[str, object]]) -> set[str]:
        keys = {key for identity in identities for key in identity}
        return {key for key in keys if len({json.dumps(identity.get(key, "default")) for identity in identities}) > 1}

    # The identity of a run without a training holds no key of `train`: that it lacks them is no difference.
    trained = differing([identity for config, identity in runs if _is_trained(config)])
    everywhere = {key for key in differing([identity for _, identity in runs]) if not key.startswith("train.")}
    everywhere |= {key for key in trained if key.startswith("train.")}
    everywhere -= {"seed"}
    shared = {key for key in everywhere if not key.startswith("model.") or key == "model.name"}
    result: dict[str, set[str]] = {}
    for model in {config.model.name for config, _ in runs}:
        own = differing([identity for config, identity in runs if config.model.name == model])
        result[model] = shared | {key for key in own if key.startswith("model.")}
    return result


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each key, by the name that it had first, or the whole key where two share that part."""
    last = {key: ORIGINAL.get(key, key).rpartition(".")[2] for key in keys}
    uses = Counter(last.values())
    return {key: last[key] if uses[last[key]] == 1 else key for key in keys}


def _part(key: str, value: object, bare: bool) -> str:
    """One part of a name: `slots4`, `modes_2+3`, `gate_norm_on`; only the value when bare."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{key}{value!r}"
    if value is None or isinstance(value, bool):
        text = {None: "none", True: "on", False: "off"}[value]
    else:
        text = "+".join(str(item) for item in value) if isinstance(value, list) else str(value)
    text = re.sub(r"[^A-Za-z0-9._+]+", "_", text)[-LONGEST_VALUE:].strip("_.")
    return text if bare else f"{key}_{text}"


def _bounded(group: str) -> str:
    """Return a name that fits into a folder's: of a longer one the beginning and a hash of all of it."""
    if len(group) <= LONGEST_GROUP:
        return group
    return f"{group[: LONGEST_GROUP - 9].rstrip('-_.')}-{hashlib.sha256(group.encode()).hexdigest()[:8]}"


def _check_unique(labels: Sequence[Label], identities: Sequence[Mapping[str, object]], origin: str) -> None:
    groups: dict[str, str] = {}
    for label, identity in zip(labels, identities, strict=True):
        less_seed = json.dumps({key: value for key, value in identity.items() if key != "seed"}, sort_keys=True)
        if groups.setdefault(label.group, less_seed) != less_seed:
            raise ConfigError(
                f"{origin}: two different runs would both be called {label.group}: "
                "give their entries of `list` a `name:` of their own"
            )
