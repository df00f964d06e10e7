"""What an engine is: a model, its optimizer, one optimizer step over all ranks, and its full state in and out.

Two engines keep this contract: `DeepSpeedEngine` (ZeRO 0 to 3) and `ReplicatedEngine`, whose step a GPU can replay as
one CUDA graph; `toolkit.train.build.build_engine` chooses by the config. What goes in and out is consolidated: fp32
weights and Adam moments by parameter name, whole, on rank 0. At the sizes of these models (6 M parameters: 76 MB with
both moments) that costs little and makes a checkpoint independent of the world size and the engine that wrote it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from toolkit.checkpoint.checkpoint import TrainState
from toolkit.config.sections import TrainConfig
from toolkit.data.batches import Batch, Share
from toolkit.distributed.world import World
from toolkit.errors import NonFiniteError
from toolkit.models.base import SequenceModel
from toolkit.train.memory import explain_shortage
from toolkit.train.optimizer import moments_of, set_rates
from toolkit.wording import some

MOST_SKIPS = 10  # this many steps in a row without an update are no accident

LossOf: TypeAlias = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class StepResult:
    """One optimizer step over all ranks."""

    loss: float
    grad_norm: float
    stop: bool  # a rank was asked to stop
    fault: str | None = None  # why nothing was updated
    lost: bool = False  # a rank had no data: nothing was updated, and the step doesn't count


class Engine(ABC):
    """A model that is trained.

    Attributes:
        step_count: optimizer steps so far; `skipped` of them without an update.
    """

    def __init__(self, model: SequenceModel, config: TrainConfig, share: Share, world: World) -> None:
        self.world, self.share, self.config = world, share, config
        self.step_count = 0
        self.skipped = 0
        self._skipped_in_a_row = 0
        self.parameter_count = sum(p.numel() for p in model.parameters())
        self.moments = moments_of(config)
        self.average: list[Tensor] | None = None  # of `_held`, under `train.ema`

    @property
    @abstractmethod
    def model(self) -> SequenceModel:
        """The trained model itself."""

    @property
    @abstractmethod
    def forward(self) -> Callable[..., Any]:
        """The model as a training step calls it: (frames, context, sampling) -> Rollout."""

    @abstractmethod
    def describe(self) -> str:
        """Return how a step is computed, for the log."""

    @abstractmethod
    def phases(self) -> tuple[Any, Mapping[str, str]]:
        """Return an object and those of its methods that are phases of a step, with their names, for the profiler."""

    @abstractmethod
    def gathered_parameters(self) -> AbstractContextManager[SequenceModel]:
        """Return a context with the model to predict with, in evaluation mode; all ranks enter together."""

    @abstractmethod
    def _torch_optimizer(self) -> Optimizer:
        """Return torch's optimizer, which updates this rank's weights."""

    @abstractmethod
    def _held(self) -> list[Tensor]:
        """Return the fp32 weights that this rank updates."""

    @abstractmethod
    def _gather_weights(self) -> dict[str, Tensor]:
        """Return the model's state on rank 0, in fp32 on the CPU; nothing on the others. Collective."""

    @abstractmethod
    def _gather_moments(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's moments by parameter on rank 0; nothing on the others. Collective."""

    @abstractmethod
    def _put_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set the trained weights, which `_held` returns."""

    @abstractmethod
    def _put_moments(self, state: TrainState) -> None:
        """Set the optimizer's moments and count of updates."""

    def _start_average(self) -> None:
        """Start `train.ema` at the weights as they are."""
        if self.config.ema is not None:
            self.average = [weight.detach().clone() for weight in self._held()]

    def gather(self) -> TrainState | None:
        """Return the full state on rank 0, None on the others, which hold no copy of it. Collective."""
        weights = self._gather_weights()
        moments = self._gather_moments() if self.moments and self.step_count > self.skipped else {}
        average = None
        if self.average is not None:
            held = self._held()
            kept = [weight.detach().clone() for weight in held]
            with torch.no_grad():
                torch._foreach_copy_(held, self.average)
                average = self._gather_weights()
                torch._foreach_copy_(held, kept)
        state = TrainState(weights, moments, self.step_count, self.skipped, average)
        return state if self.world.is_main else None

    @torch.no_grad()
    def restore(self, state: TrainState) -> None:
        """Put a saved state back; the model's own weights are loaded already."""
        self.step_count, self.skipped = state.step, state.skipped
        if self.average is not None:
            self._put_weights(state.average or state.weights)
            torch._foreach_copy_(self.average, self._held())
        self._put_weights(state.weights)
        if state.moments:
            self._put_moments(state)

    def step(self, batches: Sequence[Batch], loss_of: LossOf, stop: bool, lacking: bool = False) -> StepResult:
        """Take one optimizer step: forward and backward passes, reduction over ranks, check, update. Collective.

        Args:
            batches: this rank's micro-batches.
            loss_of: the loss of a micro-batch, computed by calling `self.forward`.
            stop: this rank was asked to stop; the result says whether any was.
            lacking: this rank has no data, and `batches` are placeholders of their shape: it takes part in the
                collectives of the others, so that all learn of it, and no rank updates anything.

        Raises:
            NonFiniteError: on every rank at the same step, without an update, if the loss or the gradient of any rank
                is NaN or infinite; under `train.on_nonfinite: skip` only after MOST_SKIPS such steps in a row.
            MemoryShortageError: on the rank whose device or host ran out of memory.
        """
        if lacking and self.world.world_size == 1:
            return StepResult(math.nan, math.nan, stop, lost=True)
        set_rates(self._torch_optimizer(), self.config, self.step_count)
        with explain_shortage(self.config, self.share, self.step_count, self.world):
            loss = self._forward_backward(batches, loss_of)
            norms, copies = self._reduce_gradients()
            status = self._reduce_step_status(loss, norms, copies, stop, lacking)
            result = self._update(status)
            if result.lost:
                self.discard_gradients()
                return result
            if result.fault is not None:
                result = self._skip(result, batches, loss_of, float(loss))
        if result.fault is None:
            self._skipped_in_a_row = 0
            if self.average is not None and self.config.ema is not None:
                with torch.no_grad():
                    torch._foreach_lerp_(self.average, self._held(), 1.0 - self.config.ema)
        self.step_count += 1
        return result

    @abstractmethod
    def _forward_backward(self, batches: Sequence[Batch], loss_of: LossOf) -> Tensor:
        """Return the mean loss of this rank's micro-batches, float64 on the device; their gradients are added up."""

    @abstractmethod
    def _reduce_gradients(self) -> tuple[Tensor, int]:
        """Average gradients over ranks; return the norms of those that this rank holds, and how many ranks do."""

    def _reduce_step_status(self, loss: Tensor, norms: Tensor, copies: int, stop: bool, lacking: bool) -> Tensor:
        """Return the sum over ranks of [loss, is it not finite, stop?, squared gradient norm, no data?].

        float64 on the device, without a copy to the host. A loss that isn't finite counts as 0 in the first place, so
        that the others' mean can still be reported.
        """
        finite = torch.isfinite(loss)
        report = torch.zeros(5, dtype=torch.float64, device=self.world.device)
        report[0].copy_(torch.where(finite, loss, 0.0))
        report[1].copy_(~finite)
        if stop:
            report[2].fill_(1.0)
        if lacking:
            report[1].fill_(1.0)  # what a device reads that decides on the update by itself
            report[4].fill_(1.0)
        report[3].copy_(norms.double().square().sum() / copies)
        return self.world.sum(report)

    @abstractmethod
    def _update(self, status: Tensor) -> StepResult:
        """Update weights and moments where all that was reduced is finite; return `_check` of it."""

    def _check(self, status: Tensor) -> StepResult:
        """Return what was reduced, as numbers; `fault` is not None, but empty yet, where something isn't finite.

        It is the step's only wait for the device.
        """
        loss, broken, asked, squared, lacking = status.tolist()
        if lacking:
            return StepResult(math.nan, math.nan, bool(asked), lost=True)
        norm = math.sqrt(squared) if squared >= 0 else math.nan
        fault = "" if broken or not math.isfinite(norm) else None
        return StepResult(loss / self.world.world_size, norm, bool(asked), fault)

    def _skip(self, result: StepResult, batches: Sequence[Batch], loss_of: LossOf, loss: float) -> StepResult:
        """Return the result with its fault, and leave the update out; or end the run, as the config says."""
        fault = self._fault(batches, loss_of, loss)
        self._count_skip(fault)
        self.discard_gradients()
        return replace(result, fault=fault)

    @abstractmethod
    def discard_gradients(self) -> None:
        """End a step without an update: weights and moments stay as they are, whatever the gradients. Collective."""

    def _fault(self, batches: Sequence[Batch], loss_of: LossOf, loss: float) -> str:
        """Return what isn't finite, on which rank, from which samples; the same text on every rank (collective)."""
        sound = math.isfinite(loss) and self._gradients_are_finite(batches, loss_of)
        keys = list(dict.fromkeys(key for batch in batches for key in batch.keys))
        said: list[Any] = [(loss, sound, keys)]
        if self.world.world_size > 1:
            said = [None] * self.world.world_size
            torch.distributed.all_gather_object(said, (loss, sound, keys))
        # If no rank's own gradient shows it (ZeRO-3, or a sum that overflowed), it may come from any sample.
        faulty = {rank: facts for rank, facts in enumerate(said) if not facts[1]} or dict(enumerate(said))
        what = "gradient" if all(math.isfinite(facts[0]) for facts in faulty.values()) else "loss"
        ranks = [
            f"rank {rank} has a loss of {value} from samples {some(names, 16)}"
            for rank, (value, _, names) in faulty.items()
        ]
        return (
            f"step {self.step_count}: the {what} is not finite on {len(faulty)} of {self.world.world_size} ranks; "
            f"{'; '.join(ranks)}. Nothing was updated"
        )

    def _gradients_are_finite(self, batches: Sequence[Batch], loss_of: LossOf) -> bool:
        """Return whether this rank's own gradients are; computed again, as those at hand are sums over ranks."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for batch in batches:
            grads = torch.autograd.grad(loss_of(batch), parameters, allow_unused=True)
            if not all(bool(torch.isfinite(grad).all()) for grad in grads if grad is not None):
                return False
        return True

    def _count_skip(self, fault: str) -> None:
        """Count a step without an update, or end the run."""
        self._skipped_in_a_row += 1
        if self.config.on_nonfinite == "raise":
            raise NonFiniteError(f"{fault}. Lower train.lr, set train.clip, or look at those samples")
        if self._skipped_in_a_row > MOST_SKIPS:
            raise NonFiniteError(f"{fault}; {MOST_SKIPS} steps in a row were skipped before. Lower train.lr")
        self.skipped += 1


def norms_of(gradients: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of each gradient in float32, on their device, in a handful of kernels."""
    return torch.stack(torch._foreach_norm(list(gradients), 2, dtype=torch.float32))


@contextmanager
def evaluating(model: SequenceModel) -> Iterator[SequenceModel]:
    """Put the model into evaluation mode, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(training)


def on_host(tensor: Tensor) -> Tensor:
    """Return a copy in fp32 on the CPU, contiguous."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
