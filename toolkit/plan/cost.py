"""What a training step costs, as polynomials in batch and grid; where they come from. Does not import torch.

Found for a config, in this order: the table that comes with the package (costs.json, for the shipped configs), the
user's cache, and a measurement on the spot in a process of its own, which needs torch but no GPU and little memory
(toolkit/plan/measure.py). Figures are of one state of the code: `code_digest` says which, and figures of another state
are measured again where torch is, and else used and said to be old.
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
from toolkit.config_sections import ActivationCheckpointing
from toolkit.errors import ToolkitError
from toolkit.models.registry import MODELS, StepOptions

PACKAGE = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("costs.json")
POLICIES = ("none", "step+layers", "step", "segment", "recursive+layers", "recursive")  # of models with a step
LARGE = 100_000
LAYERS, OFFLOAD = "layers", "offload"


class CostError(ToolkitError):
    """Nobody knows what a config costs, and it can't be measured here."""


class Polynomial(NamedTuple):
    """A number that depends on the batch B and the grid's area A (tiles of `model.tile` x `model.tile` pixels)."""

    one: int = 0
    batch: int = 0  # x B
    area: int = 0  # x A
    both: int = 0  # x B A
    square: int = 0  # x B A^2

    def at(self, batch: int, area: int) -> int:
        return self.one + self.batch * batch + self.area * area + (self.both + self.square * area) * batch * area


@dataclass(frozen=True)
class Peak:
    """The most that lives in a forward and backward pass: the highest of some polynomials, in bytes.

    Frames, activations and scratch are in both; weights and optimizer in neither.

    Attributes:
        fresh: gradients are made as the pass goes; those that are there are in it.
        held: without finished gradients, for those who keep them elsewhere (accumulation).
        work: multiply-accumulates of the pass, recomputation included.
    """

    fresh: tuple[Polynomial, ...]
    held: tuple[Polynomial, ...]
    work: Polynomial


@dataclass(frozen=True)
class Cost:
    """What a micro-batch of a config costs.

    Attributes:
        parameters: trainable numbers (a model can be tied to a frame size).
        large: of these, how many are in parameters of at least LARGE (DeepSpeed's ZeRO-3 divides only such).
        macs: multiply-accumulates of a forward pass.
        peaks: by policy.
        old: measured with another state of the code.
    """

    parameters: Polynomial
    large: int
    macs: Polynomial
    peaks: Mapping[str, Peak]
    old: bool = False

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], old: bool = False) -> Cost:
        """An entry of costs.json; see the attributes for `old`."""
        peaks = {
            policy: Peak(
                tuple(Polynomial(*line) for line in found["fresh"]),
                tuple(Polynomial(*line) for line in found["held"]),
                Polynomial(*found["work"]),
            )
            for policy, found in entry["peaks"].items()
        }
        return cls(Polynomial(*entry["parameters"]), entry["large"], Polynomial(*entry["macs"]), peaks, old)


def area_of(config: RunConfig, height: int, width: int) -> int:
    """Tiles in a frame."""
    tile = config.model.tile
    return -(-height // tile) * -(-width // tile)


def policies_of(config: RunConfig) -> tuple[str, ...]:
    """The policies that a config can choose from, its own among them."""
    known = POLICIES if isinstance(config.model, StepOptions) else ("none", "step")
    own = policy_of(config)
    return known if own in known else (*known, own)


def policy_of(config: RunConfig) -> str:
    """The name of a config's policy: `train.activation_checkpointing.policy`, +layers, +offload."""
    own = config.train.activation_checkpointing
    extras = [LAYERS] * own.per_layer + [OFFLOAD] * own.offload
    if isinstance(config.model, StepOptions) or own.policy == "none":
        return "+".join([own.policy, *extras])
    return "+".join(["step", *extras[own.per_layer :]])  # all they know is whether to recompute


def settings_of(policy: str) -> dict[str, object]:
    """Return the keys of `train.activation_checkpointing` that stand for a policy."""
    name, *extras = policy.split("+")
    return {"policy": name, "per_layer": LAYERS in extras, "offload": OFFLOAD in extras}


def under(config: RunConfig, policy: str) -> RunConfig:
    """The config under another policy."""
    chosen = ActivationCheckpointing.model_validate({**settings_of(policy), "backend": "torch"})
    return config.model_copy(update={"train": config.train.model_copy(update={"activation_checkpointing": chosen})})


def key_of(config: RunConfig, channels: int) -> str:
    """Names everything that a cost depends on but the code, batch and grid."""
    facts = {
        "model": config.model.model_dump(mode="json"),
        "channels": channels,
        "frames": [config.data.context, config.data.horizon],
        "loss_frames": config.train.loss_frames,
        "precision": config.train.precision,
        "policies": policies_of(config),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def code_digest(model: str) -> str:
    """A digest of the code that a model's costs come from: its module, what that imports, unroll.py and measure.py.

    Options are left out (`key_of` has them), and so are comments and layout.
    """
    found: dict[str, str] = {}
    wanted = [MODELS[model].code.partition(":")[0], "toolkit.plan.measure"]
    while wanted:
        module = wanted.pop()
        if module in found or module == "toolkit.models.registry":
            continue
        found[module] = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
        if module != "toolkit.plan.measure":
            wanted += re.findall(r"^from (toolkit\.models\.\w+|toolkit\.unroll) import", found[module], flags=re.M)
    plain = (re.sub(r"#.*|[\s,()]+", "", found[module]) for module in sorted(found))
    return hashlib.sha256("\0".join(plain).encode()).hexdigest()[:16]


def stored(config: RunConfig, channels: int) -> Cost | None:
    """What the table says of a config."""
    entry = table().get(key_of(config, channels))
    return Cost.from_json(entry, is_old(config, entry)) if entry else None


def is_old(config: RunConfig, entry: Mapping[str, object]) -> bool:
    """Whether an entry is of another state of the code."""
    return bool(entry["code"] != code_digest(config.model.name))


def cached(config: RunConfig, channels: int) -> Cost | None:
    """What was measured for this user before."""
    try:
        entry = json.loads((cache_folder() / f"{key_of(config, channels)}.json").read_text(encoding="utf-8"))
        return Cost.from_json(entry, is_old(config, entry))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find(config: RunConfig, channels: int) -> Cost | None:
    """What is known of a config without measuring; figures of the code as it is come first."""
    known = [cost for cost in (stored(config, channels), cached(config, channels)) if cost]
    return min(known, key=lambda cost: cost.old, default=None)


def get(config: RunConfig, channels: int) -> Cost:
    """What a config costs, measured if need be.

    Raises:
        CostError: it isn't known and can't be measured here.
    """
    known = find(config, channels)
    if known and not known.old:
        return known
    if importlib.util.find_spec("torch") is None:
        if known:
            return known
        raise CostError(
            f"{config.model.name} with these options is not in {TABLE.name} and torch, which could measure it, is not "
            "installed here: run the same command where it is, then copy its cache "
            f"({cache_folder()}) to this machine"
        )
    (entry,) = measured([config], channels)
    write_atomic(cache_folder() / f"{key_of(config, channels)}.json", json.dumps(entry))
    return Cost.from_json(entry)


def measured(configs: Sequence[RunConfig], channels: int) -> Iterator[dict[str, object]]:
    """Entries for configs, one after the other, measured in a process of its own: this one stays free of torch.

    Raises:
        CostError: it failed.
    """
    request = [{"config": config.model_dump(mode="json"), "channels": channels} for config in configs]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "toolkit.plan.measure"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=PACKAGE.parent,  # Python would import from the working directory first, which may be anybody's
            env=environment,
            text=True,
        )
        with process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            for config, line in zip(configs, process.stdout, strict=False):
                yield {"code": code_digest(config.model.name), **json.loads(line)}
        if process.returncode:
            errors.seek(0)
            names = ", ".join(sorted({config.model.name for config in configs}))
            raise CostError(f"the cost of {names} could not be measured:\n{errors.read().strip()[-2000:]}")


def write_table(entries: Mapping[str, object]) -> None:
    """Replace the table."""
    body = ",\n".join(f" {json.dumps(key)}: {json.dumps(entries[key])}" for key in sorted(entries))
    write_atomic(TABLE, f"{{\n{body}\n}}\n")


def cache_folder() -> Path:
    """Where measurements of this user are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "modernn-toolkit" / "costs"


@functools.cache
def table() -> dict[str, Any]:
    """The entries that come with the package, by key."""
    return dict(json.loads(TABLE.read_text(encoding="utf-8"))) if TABLE.exists() else {}
