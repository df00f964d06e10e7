"""The sections `train` and `eval` of a config: keys, types, bounds, defaults, descriptions. Without torch.

Every number has bounds: what no machine could hold is refused when a config is read, before any memory is asked for.
NaN and infinity are refused everywhere (`Options`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from toolkit.config.data import COSMETIC, MOST_STEPS, SplitName, as_list
from toolkit.config.deepspeed_keys import check_deepspeed
from toolkit.config.recipe import (
    InitialisationConfig,
    LossConfig,
    SamplingConfig,
    ScheduleConfig,
)
from toolkit.errors import ConfigError
from toolkit.models.registry import Options

EXECUTION: dict[str, Any] = {"execution": True}  # how it is computed: a run may be resumed with another value
LARGEST_BUCKET = 500_000_000
MOST_DEFERRED = 4 << 30  # bytes that deferred weight gradients keep, see toolkit/train/deferred.py
MOST_SEQUENCES = 1 << 20  # in a batch
MOST_SECONDS = 10_000_000.0  # 115 days

Device = Literal["auto", "cpu", "cuda"]

# YAML reads a bare on or off as a truth value.
Switch = Annotated[
    Literal["auto", "on", "off"], BeforeValidator(lambda v: {True: "on", False: "off"}[v] if isinstance(v, bool) else v)
]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Sequences = Annotated[int, Field(ge=1, le=MOST_SEQUENCES)]
Seconds = Annotated[float, Field(gt=0, le=MOST_SECONDS)]
Threshold = Annotated[float, Field(ge=-1e9, le=1e9)]


class WatchdogConfig(Options):
    """Timeouts after which a run that makes no progress is ended as hung, see toolkit/train/watchdog.py."""

    first_step: Seconds = Field(
        1800.0, description="seconds without progress allowed during start-up and the first step (compilation)"
    )
    step: Seconds = Field(600.0, description="seconds without progress allowed afterwards; not the length of a step")


class ActivationCheckpointing(Options):
    """Recompute activations in the backward pass instead of storing them, see toolkit/unroll.py."""

    policy: Literal["none", "step", "segment", "recursive"] = Field(
        "none",
        description="`step`: keep the state of each time step, recompute its activations; `segment`: keep about "
        "sqrt(T) states; `recursive`: about log(T) states, more recomputation",
    )
    per_layer: bool = Field(
        False, description="recompute one layer at a time instead of a whole time step: less memory at equal cost"
    )
    offload: bool = Field(False, description="keep the stored states in host memory between forward and backward")
    backend: Literal["torch", "deepspeed"] = Field(
        "torch",
        description="implementation; `deepspeed` only with policy `step`, ZeRO 0 or 1, and a single micro-batch",
    )

    def check(self, zero: int) -> None:
        """Check that the keys fit together under a ZeRO stage.

        Raises:
            ValueError: naming the keys that do not.
        """
        here = "train.activation_checkpointing"
        extras = [f"{here}.{key}" for key in ("per_layer", "offload") if getattr(self, key)]
        extras += [f"{here}.backend"] * (self.backend == "deepspeed")
        if extras and self.policy == "none":
            raise ValueError(
                f"{', '.join(extras)} changes how activations are recomputed, but {here}.policy is none: set it to "
                "step, segment or recursive, or leave the other out"
            )
        if self.backend == "torch":
            return
        if zero > 1:
            raise ValueError(
                f"{here}.backend deepspeed can't be used with train.zero {zero}: DeepSpeed's checkpointing produces a "
                "weight's gradient once per time step, and ZeRO 2 and 3 reduce it the first time: set train.zero to 0 "
                "or 1, or backend to torch"
            )
        if self.policy != "step" or self.per_layer:
            raise ValueError(
                f"{here}.backend deepspeed needs policy step without per_layer, this is {self.policy}"
                f"{' with per_layer' * self.per_layer}: over several steps it adds gradients in another order, and "
                "they are not the same bit for bit. Set backend to torch"
            )
        if self.offload:
            raise ValueError(
                f"{here}.offload has no effect on what {here}.backend deepspeed stores: set backend to torch"
            )


class CheckpointConfig(Options):
    """Checkpoints on disk: how often they are written, and which are kept."""

    every: Steps = Field(2_000, description="optimizer steps between checkpoints")
    async_save: bool = Field(True, description="write in the background while training continues")
    on_error: Literal["raise", "continue"] = Field(
        "raise",
        description="checkpoint that can't be written: `raise` ends the run, `continue` logs it and retries at the "
        "next checkpoint",
    )
    keep_last: int = Field(2, ge=2, le=MOST_STEPS, description="number of newest checkpoints to keep, beside the best")
    keep_every: Steps | None = Field(
        None, description="keep the checkpoints of every N optimizer steps permanently; null: none"
    )


Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Options):
    """The optimisation. The defaults are the paper's run: L2, Adam 3e-4, batch 8, 80,000 optimizer steps."""

    steps: Steps = Field(80_000, description="optimizer steps")
    batch: Sequences = Field(8, description="global batch size: sequences per optimizer step, over all ranks")
    micro_batch: Sequences | None = Field(
        None,
        description="sequences per forward pass on one rank; null: batch / ranks, without gradient accumulation",
        json_schema_extra=COSMETIC,
    )
    lr: float = Field(3e-4, gt=0, le=1e38, description="learning rate; where a schedule varies it, its maximum")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="the learning rate by optimizer step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="torch's own; adamw decouples the weight decay (Loshchilov and Hutter 2019)"
    )
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="adam, adamw: decay rates of both moments, in [0, 1)")
    momentum: Beta = Field(0.9, description="sgd: decay rate of the momentum")
    weight_decay: float = Field(0.0, ge=0, le=10, description="of weights; biases and norms have none")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay rate of an exponential moving average of the weights, which is scored and exported as "
        "`ema`; null: none",
    )
    loss: LossConfig = Field(LossConfig(), description="what is minimised")
    init_from: InitialisationConfig = Field(InitialisationConfig(), description="initial weights from another run")
    patience: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="early stopping: validations in a row without improvement; null: all steps are run",
    )
    clip: float | None = Field(
        None, gt=0, le=1e9, description="maximum gradient norm (L2, over all parameters); null: no clipping"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 keeps fp32 master weights")
    tf32: bool = Field(
        False,
        description="round the operands of fp32 convolutions and matrix products to TF32 (GPUs from A100, RTX 30 on)",
    )
    deterministic: bool = Field(
        False,
        description="bitwise reproducible on a GPU too, see toolkit/distributed/device.py; slower",
        json_schema_extra=EXECUTION,
    )
    device: Device = Field(
        "auto",
        description="auto: one GPU per rank where torch finds any, else the CPU; cpu: ranks communicate by gloo",
        json_schema_extra=COSMETIC,
    )
    zero: Literal[0, 1, 2, 3] = Field(0, description="DeepSpeed ZeRO stage", json_schema_extra=EXECUTION)
    offload_optimizer: bool = Field(
        False,
        description="keep the optimizer's state and do its step on the CPU; needs ZeRO 1, 2 or 3",
        json_schema_extra=EXECUTION,
    )
    activation_checkpointing: ActivationCheckpointing = Field(
        ActivationCheckpointing(),
        description="recompute activations in the backward pass instead of storing them",
        json_schema_extra=EXECUTION,
    )
    compile: Literal["none", "default"] = Field(
        "none",
        description="torch.compile of the model's step, see toolkit/train/compiled.py",
        json_schema_extra=EXECUTION,
    )
    graph: Switch = Field(
        "auto",
        description="replay forward and backward of a micro-batch as one CUDA graph, without DeepSpeed; `auto`: on a "
        "GPU, where settings and model allow it (the log gives the reason if not). See toolkit/train/graphed.py",
        json_schema_extra=EXECUTION,
    )
    defer_weight_gradients: Switch = Field(
        "auto",
        description="compute weight gradients of convolutions once for all time steps; `auto`: on a GPU, without "
        "activation checkpointing, compilation and ZeRO-3. See toolkit/train/deferred.py",
        json_schema_extra=EXECUTION,
    )
    loss_frames: Literal["all", "future"] = Field(
        "all", description="`all`: every next-frame prediction, context included; `future`: the horizon only"
    )
    sampling: SamplingConfig = Field(SamplingConfig(), description="scheduled sampling of future input frames")
    validate_every: Steps = Field(2_000, description="optimizer steps between validations (which select the best)")
    best_by: str = Field(
        "mse",
        description="score of a validation that selects the checkpoint `best` and that `patience` counts by: mse, mae, "
        "rmse, psnr, ssim, or of events at a threshold csi@30, hss@30, fss@30/5, mean_csi",
    )
    validate_samples: int | None = Field(
        None, ge=1, le=MOST_STEPS, description="number of first windows of the split to validate on; null: all"
    )
    checkpoint: CheckpointConfig = Field(
        CheckpointConfig(), description="writing and keeping checkpoints", json_schema_extra=COSMETIC
    )
    log_every: Steps = Field(50, description="optimizer steps between log lines", json_schema_extra=COSMETIC)
    watchdog: WatchdogConfig = Field(
        WatchdogConfig(), description="timeouts of a run that makes no progress", json_schema_extra=COSMETIC
    )
    on_nonfinite: Literal["raise", "skip"] = Field(
        "raise", description="loss or gradient not finite: `raise` ends the run, `skip` omits and counts that step"
    )
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(as_list)] = Field(
        ("tensorboard",), description="experiment trackers, see docs/trackers.md", json_schema_extra=COSMETIC
    )
    images: int = Field(
        4, ge=0, le=1000, description="sequences drawn by the trackers at each validation", json_schema_extra=COSMETIC
    )
    deepspeed: Annotated[dict[str, Any], AfterValidator(check_deepspeed)] = Field(
        {},
        description="further keys of DeepSpeed's configuration, merged over the toolkit's",
        json_schema_extra=EXECUTION,
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
        if self.activation_checkpointing.offload:
            return "train.activation_checkpointing.offload copies to the host within the step: set it to false"
        if self.activation_checkpointing.backend == "deepspeed":
            return "train.activation_checkpointing.backend deepspeed keeps its state on the host: use torch"
        return None

    def why_not_compiled(self, model: str, has_step: bool) -> str | None:
        """Return why `compile` can't be used with a model; None: it can, or isn't asked for."""
        if self.compile == "none":
            return None
        if not has_step:
            return (
                f"train.compile {self.compile}: {model} has no step from frame to frame to compile: use "
                "train.compile=none"
            )
        if self.zero == 3:
            return (
                f"train.compile {self.compile} with train.zero {self.zero}: ZeRO-3 gathers weights by hooks that break "
                "the graph at every layer, which is slower than no compilation: use train.zero 2 or less, or "
                "train.compile=none"
            )
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
        return gpu and self.activation_checkpointing.policy == "none" and self.compile == "none" and self.zero < 3

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
        """Return the size of DeepSpeed's buffer for reducing gradients, in elements.

        DeepSpeed's own choice is 500 M: up to 2 GB of a card for the gradients of a small model.
        """
        own = self.deepspeed.get("zero_optimization", {})
        return int(own.get("reduce_bucket_size", min(LARGEST_BUCKET, parameters)))


class EvalConfig(Options):
    """How a finished run is evaluated."""

    protocol: str = Field("paper", description="name of a file in toolkit/evaluate/protocols")
    split: SplitName = Field("test", description="split of the store to evaluate on")
    batch: int = Field(8, ge=1, le=65_536, description="sequences per forward pass", json_schema_extra=COSMETIC)
    thresholds: Annotated[tuple[Threshold, ...], BeforeValidator(as_list)] = Field(
        (), description="thresholds of CSI in the store's unit (paper, radar: 30 dBZ)"
    )
    ensemble_size: int = Field(
        1, ge=1, le=10_000, description="forecasts (ensemble members) per sequence; deterministic models make one"
    )
    select: Literal["mean", "best"] = Field(
        "mean", description="score the ensemble mean, or per sequence the best member by the protocol's rule"
    )
    lpips: bool = Field(
        False, description="also compute LPIPS; needs AlexNet's weights, see toolkit/evaluate/perceptual.py"
    )
    exclude_inflow: bool = Field(
        False,
        description="leave out pixels that flow in from outside the observed area by the optical flow of the context, "
        "the same ones for every model; validations score all pixels",
    )
    analyse: int = Field(
        0,
        ge=0,
        le=MOST_STEPS,
        description="sequences whose features are captured after evaluation to diagnose mode collapse; 0: none",
    )
    show: int = Field(
        3, ge=0, le=10_000, description="sequences per mode kept for the report", json_schema_extra=COSMETIC
    )
