"""Contract 2: what a model is.

A `SequenceModel` takes whole sequences in 0..1 and returns next-frame predictions and losses. Most models are a
`StepModel`: they say how a state begins and how one frame and one state become the next; `StepSequence` gives them
unrolling, activation checkpointing, scheduled sampling and prediction. Models with another shape of loss (SVG, TrajGRU)
fit `SequenceModel` without the step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from shards.manifest import FrameSpec
from toolkit.errors import ConfigError
from toolkit.models.channels import ReadsChannels
from toolkit.models.choice import ChannelChoice
from toolkit.models.plugins import model_class
from toolkit.models.registry import Options, StepOptions
from toolkit.unroll import NO_CHECKPOINTING, Checkpointing, unroll
from toolkit.wording import count

State = Any  # any tree of tensors
# The loss of predictions [B, P, C, H, W] of the last P of frames [B, T, C, H, W], over observed pixels (`Sampling`).
Criterion: TypeAlias = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
Result = TypeVar("Result")


class Noise:
    """Random numbers per sample, the same however a batch is split over ranks and micro-batches.

    Every sample has a generator of its own, seeded by who the sample is; nothing else in training is random, so no
    generator state has to be stored in a checkpoint.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]

    @classmethod
    def from_generator(cls, generator: torch.Generator, batch: int, device: torch.device | str) -> Noise:
        """One seed per sample, drawn from `generator`."""
        drawn = torch.randint(0, 2**62, (batch,), generator=generator, device=generator.device)
        return cls([int(seed) for seed in drawn], device)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers [batch, *shape] in float32."""
        draws = [torch.randn(shape, generator=generator, device=self.device) for generator in self.generators]
        return torch.stack(draws)


@dataclass(frozen=True)
class Sampling:
    """What training decides for one batch.

    Attributes:
        teacher: bool [B, horizon - 1]; where True, a future input is the true frame instead of the model's own
            (scheduled sampling). Of more columns the first ones are for the context's inputs but the first (reverse
            scheduled sampling). None: the context's inputs are true frames, later ones the model's own.
        noise: source of the model's random numbers; None: the mean is taken instead.
        observed: bool [B, T, C, H, W]; False where the archive has no value: those pixels are not in the loss. None:
            every pixel has one.
        criterion: the loss of predictions; None: `mean_square`.
    """

    teacher: Tensor | None = None
    noise: Noise | None = None
    observed: Tensor | None = None
    criterion: Criterion | None = None

    def loss(self, predictions: Tensor, frames: Tensor) -> Tensor:
        """Return the loss of predictions [B, P, C, H, W] of the last P of frames [B, T, C, H, W], float32."""
        return (self.criterion or mean_square)(predictions, frames, self.observed)


@dataclass(frozen=True)
class Rollout:
    """What a forward pass gives.

    Attributes:
        predictions: [B, P, C, H, W], not clamped: the model's predictions of the last P frames, all its channels.
            Next-frame models give P = T - 1, all but the first; models that predict the horizon in one go (TrajGRU,
            SimVP) P = T - context.
        losses: scalar tensors in float32; their sum is what training minimises.
    """

    predictions: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)


class SequenceModel(ReadsChannels, nn.Module, ABC):
    """A predictor of image sequences.

    Attributes:
        checkpointing: what is recomputed backward. Models without a step say what they recompute under any policy but
            `none`, and for `per_layer`.
        stochastic: forecasts under a generator differ from one another; False: an ensemble has equal members.
        loss_frames: `train.loss_frames`; models that predict the horizon only have no other frames in their loss.
        horizon: frames that `predict` gives by default: the horizon of training.
        frame_spec: of the frames that it reads; None: not built by `build_model`.
    """

    checkpointing: Checkpointing = NO_CHECKPOINTING
    loss_frames: str = "all"
    stochastic: bool = False
    horizon: int | None = None
    frame_spec: FrameSpec | None = None

    @abstractmethod
    def forward(self, frames: Tensor, context: int, sampling: Sampling) -> Rollout:
        """Unroll over known frames for training.

        Args:
            frames: [B, T, C, H, W] in 0..1.
            context: the first frames, always shown to the model as they are.
            sampling: which later inputs are true frames, and the random numbers.
        """

    @torch.no_grad()
    def predict(
        self,
        context: Tensor,
        horizon: int | None = None,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Forecast.

        Args:
            context: [B, Tc, C, H, W] in 0..1, as a store's `scale.normalise` makes of its codes.
            horizon: frames to predict, any number; None: as many as in training.
            samples: members of the ensemble; a deterministic model returns equal members.
            generator: where random numbers come from; None: the mean where the model has one.

        Returns:
            [samples, B, horizon, C, H, W], not clamped; C of the targets.

        Raises:
            ConfigError: the context has another shape, other channels, no frame or integers; no horizon is known; what
                a model can't do.
        """
        if context.dim() != 5 or not context.is_floating_point():
            raise ConfigError(
                f"predict takes floating-point frames [B, Tc, C, H, W] in 0..1, not {context.dtype} "
                f"{list(context.shape)}: normalise codes (store.manifest.scale.normalise) and add what dimensions lack"
            )
        channels = context.shape[2] if self.frame_spec is None else self.frame_spec.channels
        if 0 in context.shape or context.shape[2] != channels:
            raise ConfigError(
                f"predict takes at least 1 frame, of {count(channels, 'channel')}, not [B, Tc, C, H, W] = "
                f"{list(context.shape)}: give frames like those of the model's store"
            )
        horizon = self.horizon if horizon is None else horizon
        if horizon is None or min(horizon, samples) < 1:
            raise ConfigError(f"predict with horizon {horizon} and {samples} samples: name at least one of each")
        return self.predict_targets(context, horizon, samples, generator)

    def predict_targets(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        """Compute what `predict` returns, from validated arguments."""
        return self.target_channels(self._predict(context, horizon, samples, generator))

    @abstractmethod
    def _predict(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        """Return a forecast of all channels that the model reads, [samples, B, horizon, C, H, W]."""


class Probe(nn.Identity):
    """A named place in a model where `toolkit.models.capture` can look at a tensor; does nothing by itself."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class StepModel(nn.Module, ABC):
    """A model of one time step on patched frames [B, C * patch^2, H / patch, W / patch].

    Attributes:
        checkpointing: as in `SequenceModel`.
        stochastic: the state before the first frame is drawn at evaluation too.
        channels_last: computed faster in that memory layout on a CPU in fp32 too, not in bf16 alone.
    """

    stochastic: bool = False
    channels_last: bool = False
    checkpointing: Checkpointing = NO_CHECKPOINTING

    @abstractmethod
    def init_state(self, batch: int, height: int, width: int, like: Tensor, noise: Noise | None) -> State:
        """Return the state before the first frame for a grid of height x width, device and dtype as `like`."""

    @abstractmethod
    def step(self, frame: Tensor, state: State) -> tuple[Tensor, State]:
        """Frame t and the state before it give the prediction of frame t + 1 and the state after frame t.

        Must draw no random numbers: activation checkpointing runs it twice. Each layer is run through `layer`.
        """

    def layer(self, cell: Callable[..., Result], *args: Any) -> Result:
        """cell(*args), one layer of a step; under `activation_checkpointing.per_layer` it is recomputed by itself."""
        return self.checkpointing.run_layer(cell, *args)

    @abstractmethod
    def memories(self, state: State) -> list[Tensor]:
        """Return the memory of each layer after a step, [B, channels, h, w], first layer first: C_t (ModeRNN: B_t)."""

    def forward(self, frame: Tensor, state: State) -> tuple[Tensor, State]:
        return self.step(frame, state)

    def losses(self, state: State, steps: int) -> dict[str, Tensor]:
        """Return additional terms of the training loss: scalars in float32, already weighted.

        A term over time is summed up in the state, so that checkpointing sees it like everything else; here it is
        read from the state after the last of `steps` steps.
        """
        return {}


class StepSequence(SequenceModel):
    """A step model driven over time.

    Attributes:
        layout: how maps [B, C, h, w] lie in memory; None: `memory_layout` decides. A matter of speed.
    """

    layout: torch.memory_format | None = None
    feeds_targets = True

    def __init__(self, cell: StepModel, patch: int) -> None:
        super().__init__()
        self.cell = cell
        self.patch = patch
        self.stochastic = cell.stochastic

    def forward(self, frames: Tensor, context: int, sampling: Sampling) -> Rollout:
        check_context(frames, context)
        frames = self.known_frames(frames, context, frames.shape[1])
        steps = frames.shape[1] - 1
        known = context if sampling.teacher is None else steps - sampling.teacher.shape[1]
        predictions, state = self._run(frames, steps, known, sampling)
        first = 0 if self.loss_frames == "all" else context - 1
        data = sampling.loss(predictions[:, first:steps], frames)
        return Rollout(predictions, {"data": data, **self.cell.losses(state, steps)})

    def _predict(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        batch, known = context.shape[:2]
        frames = self.known_frames(context, known, known + horizon - 1)
        members = []
        for _ in range(samples):
            noise = Noise.from_generator(generator, batch, context.device) if generator is not None else None
            steps = known + horizon - 1
            predictions, _ = self._run(frames, steps, known, Sampling(noise=noise))
            members.append(predictions[:, known - 1 :])
        return torch.stack(members)

    def _run(self, frames: Tensor, steps: int, context: int, sampling: Sampling) -> tuple[Tensor, State]:
        """Return the predictions [B, steps, C, H, W] and the state after the last step."""
        dtype = next(self.parameters()).dtype
        height, width = (-(-size // self.patch) for size in frames.shape[-2:])
        whole = pad_to(frames.to(dtype), height * self.patch, width * self.patch)
        layout = self.layout or memory_layout(self.cell, whole)
        first = laid_out(self.cell.init_state(frames.shape[0], height, width, whole, sampling.noise), layout)

        def step(frame: Tensor, state: State) -> tuple[Tensor, State]:
            patched, state = self.cell(laid_out(to_patches(frame, self.patch), layout), state)
            return from_patches(patched, self.patch, *frame.shape[-2:]), state

        # Frames are patched one by one: patching all first would keep a copy of them until the last backward step.
        predictions, last = unroll(
            step, whole, first, steps, context,
            teacher=sampling.teacher, targets=self.fed_channels, checkpointing=self.checkpointing,
        )  # fmt: skip
        return predictions[..., : frames.shape[-2], : frames.shape[-1]], last


def memory_layout(cell: StepModel, like: Tensor) -> torch.memory_format:
    """Return how the maps of a step lie in memory.

    Channels-last in bf16. On a CPU convolutions of slots are 2 to 3 times as fast as in the other layout. On CUDA
    cuDNN's bf16 kernels compute channels-last and transpose each operand of another layout, 2 copies a convolution,
    and attention reads its heads without a copy. In fp32 channels-last for models that ask: on an H100 a step of the
    paper's ModeRNN then takes 124 ms instead of 167 (docs/gpu.md); on a CPU PredRNN loses a tenth by it
    (benchmarks/cell.py). On other devices PyTorch's own. `StepSequence.layout` overrules, for a measurement.
    """
    asks = like.device.type in ("cpu", "cuda") and (cell.channels_last or like.dtype == torch.bfloat16)
    return torch.channels_last if asks else torch.contiguous_format


def laid_out(tree: State, layout: torch.memory_format) -> State:
    """All maps [B, C, h, w] in a tree of tensors, in a memory layout."""
    return tree_map_only(Tensor, lambda t: t.contiguous(memory_format=layout) if t.dim() == 4 else t, tree)


def mean_square(predictions: Tensor, frames: Tensor, observed: Tensor | None) -> Tensor:
    """Compute the L2 loss of the last P frames, in float32.

    Args:
        predictions: [B, P, C, H, W] of the last P of frames [B, T, C, H, W].
        observed: as in `Sampling`. A sample's loss is the mean over its observed pixels, the batch's the mean over its
            samples, so that it does not depend on how a batch is divided; a sample with none counts as 0.
    """
    last = predictions.shape[1]
    predicted, true = predictions.float(), frames[:, -last:].float()
    if observed is None:
        return F.mse_loss(predicted, true)  # keeps no difference: at 200 frames of 384x384 that would be 118 MB
    seen = observed[:, -last:].flatten(1)
    square = F.mse_loss(predicted, true, reduction="none")
    return ((square.flatten(1) * seen).sum(1) / seen.sum(1).clamp(min=1)).mean()


def check_context(frames: Tensor, context: int) -> None:
    """Training sequences [B, T, ...] must hold at least one frame after the context.

    Raises:
        ConfigError: they don't.
    """
    last = frames.shape[1] - 1
    if not 1 <= context <= last:
        raise ConfigError(
            f"context {context} must be in 1..{last} for sequences of {last + 1} frames: change data.context or "
            "data.horizon"
        )


def pad_to(frames: Tensor, height: int, width: int) -> Tensor:
    """[..., H, W] -> [..., height, width] with zeros below and to the right."""
    below, right = height - frames.shape[-2], width - frames.shape[-1]
    return F.pad(frames, (0, right, 0, below)) if below or right else frames


def to_patches(frames: Tensor, patch: int) -> Tensor:
    """Space to depth: [..., C, H, W] -> [..., C * p^2, ceil(H / p), ceil(W / p)]; short edges are zero-padded."""
    height, width = (size + -size % patch for size in frames.shape[-2:])
    return F.pixel_unshuffle(pad_to(frames, height, width), patch)


def from_patches(patched: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Invert `to_patches`: depth to space, cropped to height x width."""
    return F.pixel_shuffle(patched, patch)[..., :height, :width]


def build_model(
    options: Options,
    shape: FrameSpec,
    checkpointing: Checkpointing = NO_CHECKPOINTING,
    loss_frames: str = "all",
    horizon: int | None = None,
    channels: ChannelChoice | None = None,
) -> SequenceModel:
    """Return the model of some options for frames of a shape; parameters are drawn from torch's global generator.

    Args:
        shape: of the frames that the model reads.
        checkpointing, loss_frames, horizon: attributes of `SequenceModel`.
        channels: those that the run chooses, see `ReadsChannels`.

    Raises:
        ConfigError: a model from a file that was not given, or that keeps no contract; `stochastic` differs between
            a model and its options.
    """
    named, own = model_class(options)
    made = named(own, shape)
    if isinstance(made, StepModel):
        if not isinstance(own, StepOptions):
            raise ConfigError(f"{named.__name__}: is a StepModel, its options must derive from StepOptions")
        made.checkpointing = checkpointing
        made = StepSequence(made, own.patch)
    if not isinstance(made, SequenceModel):
        raise ConfigError(f"{named.__name__}: must derive from StepModel or SequenceModel of toolkit.models.base")
    if made.stochastic != own.stochastic:  # a login node names results by the options, and scoring follows the model
        raise ConfigError(
            f"{named.__name__}: `stochastic` is {made.stochastic} in the model and {own.stochastic} in its options: "
            "set the attribute of the model and the property of the options class alike"
        )
    made.frame_spec = shape
    made.set_channels(channels)
    made.checkpointing, made.loss_frames, made.horizon = checkpointing, loss_frames, horizon
    return made


def count_parameters(options: Options, shape: FrameSpec) -> int:
    """Return the trainable numbers in a model, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(options, shape).parameters() if p.requires_grad)
