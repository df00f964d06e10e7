"""Memory, communication and time of a run, from what its model costs. Does not import torch.

Memory of a process, at its highest, is the sum of

    weights     2 or 4 bytes a parameter; under ZeRO-3 large ones divided by the ranks
    master      4 bytes under ZeRO (in fp32 too), divided by the ranks; in a graphed step in bf16 alone
    moments     8 bytes, divided by the ranks under ZeRO; with an offloaded optimizer on the host, as the master is
    gradients   from the second micro-batch on; before that they are made as the backward pass goes. In a graphed step
                they stay in place, in bf16 once more in fp32 for the update
    buckets     DeepSpeed's buffer for reduction under ZeRO on a GPU
    deferred    in a graphed step, output gradients of all time steps for weight gradients: at most as much as is kept
                for the backward pass, and never more than MOST_DEFERRED
    pass        frames, states and predictions kept by the policy, activations of the largest recomputed part, gradients
                in the making, scratch of the operators: `cost.Peak`

What else a process takes (libraries, the CUDA context, what an allocator holds in reserve) is not in it: RESERVE. A
CUDA graph keeps its memory between steps, so a validation takes its own (a forward pass without gradients) on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.config import RunConfig
from toolkit.config_sections import MOST_DEFERRED
from toolkit.models.registry import StepOptions
from toolkit.plan.cost import Cost, Polynomial, under

GIB = 2**30
RESERVE = 0.1  # of the memory given: for what is not predicted


@dataclass(frozen=True)
class Machine:
    """What a run is planned for."""

    ranks: int
    memory: int  # bytes of one rank
    gpu: bool = True


@dataclass(frozen=True)
class Memory:
    """Peak bytes of one rank, by part."""

    weights: int
    master: int
    moments: int
    gradients: int
    buckets: int
    passing: int
    deferred: int = 0

    @property
    def total(self) -> int:
        held = self.weights + self.master + self.moments + self.gradients + self.buckets
        return held + self.passing + self.deferred


@dataclass(frozen=True)
class Choice:
    """A policy and a micro-batch.

    Attributes:
        work: multiply-accumulates of a sequence, forward, backward and recomputation.
    """

    policy: str
    micro_batch: int
    memory: Memory
    work: int
    fits: bool


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in one optimizer step (ring algorithms; it receives as many)."""

    reduced: int
    gathered: int

    @property
    def total(self) -> int:
        return self.reduced + self.gathered


def highest(lines: Iterable[Polynomial], batch: int, area: int) -> int:
    return max(line.at(batch, area) for line in lines)


def stage_of(config: RunConfig, gpu: bool) -> int:
    """The ZeRO stage that is run; a graphed step has none."""
    return 0 if config.train.is_graphed(gpu) else config.train.stage


def memory_of(config: RunConfig, cost: Cost, policy: str, micro_batch: int, area: int, machine: Machine) -> Memory:
    """Peak bytes of one rank."""
    train = config.train
    chosen = under(config, policy)
    if train.is_graphed(machine.gpu) and chosen.train.is_graphed(machine.gpu):
        return _graphed(chosen, cost, policy, micro_batch, area, machine)
    stage, numbers = train.stage, cost.parameters.at(1, area)
    width = 2 if train.precision == "bf16" else 4
    part = machine.ranks if stage else 1
    offloaded = train.offload_optimizer and machine.gpu  # on a CPU it is the same memory
    divided = cost.large - cost.large // machine.ranks if stage == 3 else 0
    extra = train.deepspeed.get("zero_optimization", {})
    buffers = 1 + bool(extra.get("overlap_comm", False))
    accumulates = train.share(machine.ranks) > micro_batch
    peak = cost.peaks[policy]
    passing = highest(peak.held if accumulates else peak.fresh, micro_batch, area)
    # After the pass come all gradients, joined for reduction, and in fp32 for the update of this rank's part. On a CPU
    # the pages of the buckets that are used count: those of the gradients.
    joined = 2 if stage and not machine.gpu else int(stage > 0 or machine.ranks > 1)
    update = numbers * (width + joined * width) + (4 * numbers // part if stage and not offloaded else 0)
    gradients = numbers * width if accumulates else 0
    return Memory(
        weights=(numbers - divided) * width,
        master=4 * numbers // part if stage and not offloaded else 0,
        moments=0 if offloaded else 8 * numbers // part,
        gradients=gradients,
        buckets=train.bucket(numbers) * width * buffers if stage and machine.gpu else 0,
        passing=max(passing, update - gradients),
    )


def _graphed(config: RunConfig, cost: Cost, policy: str, micro_batch: int, area: int, machine: Machine) -> Memory:
    """Peak bytes of one rank whose step is a CUDA graph (toolkit/train/replicated.py)."""
    numbers, low = cost.parameters.at(1, area), config.train.precision == "bf16"
    passing = highest(cost.peaks[policy].held, micro_batch, area)
    return Memory(
        weights=(2 if low else 4) * numbers,
        master=4 * numbers if low else 0,
        moments=8 * numbers,
        gradients=(6 if low else 4) * numbers,
        buckets=0,
        passing=passing,
        deferred=min(passing, MOST_DEFERRED) if config.train.is_deferred(machine.gpu) else 0,
    )


def choices(config: RunConfig, cost: Cost, area: int, machine: Machine) -> list[Choice]:
    """Every policy with every micro-batch that divides a rank's share by a power of two, and the share itself."""
    share = config.train.share(machine.ranks)
    sizes = sorted({size for size in (1 << n for n in range(share.bit_length())) if share % size == 0} | {share})
    found = []
    for policy in cost.peaks:
        work = cost.peaks[policy].work.at(1, area)
        for size in sizes:
            memory = memory_of(config, cost, policy, size, area, machine)
            found.append(Choice(policy, size, memory, work, memory.total <= machine.memory * (1 - RESERVE)))
    return found


def recommend(among: Iterable[Choice]) -> Choice | None:
    """The fastest that fits: the least work, then the largest micro-batch, then the least memory."""
    fitting = [choice for choice in among if choice.fits]
    return min(fitting, key=lambda c: (c.work, -c.micro_batch, c.memory.total), default=None)


def traffic(config: RunConfig, cost: Cost, area: int, ranks: int, choice: Choice) -> dict[int, Traffic]:
    """By ZeRO stage, what a rank sends in an optimizer step."""
    train, data = config.train, config.data
    width = 2 if train.precision == "bf16" else 4
    sent = width * (ranks - 1) / ranks  # of each number, reduced or gathered
    numbers = cost.parameters.at(1, area)
    once, passes = math.ceil(numbers * sent), train.share(ranks) // choice.micro_batch
    # Stage 0 and 1 reduce once a step, 2 and 3 after every micro-batch; 0 reduces by reduce-scatter and all-gather.
    # Stage 3 gathers large weights at every use: at each time step forward, recomputed and backward.
    steps = data.context + data.horizon - 1 if isinstance(config.model, StepOptions) else 1
    uses = steps * (round(choice.work / cost.macs.at(1, area)) - 1) * passes
    gathered = math.ceil((cost.large * uses + numbers - cost.large) * sent)
    stages = (once, once), (once, once), (once * passes, once), (once * passes, gathered)
    return {stage: Traffic(*both) for stage, both in enumerate(stages)}


def hours(config: RunConfig, rate: float) -> float:
    """Of the whole training at a rate of sequences per second over all ranks."""
    return config.train.steps * config.train.batch / rate / 3600


def rate_at(tflops: float, work: int, ranks: int, exchange_s: float, batch: int) -> float:
    """Sequences per second of all ranks, each of which computes at `tflops`; nothing is overlapped."""
    step_s = batch * 2 * work / (tflops * 1e12 * ranks) + exchange_s
    return batch / step_s
