"""The planner's arithmetic, on a made-up cost."""

from __future__ import annotations

from typing import Any

import pytest

from toolkit.config import RunConfig, make_config
from toolkit.config.sections import MOST_DEFERRED
from toolkit.errors import ConfigError
from toolkit.plan.cost import Cost, Peak, Polynomial
from toolkit.plan.predict import (
    GIB,
    Choice,
    Machine,
    Memory,
    Traffic,
    choices,
    hours,
    memory_of,
    rate_at,
    recommend,
    stage_of,
    traffic,
)

NUMBERS = 1_000_000


def peak(per_sample: int, work: int) -> Peak:
    lines = (Polynomial(batch_area=per_sample), Polynomial(constant=3 * GIB // 1000))
    return Peak(lines, lines, Polynomial(batch_area=work))


COST = Cost(
    Polynomial(constant=NUMBERS),
    300_000,
    Polynomial(batch_area=100),
    {"none": peak(GIB // 100, 300), "step": peak(GIB // 1000, 400), "recursive": peak(GIB // 2000, 700)},
)


def config_of(**train: Any) -> RunConfig:
    return make_config({"train": {"batch": 8, **train}}, "test")


def test_the_fastest_that_fits_is_recommended() -> None:
    def best(memory: float) -> tuple[str, int] | None:
        found = recommend(choices(config_of(graph="off"), COST, 100, Machine(1, int(memory * GIB))))
        return (found.policy, found.micro_batch) if found else None

    assert best(100) == ("none", 8)  # 8 x 1 GiB
    assert best(8.5) == ("none", 4)  # 10 % stay free
    assert best(1.0) == ("step", 8)  # 0.8 GiB, where one sequence without recomputation takes 1
    assert best(0.5) == ("step", 4)
    assert best(0.08) == ("recursive", 1)
    assert best(0.01) is None


def test_memory_by_stage_and_precision() -> None:
    def parts(ranks: int = 1, **train: Any) -> tuple[int, ...]:
        config = config_of(**train)
        memory = memory_of(config, COST, "none", 8 // ranks, 100, Machine(ranks, 0, gpu=True))
        return memory.weights, memory.master, memory.moments, memory.gradients, memory.buckets

    million = NUMBERS
    assert parts(graph="off") == (4 * million, 0, 8 * million, 0, 0)
    assert parts(graph="off", ranks=4) == parts(graph="off")
    assert parts(ranks=4, zero=1) == (4 * million, million, 2 * million, 0, 4 * million)
    assert parts(graph="off", precision="bf16") == (2 * million, 4 * million, 8 * million, 0, 2 * million)  # ZeRO 1
    bucket = {"zero_optimization": {"reduce_bucket_size": 5_000_000, "overlap_comm": True}}
    assert parts(precision="bf16", deepspeed=bucket)[-1] == 20_000_000
    accumulating = memory_of(config_of(graph="off"), COST, "none", 4, 100, Machine(1, 0))
    assert accumulating.gradients == 4 * million
    assert accumulating.total == 16 * million + 4 * GIB // 100 * 100


def test_memory_of_a_graphed_step() -> None:
    """Gradients stay in place; in bf16 masters, and theirs; deferral doubles what is kept, up to a limit."""

    def of(policy: str = "none", gpu: bool = True, **train: Any) -> Memory:
        return memory_of(config_of(**train), COST, policy, 8, 100, Machine(1, 0, gpu))

    million, passing = NUMBERS, 8 * 100 * (GIB // 100)
    assert of(defer_weight_gradients="off") == Memory(4 * million, 0, 8 * million, 4 * million, 0, passing)
    assert of(precision="bf16", defer_weight_gradients="off") == Memory(
        2 * million, 4 * million, 8 * million, 6 * million, 0, passing
    )
    assert of().deferred == MOST_DEFERRED < passing
    assert of("step").deferred == 0
    assert of(compile="default").deferred == 0
    small = memory_of(config_of(), COST, "none", 1, 100, Machine(1, 0))
    assert small.deferred == small.passing
    assert small.total == small.weights + small.moments + small.gradients + 2 * small.passing
    assert of(gpu=False) == of(gpu=False, graph="off") != of(gpu=False, graph="on", defer_weight_gradients="off")
    assert stage_of(config_of(precision="bf16"), gpu=True) == 0
    assert stage_of(config_of(precision="bf16", graph="off"), gpu=True) == 1


def test_ranks_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch 8 can't be divided over 3 ranks: use 1, 2, 4, 8 ranks"):
        choices(config_of(), COST, 100, Machine(3, GIB))


def test_traffic() -> None:
    def sent(ranks: int, micro_batch: int) -> dict[int, Traffic]:
        choice = Choice(
            "step", micro_batch, memory_of(config_of(), COST, "step", 1, 100, Machine(1, 0)), 400 * 100, True
        )
        return traffic(config_of(), COST, 100, ranks, choice)

    assert {one.total for one in sent(1, 8).values()} == {0}
    four = sent(4, 1)  # 2 micro-batches of 19 steps; 3/4 of 4 MB each time
    assert four[0].total == four[1].total == 2 * 3_000_000
    assert (four[2].reduced, four[2].gathered) == (6_000_000, 3_000_000)
    # Forward, once more, and backward: three uses of the 300,000 numbers in large parameters.
    assert (four[3].reduced, four[3].gathered) == (6_000_000, 3 * (300_000 * 19 * 3 * 2 + 700_000))


def test_zero_3_and_offload() -> None:
    def of(machine: Machine, **train: Any) -> Memory:
        return memory_of(config_of(**train), COST, "none", 8 // machine.ranks, 100, machine)

    four = of(Machine(4, 0), zero=3)
    assert four.weights == 4 * (NUMBERS - 300_000 * 3 // 4)
    away = of(Machine(1, 0), zero=1, offload_optimizer=True)
    assert (away.master, away.moments) == (0, 0)
    assert of(Machine(1, 0, gpu=False), zero=1, offload_optimizer=True).moments == 8 * NUMBERS


def test_time() -> None:
    assert hours(config_of(steps=3600), 8) == 1
    # 8 sequences x 2 x 10^12 / (4 ranks x 2 x 10^12) = 2 s, and 2 s of exchange.
    assert rate_at(2, 10**12, 4, 2.0, 8) == pytest.approx(2.0)
