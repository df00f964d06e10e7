"""Training without DeepSpeed: every rank holds all weights and moments (ZeRO stage 0), and a step is one replay.

    per micro-batch    copy inputs, replay forward and backward (toolkit/train/graphed.py)
    per step           one all-reduce of all gradients, their norm, clipping, Adam; one copy of five numbers to the host

In bf16 the weights that the model computes with are rounded copies of fp32 master weights, which start from rounded
weights as DeepSpeed's do, and gradients are summed over ranks in bf16 as DeepSpeed does. Whether an update is left out,
because a loss or gradient of some rank isn't finite, is decided on the device: Adam looks at `found_inf`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from toolkit.checkpoint.checkpoint import TrainState
from toolkit.config.sections import TrainConfig
from toolkit.data.batches import Batch, Share
from toolkit.distributed.world import World
from toolkit.models.base import SequenceModel
from toolkit.train.compiled import compile_step
from toolkit.train.deferred import DeferredGradients
from toolkit.train.engine import Engine, LossOf, StepResult, evaluating, norms_of, on_host
from toolkit.train.graphed import FlatTensor, StaticStep
from toolkit.train.loss import TrainingLoss
from toolkit.train.optimizer import make_optimizer, state_of, trainable_groups

logger = logging.getLogger(__name__)


class ReplicatedEngine(Engine):
    """A model whose forward and backward pass is replayed; gradients lie in one flat tensor."""

    def __init__(self, model: SequenceModel, config: TrainConfig, share: Share, world: World) -> None:
        super().__init__(model, config, share, world)
        low = config.precision == "bf16"
        self._model = model.to(world.device, torch.bfloat16 if low else None)
        compile_step(model, config)
        groups = trainable_groups(model, config)
        self.names = [name for group in groups for name, _ in group.named]
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.gradients = FlatTensor(self.parameters, self.parameters[0].dtype)
        for parameter, gradient in zip(self.parameters, self.gradients.views, strict=True):
            parameter.grad = gradient
        self.masters = [Masters(group.parameters) for group in groups] if low else []
        held = [[part.weights] for part in self.masters] if low else [group.parameters for group in groups]
        decays = [group.weight_decay for group in groups]
        self.optimizer = make_optimizer(list(zip(decays, held, strict=True)), config)
        if config.optimizer == "sgd":  # its first update would else not be left out where a gradient isn't finite
            for weight in self._held():
                self.optimizer.state[weight] = state_of(weight, 0, config)
        self._start_average()
        self.deferred = DeferredGradients(model) if config.is_deferred(world.device.type == "cuda") else None
        self._static: StaticStep | None = None

    @property
    def model(self) -> SequenceModel:
        return self._model

    @property
    def forward(self) -> Callable[..., Any]:
        return self._model

    def describe(self) -> str:
        graph = "one CUDA graph a micro-batch" if self.world.device.type == "cuda" else "static step (no CUDA graph)"
        return graph + ", weight gradients deferred" * (self.deferred is not None)

    def phases(self) -> tuple[Any, Mapping[str, str]]:
        optimizer = dict.fromkeys(("_reduce_gradients", "_reduce_step_status", "_update"), "optimizer")
        return self, {"_forward_backward": "forward and backward", **optimizer}

    def gathered_parameters(self) -> AbstractContextManager[SequenceModel]:
        return evaluating(self._model)

    def _forward_backward(self, batches: Sequence[Batch], loss_of: LossOf) -> Tensor:
        assert isinstance(loss_of, TrainingLoss), "a replay needs the loss in two parts"
        self._model.train()
        self.gradients.buffer.zero_()
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for batch in batches:
            total += self._replay(batch, loss_of)
        return total / len(batches)

    def _replay(self, batch: Batch, loss_of: TrainingLoss) -> Tensor:
        """Return the loss of one micro-batch; its forward and backward pass are captured at the first call."""
        if self._static is None:
            parts = self.share.accumulation
            required = self.config.graph == "on"
            self._static = StaticStep(self._model, loss_of, self.gradients.buffer, parts, self.deferred, required)
            loss = self._static.run(batch)
            if self._static.fault:
                logger.warning("no CUDA graph, passes run eagerly: %s", self._static.fault)
            return loss
        return self._static.run(batch)

    def _gradients_are_finite(self, batches: Sequence[Batch], loss_of: LossOf) -> bool:
        """By the same replays: plain backward passes would need the activations' memory twice, beside the graph's."""
        assert isinstance(loss_of, TrainingLoss)
        self.gradients.buffer.zero_()
        for batch in batches:
            self._replay(batch, loss_of)
        return bool(torch.isfinite(self.gradients.buffer).all())

    def _reduce_gradients(self) -> tuple[Tensor, int]:
        ranks = self.world.world_size
        if ranks > 1:
            self.world.sum(self.gradients.buffer).mul_(1 / ranks)
        self._reduced = self._updating_gradients()
        self._norms = norms_of([view for part in self._reduced for view in part.views])
        return self._norms, ranks

    def _update(self, status: Tensor) -> StepResult:
        """Update before the host knows the status: the kernels read on the device whether all is finite."""
        if self.config.clip is not None:
            norm = self._norms.square().sum().sqrt()  # as DeepSpeed and torch.nn.utils.clip_grad_norm_ do, bit for bit
            factor = (torch.full_like(norm, self.config.clip) / (norm + 1e-6)).clamp(max=1.0)
            for part in self._reduced:
                part.buffer.mul_(factor)
        # The optimizer's own protocol with torch.amp.GradScaler: its kernel leaves out an update where this is 1.
        found_inf = ((status[1] > 0) | ~torch.isfinite(status[3])).float()
        self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        self.optimizer.step()
        for masters in self.masters:
            masters.round()
        return self._check(status)

    def discard_gradients(self) -> None:
        """Do nothing: `_update` has left the update out on the device, and the next step overwrites gradients."""

    def _updating_gradients(self) -> list[FlatTensor]:
        """Return the gradients that the optimizer reads; in bf16 after widening them."""
        if not self.masters:
            return [self.gradients]
        widths = [masters.gradients.buffer.numel() for masters in self.masters]
        for masters, low in zip(self.masters, self.gradients.buffer.split(widths), strict=True):
            masters.gradients.buffer.copy_(low)
        return [masters.gradients for masters in self.masters]

    def _torch_optimizer(self) -> Optimizer:
        return self.optimizer

    def _held(self) -> list[Tensor]:
        return [masters.weights for masters in self.masters] or list(self.parameters)

    def _exact(self) -> list[Tensor]:
        """Return the fp32 weights of each parameter."""
        return [view for masters in self.masters for view in masters.views()] or [p.detach() for p in self.parameters]

    def _gather_weights(self) -> dict[str, Tensor]:
        if not self.world.is_main:
            return {}
        weights = {name: on_host(value) for name, value in self._model.state_dict().items()}
        if self.masters:
            exact = dict(zip(map(id, self.parameters), self._exact(), strict=True))
            for name, parameter in self._model.named_parameters(remove_duplicate=False):
                if parameter.requires_grad:
                    weights[name] = on_host(exact[id(parameter)])
        return weights

    def _gather_moments(self) -> dict[str, dict[str, Tensor]]:
        if not self.world.is_main:
            return {}
        held = [self._moment(key) for key in self.moments]
        return {
            name: {key: on_host(part) for key, part in zip(self.moments, parts, strict=True)}
            for name, *parts in zip(self.names, *held, strict=True)
        }

    def _moment(self, key: str) -> list[Tensor]:
        """Return one of the optimizer's moments for each parameter."""
        if self.masters:
            parts = (masters.views(self.optimizer.state[masters.weights][key]) for masters in self.masters)
            return [view for part in parts for view in part]
        return [self.optimizer.state[parameter][key] for parameter in self.parameters]

    def _put_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in zip(self.names, self._exact(), strict=True):
            weight.copy_(weights[name])
        for masters in self.masters:
            masters.round()

    def _put_moments(self, state: TrainState) -> None:
        for weight in self._held():
            self.optimizer.state[weight] = state_of(weight, state.step - state.skipped, self.config)
        for key in self.moments:
            for name, moment in zip(self.names, self._moment(key), strict=True):
                moment.copy_(state.moments[name][key])


class Masters:
    """fp32 weights behind some of a model's bf16 parameters, which become views of one flat tensor.

    Attributes:
        weights: all of them, flat; what the optimizer updates by `weights.grad`.
        gradients: that gradient, with a view for each parameter.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._rounded = FlatTensor(parameters, parameters[0].dtype)
        for parameter, view in zip(parameters, self._rounded.views, strict=True):
            view.copy_(parameter.detach())
            parameter.data = view
        self.weights = nn.Parameter(self._rounded.buffer.float())
        self.gradients = FlatTensor(parameters, torch.float32)
        self.weights.grad = self.gradients.buffer

    def round(self) -> None:
        """Give the parameters what the masters are now."""
        self._rounded.buffer.copy_(self.weights.detach())

    def views(self, buffer: Tensor | None = None) -> list[Tensor]:
        """Return the masters of each parameter, or the parts of a buffer of their size."""
        return self.gradients.views_of(self.weights.detach() if buffer is None else buffer)
