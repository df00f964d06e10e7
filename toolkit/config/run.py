"""RunConfig: everything that makes a run what it is, typed, in YAML, with a stable identity. Does not import torch.

A config file is a mapping of the sections below. `base:` names one file or several (relative to the file that names
them, or `configs/...` of those that come with the toolkit); they are merged left to right, the file itself last, and
`--set a.b=c` after that. Mappings merge key by key, everything else is replaced. A section `model` that names another
model than its base replaces the base's section.

The identity of a run is a hash of the values that differ from the defaults, less the keys marked `identity=False`
(names, logging, workers: what can't change a result). A change of a default's meaning bumps `CONFIG_VERSION`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from toolkit.config.data import COSMETIC, DataConfig
from toolkit.config.renamed import original_names, with_new_names
from toolkit.config.sections import EvalConfig, TrainConfig
from toolkit.config.tree import read_tree, to_yaml, with_overrides
from toolkit.errors import ConfigError
from toolkit.models.plugins import (
    FileModel,
    UnloadedModel,
    entry_of,
    entry_points,
    file_options,
    model_names,
    own_options,
    with_loaded_file,
)
from toolkit.models.registry import MODELS, ModelOptions, ModeRNNOptions, Options, StepOptions
from toolkit.shipped import command
from toolkit.wording import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

CONFIG_VERSION = 1
LONGEST_NAME = 200  # bytes: a folder's name has at most 255, and a hash and more come after it
LARGEST_SEED = 2**32 - 1  # of NumPy's generators


def _folder_name(name: str) -> str:
    if not name or not name.isprintable() or "/" in name or name in (".", "..") or len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"becomes part of a folder's name: write 1 to {LONGEST_NAME} bytes without /, line ends and control "
            "characters (in a run's config.yaml too: its identity doesn't depend on it)"
        )
    return name


def _model(value: object, check: ValidatorFunctionWrapHandler) -> object:
    own = own_options(value)
    return check(value) if own is None else own


if TYPE_CHECKING:  # of a class that is known when a config is read; every one has a `name`
    Model: TypeAlias = Any
else:
    Model = SerializeAsAny[Annotated[ModelOptions, WrapValidator(_model)]]


class RunConfig(Options):
    """The config of one run."""

    name: Annotated[str, AfterValidator(_folder_name)] = Field(
        "run", description="name of the run; the first part of its directory's name", json_schema_extra=COSMETIC
    )
    seed: int = Field(
        0, ge=0, le=LARGEST_SEED, description="seed of initial weights, sample order and every other random choice"
    )
    model: Model = Field(
        ModeRNNOptions(),
        description="the model by its `name` (for one of your own FILE.py:CLASS), and that model's options",
    )
    data: DataConfig = Field(DataConfig(), description="which sequences are read, and how windows are cut from them")
    train: TrainConfig = Field(TrainConfig(), description="the optimisation")
    eval: EvalConfig = Field(EvalConfig(), description="how the finished run is evaluated")

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.train.micro_batch is not None and self.train.batch % self.train.micro_batch:
            raise ValueError(
                f"train.micro_batch {self.train.micro_batch} doesn't divide train.batch {self.train.batch}: "
                "choose a divisor or leave it out"
            )
        if self.train.init_from.freeze and self.train.zero == 3:
            raise ValueError(
                "train.init_from.freeze can't be used under train.zero 3, which partitions every parameter: set "
                "train.zero to 0, 1 or 2"
            )
        if self.train.sampling.kind == "reverse" and not isinstance(self.model, StepOptions | UnloadedModel):
            raise ValueError(
                f"train.sampling.kind reverse replaces inputs of the context, and {self.model.name} has no input but "
                "the true context: use linear"
            )
        if self.train.tf32 and self.train.precision == "bf16":
            raise ValueError(
                "train.tf32 rounds the operands of fp32 convolutions, but train.precision is bf16, which has fewer "
                "bits: set train.precision=fp32, or leave train.tf32 out"
            )
        if self.train.offload_optimizer and self.train.zero == 0:
            raise ValueError(
                "train.offload_optimizer is a part of ZeRO and train.zero is 0: set train.zero=1 (one process too) or "
                "leave train.offload_optimizer out"
            )
        self.train.activation_checkpointing.check(self.train.zero)
        self._deferral_fits()
        return self

    def _deferral_fits(self) -> None:
        train = self.train
        if train.defer_weight_gradients != "on":
            return
        policy = train.activation_checkpointing.policy
        for key, value, allowed in (
            ("zero", train.zero, (0, 1, 2)),
            ("activation_checkpointing.policy", policy, ("none",)),
            ("compile", train.compile, ("none",)),
        ):
            if value not in allowed:
                raise ValueError(
                    f"train.defer_weight_gradients on can't be used with train.{key} {value}: set "
                    f"train.{key}={allowed[-1]}, or train.defer_weight_gradients=auto"
                )

    def identity(self, execution: bool = True, scoring: bool = True) -> dict[str, object]:
        """Return the values that distinguish this run from one with default values.

        Args:
            execution: also those that say how it is computed (ZeRO stage, activation checkpointing).
            scoring: also those of `eval`, which a trained run can be scored by again.
        """
        plain = self.model_dump(mode="json", exclude_defaults=True)
        # Without its file the defaults of a model's options are unknown, so all values of such a model count.
        named = self.model.model_dump(mode="json", exclude_defaults=not isinstance(self.model, FileModel))
        plain["model"] = {"name": self.model.name, **named}
        if not entry_of(self.model).trained:  # a sweep's seeds and settings of training make it no other run
            plain.pop("seed", None)
            plain.pop("train", None)
        if not scoring:
            plain.pop("eval", None)
        return _identity(self, plain, execution)

    def hash8(self, execution: bool = True, scoring: bool = True) -> str:
        """Eight hex digits that name the run's directory; the same on every machine and in every order of keys.

        Without `execution` they name what a checkpoint belongs to: it can be resumed under another ZeRO stage. Without
        `scoring` they name the training: runs that differ in `eval` alone are trained once.
        """
        values = original_names(self.identity(execution, scoring))
        text = json.dumps({"version": CONFIG_VERSION, **values}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def to_yaml(self) -> str:
        """Every value, defaults included, as YAML that `load_config` reads back to an equal config."""
        return to_yaml(self.model_dump(mode="json"))


def _identity(options: Options, plain: dict[str, Any], execution: bool) -> dict[str, object]:
    kept = {}
    for key, value in plain.items():
        extra = type(options).model_fields[key].json_schema_extra or {}
        assert isinstance(extra, dict)
        if extra.get("identity") is False or (extra.get("execution") and not execution):
            continue
        inner = getattr(options, key)
        if isinstance(inner, Options) and not isinstance(inner, FileModel):
            value = _identity(inner, value, execution)
        if value != {} or not isinstance(inner, Options):
            kept[key] = value
    return kept


def load_config(path: str | Path, overrides: Iterable[str] = (), typed: bool = False) -> RunConfig:
    """Read a YAML file with its bases, apply `key=value` overrides, check everything, list all faults at once.

    Args:
        path: of the file.
        overrides: as those of `--set`.
        typed: the user has named this config, so that the file of a model that it names may run; never one that was
            found in a run directory.
    """
    return make_config(with_overrides(read_tree(path), overrides), str(path), typed)


def make_config(tree: Mapping[str, object], origin: str, typed: bool = False) -> RunConfig:
    """Check a plain tree of values and turn it into a RunConfig.

    Raises:
        ConfigError: with one line per fault; unknown keys come with the nearest known one.
    """
    tree = with_new_names(tree, origin)
    if typed:
        tree = with_loaded_file(tree)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        faults = [_explain(fault, tree) for fault in error.errors()]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = "\n".join(f"  {line}" for line in faults)
        sweep = f"\nThis is a sweep file: {command('sweep', origin)}" * bool(
            set(tree) & {"seeds", "list", "grid", "zip", "include"}
        )
        keys = f"Every key: {command('config', '--keys')}"
        raise ConfigError(f"{origin}: {count}\n{lines}\n{keys}{sweep}") from None


def _explain(fault: ErrorDetails, tree: Mapping[str, Any]) -> str:
    path = list(fault["loc"])
    if path[:1] == ["model"] and {*path[1:2]} & {*MODELS}:  # pydantic puts the union's tag into the path
        del path[1]
    key = ".".join(str(part) for part in path)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(path[:-1], tree)
        return f"{key}: unknown key; {nearest(str(path[-1]), known) or 'known here: ' + ', '.join(known)}"
    if fault["type"] == "union_tag_not_found":
        return f"model.name: missing; known: {', '.join(model_names())}"
    if fault["type"] == "union_tag_invalid":
        given = str(dict(tree.get("model", {})).get("name"))
        hint = nearest(given, model_names())
        return (
            f"model.name: unknown model {given!r}; {hint}{' ' * bool(hint)}known: {', '.join(model_names())}; for one "
            "of your own write FILE.py:CLASS"
        )
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{key}: {message}, got {fault['input']!r}" if key else message


def _options_of(model: Mapping[str, Any]) -> type[Options]:
    """Return the class that the options in a section `model` are checked by, which has a fault."""
    name = str(model.get("name", "modernn"))
    if "sha256" in model:
        return file_options(name, str(model["sha256"]))
    return MODELS[name].options if name in MODELS else entry_points()[name].options


def model_options(tree: Mapping[str, Any]) -> set[str]:
    """Return the names of the options of the model that a tree of values names; none for one that is not known.

    Raises:
        ConfigError: the file of the model can't be used.
    """
    model = with_loaded_file(tree).get("model", {})
    with contextlib.suppress(KeyError):  # an unknown name, which `make_config` refuses
        return set(_options_of(model).model_fields) if isinstance(model, Mapping) else set()
    return set()


def _known_keys(path: list[str | int], tree: Mapping[str, Any]) -> list[str]:
    options: type[Options] = RunConfig
    for part in path:
        if options is RunConfig and part == "model":
            options = _options_of(dict(tree.get("model", {})))
            continue
        annotation = options.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, Options)):
            return []
        options = annotation
    return list(options.model_fields)
