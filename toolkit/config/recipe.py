"""The typed parts of a training recipe: learning rate schedule, loss, scheduled sampling, initialisation from a run.

Sections of `train` in a config (toolkit/config/sections.py). Does not import torch; what they mean is computed in
toolkit/train/{schedule,criterion,sampling}.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from toolkit.config.paths import WrittenPath
from toolkit.models.registry import Options

RainRate = Annotated[float, Field(gt=0, le=1e6)]
Weight = Annotated[float, Field(ge=0, le=1e6)]


class ScheduleConfig(Options):
    """The learning rate as a function of the optimizer step; `train.lr` is its greatest value."""

    kind: Literal["constant", "cosine", "one_cycle", "step", "polynomial"] = Field(
        "constant",
        description="shape of the decay; one_cycle also varies beta1 or the momentum, as torch's OneCycleLR does",
    )
    warmup: int = Field(
        0, ge=0, le=10**9, description="first optimizer steps, in which the rate rises linearly; not one_cycle"
    )
    final: float = Field(0.0, ge=0, le=1, description="cosine, polynomial: last rate as a fraction of train.lr")
    power: float = Field(1.0, gt=0, le=10, description="polynomial: exponent of the decay; 1: linear")
    every: int = Field(20_000, ge=1, le=10**9, description="step: optimizer steps between two drops")
    factor: float = Field(0.1, gt=0, lt=1, description="step: the rate is multiplied by it at every drop")
    rise: float = Field(0.3, gt=0, lt=1, description="one_cycle: fraction of the steps in which the rate rises")
    start_divisor: float = Field(25.0, ge=1, le=1e9, description="one_cycle: first rate is train.lr divided by it")
    final_divisor: float = Field(1e4, ge=1, le=1e12, description="one_cycle: last rate is the first divided by it")

    @model_validator(mode="after")
    def _warm_up_once(self) -> ScheduleConfig:
        if self.kind == "one_cycle" and self.warmup:
            raise ValueError("one_cycle rises by itself (train.schedule.rise): leave train.schedule.warmup at 0")
        return self


class LossConfig(Options):
    """What is minimised, of predictions and observations in 0..1, over observed pixels."""

    kind: Literal["l2", "l1", "l1+l2", "huber", "balanced", "balanced_mse", "balanced_mae"] = Field(
        "l2",
        description="balanced: squared and absolute errors weighted by rain rate, their sum (Shi et al. 2017, HKO-7)",
    )
    huber_delta: float = Field(0.1, gt=0, le=1, description="huber: errors below it count quadratically")
    thresholds: tuple[RainRate, ...] = Field(
        (2.0, 5.0, 10.0, 30.0), description="balanced: rain rates in mm/h, rising, at which the weight changes"
    )
    weights: tuple[Weight, ...] = Field(
        (1.0, 2.0, 5.0, 10.0, 30.0), description="balanced: weight below the first threshold, from each one on"
    )
    zr: tuple[RainRate, RainRate] = Field(
        (200.0, 1.6), description="balanced, stores in dBZ: a and b of Z = a R^b (HKO-7: 58.53, 1.56)"
    )
    lead_times: tuple[Weight, ...] | None = Field(
        None, description="weight of each predicted frame of the horizon, one number each; None: 1"
    )

    @model_validator(mode="after")
    def _weights_fit(self) -> LossConfig:
        rising = all(low < high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False))
        if not rising:
            raise ValueError(f"thresholds {list(self.thresholds)} must be rising")
        if len(self.weights) != len(self.thresholds) + 1 or not any(self.weights):
            raise ValueError(
                f"{len(self.thresholds)} thresholds need {len(self.thresholds) + 1} weights, not all of them 0; got "
                f"{list(self.weights)}"
            )
        if self.lead_times is not None and not any(self.lead_times):
            raise ValueError(f"lead_times {list(self.lead_times)} must not all be 0")
        return self


class SamplingConfig(Options):
    """Scheduled sampling (Bengio et al. 2015): the probability that an input is the true frame, by optimizer step."""

    kind: Literal["linear", "exponential", "sigmoid", "reverse"] = Field(
        "linear",
        description="decay of the probability for inputs of the horizon; reverse: PredRNN-V2's, in which inputs of the "
        "context too are the model's own predictions at first",
    )
    start: float = Field(1.0, ge=0, le=1, description="linear: probability at step 0")
    slope: float = Field(2e-5, ge=0, le=1, description="linear: decrease of the probability per optimizer step")
    stop: int = Field(50_000, ge=0, le=10**9, description="all kinds: the step from which on the probability is 0")
    scale: float = Field(
        5_000.0,
        gt=0,
        le=1e9,
        description="optimizer steps: exponential exp(-s / scale), sigmoid k / (k + exp(s / k)) with k = scale, "
        "reverse: how fast the probability of true frames in the context approaches 1",
    )
    reverse_start: int = Field(
        25_000, ge=0, le=10**9, description="reverse: the step up to which both probabilities are one half"
    )

    @model_validator(mode="after")
    def _reverse_ends(self) -> SamplingConfig:
        if self.kind == "reverse" and self.reverse_start >= self.stop:
            raise ValueError(
                f"reverse_start {self.reverse_start} must be before stop {self.stop}: it decreases from the "
                "one to the other"
            )
        return self


class InitialisationConfig(Options):
    """Weights to start from, of another run or export; the optimizer starts at step 0."""

    path: WrittenPath = Field(
        "",
        description="run directory or export (a folder with model.safetensors); ~ and $NAME are expanded, a relative "
        "path is relative to the working directory; empty: none",
    )
    checkpoint: Literal["best", "last", "ema"] = Field("best", description="which of a run's")
    strict: bool = Field(
        True,
        description="the source must have the same parameters and shapes; false: others keep their initialisation",
    )
    leave_out: tuple[str, ...] = Field((), description="patterns (fnmatch) of parameters that are not taken over")
    freeze: tuple[str, ...] = Field((), description="patterns (fnmatch) of parameters that are not trained")
