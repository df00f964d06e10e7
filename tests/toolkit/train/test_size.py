"""What can't fit is refused by arithmetic, before memory is asked for."""

from __future__ import annotations

import pytest
import torch

from shards.manifest import FrameSpec
from toolkit.config import RunConfig, make_config
from toolkit.errors import ConfigError
from toolkit.train.size import check_size, least_memory

CPU, SHAPE = torch.device("cpu"), FrameSpec(1, 64, 64)


def config_of(model: dict | None = None, **train: object) -> RunConfig:
    return make_config({"model": {"name": "convlstm", **(model or {})}, "train": train}, "t")


def test_least_memory_counts_what_a_rank_holds() -> None:
    fp32, frames = least_memory(config_of(), SHAPE, 1, gpu=True)
    assert frames == 4 * 8 * 20 * 64 * 64
    numbers = fp32 // 16
    assert fp32 == 16 * numbers > 0
    assert least_memory(config_of(precision="bf16"), SHAPE, 1, gpu=True)[0] == 16 * numbers
    assert least_memory(config_of(zero=3, batch=8), SHAPE, 4, gpu=True)[0] == 4 * numbers
    assert least_memory(config_of(zero=1, offload_optimizer=True), SHAPE, 1, gpu=True)[0] == 8 * numbers
    assert least_memory(config_of(zero=1, offload_optimizer=True), SHAPE, 1, gpu=False)[0] == 16 * numbers
    assert least_memory(config_of(optimizer="sgd"), SHAPE, 1, gpu=True)[0] == 12 * numbers
    assert least_memory(config_of(optimizer="sgd", momentum=0), SHAPE, 1, gpu=True)[0] == 8 * numbers
    assert least_memory(config_of(ema=0.9), SHAPE, 1, gpu=True)[0] == 20 * numbers
    frozen = least_memory(config_of(init_from={"freeze": ["cell.cells.0.*"]}), SHAPE, 1, gpu=True)[0]
    assert 4 * numbers < frozen < 16 * numbers and frozen % 4 == 0
    assert least_memory(config_of(batch=8), SHAPE, 4, gpu=True)[1] == frames // 4
    assert least_memory(config_of(micro_batch=1), SHAPE, 1, gpu=True)[1] == frames // 8


def test_what_cannot_fit_is_refused_with_both_numbers() -> None:
    check_size(config_of(), SHAPE, 1, CPU)
    with pytest.raises(ConfigError, match=r"needs at least [\d,.]+ GB on cpu .* lower the options of `model`"):
        check_size(config_of({"hidden": 4096, "kernel": 51}), SHAPE, 1, CPU)
    with pytest.raises(ConfigError, match=r"[\d,.]+ for frames\), which has [\d,.]+ GB: lower train\.batch"):
        check_size(config_of(batch=1 << 20), FrameSpec(3, 1024, 1024), 1, CPU)
