"""RunConfig: everything that makes a run what it is, typed, in YAML, with a stable identity. Does not import torch.

A config file is a mapping of the sections below. `base:` names one file or several (relative to the file that names
them, or `configs/...` of those that come with the toolkit); they are merged left to right, the file itself last, and
`--set a.b=c` after that. Mappings merge key by key, everything else is replaced. A section `model` that names another
model than its base replaces the base's section.

The identity of a run is a hash of the values that differ from the defaults, less the keys marked `identity=False`
(names, logging, workers: what can't change a result). A change of a default's meaning bumps `CONFIG_VERSION`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator

from toolkit.errors import ConfigError
from toolkit.models.registry import MODELS, ModelOptions, ModeRNNOptions, Options, StepOptions
from toolkit.recipe import InitialisationConfig, LossConfig, SamplingConfig, ScheduleConfig
from toolkit.tree import read_tree, to_yaml, with_overrides
from toolkit.wording import nearest

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

CONFIG_VERSION = 1
COSMETIC: dict[str, Any] = {"identity": False}
EXECUTION: dict[str, Any] = {"execution": True}  # how it is computed: a run may go on under another value
LARGEST_BUCKET = 500_000_000
Device = Literal["auto", "cpu", "cuda"]
MOST_DEFERRED = 4 << 30  # bytes that deferred weight gradients keep, see toolkit/train/deferred.py
LONGEST_NAME = 200  # bytes: a folder's name has at most 255, and a hash and more come after it

# YAML reads a bare on or off as a truth value.
Switch = Annotated[
    Literal["auto", "on", "off"], BeforeValidator(lambda v: {True: "on", False: "off"}[v] if isinstance(v, bool) else v)
]


def _folder_name(name: str) -> str:
    if not name or not name.isprintable() or "/" in name or name in (".", "..") or len(name.encode()) > LONGEST_NAME:
        raise ValueError(
            f"becomes part of a folder's name: write 1 to {LONGEST_NAME} bytes without /, line ends and control "
            "characters (in a run's config.yaml too: its identity doesn't depend on it)"
        )
    return name


Decay = Annotated[float, Field(ge=0, lt=1)]
SplitName = Annotated[str, Field(pattern="^[a-z][a-z0-9_-]{0,31}$")]  # a store's splits; names of files begin so


class DataConfig(Options):
    """Which sequences are read, and how windows are cut from them."""

    store: str = Field("", description="folder made by `python -m shards convert`; relative to the working directory")
    context: int = Field(10, ge=1, description="frames that the model is shown")
    horizon: int = Field(10, ge=1, description="frames that it predicts")
    modes: tuple[str, ...] | None = Field(None, description="train and validate on these modes only (None: all)")
    train_split: SplitName = "train"
    val_split: SplitName = "val"
    train_stride: int = Field(1, ge=1, description="frames between the starts of training windows")
    eval_stride: int | None = Field(None, ge=1, description="the same for validation and test; None: no overlap")
    augment: tuple[Literal["flip", "rotate", "reverse"], ...] = Field(
        (), description="symmetries drawn per training sample, each with chance one half"
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise", description="a damaged training sample ends the run, or its neighbour is read instead and it is told"
    )
    workers: int = Field(0, ge=0, description="reader processes per rank", json_schema_extra=COSMETIC)


class WatchdogConfig(Options):
    """How long a rank may get nowhere before the run is ended as hung, see toolkit/train/watchdog.py."""

    first_step: float = Field(1800.0, gt=0, description="seconds, while starting and in the first step (compilation)")
    step: float = Field(600.0, gt=0, description="seconds, from then on; a pause within a step, not a whole step")


class TrainConfig(Options):
    """The optimisation. The defaults are the paper's run: L2, Adam 3e-4, batch 8, 80,000 optimizer steps."""

    steps: int = Field(80_000, ge=1, description="optimizer steps")
    batch: int = Field(8, ge=1, description="sequences per optimizer step over all ranks")
    micro_batch: int | None = Field(
        None, ge=1, description="sequences per forward on one rank; None: batch / ranks", json_schema_extra=COSMETIC
    )
    lr: float = Field(3e-4, gt=0, description="learning rate; where a schedule varies it, its greatest value")
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="torch's own; under adamw weight decay is decoupled (Loshchilov and Hutter 2019)"
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="adam, adamw: decay of the two moments")
    momentum: Decay = Field(0.9, description="sgd: decay of the momentum")
    weight_decay: float = Field(0.0, ge=0, le=10, description="of weights; biases and norms have none")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the weights, which is scored and exported as `ema`",
    )
    loss: LossConfig = LossConfig()
    init_from: InitialisationConfig = InitialisationConfig()
    patience: int | None = Field(
        None, ge=1, description="early stopping: validations in a row without a better one; None: all steps are run"
    )
    clip: float | None = Field(None, gt=0, description="greatest gradient norm; None: no clipping")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 keeps fp32 master weights")
    tf32: bool = Field(
        False,
        description="fp32 convolutions and products round their operands to TF32, on GPUs from A100 and RTX 30 on",
    )
    deterministic: bool = Field(
        False,
        description="on a GPU too the same bits in every run of the same command; slower, see docs/gpu.md",
        json_schema_extra=EXECUTION,
    )
    device: Device = Field(
        "auto",
        description="auto: a GPU for each rank where torch sees any, else the CPU; cpu connects ranks by gloo",
        json_schema_extra=COSMETIC,
    )
    zero: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage", json_schema_extra=EXECUTION)
    offload_optimizer: bool = Field(
        False, description="Adam's state and step on the CPU; under ZeRO 1, 2 or 3", json_schema_extra=EXECUTION
    )
    checkpointing: Literal["none", "step", "segment", "recursive"] = Field(
        "none",
        description="activation checkpointing over time, see toolkit/unroll.py",
        json_schema_extra=EXECUTION,
    )
    compile: Literal["none", "default"] = Field(
        "none",
        description="torch.compile of the model's step, see toolkit/train/compiled.py",
        json_schema_extra=EXECUTION,
    )
    graph: Switch = Field(
        "auto",
        description="forward and backward of a micro-batch replayed as one CUDA graph, without DeepSpeed; `auto`: on a "
        "GPU, where settings and model allow it (the log says why not). See toolkit/train/graphed.py",
        json_schema_extra=EXECUTION,
    )
    defer_weight_gradients: Switch = Field(
        "auto",
        description="weight gradients of convolutions are computed once for all time steps; `auto`: on a GPU, without "
        "activation checkpointing, compilation and ZeRO-3. See toolkit/train/deferred.py",
        json_schema_extra=EXECUTION,
    )
    checkpoint_layers: bool = Field(
        False,
        description="recompute one layer at a time instead of a whole time step: less memory at no further cost",
        json_schema_extra=EXECUTION,
    )
    offload_states: bool = Field(
        False,
        description="what checkpointing keeps between forward and backward lies in host memory",
        json_schema_extra=EXECUTION,
    )
    checkpointing_backend: Literal["torch", "deepspeed"] = Field(
        "torch",
        description="whose activation checkpointing; `deepspeed` only for `step` under ZeRO 0 and 1, one micro-batch",
        json_schema_extra=EXECUTION,
    )
    loss_frames: Literal["all", "future"] = Field(
        "all", description="`all`: every next-frame prediction, context included; `future`: the horizon only"
    )
    sampling: SamplingConfig = SamplingConfig()
    validate_every: int = Field(2_000, ge=1, description="optimizer steps between validations (and best-so-far)")
    validate_samples: int | None = Field(None, ge=1, description="first windows of the split to use; None: all")
    checkpoint_every: int = Field(2_000, ge=1, json_schema_extra=COSMETIC)
    async_checkpoint: bool = Field(
        True, description="training goes on while a checkpoint is written", json_schema_extra=COSMETIC
    )
    on_save_error: Literal["raise", "continue"] = Field(
        "raise",
        description="a checkpoint that can't be written ends the run, or is said and tried again at the next one",
        json_schema_extra=COSMETIC,
    )
    keep_last: int = Field(2, ge=2, description="newest checkpoints kept, beside the best", json_schema_extra=COSMETIC)
    keep_every: int | None = Field(
        None, ge=1, description="checkpoints of every so many steps are kept for ever", json_schema_extra=COSMETIC
    )
    log_every: int = Field(50, ge=1, json_schema_extra=COSMETIC)
    watchdog: WatchdogConfig = Field(WatchdogConfig(), json_schema_extra=COSMETIC)
    on_nonfinite: Literal["raise", "skip"] = Field(
        "raise", description="a loss or gradient that isn't finite ends the run, or that step is left out and counted"
    )
    images: int = Field(4, ge=0, description="sequences shown in TensorBoard at validation", json_schema_extra=COSMETIC)
    deepspeed: dict[str, Any] = Field(
        {}, description="extra DeepSpeed keys, merged over ours", json_schema_extra=EXECUTION
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _no_graph_trees(cls, value: object) -> object:
        if value == "reduce-overhead":
            raise ValueError(
                "reduce-overhead is gone, as torch frees recurrent states between its CUDA graphs: set "
                "train.graph=auto for one CUDA graph of the whole step, and train.compile to none or default"
            )
        return value

    @property
    def stage(self) -> int:
        """The ZeRO stage that is really run.

        bf16 under ZeRO 0 is run as ZeRO 1, whose updates are the same bit for bit: DeepSpeed's unpartitioned bf16
        optimizer takes an empty step when it is made, so Adam's bias correction is off by one step from then on.
        """
        return max(self.zero, 1) if self.precision == "bf16" else self.zero

    def why_not_graphed(self) -> str | None:
        """Return why a training step can't be recorded as a CUDA graph; None: it can."""
        if self.zero:
            return (
                f"train.zero {self.zero} reduces gradients by hooks in Python, which a replay doesn't run: set "
                "train.zero=0"
            )
        if self.deepspeed:
            keys = ", ".join(sorted(self.deepspeed))
            return f"train.deepspeed sets {keys}, and a graphed step has no DeepSpeed: empty it"
        if self.offload_states:
            return "train.offload_states copies to the host within the step: set it to false"
        if self.checkpointing_backend == "deepspeed":
            return "train.checkpointing_backend deepspeed keeps its state on the host: use torch"
        return None

    def is_graphed(self, gpu: bool) -> bool:
        """Return whether a step is one CUDA graph without DeepSpeed; on a CPU (`train.graph: on`) the same code."""
        return self.graph == "on" or (self.graph == "auto" and gpu and self.why_not_graphed() is None)

    def is_deferred(self, gpu: bool) -> bool:
        """Return whether a training step computes weight gradients once for all time steps.

        Not where activations are recomputed, because inputs and output gradients of all steps would be kept; nor under
        torch.compile, which computes them inside a compiled cell; nor under ZeRO-3, which takes weights away between.
        """
        if self.defer_weight_gradients != "auto":
            return self.defer_weight_gradients == "on"
        return gpu and self.checkpointing == "none" and self.compile == "none" and self.zero < 3

    def share(self, ranks: int) -> int:
        """Sequences of one rank in an optimizer step.

        Raises:
            ConfigError: the ranks don't divide the batch.
        """
        if self.batch % ranks:
            fits = ", ".join(str(n) for n in range(1, self.batch + 1) if self.batch % n == 0)
            why = f"is smaller than {ranks} ranks" if self.batch < ranks else f"can't be divided over {ranks} ranks"
            lower, upper = self.batch // ranks * ranks, -(-self.batch // ranks) * ranks
            other = f"{lower} or {upper}" if lower else str(upper)
            raise ConfigError(f"train.batch {self.batch} {why}: use {fits} ranks, or train.batch={other}")
        return self.batch // ranks

    def bucket(self, parameters: int) -> int:
        """How many of so many numbers DeepSpeed's buffer for reducing gradients holds.

        DeepSpeed's own choice is 500 M: up to 2 GB of a card for the gradients of a small model.
        """
        own = self.deepspeed.get("zero_optimization", {})
        return int(own.get("reduce_bucket_size", min(LARGEST_BUCKET, parameters)))


class EvalConfig(Options):
    """How a finished run is scored."""

    protocol: str = Field("paper", description="a file in toolkit/evaluate/protocols")
    split: SplitName = "test"
    batch: int = Field(8, ge=1, description="sequences per forward", json_schema_extra=COSMETIC)
    thresholds: tuple[float, ...] = Field((), description="CSI thresholds in the store's unit (paper, radar: 30 dBZ)")
    samples: int = Field(1, ge=1, description="forecasts of each sequence; models without chance make one")
    select: Literal["mean", "best"] = Field(
        "mean", description="what of them is scored: their mean, or per sequence the best by the protocol's rule"
    )
    lpips: bool = Field(False, description="LPIPS too; needs AlexNet's weights, see toolkit/evaluate/perceptual.py")
    analyse: int = Field(
        0, ge=0, description="sequences whose features are captured for the diagnosis of mode collapse; 0: none"
    )
    show: int = Field(3, ge=0, description="sequences per mode kept for the report", json_schema_extra=COSMETIC)


class RunConfig(Options):
    """One run, whole."""

    name: Annotated[str, AfterValidator(_folder_name)] = Field(
        "run", description="what people call it", json_schema_extra=COSMETIC
    )
    seed: int = Field(0, ge=0)
    model: ModelOptions = ModeRNNOptions()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.train.micro_batch is not None and self.train.batch % self.train.micro_batch:
            raise ValueError(
                f"train.micro_batch {self.train.micro_batch} doesn't divide train.batch {self.train.batch}: "
                "choose a divisor or leave it out"
            )
        if self.train.sampling.kind == "reverse" and not isinstance(self.model, StepOptions):
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
        self._checkpointing_fits()
        self._deferral_fits()
        return self

    def _deferral_fits(self) -> None:
        train = self.train
        if train.defer_weight_gradients != "on":
            return
        for key, allowed in (("zero", (0, 1, 2)), ("checkpointing", ("none",)), ("compile", ("none",))):
            if getattr(train, key) not in allowed:
                raise ValueError(
                    f"train.defer_weight_gradients on can't be used with train.{key} {getattr(train, key)}: set "
                    f"train.{key}={allowed[-1]}, or train.defer_weight_gradients=auto"
                )

    def _checkpointing_fits(self) -> None:
        train = self.train
        extras = [key for key in ("checkpoint_layers", "offload_states") if getattr(train, key)]
        if train.checkpointing_backend == "deepspeed":
            extras.append("checkpointing_backend")
        if extras and train.checkpointing == "none":
            names = ", ".join(f"train.{key}" for key in extras)
            raise ValueError(
                f"{names} changes how activations are recomputed, but train.checkpointing is none: set it to step, "
                "segment or recursive, or leave the other out"
            )
        if train.checkpointing_backend == "torch":
            return
        if train.zero > 1:
            raise ValueError(
                f"train.checkpointing_backend deepspeed can't be used under train.zero {train.zero}: DeepSpeed's "
                "checkpointing gives a weight's gradient once per time step, and ZeRO 2 and 3 send it off the first "
                "time: set train.zero to 0 or 1, or leave the backend at torch"
            )
        if train.checkpointing != "step" or train.checkpoint_layers:
            raise ValueError(
                f"train.checkpointing_backend deepspeed is for train.checkpointing step without checkpoint_layers, "
                f"this is {train.checkpointing}{' with layers' * train.checkpoint_layers}: spans of steps add "
                "gradients in another order there, and they are not the same bit for bit. Leave the backend at torch"
            )
        if train.offload_states:
            raise ValueError(
                "train.offload_states has no hold on what train.checkpointing_backend deepspeed keeps: leave the "
                "backend at torch"
            )

    def identity(self, execution: bool = True) -> dict[str, object]:
        """The values that make this run another run than the default one.

        Args:
            execution: also those that say how it is computed (ZeRO stage, activation checkpointing).
        """
        plain = self.model_dump(mode="json", exclude_defaults=True)
        plain["model"] = {"name": self.model.name, **self.model.model_dump(mode="json", exclude_defaults=True)}
        if not MODELS[self.model.name].trained:  # a sweep's seeds and settings of training make it no other run
            plain.pop("seed", None)
            plain.pop("train", None)
        return _identity(self, plain, execution)

    def hash8(self, execution: bool = True) -> str:
        """Eight hex digits that name the run's directory; the same on every machine and in every order of keys.

        Without `execution` they name what a checkpoint belongs to: it may go on under another ZeRO stage.
        """
        text = json.dumps({"version": CONFIG_VERSION, **self.identity(execution)}, sort_keys=True)
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
        value = _identity(inner, value, execution) if isinstance(inner, Options) else value
        if value != {} or not isinstance(inner, Options):
            kept[key] = value
    return kept


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file with its bases, apply `key=value` overrides, check everything, list all faults at once."""
    return make_config(with_overrides(read_tree(path), overrides), origin=str(path))


def make_config(tree: Mapping[str, object], origin: str) -> RunConfig:
    """Check a plain tree of values and turn it into a RunConfig.

    Raises:
        ConfigError: with one line per fault; unknown keys come with the nearest known one.
    """
    try:
        return RunConfig.model_validate(dict(tree))
    except ValidationError as error:
        faults = [_explain(fault, tree) for fault in error.errors()]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        lines = "\n".join(f"  {line}" for line in faults)
        sweep = "\nThis is a sweep file: give it to launch/sweep.py." * bool(
            set(tree) & {"seeds", "list", "grid", "zip", "include"}
        )
        raise ConfigError(f"{origin}: {count}\n{lines}\nSee toolkit/config.py for every key.{sweep}") from None


def _explain(fault: ErrorDetails, tree: Mapping[str, Any]) -> str:
    path = [part for part in fault["loc"] if part not in MODELS]  # pydantic puts the union's tag into the path
    key = ".".join(str(part) for part in path)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(path[:-1], tree)
        return f"{key}: unknown key; {nearest(str(path[-1]), known) or 'known here: ' + ', '.join(known)}"
    if fault["type"] == "union_tag_not_found":
        return f"model.name: missing; known: {', '.join(MODELS)}"
    if fault["type"] == "union_tag_invalid":
        given = str(dict(tree.get("model", {})).get("name"))
        hint = nearest(given, MODELS)
        return f"model.name: unknown model {given!r}; {hint}{' ' * bool(hint)}known: {', '.join(MODELS)}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{key}: {message}, got {fault['input']!r}" if key else message


def _known_keys(path: list[str | int], tree: Mapping[str, Any]) -> list[str]:
    options: type[Options] = RunConfig
    for part in path:
        if options is RunConfig and part == "model":
            name = dict(tree.get("model", {})).get("name", "modernn")
            options = MODELS[str(name)].options
            continue
        annotation = options.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, Options)):
            return []
        options = annotation
    return list(options.model_fields)
