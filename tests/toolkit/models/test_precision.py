"""Gradients in fp32 and bf16 beside float64; the same on a GPU in tests/toolkit/train/test_gpu.py."""

from __future__ import annotations

import pytest
import torch

from tests.support.models import TRAINED
from tests.support.precision import LIMITS, apart, gradients


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_are_those_in_float64_up_to_rounding(name: str) -> None:
    true = gradients(name, "cpu", torch.float64)
    assert apart(gradients(name, "cpu", torch.float32), true) < LIMITS["fp32"]
    assert apart(gradients(name, "cpu", torch.bfloat16), true) < LIMITS["bf16"]


def test_an_error_of_a_thousandth_is_seen_in_fp32_and_tf32_not_taken_for_it() -> None:
    true = {"weight": torch.randn(64, 64, dtype=torch.float64), "bias": torch.randn(64, dtype=torch.float64)}
    assert apart({key: value * 1.001 for key, value in true.items()}, true) == pytest.approx(1e-3)
    # Operands rounded to TF32's 10 bits give gradients off by 3e-5 (TrajGRU) to 1e-3 (the released ModeRNN).
    assert LIMITS["fp32"] < 2.5e-5 < 1e-3 < LIMITS["tf32"]
