"""The DeepSpeed engine: from our config to theirs, one optimizer step, and its full state in and out.

What goes in and out is consolidated: fp32 weights and Adam moments by parameter name, whole, on rank 0. At the sizes of
these models (6 M parameters: 76 MB with both moments) that costs little and makes a checkpoint independent of the world
size and the ZeRO stage that wrote it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolkit.config import RunConfig, TrainConfig
from toolkit.data.batches import Batch, Share
from toolkit.distributed import World
from toolkit.errors import NonFiniteError
from toolkit.models.base import SequenceModel
from toolkit.train.compiled import compile_step
from toolkit.train.deepspeed_settings import check_precision, deepspeed_config, import_deepspeed, share_of
from toolkit.train.memory import explain_shortage
from toolkit.wording import some

MOMENTS = ("exp_avg", "exp_avg_sq")
MOST_SKIPS = 10  # so many steps in a row without an update are no accident


@dataclass(frozen=True)
class TrainState:
    """Everything the optimisation knows, whole and in fp32, on the CPU."""

    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]  # parameter name -> exp_avg, exp_avg_sq; empty before the first step
    step: int
    skipped: int = 0  # steps among them without an update; Adam has not counted those


@dataclass(frozen=True)
class StepResult:
    """One optimizer step over all ranks."""

    loss: float
    grad_norm: float
    stop: bool  # a rank was asked to stop
    fault: str | None = None  # why nothing was updated


class Engine:
    """A model under DeepSpeed."""

    def __init__(self, model: SequenceModel, config: TrainConfig, share: Share, world: World) -> None:
        check_precision(config, world.device)
        deepspeed = import_deepspeed(world)
        deepspeed.init_distributed(dist_init_required=False, auto_mpi_discovery=False, verbose=False)
        self.world, self.share, self.config = world, share, config
        self.step_count = 0
        self.skipped = 0
        self._skipped_in_a_row = 0
        self.parameter_count = sum(p.numel() for p in model.parameters())
        # Before DeepSpeed hooks into the model: what `whole` fills. It takes no memory.
        self._blank = copy.deepcopy(model).to("meta") if config.zero == 3 else None
        model.to(world.device)
        compile_step(model, config)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=config.betas, fused=True)
        settings = deepspeed_config(config, share, self.parameter_count)
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self.stage = int(self.engine.zero_optimization_stage())
        self.partitioned = self.stage > 0

    @classmethod
    def build(cls, model: SequenceModel, config: RunConfig, world: World, state: TrainState | None) -> Engine:
        """An engine at the start of training, or at a state that was saved."""
        if state is not None:
            model.load_state_dict(state.weights)
        engine = cls(model, config.train, share_of(config.train, world), world)
        if state is not None:
            engine._restore(state)
        return engine

    @property
    def model(self) -> SequenceModel:
        module = self.engine.module
        assert isinstance(module, SequenceModel)
        return module

    @contextmanager
    def whole(self) -> Iterator[SequenceModel]:
        """The model to predict with, in evaluation mode.

        All ranks enter together; inside, each calls it as often as it likes. Under ZeRO-3 a forward pass of the
        trained module itself is collective (it gathers weights layer by layer), and ranks with unequal numbers of
        batches would wait for each other for ever: there it is a copy with all weights, gone afterwards.
        """
        if self._blank is None:
            model = self.model
        else:
            from deepspeed.runtime.zero import GatheredParameters

            parameters = list(self.model.parameters())
            model = copy.deepcopy(self._blank).to(parameters[0].dtype).to_empty(device=self.world.device)
            with torch.no_grad(), GatheredParameters(parameters):
                for target, source in zip(model.parameters(), parameters, strict=True):
                    target.copy_(source)
            for buffer, trained in zip(model.buffers(), self.model.buffers(), strict=True):
                buffer.copy_(trained)
        training = model.training
        model.eval()
        try:
            yield model
        finally:
            model.train(training)

    def step(self, batches: Sequence[Batch], loss_of: Callable[[Batch], Tensor], stop: bool) -> StepResult:
        """One optimizer step.

        Args:
            batches: this rank's micro-batches.
            loss_of: the loss of a micro-batch, computed by calling `self.engine`.
            stop: this rank was asked to stop; the answer says whether any was.

        Raises:
            NonFiniteError: on every rank at the same step, before the update, if the loss or the gradient of any rank
                is NaN or infinite; under `train.on_nonfinite: skip` only after MOST_SKIPS such steps in a row.
            MemoryShortageError: on the rank whose device or host ran out of memory.
        """
        with explain_shortage(self.config, self.share, self.step_count, self.world):
            return self._step(batches, loss_of, stop)

    def _step(self, batches: Sequence[Batch], loss_of: Callable[[Batch], Tensor], stop: bool) -> StepResult:
        self.engine.train()
        total = 0.0
        for batch in batches[:-1]:
            total += self._backward(loss_of(batch))
            self.engine.step()  # counts the micro-batch; DeepSpeed updates after the last one only
        total += self._backward(loss_of(batches[-1]))
        own = total / len(batches)
        mean, bad, stop, norm = self._agree(own, stop)
        fault = None
        if bad or not math.isfinite(norm):
            fault = self._fault(batches, loss_of, own)
            self._skip(fault)
        else:
            self.engine.step()
            self._skipped_in_a_row = 0
        self.step_count += 1
        return StepResult(mean, norm, stop, fault)

    def _fault(self, batches: Sequence[Batch], loss_of: Callable[[Batch], Tensor], loss: float) -> str:
        """What isn't finite, on which rank, from which samples; the same text on every rank (collective)."""
        sound = math.isfinite(loss) and self._sound_gradients(batches, loss_of)
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

    def _sound_gradients(self, batches: Sequence[Batch], loss_of: Callable[[Batch], Tensor]) -> bool:
        """Whether this rank's own gradients are finite; computed again, as those at hand are sums over ranks."""
        if self.stage == 3:
            return True  # a rank has no parameters of its own to differentiate by
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for batch in batches:
            grads = torch.autograd.grad(loss_of(batch), parameters, allow_unused=True)
            if not all(bool(torch.isfinite(grad).all()) for grad in grads if grad is not None):
                return False
        return True

    def _skip(self, fault: str) -> None:
        """End the step without an update, or the run."""
        self._skipped_in_a_row += 1
        if self.config.on_nonfinite == "raise":
            raise NonFiniteError(f"{fault}. Lower train.lr, set train.clip, or look at those samples")
        if self._skipped_in_a_row > MOST_SKIPS:
            raise NonFiniteError(f"{fault}; {MOST_SKIPS} steps in a row were skipped before. Lower train.lr")
        self.discard_gradients()
        self.skipped += 1

    def _backward(self, loss: Tensor) -> float:
        self.engine.backward(loss)
        return float(loss.detach())

    def _agree(self, loss: float, stop: bool) -> tuple[float, int, bool, float]:
        """One sum over ranks: (mean loss, ranks whose loss isn't finite, whether any rank stops, gradient norm).

        The norm is that of the gradient that the update applies, before clipping: NaN or infinite exactly when a
        gradient on any rank is (or when one tensor's norm exceeds float32). It sums up what each rank holds at every
        ZeRO stage, because DeepSpeed tells its norm only after the update, and under ZeRO leaves out an update with a
        norm that isn't finite without a word.
        """
        finite = math.isfinite(loss)
        values = [loss if finite else 0.0, float(not finite), float(stop), self._squared_gradients()]
        summed = self.world.sum(torch.tensor(values, dtype=torch.float64).to(self.world.device)).tolist()
        return summed[0] / self.world.world_size, int(summed[1]), bool(summed[2]), math.sqrt(summed[3])

    def discard_gradients(self) -> None:
        """End a step without an update: weights and moments stay as they are, whatever the gradients. Collective."""
        if not self.partitioned:
            # Clipping, which comes first, wants gradients; Adam passes over parameters without one.
            drop = self.optimizer.register_step_pre_hook(lambda adam, *_: adam.zero_grad(set_to_none=True))
            self.engine.step()
            drop.remove()
            return
        # DeepSpeed leaves out an update with a norm that isn't finite on all ranks. One number is made so, and one that
        # is surely a gradient's: parts are filled up at their ends, and what stands there is not written again.
        if self.world.is_main:
            if self.engine.zero_cpu_offload():
                norms = self.optimizer.norm_for_param_grads
                norms[next(iter(norms))] = torch.tensor(math.nan)
            else:
                self.held_gradients()[0].view(-1)[0] = math.nan
        self.engine.step()

    def _squared_gradients(self) -> float:
        """This rank's part of the squared norm of the gradient."""
        norms = [torch.linalg.vector_norm(part, dtype=torch.float32).double().cpu() for part in self.held_gradients()]
        return float(torch.stack(norms).square().sum()) / (1 if self.partitioned else self.world.world_size)

    def held_gradients(self) -> list[Tensor]:
        """The averaged gradients that this rank updates with: its partition, without ZeRO all of them."""
        if not self.partitioned:
            return [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        if self.engine.zero_cpu_offload():
            if self.world.device.type == "cuda":
                torch.cuda.synchronize(self.world.device)  # DeepSpeed's copies to the CPU may still be under way
            return [flat.grad for flat in self.masters() if flat.grad is not None]
        return [part for group in self.optimizer.averaged_gradients.values() for part in group]

    def masters(self) -> list[Tensor]:
        """The flat fp32 weights of this rank's partition, under ZeRO."""
        optimizer = self.optimizer
        return list(
            optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        )

    def gather(self) -> TrainState | None:
        """The full state on rank 0, None on the others, which hold no copy of it. Collective: all ranks call it."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False)) if self.partitioned else {}
        weights: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            # What the module holds is rounded (bf16) or a part (ZeRO-3); all ranks together put the whole together.
            full = _full(parameters[name], None) if name in parameters else value
            if self.world.is_main:
                weights[name] = _copy(full)
        moments: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self.model.named_parameters() if self.step_count > self.skipped else ():
            moments[name] = {}
            for key in MOMENTS:
                full = _full(parameter, key) if self.partitioned else self.optimizer.state[parameter][key]
                if self.world.is_main:
                    moments[name][key] = _copy(full)
        return TrainState(weights, moments, self.step_count, self.skipped) if self.world.is_main else None

    def _restore(self, state: TrainState) -> None:
        """Put Adam's moments and the fp32 master weights back; the model's own weights are loaded already."""
        self.step_count, self.skipped = state.step, state.skipped
        self.engine.global_steps = state.step
        if not state.moments:
            return
        inner = self.optimizer.optimizer if self.partitioned else self.optimizer
        for flat in self.masters() if self.partitioned else self.model.parameters():
            zeros = {key: torch.zeros_like(flat) for key in MOMENTS}
            inner.state[flat] = {"step": torch.tensor(float(state.step - state.skipped), device=flat.device), **zeros}
        if self.stage in (1, 2):
            # DeepSpeed links a parameter to its part of the flat moments at the first step; here they exist already.
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.model.named_parameters():
            self._restore_one(parameter, state.weights[name], state.moments[name])

    def _restore_one(self, parameter: nn.Parameter, weight: Tensor, moments: Mapping[str, Tensor]) -> None:
        from deepspeed import utils

        if self.stage == 3:
            # Parts have equal sizes, the last ones filled up. DeepSpeed's setters of full values don't fill up, so that
            # they fail on a parameter that the ranks don't divide.
            utils.safe_set_local_fp32_param(parameter, self._part(parameter, weight))
            for key in MOMENTS:
                utils.safe_set_local_optimizer_state(parameter, self._part(parameter, moments[key]), key)
        elif self.partitioned:
            utils.safe_set_full_fp32_param(parameter, weight.to(parameter.device))
            for key in MOMENTS:
                utils.safe_set_full_optimizer_state(parameter, moments[key].to(parameter.device), key)
        else:
            for key in MOMENTS:
                self.optimizer.state[parameter][key].copy_(moments[key])

    def _part(self, parameter: nn.Parameter, full: Tensor) -> Tensor:
        """This rank's part of a parameter-sized tensor under ZeRO-3."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        filled = F.pad(full.flatten(), (0, size * self.world.world_size - full.numel()))
        return filled[size * self.world.rank :][:size]


def _full(parameter: nn.Parameter, moment: str | None) -> Tensor:
    """A master weight or a moment under ZeRO, whole on every rank's device (collective)."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    full = safe_get_full_fp32_param(parameter) if moment is None else safe_get_full_optimizer_state(parameter, moment)
    assert full is not None
    return full


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
