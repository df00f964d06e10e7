"""Drives a step function over time; owns scheduled sampling's mixing and activation checkpointing.

Policies (`train.checkpointing`), for T steps:
    none  every activation of every step is kept: memory grows with T times a step's activations.
    step  only the state and the input of each step are kept; the backward pass runs each step once more.

Checkpointing is torch's non-reentrant form: DeepSpeed's ZeRO-2 and 3 reduce a gradient when its hook fires, and the
reentrant form fires it once per time step. Steps draw no random numbers, so no generator state is saved or restored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
Result = TypeVar("Result")


def unroll(
    step: Step,
    frames: Tensor,
    state: Any,
    steps: int,
    context: int,
    *,
    teacher: Tensor | None = None,
    policy: str = "none",
    watch: Callable[[Any], None] | None = None,
) -> Tensor:
    """Predict `steps` next frames.

    Args:
        step: (frame_t [B, ...], state) -> (frame_{t+1}, state).
        frames: [B, K, ...], the known frames; K >= context, and K >= steps where `teacher` is given.
        state: the state before the first frame.
        steps: how many predictions.
        context: inputs 0 .. context - 1 are always known frames.
        teacher: bool [B, steps - context]; True where a later input is the known frame. None: always the prediction.
        policy: `none` or `step`, see above.
        watch: called with the state after every step, outside of what is checkpointed.

    Returns:
        [B, steps, ...]; index t is the prediction of frame t + 1.
    """
    predictions: list[Tensor] = []
    for t in range(steps):
        if t < context:
            args: tuple[Tensor, ...] = (frames[:, t],)
        elif teacher is None:
            args = (predictions[-1],)
        else:
            args = (frames[:, t], predictions[-1], _column(teacher, t - context, frames))
        prediction, state = _advance(step, args, state, policy)
        predictions.append(prediction)
        if watch is not None:
            watch(state)
    return torch.stack(predictions, dim=1)


def _advance(step: Step, args: tuple[Tensor, ...], state: Any, policy: str) -> tuple[Tensor, Any]:
    def run(inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        if len(inputs) == 1:
            return step(inputs[0], state)
        known, own, mask = inputs
        return step(torch.where(mask, known, own), state)

    return under_policy(policy, run, args, state)


def under_policy(policy: str, function: Callable[..., Result], *args: Any) -> Result:
    """function(*args), whose inside is recomputed in the backward pass under `step`. It must draw no random numbers."""
    if policy == "step" and torch.is_grad_enabled():
        out: Result = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
        return out
    return function(*args)


def _column(teacher: Tensor, index: int, frames: Tensor) -> Tensor:
    """teacher[:, index], shaped to broadcast over one frame."""
    return teacher[:, index].view(-1, *[1] * (frames.dim() - 2))
