"""Cost of a training step as polynomials in batch size and grid area, and where it is stored. Does not import torch.

The cost of a config is searched in this order: the table in the package (costs.json, for the shipped configs), the
user's cache, and a measurement in a separate process, which needs torch but no GPU and little memory
(toolkit/plan/measure.py). Costs belong to one version of the code, identified by `code_digest`; costs of another
version are measured again if torch is installed, and otherwise used and reported as outdated.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.atomic import write_atomic
from toolkit.config import RunConfig
from toolkit.config.sections import ActivationCheckpointing
from toolkit.errors import ToolkitError
from toolkit.models.plugins import FileModel, loaded, source_of
from toolkit.models.registry import Options, StepOptions

PACKAGE = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("costs.json")
POLICIES = ("none", "step+layers", "step", "segment", "recursive+layers", "recursive")  # of models with a step
LARGE = 100_000
LAYERS, OFFLOAD = "layers", "offload"


class CostError(ToolkitError):
    """The cost of a config is unknown and cannot be measured here."""


class Polynomial(NamedTuple):
    """A polynomial in batch size B and grid area A (in units of `model.tile` x `model.tile` pixels)."""

    constant: int = 0
    batch: int = 0  # x B
    area: int = 0  # x A
    batch_area: int = 0  # x B A
    batch_area2: int = 0  # x B A^2

    def at(self, batch: int, area: int) -> int:
        """Evaluate the polynomial."""
        per_area = self.batch_area + self.batch_area2 * area
        return self.constant + self.batch * batch + self.area * area + per_area * batch * area


@dataclass(frozen=True)
class Peak:
    """Peak memory of a forward and backward pass in bytes: the maximum of several polynomials.

    Both include frames, activations and operator workspace, and exclude weights and optimizer state.

    Attributes:
        with_gradients: includes the gradients of parameters that are finished.
        without_gradients: excludes them, if they are stored elsewhere (gradient accumulation).
        macs: multiply-accumulates of the pass, including recomputation.
    """

    with_gradients: tuple[Polynomial, ...]
    without_gradients: tuple[Polynomial, ...]
    macs: Polynomial


@dataclass(frozen=True)
class Cost:
    """Cost of a micro-batch of a config.

    Attributes:
        parameters: number of trainable parameters (may depend on the frame size).
        large: how many of them are in tensors of at least LARGE elements (DeepSpeed ZeRO-3 partitions only these).
        macs: multiply-accumulates of a forward pass.
        peaks: by policy.
        outdated: measured with another version of the code.
    """

    parameters: Polynomial
    large: int
    macs: Polynomial
    peaks: Mapping[str, Peak]
    outdated: bool = False

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], outdated: bool = False) -> Cost:
        """Convert an entry of costs.json."""
        peaks = {
            policy: Peak(
                tuple(Polynomial(*line) for line in found["with_gradients"]),
                tuple(Polynomial(*line) for line in found["without_gradients"]),
                Polynomial(*found["macs"]),
            )
            for policy, found in entry["peaks"].items()
        }
        return cls(Polynomial(*entry["parameters"]), entry["large"], Polynomial(*entry["macs"]), peaks, outdated)


def area_of(config: RunConfig, height: int, width: int) -> int:
    """Return the grid area of a frame, in units of `model.tile` x `model.tile` pixels."""
    tile = config.model.tile
    return -(-height // tile) * -(-width // tile)


def policies_of(config: RunConfig) -> tuple[str, ...]:
    """Return the policies available to a config, including its own."""
    known = POLICIES if isinstance(config.model, StepOptions) else ("none", "step")
    own = policy_of(config)
    return known if own in known else (*known, own)


def policy_of(config: RunConfig) -> str:
    """Return the name of a config's policy: `train.activation_checkpointing.policy`, +layers, +offload."""
    own = config.train.activation_checkpointing
    extras = [LAYERS] * own.per_layer + [OFFLOAD] * own.offload
    if isinstance(config.model, StepOptions) or own.policy == "none":
        return "+".join([own.policy, *extras])
    return "+".join(["step", *extras[own.per_layer :]])  # these only distinguish whether to recompute


def settings_of(policy: str) -> dict[str, object]:
    """Return the keys of `train.activation_checkpointing` that define a policy."""
    name, *extras = policy.split("+")
    return {"policy": name, "per_layer": LAYERS in extras, "offload": OFFLOAD in extras}


def under(config: RunConfig, policy: str) -> RunConfig:
    """Return the config with another policy."""
    chosen = ActivationCheckpointing.model_validate({**settings_of(policy), "backend": "torch"})
    return config.model_copy(update={"train": config.train.model_copy(update={"activation_checkpointing": chosen})})


def key_of(config: RunConfig, channels: int) -> str:
    """Return a hash of everything that a cost depends on, except code, batch size and grid."""
    facts = {
        "model": config.model.model_dump(mode="json"),
        "channels": channels,
        "frames": [config.data.context, config.data.horizon],
        "loss_frames": config.train.loss_frames,
        "precision": config.train.precision,
        "policies": policies_of(config),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def code_digest(options: Options) -> str:
    """Return a digest of the code that a model's cost depends on: its module and imports, unroll.py and measure.py.

    Options are excluded (they are in `key_of`), and so are comments and whitespace.
    """
    return _digest(*source_of(options))


@functools.lru_cache(maxsize=256)
def _digest(name: str, text: str) -> str:
    found = {name: text}
    wanted = [*_imported(text), "toolkit.plan.measure"]
    while wanted:
        module = wanted.pop()
        if module in found or module in ("toolkit.models.registry", "toolkit.models.plugins"):
            continue
        found[module] = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
        if module != "toolkit.plan.measure":
            wanted += _imported(found[module])
    plain = (re.sub(r"#.*|[\s,()]+", "", found[module]) for module in sorted(found))
    return hashlib.sha256("\0".join(plain).encode()).hexdigest()[:16]


def _imported(text: str) -> list[str]:
    return re.findall(r"^from (toolkit\.models\.\w+|toolkit\.unroll) import", text, flags=re.M)


def stored(config: RunConfig, channels: int) -> Cost | None:
    """Return the cost of a config from the table."""
    entry = table().get(key_of(config, channels))
    return Cost.from_json(entry, is_outdated(config, entry)) if entry else None


def is_outdated(config: RunConfig, entry: Mapping[str, object]) -> bool:
    """Return whether an entry belongs to another version of the code."""
    return bool(entry["code"] != code_digest(config.model))


def cached(config: RunConfig, channels: int) -> Cost | None:
    """Return the cost of a config from the user's cache."""
    try:
        entry = json.loads((cache_folder() / f"{key_of(config, channels)}.json").read_text(encoding="utf-8"))
        return Cost.from_json(entry, is_outdated(config, entry))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find(config: RunConfig, channels: int) -> Cost | None:
    """Return the known cost of a config without measuring; costs of the current code take precedence."""
    known = [cost for cost in (stored(config, channels), cached(config, channels)) if cost]
    return min(known, key=lambda cost: cost.outdated, default=None)


def get(config: RunConfig, channels: int) -> Cost:
    """Return the cost of a config; measure it if necessary.

    Raises:
        CostError: the cost is unknown and cannot be measured here.
    """
    known = find(config, channels)
    if known and not known.outdated:
        return known
    if importlib.util.find_spec("torch") is None:
        if known:
            return known
        raise CostError(
            f"{config.model.name} with these options is not in {TABLE.name}, and torch, needed to measure it, is not "
            f"installed: run the same command where torch is installed, then copy its cache ({cache_folder()}) to "
            "this machine"
        )
    (entry,) = measured([config], channels)
    write_atomic(cache_folder() / f"{key_of(config, channels)}.json", json.dumps(entry))
    return Cost.from_json(entry)


def measured(configs: Sequence[RunConfig], channels: int) -> Iterator[dict[str, object]]:
    """Measure the entries of configs, one after the other, in a separate process, so that this one does not need torch.

    Raises:
        CostError: the measurement failed.
    """
    request = [
        {
            "config": _without_channels(config).model_dump(mode="json"),
            "channels": channels,
            "model_file": _model_file(config),
        }
        for config in configs
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "toolkit.plan.measure"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=PACKAGE.parent,  # Python imports from the working directory first, which may not be trusted
            env=environment,
            text=True,
        )
        with process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            for config, line in zip(configs, process.stdout, strict=False):
                yield {"code": code_digest(config.model), **json.loads(line)}
        if process.returncode:
            errors.seek(0)
            names = ", ".join(sorted({config.model.name for config in configs}))
            raise CostError(f"the cost of {names} could not be measured:\n{errors.read().strip()[-2000:]}")


def _without_channels(config: RunConfig) -> RunConfig:
    """Return the config for frames that hold the channels of its choice alone; what is not predicted costs as much."""
    data = config.data.model_copy(update={"inputs": None, "targets": None, "static": None})
    return config.model_copy(update={"data": data})


def _model_file(config: RunConfig) -> tuple[str, str] | None:
    """Return the name and text of the file that the user has named for a model."""
    if not isinstance(config.model, FileModel):
        return None
    file = loaded(config.model)
    return file.name, file.text.decode()


def write_table(entries: Mapping[str, object]) -> None:
    """Replace the table."""
    body = ",\n".join(f" {json.dumps(key)}: {json.dumps(entries[key])}" for key in sorted(entries))
    write_atomic(TABLE, f"{{\n{body}\n}}\n")


def cache_folder() -> Path:
    """Return the folder of the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if base.startswith("~"):  # a user whom the system doesn't know, without HOME (containers)
        base = str(Path(tempfile.gettempdir()) / f"cache-{os.getuid()}")
    return Path(base) / "modernn-toolkit" / "costs"


@functools.cache
def table() -> dict[str, Any]:
    """Return the entries in the package, by key."""
    return dict(json.loads(TABLE.read_text(encoding="utf-8"))) if TABLE.exists() else {}
