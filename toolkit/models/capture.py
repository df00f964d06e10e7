"""Looking inside a model while it predicts, without touching what it computes.

    with capture(model) as seen, torch.no_grad():
        model.predict(context, horizon)
    seen.memory[layer]   a tensor per time step: C_t of a layer, B_t of ModeRNN   [B, channels, h, w]
    seen.slots[layer]    ModeRNN's slot features, after binding where there is any  [B, N, width, h, w]
    seen.weights[layer]  its importance weights omega, before any sigmoid           [B, N, gate sets, 2 x hidden]

The tensors are the model's own: what is kept isn't copied, and nothing runs that wouldn't run without. Forward hooks
do it, so a model that nobody looks at pays nothing. Calls follow each other: two forecasts in one block give the steps
of both. Only in evaluation: under gradients activation checkpointing would show some steps twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import ConfigError, ToolkitError
from toolkit.models.base import Probe, SequenceModel, StepSequence

Steps = defaultdict[int, list[Tensor]]  # layer -> one tensor for each time step


def _steps() -> Steps:
    return defaultdict(list)


@dataclass(frozen=True)
class Captured:
    """What was seen, by layer and then by time step; empty where a model has no such thing."""

    memory: Steps = field(default_factory=_steps)
    slots: Steps = field(default_factory=_steps)
    weights: Steps = field(default_factory=_steps)


@contextmanager
def capture(model: SequenceModel, look: Callable[[str, Tensor], Tensor] | None = None) -> Iterator[Captured]:
    """Collect memories, slots and importance weights of every step that the model makes in the block.

    Args:
        look: (name, tensor) -> what is kept of it, such as a mean; None: the tensor itself. Names: those of `Captured`.

    Raises:
        ConfigError: the model isn't a step model.
        ToolkitError: it is run with gradients on.
    """
    if not isinstance(model, StepSequence):
        raise ConfigError(
            f"{type(model).__name__} has no memory from step to step that could be captured: "
            "choose a run of a recurrent next-frame model"
        )
    seen, cell = Captured(), model.cell
    keep = look or (lambda name, tensor: tensor)

    def before_step(module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled():
            raise ToolkitError("capture: the model runs with gradients on; use torch.no_grad(), or model.predict")

    def after_step(module: nn.Module, inputs: Any, output: Any) -> None:
        for layer, memory in enumerate(cell.memories(output[1])):
            seen.memory[layer].append(keep("memory", memory))

    def at_probe(probe: Probe, layer: int) -> Callable[..., None]:
        into: Steps = getattr(seen, probe.name)
        return lambda module, inputs, output: into[layer].append(keep(probe.name, output))

    hooks = [cell.register_forward_pre_hook(before_step), cell.register_forward_hook(after_step)]
    layers: dict[str, int] = defaultdict(int)
    for probe in cell.modules():  # in the order of the layers
        if isinstance(probe, Probe):
            hooks.append(probe.register_forward_hook(at_probe(probe, layers[probe.name])))
            layers[probe.name] += 1
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
