"""Cluster profiles: slurm/profiles/NAME.yaml says what a job asks of one cluster, and what its nodes need.

A profile is no part of a run's identity: the same run may resume under another one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator

from launch.slurm.variables import faults_of, misspelled
from toolkit.errors import ConfigError
from toolkit.models.registry import Options
from toolkit.shipped import PROFILES
from toolkit.wording import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

logger = logging.getLogger(__name__)

DEFAULT = "default"
NULLS = ("", "null", "~")  # as texts
# What launch/slurm/script.py sets itself: a second value would break jobs or the finding of them.
OWNED = (
    *("array", "chdir", "comment", "error", "export", "input", "job-name", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "parsable", "requeue", "no-requeue", "signal", "test-only", "wait", "wrap"),
)


# What a sweep file, or an entry of its `list`, may ask for instead of the profile; the rest is the cluster's.
PER_RUN = (
    *("partition", "account", "qos", "constraint", "exclude", "time", "mem", "nodes", "gpus_per_node", "gpu_type"),
    *("cpus_per_task", "pack", "signal_s", "max_restarts"),
)
# Of the profile's `sbatch`: what a small job shares with those on GPUs, and what it never asks for.
LIGHT_OPTIONS = ("clusters", "mail-type", "mail-user", "wckey", "nice", "reservation")
WHOLE_NODES = ("exclusive", "oversubscribe", "gres", "gpus", "gpus-per-task", "mem-per-gpu", "cpus-per-gpu")


def _lines(value: object) -> object:
    return [value] if isinstance(value, str) else value


Lines = Annotated[tuple[str, ...], BeforeValidator(_lines)]


def as_pack(text: str) -> str:
    """Check a number of runs in a job. Raises ValueError."""
    if text != "auto" and not re.fullmatch(r"[1-9]\d*", text):
        raise ValueError("write a number of runs, or auto")
    return text


def _check_time(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}", value):
        raise ValueError("write minutes, HH:MM:SS or D-HH:MM:SS")
    return value


def _check_sbatch(value: dict[str, str]) -> dict[str, str]:
    plain = {key.removeprefix("--").replace("_", "-"): text for key, text in value.items()}
    for key in plain:
        if key in OWNED:
            raise ValueError(f"{key} is set by the toolkit")
        if key.replace("-", "_") in Profile.model_fields:
            raise ValueError(f"{key} is a key of the profile itself")
    return plain


Time = Annotated[str | None, AfterValidator(_check_time)]
Sbatch = Annotated[dict[str, str], AfterValidator(_check_sbatch)]


class Light(Options):
    """What small jobs without GPUs ask for: the report, conversions. What is left out is the profile's own."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: Time = Field(None, description="default: 60 minutes for the report, the profile's for conversions")
    mem: str | None = None
    cpus_per_task: int | None = Field(None, ge=1)
    sbatch: Sbatch = Field({})


class Profile(Options):
    """One cluster. Every key may be left out; what is left out is the cluster's own default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = Field(None, description="features that nodes must have, for example `h100|a100`")
    exclude: str | None = Field(None, description="nodes to avoid, for example `n[03,07]`")
    time: Time = Field(None, description="limit of one start: minutes, or D-HH:MM:SS; the run outlives it")
    mem: str | None = Field(None, description="memory per node, for example 64G; 0: all of it")
    nodes: int = Field(1, ge=1, description="nodes per run")
    gpus_per_node: int = Field(1, ge=0, description="GPUs per node, one rank for each; 0: ranks on CPUs")
    pack: str | None = Field(None, description="runs side by side in a job on one node; auto: as its GPUs allow")
    gpu_type: str | None = Field(None, description="for example h100")
    cpus_per_task: int = Field(4, ge=1, description="CPUs per rank: one for the step, the rest for readers")
    modules: Lines = Field((), description="loaded on the node, in this order")
    setup: Lines = Field((), description="lines of bash that run on the node before Python")
    teardown: Lines = Field((), description="lines of bash that run on the node after the step, however it ended")
    env: dict[str, str] = Field({}, description="variables of the job, taken literally")
    interface: str | None = Field(None, description="network between nodes, for NCCL and gloo, for example ib0")
    container: str | None = Field(None, description="command that runs another in a container: `apptainer exec X.sif`")
    python: str | None = Field(None, description="Python on the nodes; default: the one that submits")
    srun: Lines = Field((), description="more options of srun, for example --container-image=X (pyxis)")
    sbatch: Sbatch = Field({}, description="more options of sbatch: {reservation: spring, exclusive: true}")
    light: Light = Field(Light(), description="what the report's job and conversions ask for instead of the above")
    signal_s: int = Field(120, ge=10, description="seconds before the time limit at which a run writes its checkpoint")
    max_restarts: int = Field(100, ge=0, description="a job that was requeued so often ends")

    def light_request(self, time: str | None) -> Profile:
        """Return the profile for a small job: no GPUs, and neither whole nodes nor all their memory.

        Account, QOS, partition, modules and the like are those of the runs, unless `light` has others. What a profile
        with GPUs asks for on their account (constraint, options of sbatch) is left out.

        Args:
            time: limit, unless `light` has one.
        """
        update = {key: value for key, value in self.light.model_dump().items() if value is not None}
        update.setdefault("time", time)
        if self._takes_all_memory:
            update.setdefault("mem", None)
        kept = {key: value for key, value in self.sbatch.items() if key not in WHOLE_NODES}
        if self.gpus_per_node:
            update.setdefault("constraint", None)
            kept = {key: value for key, value in kept.items() if key in LIGHT_OPTIONS}
        update |= {"gpus_per_node": 0, "gpu_type": None, "nodes": 1, "sbatch": {**kept, **self.light.sbatch}}
        return self.model_copy(update=update)

    def evaluation_request(self, gpu: bool) -> Profile:
        """Return the profile for the evaluation of a run in a job of its own: one rank, and the time of a training.

        Without a GPU it is a small job, as `light` has it. With one it needs the nodes of the trainings: partition,
        account, QOS and constraint are theirs, but neither whole nodes nor all their memory.
        """
        small = self.light_request(self.time).model_copy(update={"time": self.time})
        if not gpu:
            return small
        theirs = ("partition", "account", "qos", "constraint", "gpu_type", "cpus_per_task")
        kept = {key: value for key, value in self.sbatch.items() if key not in WHOLE_NODES}
        update = {"gpus_per_node": 1, "mem": None if self._takes_all_memory else self.mem, "sbatch": kept}
        return small.model_copy(update={**{key: getattr(self, key) for key in theirs}, **update})

    @property
    def _takes_all_memory(self) -> bool:
        return self.mem is not None and re.fullmatch(r"0[KMGT]?", self.mem) is not None

    @field_validator("pack")
    @classmethod
    def _is_pack(cls, value: str | None) -> str | None:
        return value if value is None else as_pack(value)

    @field_validator("env")
    @classmethod
    def _are_names(cls, value: dict[str, str]) -> dict[str, str]:
        if faults := faults_of(value):
            raise ValueError("; ".join(faults))
        return value


def read_profile(name: str | None) -> Profile:
    """Load a profile by its name in slurm/profiles, or by the path of its file.

    Raises:
        ConfigError: no such profile, or faults in it, all at once; an unknown key comes with the valid ones.
    """
    file = PROFILES / f"{name or DEFAULT}.yaml"
    if name is not None and ("/" in name or name.endswith((".yaml", ".yml"))):
        file = Path(name)
    try:
        # Every value is read as text, and pydantic makes numbers of it: YAML would make 12:30:00 the number 45000.
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506  (text only)
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml")))
        raise ConfigError(f"--profile {name}: no file {file}; profiles there: {known}. Copy one and edit it") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: can't be read: {error}") from None
    if not isinstance(tree, dict | None | str) or (isinstance(tree, str) and tree):
        raise ConfigError(f"{file}: must hold keys and values; known keys: {', '.join(Profile.model_fields)}")
    try:
        profile = Profile.model_validate(_without_nulls(tree or {}))
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(fault)}" for fault in error.errors())
        raise ConfigError(
            f"{file}: {error.error_count()} fault{'s' * (error.error_count() > 1)}\n{lines}\n"
            f"Known keys: {', '.join(Profile.model_fields)}; slurm/README.md explains them."
        ) from None
    for note in misspelled(profile.env):
        logger.warning("%s: env: %s", file, note)
    return profile


def _without_nulls(tree: dict[str, object]) -> dict[str, object]:
    given = {key: value for key, value in tree.items() if value not in NULLS}
    light = given.get("light")  # an empty variable of `env` is one
    return {**given, "light": _without_nulls(light)} if isinstance(light, dict) else given


def check_resources(value: object) -> dict[str, object]:
    """Return the `resources` of a sweep file or one of its entries; null is the default, whatever the profile has.

    Args:
        value: a mapping of keys of a profile to texts.

    Raises:
        ValueError: with every unknown key and every value that can't be used.
    """
    if value in NULLS:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping such as {{time: 6:00:00, mem: 32G}}, got {value!r}")
    defaults = {key: field.default for key, field in Profile.model_fields.items()}  # None: the cluster's own
    given = {str(key): defaults.get(str(key)) if text in NULLS else text for key, text in value.items()}
    faults = []
    for key in given.keys() - PER_RUN:
        known = "a profile's alone" if key in Profile.model_fields else "unknown key"
        faults.append(f"{key}: {known}; {nearest(key, PER_RUN) or 'known here: ' + ', '.join(PER_RUN)}")
    own = {key: text for key, text in given.items() if key in PER_RUN}
    try:
        profile = Profile.model_validate(own)
    except ValidationError as error:
        faults += [_explain(fault) for fault in error.errors()]
    if faults:
        raise ValueError("; ".join(sorted(faults)))
    return {key: getattr(profile, key) for key in own}


def overridden(profile: Profile, given: Mapping[str, object], nulls: bool = False) -> Profile:
    """Return a profile with the keys that the command line, or a sweep file, gives.

    Args:
        nulls: None is a value, too: the cluster's own default.

    Raises:
        ConfigError: a value that can't be used.
    """
    update = {key: value for key, value in given.items() if nulls or value is not None}
    try:
        return Profile.model_validate({**profile.model_dump(), **update})
    except ValidationError as error:
        raise ConfigError("; ".join(f"--{_explain(fault)}" for fault in error.errors())) from None


def _explain(fault: ErrorDetails) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        last, known = fault["loc"][-1], (Light if len(fault["loc"]) > 1 else Profile).model_fields
        return f"{key}: unknown key; {nearest(str(last), known)}".removesuffix("; ")
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}, got {fault['input']!r}"
