"""Drives a step function over time; owns scheduled sampling's mixing and activation checkpointing.

Policies (`train.checkpointing`), for T steps: what is kept between the forward and the backward pass, what it costs.

    none       every activation of every step: memory grows with T times a step's activations
    step       the state and input of each step; every step is run once more
    segment    the state after every k-th step (k = sqrt(T) rounded up), and at a time all activations of one segment;
               every step is run once more. Less than `step` only where states, not activations, fill the memory
    recursive  spans of 4^n steps, in them spans of 4^(n-1), ... single steps: up to 4 states for each power of 4 in T,
               so memory grows with log T; every step is run once more for each level (T = 19: 3 levels, T = 200: 4)

All give the same gradients, bit for bit. Checkpointing is torch's non-reentrant form: DeepSpeed's ZeRO-2 and 3 reduce a
gradient when its hook fires, and the reentrant form fires it once per time step. Steps draw no random numbers, so no
generator state is saved or restored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
Result = TypeVar("Result")

BRANCHES = 4  # spans in the next larger span under `recursive`


def unroll(
    step: Step,
    frames: Tensor,
    state: Any,
    steps: int,
    context: int,
    *,
    teacher: Tensor | None = None,
    policy: str = "none",
) -> tuple[Tensor, Any]:
    """Predict `steps` next frames.

    Args:
        step: (frame_t [B, ...], state) -> (frame_{t+1}, state); draws no random numbers.
        frames: [B, K, ...], the known frames; K >= context, and K >= steps where `teacher` is given.
        state: the state before the first frame.
        steps: how many predictions.
        context: inputs 0 .. context - 1 are always known frames.
        teacher: bool [B, steps - context]; True where a later input is the known frame. None: always the prediction.
        policy: see above.

    Returns:
        Predictions [B, steps, ...], index t that of frame t + 1; and the state after the last step.
    """

    def input_at(t: int, previous: Tensor | None) -> Tensor:
        if t < context:
            return frames[:, t]
        assert previous is not None
        if teacher is None:
            return previous
        known = teacher[:, t - context].view(-1, *[1] * (frames.dim() - 2))
        return torch.where(known, frames[:, t], previous)

    def span(first: int, last: int, previous: Tensor | None, state: Any, cuts: tuple[int, ...]) -> tuple[Tensor, Any]:
        """Steps first .. last - 1; `cuts` are the lengths of the spans to recompute, outermost first."""
        parts = []
        if cuts:
            for start in range(first, last, cuts[0]):
                stop = min(start + cuts[0], last)
                part, state = under_policy(policy, span, start, stop, previous, state, cuts[1:])
                previous = part[:, -1]
                parts.append(part)
            return torch.cat(parts, dim=1), state
        for t in range(first, last):
            previous, state = step(input_at(t, previous), state)
            parts.append(previous)
        return torch.stack(parts, dim=1), state

    return span(0, steps, None, state, cuts_of(policy, steps) if torch.is_grad_enabled() else ())


def cuts_of(policy: str, steps: int) -> tuple[int, ...]:
    """Lengths of the spans that are recomputed as one, outermost first."""
    if policy == "none":
        return ()
    if policy == "step":
        return (1,)
    if policy == "segment":
        return (math.isqrt(steps - 1) + 1,)
    assert policy == "recursive", policy
    sizes = [1]
    while sizes[-1] * BRANCHES < steps:
        sizes.append(sizes[-1] * BRANCHES)
    return tuple(reversed(sizes))


def under_policy(policy: str, function: Callable[..., Result], *args: Any) -> Result:
    """function(*args), which must draw no random numbers; under any policy but `none` it is recomputed backward."""
    if policy != "none" and torch.is_grad_enabled():
        out: Result = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
        return out
    return function(*args)
