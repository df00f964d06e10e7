"""Training by DeepSpeed: from our config to its own, one optimizer step, and its full state in and out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from toolkit.checkpoint.checkpoint import TrainState
from toolkit.config.sections import TrainConfig
from toolkit.data.batches import Batch, Share
from toolkit.distributed.world import World
from toolkit.models.base import SequenceModel
from toolkit.train.compiled import compile_step
from toolkit.train.deepspeed_settings import deepspeed_config, import_deepspeed
from toolkit.train.deferred import DeferredGradients
from toolkit.train.engine import Engine, LossOf, StepResult, evaluating, norms_of, on_host
from toolkit.train.optimizer import make_optimizer, state_of, trainable_groups


class DeepSpeedEngine(Engine):
    """A model under DeepSpeed.

    Attributes:
        wrapped: the model as DeepSpeed wraps it (`deepspeed.DeepSpeedEngine`).
        not_graphed: why `train.graph: auto` did not choose the engine that a GPU can replay, for the log.
    """

    not_graphed: str | None = None

    def __init__(self, model: SequenceModel, config: TrainConfig, share: Share, world: World) -> None:
        super().__init__(model, config, share, world)
        deepspeed = import_deepspeed(world)
        deepspeed.init_distributed(dist_init_required=False, auto_mpi_discovery=False, verbose=False)
        # Before DeepSpeed hooks into the model: what `gathered_parameters` fills. It takes no memory.
        self._blank = copy.deepcopy(model).to("meta") if config.zero == 3 else None
        model.to(world.device)
        compile_step(model, config)
        groups = trainable_groups(model, config)
        optimizer = make_optimizer([(group.weight_decay, group.parameters) for group in groups], config)
        settings = deepspeed_config(config, share, self.parameter_count)
        self.wrapped, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=settings, dist_init_required=False
        )
        deferred = config.is_deferred(world.device.type == "cuda")
        self.deferred = DeferredGradients(self.model) if deferred else nullcontext()
        self.stage = int(self.wrapped.zero_optimization_stage())
        self.partitioned = self.stage > 0
        if self.stage in (1, 2) and len(groups) > 1:
            # DeepSpeed links parameters to their moments after the first group's first update, when a second group
            # has none yet, and never again.
            for held in self._held():
                self._torch_optimizer().state[held] = state_of(held, 0, config)
        self._start_average()

    @property
    def model(self) -> SequenceModel:
        module = self.wrapped.module
        assert isinstance(module, SequenceModel)
        return module

    @contextmanager
    def gathered_parameters(self) -> Iterator[SequenceModel]:
        """Return the model for predictions, in evaluation mode.

        All ranks enter together; inside, each calls it as often as it likes. Under ZeRO-3 a forward pass of the
        trained module itself is collective (it gathers weights layer by layer), and ranks with unequal numbers of
        batches would wait for each other forever: there it is a copy with all weights, gone afterwards.
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
        with evaluating(model):
            yield model

    @property
    def forward(self) -> Callable[..., Any]:
        forward: Callable[..., Any] = self.wrapped
        return forward

    def describe(self) -> str:
        why = f" (not graphed: {self.not_graphed})" if self.not_graphed else ""
        deferred = ", weight gradients deferred" * isinstance(self.deferred, DeferredGradients)
        return f"DeepSpeed ZeRO {self.config.zero}{deferred}{why}"

    def phases(self) -> tuple[Any, Mapping[str, str]]:
        return self.wrapped, {"forward": "forward", "backward": "backward", "step": "optimizer"}

    def _forward_backward(self, batches: Sequence[Batch], loss_of: LossOf) -> Tensor:
        self.wrapped.train()
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for number, batch in enumerate(batches):
            with self.deferred:
                loss = loss_of(batch)
                self.wrapped.backward(loss)
            total += loss.detach()
            if number < len(batches) - 1:
                self.wrapped.step()  # counts the micro-batch; DeepSpeed updates after the last one only
        return total / len(batches)

    def _reduce_gradients(self) -> tuple[Tensor, int]:
        """DeepSpeed averages while it goes backward. The norms are those that the update applies, before clipping.

        They are taken of what each rank holds, because DeepSpeed reports its norm only after the update, and under ZeRO
        skips an update with a norm that isn't finite without a warning.
        """
        norms = norms_of(self.held_gradients()).to(self.world.device)
        return norms, 1 if self.partitioned else self.world.world_size

    def _update(self, status: Tensor) -> StepResult:
        result = self._check(status)
        if result.fault is None and not result.lost:
            self.wrapped.step()
        return result

    def _gradients_are_finite(self, batches: Sequence[Batch], loss_of: LossOf) -> bool:
        if self.stage == 3:
            return True  # a rank has no parameters of its own to differentiate by
        return super()._gradients_are_finite(batches, loss_of)

    def discard_gradients(self) -> None:
        if not self.partitioned:
            # Clipping, which comes first, wants gradients; Adam passes over parameters without one.
            drop = self.optimizer.register_step_pre_hook(lambda adam, *_: adam.zero_grad(set_to_none=True))
            self.wrapped.step()
            drop.remove()
            return
        # DeepSpeed leaves out an update with a norm that isn't finite on all ranks. One number is made so, and one that
        # is surely a gradient's: parts are filled up at their ends, and what stands there is not written again.
        if self.world.is_main:
            if self.wrapped.zero_cpu_offload():
                norms = self.optimizer.norm_for_param_grads
                norms[next(iter(norms))] = torch.tensor(math.nan)
            else:
                self.held_gradients()[0].view(-1)[0] = math.nan
        self.wrapped.step()

    def held_gradients(self) -> list[Tensor]:
        """Return the averaged gradients used by this rank: its partition, or all of them without ZeRO."""
        if not self.partitioned:
            return [p.grad for p in self.wrapped.module.parameters() if p.grad is not None]
        if self.wrapped.zero_cpu_offload():
            if self.world.device.type == "cuda":
                torch.cuda.synchronize(self.world.device)  # DeepSpeed's copies to the CPU may still be under way
            return [flat.grad for flat in self.masters() if flat.grad is not None]
        return [part for group in self.optimizer.averaged_gradients.values() for part in group]

    def masters(self) -> list[Tensor]:
        """Return the flat fp32 weights of the partition of this rank under ZeRO."""
        optimizer = self.optimizer
        return list(
            optimizer.fp32_partitioned_groups_flat if self.stage == 3 else optimizer.single_partition_of_fp32_groups
        )

    def _torch_optimizer(self) -> Optimizer:
        inner = self.optimizer.optimizer if self.partitioned else self.optimizer
        assert isinstance(inner, Optimizer)
        return inner

    def _held(self) -> list[Tensor]:
        return self.masters() if self.partitioned else [p for p in self.model.parameters() if p.requires_grad]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def _gather_weights(self) -> dict[str, Tensor]:
        named = self.model.named_parameters(remove_duplicate=False)
        parts = {name: parameter for name, parameter in named if self.partitioned and parameter.requires_grad}
        weights: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            # What the module holds is rounded (bf16) or a part (ZeRO-3); all ranks together put the whole together.
            full = _full(parts[name], None) if name in parts else value
            if self.world.is_main:
                weights[name] = on_host(full)
        return weights

    def _gather_moments(self) -> dict[str, dict[str, Tensor]]:
        moments: dict[str, dict[str, Tensor]] = {}
        for name, parameter in self._trained():
            for key in self.moments:
                full = _full(parameter, key) if self.partitioned else self.optimizer.state[parameter][key]
                if self.world.is_main:
                    moments.setdefault(name, {})[key] = on_host(full)
        return moments

    def restore(self, state: TrainState) -> None:
        self.wrapped.global_steps = state.step
        super().restore(state)

    def _put_weights(self, weights: Mapping[str, Tensor]) -> None:
        from deepspeed import utils

        for name, parameter in self._trained():
            if self.stage == 3:
                # Parts have equal sizes, the last ones filled up. DeepSpeed's setters of full values don't fill up, so
                # that they fail on a parameter that the ranks don't divide.
                utils.safe_set_local_fp32_param(parameter, self._part(parameter, weights[name]))
            elif self.partitioned:
                utils.safe_set_full_fp32_param(parameter, weights[name].to(parameter.device))
            else:
                parameter.copy_(weights[name])

    def _put_moments(self, state: TrainState) -> None:
        from deepspeed import utils

        inner = self._torch_optimizer()
        for held in self._held():
            inner.state[held] = state_of(held, state.step - state.skipped, self.config)
        if self.stage in (1, 2):
            # DeepSpeed links a parameter to its part of the flat moments at the first step; here they exist already.
            self.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self._trained():
            for key, moment in state.moments[name].items():
                if self.stage == 3:
                    utils.safe_set_local_optimizer_state(parameter, self._part(parameter, moment), key)
                elif self.partitioned:
                    utils.safe_set_full_optimizer_state(parameter, moment.to(parameter.device), key)
                else:
                    inner.state[parameter][key].copy_(moment)

    def _part(self, parameter: nn.Parameter, full: Tensor) -> Tensor:
        """Return the partition of this rank of a parameter-sized tensor under ZeRO-3."""
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        filled = F.pad(full.flatten(), (0, size * self.world.world_size - full.numel()))
        return filled[size * self.world.rank :][:size]


def _full(parameter: nn.Parameter, moment: str | None) -> Tensor:
    """Gather a master weight or a moment under ZeRO on the device of every rank (collective)."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    full = safe_get_full_fp32_param(parameter) if moment is None else safe_get_full_optimizer_state(parameter, moment)
    assert full is not None
    return full
