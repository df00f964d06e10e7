"""Estimate memory, communication and time of a run from the cost of its model. Does not import torch.

Peak memory of a process is the sum of

    weights     2 or 4 bytes per parameter; under ZeRO-3 large ones are partitioned over the ranks
    master      4 bytes under ZeRO (in fp32 too), partitioned over the ranks; in a graphed step only in bf16
    moments     8 bytes, partitioned over the ranks under ZeRO; on the host with an offloaded optimizer, like the master
    gradients   from the second micro-batch on; in the first, the backward pass creates them. In a graphed step they
                are static, and in bf16 there is an fp32 copy for the update
    buckets     DeepSpeed's reduction buffer under ZeRO on a GPU
    deferred    in a graphed step, output gradients of all time steps for weight gradients: at most the memory saved for
                the backward pass, and at most MOST_DEFERRED
    pass        frames, states and predictions stored by the policy, activations of the largest recomputed part,
                temporary gradients, workspace of operators: `cost.Peak`

Not included are libraries, the CUDA context and memory reserved by an allocator: RESERVE. A CUDA graph keeps its memory
between steps, so a validation (a forward pass without gradients) needs additional memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from toolkit.config import RunConfig
from toolkit.config.sections import MOST_DEFERRED
from toolkit.models.registry import StepOptions
from toolkit.plan.cost import Cost, Polynomial, under

GIB = 2**30
RESERVE = 0.1  # fraction of memory reserved for what is not estimated


@dataclass(frozen=True)
class Machine:
    """The resources of a run."""

    ranks: int
    memory: int  # bytes per rank
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
        macs: multiply-accumulates per sequence, forward, backward and recomputation.
    """

    policy: str
    micro_batch: int
    memory: Memory
    macs: int
    fits: bool


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends per optimizer step (ring algorithms; it receives the same number)."""

    reduced: int
    gathered: int

    @property
    def total(self) -> int:
        return self.reduced + self.gathered


def highest(lines: Iterable[Polynomial], batch: int, area: int) -> int:
    """Return the maximum of polynomials."""
    return max(line.at(batch, area) for line in lines)


def stage_of(config: RunConfig, gpu: bool) -> int:
    """Return the ZeRO stage in use; 0 for a graphed step."""
    return 0 if config.train.is_graphed(gpu) else config.train.stage


def memory_of(config: RunConfig, cost: Cost, policy: str, micro_batch: int, area: int, machine: Machine) -> Memory:
    """Return the peak memory of one rank, bytes."""
    train = config.train
    chosen = under(config, policy)
    if train.is_graphed(machine.gpu) and chosen.train.is_graphed(machine.gpu):
        return _graphed(chosen, cost, policy, micro_batch, area, machine)
    stage, numbers = train.stage, cost.parameters.at(1, area)
    width = 2 if train.precision == "bf16" else 4
    part = machine.ranks if stage else 1
    offloaded = train.offload_optimizer and machine.gpu  # on a CPU there is no other memory
    divided = cost.large - cost.large // machine.ranks if stage == 3 else 0
    extra = train.deepspeed.get("zero_optimization", {})
    buffers = 1 + bool(extra.get("overlap_comm", False))
    accumulates = train.share(machine.ranks) > micro_batch
    peak = cost.peaks[policy]
    passing = highest(peak.without_gradients if accumulates else peak.with_gradients, micro_batch, area)
    # After the pass all gradients are flattened for reduction, and converted to fp32 for the update of this rank's
    # partition. On a CPU only the used pages of the buckets count: those of the gradients.
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
    """Return the peak memory of one rank with a CUDA graph (toolkit/train/replicated.py), bytes."""
    numbers, low = cost.parameters.at(1, area), config.train.precision == "bf16"
    passing = highest(cost.peaks[policy].without_gradients, micro_batch, area)
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
    """Return every policy with every micro-batch size that is a power of two and divides the sequences per rank."""
    share = config.train.share(machine.ranks)
    sizes = sorted({size for size in (1 << n for n in range(share.bit_length())) if share % size == 0} | {share})
    found = []
    for policy in cost.peaks:
        macs = cost.peaks[policy].macs.at(1, area)
        for size in sizes:
            memory = memory_of(config, cost, policy, size, area, machine)
            found.append(Choice(policy, size, memory, macs, memory.total <= machine.memory * (1 - RESERVE)))
    return found


def recommend(among: Iterable[Choice]) -> Choice | None:
    """Return the fastest choice that fits: fewest MACs, then the largest micro-batch, then the least memory."""
    fitting = [choice for choice in among if choice.fits]
    return min(fitting, key=lambda c: (c.macs, -c.micro_batch, c.memory.total), default=None)


def traffic(config: RunConfig, cost: Cost, area: int, ranks: int, choice: Choice) -> dict[int, Traffic]:
    """Return by ZeRO stage the bytes that a rank sends per optimizer step."""
    train, data = config.train, config.data
    width = 2 if train.precision == "bf16" else 4
    sent = width * (ranks - 1) / ranks  # bytes per parameter, reduced or gathered
    numbers = cost.parameters.at(1, area)
    once, passes = math.ceil(numbers * sent), train.share(ranks) // choice.micro_batch
    # Stages 0 and 1 reduce once per step, 2 and 3 after every micro-batch; 0 uses reduce-scatter and all-gather.
    # Stage 3 gathers large weights at every use: at each time step forward, recomputed and backward.
    steps = data.context + data.horizon - 1 if isinstance(config.model, StepOptions) else 1
    uses = steps * (round(choice.macs / cost.macs.at(1, area)) - 1) * passes
    gathered = math.ceil((cost.large * uses + numbers - cost.large) * sent)
    stages = (once, once), (once, once), (once * passes, once), (once * passes, gathered)
    return {stage: Traffic(*both) for stage, both in enumerate(stages)}


def hours(config: RunConfig, rate: float) -> float:
    """Return the training time in hours at a rate in sequences per second over all ranks."""
    return config.train.steps * config.train.batch / rate / 3600


def rate_at(tflops: float, macs: int, ranks: int, exchange_s: float, batch: int) -> float:
    """Return sequences per second over all ranks at `tflops` per rank, without overlap of communication."""
    step_s = batch * 2 * macs / (tflops * 1e12 * ranks) + exchange_s
    return batch / step_s
