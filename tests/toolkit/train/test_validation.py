"""Validation of windows in which nothing was observed."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from shards import Scale
from toolkit.config import make_config
from toolkit.data.windows import Window
from toolkit.distributed.world import World
from toolkit.errors import NonFiniteError
from toolkit.models.baselines import Persistence
from toolkit.signals import StopRequest
from toolkit.train import validation


class Windows:
    scale = Scale("dBZ", "dBZ", 0.0, 0.25, 254, 255)

    def __init__(self, code: int) -> None:
        self.code = code

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Window:
        return Window(np.full((4, 1, 16, 16), self.code, np.uint8), f"e{index}", None)

    def time(self, index: int) -> str | None:
        return None


class Nobody:
    def pulse(self) -> None: ...
    def at(self, step: int, phase: str) -> None: ...


def score(model: torch.nn.Module, code: int) -> dict[str, float] | None:
    config = make_config({"data": {"context": 2, "horizon": 2}}, "test")
    world = World(0, 1, 0, torch.device("cpu"))
    return validation.score(model, Windows(code), config, world, 7, StopRequest(), Nobody())  # type: ignore[arg-type]


def test_windows_without_one_observed_pixel_have_no_score(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert score(Persistence(), 255) == {}  # type: ignore[arg-type]
    assert "step 7: nothing observed in any of the validation windows" in caplog.text
    assert score(Persistence(), 100)["mse"] == 0.0  # type: ignore[arg-type, index]


def test_a_forecast_that_is_not_finite_still_ends_the_run() -> None:
    class Broken(Persistence):
        def predict(self, *given: object, **named: object) -> torch.Tensor:
            return super().predict(*given, **named) * torch.nan  # type: ignore[arg-type]

    with pytest.raises(NonFiniteError, match="step 7: predictions"):
        score(Broken(), 100)  # type: ignore[arg-type]
