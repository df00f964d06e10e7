"""Drives a step function over time; owns scheduled sampling's mixing and activation checkpointing.

Policies (`activation_checkpointing.policy`): what is kept between the forward and the backward pass of T steps. A is
what autograd keeps of one step, S the state between two steps; at 384x384 ModeRNN's A is 70 times S.

    policy      memory                steps run forward       T = 20 frames      T = 200 frames
    none        T A                   T                       19 A               199 A
    step        T S + A               2 T                     19 S + A           199 S + A
    segment     k S + T / k A         2 T                     5 S + 5 A          15 S + 15 A     k = sqrt(T) rounded up
    recursive   s S + A, s ~ log T    (1 + r) T, r ~ log T    6 S + A, r = 2     7 S + A, r = 4

A step's backward costs about two forwards: T, 2 T and 5 T above are 3, 4 and 7 forwards a step with it. `recursive` is
the binomial schedule of Griewank and Walther (ACM TOMS 26, 2000) for s states and r recomputations of every step, as
spans within spans: each span is recomputed as one, and a span gets the fewer states the more of its elder siblings
hold one. Spans of equal length, 4^n, need 16 states for the same four recomputations at T = 200.

    per_layer           A becomes what one layer keeps: layers, not steps, are the least that is recomputed, which costs
                        no further forward under `step` and `recursive` (one more under `segment`). Models without a
                        step, see there
    offload             what the outermost recomputed parts keep goes to host memory, pinned where there is a GPU, and
                        comes back when it is needed. On a CPU the copy has no benefit

All give the same gradients: bit for bit on a CPU, and on a GPU under `train.deterministic` (without it no two passes of
a GPU need be equal, recomputed or not). Checkpointing is torch's non-reentrant form: DeepSpeed's ZeRO-2 and 3 reduce a
gradient when its hook fires, and the reentrant form fires it once per time step. DeepSpeed's own form is reentrant and
can be chosen where that does no harm (`activation_checkpointing.backend`, toolkit/config/sections.py). Steps draw no
random numbers, so no generator state is saved or restored.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
Schedule: TypeAlias = (
    "int | tuple[Schedule, ...]"  # so many steps as they are, or parts of which each is recomputed as one
)
Result = TypeVar("Result")

MORE_STATES = 4  # `recursive` keeps up to so many states more than it recomputes a step


class OnHost(saved_tensors_hooks):
    """Tensors that autograd saves lie in host memory until they are wanted; pinned, and copied meanwhile, with a GPU.

    As torch's `save_on_cpu`, but strides stay too: a state laid out channels-last comes back so, else convolutions take
    another way and the last bits differ.
    """

    def __init__(self) -> None:
        super().__init__(self.pack, self.unpack)

    @staticmethod
    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return tensor.device, kept.copy_(tensor, non_blocking=True)

    @staticmethod
    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, kept = packed
        return kept.to(device, non_blocking=True)


@dataclass(frozen=True)
class Checkpointing:
    """What is recomputed and where the rest is kept; the fields are the keys of `train` (see the module)."""

    policy: str = "none"
    layers: bool = False
    offload: bool = False
    backend: str = "torch"

    def __str__(self) -> str:
        said = [self.policy] + ["by layers"] * self.layers + ["states on the host"] * self.offload
        return " ".join(said + ["by DeepSpeed"] * (self.backend == "deepspeed"))

    def run(self, function: Callable[..., Result], *args: Any, outermost: bool = True) -> Result:
        """function(*args), recomputed backward under any policy but `none`.

        Args:
            function: draws no random numbers.
            args: trees of tensors: what is kept.
            outermost: not itself part of what is recomputed; `offload` moves its arguments.
        """
        if self.policy == "none" or not torch.is_grad_enabled():
            return function(*args)
        # Autograd sees only tensors that are arguments themselves; those inside a tree it can neither move nor free.
        leaves, tree = tree_flatten(args)

        def flat(*leaves: Any) -> Result:
            return function(*tree_unflatten(leaves, tree))

        if self.backend == "deepspeed":
            return _deepspeed_checkpoint(flat, leaves)
        # Around the call the hooks get its arguments; inside it checkpoint's own hooks are in force.
        with OnHost() if self.offload and outermost else nullcontext():
            out: Result = checkpoint(flat, *leaves, use_reentrant=False, preserve_rng_state=False)
            return out

    def run_layer(self, function: Callable[..., Result], *args: Any) -> Result:
        """function(*args), recomputed on its own where `layers` says so."""
        return self.run(function, *args, outermost=self.policy == "step") if self.layers else function(*args)


NO_CHECKPOINTING = Checkpointing()


def unroll(
    step: Step,
    frames: Tensor,
    state: Any,
    steps: int,
    context: int,
    *,
    teacher: Tensor | None = None,
    targets: Sequence[int] | None = None,
    checkpointing: Checkpointing = NO_CHECKPOINTING,
) -> tuple[Tensor, Any]:
    """Predict `steps` next frames.

    Args:
        step: (frame_t [B, ...], state) -> (frame_{t+1}, state); draws no random numbers.
        frames: [B, K, ...], the known frames; K >= context, and K >= steps where `teacher` or `targets` is given.
        state: the state before the first frame.
        steps: how many predictions.
        context: inputs 0 .. context - 1 are always known frames.
        teacher: bool [B, steps - context]; True where a later input is the known frame. None: always the prediction.
        targets: channels of a frame [B, C, H, W] that predictions replace in a later input; the others are always those
            of `frames`. None: all channels.
        checkpointing: see above.

    Returns:
        Predictions [B, steps, ...], index t that of frame t + 1; and the state after the last step.
    """

    def input_at(t: int, previous: Tensor | None) -> Tensor:
        if t < context:
            return frames[:, t]
        assert previous is not None
        if targets is not None:
            previous = with_channels(frames[:, t], previous, targets)
        if teacher is None:
            return previous
        known = teacher[:, t - context].view(-1, *[1] * (frames.dim() - 2))
        return torch.where(known, frames[:, t], previous)

    def span(part: Schedule, t: int, previous: Tensor | None, state: Any, outermost: bool) -> tuple[list[Tensor], Any]:
        """Return the predictions of one part of the schedule, which starts at step t, and the state after it."""
        out: list[Tensor] = []
        if isinstance(part, int):
            for at in range(t, t + part):
                previous, state = step(input_at(at, previous), state)
                out.append(previous)
            return out, state
        for inner in part:
            if inner == 1 and checkpointing.layers:  # each layer keeps its own part of the state
                some, state = span(inner, t + len(out), previous, state, False)
            else:
                args = (inner, t + len(out), previous, state, False)
                some, state = checkpointing.run(span, *args, outermost=outermost)
            out += some
            previous = out[-1]
        return out, state

    schedule = schedule_of(checkpointing.policy, steps) if torch.is_grad_enabled() else steps
    out, state = span(schedule, 0, None, state, True)
    return torch.stack(out, dim=1), state


def with_channels(frames: Tensor, others: Tensor, channels: Sequence[int]) -> Tensor:
    """Return frames [..., C, H, W] with some channels of `others`, of the same shape; nothing comes from the host."""
    pairs = enumerate(zip(frames.unbind(-3), others.unbind(-3), strict=True))
    return torch.stack([other if place in channels else own for place, (own, other) in pairs], -3)


def schedule_of(policy: str, steps: int) -> Schedule:
    """Return the parts that a policy recomputes together."""
    if policy == "none":
        return steps
    if policy == "step":
        return (1,) * steps
    if policy == "segment":
        length = math.isqrt(steps - 1) + 1
        return tuple(min(length, steps - first) for first in range(0, steps, length))
    assert policy == "recursive", policy
    repeats = 1
    while covered(repeats + MORE_STATES, repeats) < steps:
        repeats += 1
    states = next(s for s in range(1, steps + 1) if covered(s, repeats) >= steps)
    spans = binomial(steps, states)
    return (spans,) if spans == 1 else spans


def covered(states: int, repeats: int) -> int:
    """How many steps can be run backward from that many states, each step recomputed so often."""
    return math.comb(states + repeats - 1, repeats)


def binomial(steps: int, states: int) -> Schedule:
    """Spans within spans, so that at most `states` are ever kept at once; 1 <= steps, 1 <= states."""
    if steps == 1:
        return 1
    repeats = next(r for r in range(1, steps + 1) if covered(states, r) >= steps)
    parts: list[Schedule] = []
    while steps:
        length = min(steps, covered(states, repeats - 1))
        parts.append(binomial(length, states))
        steps, states = steps - length, states - 1  # while a later part is recomputed this one's state is kept
    return tuple(parts)


def _deepspeed_checkpoint(function: Callable[..., Result], leaves: list[Any]) -> Result:
    """function(*leaves) under DeepSpeed's checkpointing, whose outputs are plain tensors."""
    from deepspeed.runtime.activation_checkpointing import checkpointing

    tree: Any = None

    def flat(_: Tensor, *leaves: Any) -> tuple[Any, ...]:
        nonlocal tree
        out, tree = tree_flatten(function(*leaves))
        # An input that is handed on would pass its gradient around the checkpoint, summed in another order.
        return tuple(t.clone() if any(t is leaf for leaf in leaves) else t for t in out)

    # Without an argument that wants a gradient a reentrant checkpoint gives none to the parameters either.
    wanting = torch.zeros((), requires_grad=True)
    out = checkpointing.checkpoint(flat, wanting, *leaves)
    result: Result = tree_unflatten(list(out) if isinstance(out, tuple) else [out], tree)
    return result


def give_memory_back() -> None:
    """Let this process return freed memory to the system at once, where the C library is glibc.

    It keeps freed blocks of up to 32 MiB for later, in pieces that the next tensors don't fit: a third of the peak of a
    step at 384x384 is such pieces. From here on a block above 128 KiB is mapped and unmapped by itself. The pages cost
    time, 40 % at 128x128; so this is for `per_layer`, which asks for the least memory.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h; setting it also ends its growth
        libc.mallopt(mmap_threshold, 128 * 1024)
