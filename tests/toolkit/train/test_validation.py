"""Validation while a run trains: windows without an observation, pictures, and errors that all ranks see."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from shards import Scale, StoreError
from toolkit.config import make_config
from toolkit.data.windows import Window
from toolkit.distributed.world import World
from toolkit.errors import NonFiniteError, PeerFaultError, StalledError, StoppedError
from toolkit.models.base import SequenceModel
from toolkit.models.baselines import Persistence
from toolkit.signals import StopRequest
from toolkit.train import validation
from toolkit.train.check import Data
from toolkit.train.engine import Engine
from toolkit.train.feed import Feed
from toolkit.train.loop import Training
from toolkit.train.record import Recorder
from toolkit.train.watchdog import Watchdog


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


class Rank(World):
    """One of two ranks; what the others tell is given."""

    others_stopped = False
    told_by_rank_0: str | None = None

    def any(self, flag: bool) -> bool:
        return flag or self.others_stopped

    def broadcast(self, value: Any) -> Any:
        return value if self.is_main else self.told_by_rank_0


def rank_of(number: int, **told: object) -> Rank:
    return cast(Rank, type("Told", (Rank,), told)(number, 1, number, torch.device("cpu")))


def training_on(world: World) -> Training:
    """A training on one rank of which `_score` is called, without an engine and files."""
    made = Training.__new__(Training)
    model = cast(SequenceModel, Persistence())
    made.config = make_config({"data": {"context": 2, "horizon": 2}, "train": {"images": 2}}, "test")
    made.data = cast(Data, SimpleNamespace(store=SimpleNamespace(manifest=SimpleNamespace(step_seconds=None))))
    made.world, made.step, made.best, made.improved, made.stop = world, 7, None, 0, StopRequest()
    made.watchdog = cast(Watchdog, Nobody())
    made.engine = cast(Engine, SimpleNamespace(gathered_parameters=lambda: nullcontext(model)))
    made.feed = cast(Feed, SimpleNamespace(val=Windows(100)))
    made.recorder = cast(Recorder, MagicMock()) if world.is_main else None
    return made


@pytest.mark.parametrize("error", [StalledError("no data"), StoreError("damaged")], ids=str)
def test_pictures_that_can_not_be_drawn_end_all_ranks_with_the_best_score_noted(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> Iterator[object]:
        raise error
        yield

    monkeypatch.setattr(validation, "pictures", fail)
    monkeypatch.setattr(validation, "score", lambda *_: {"mse": 0.25})
    first, second = training_on(rank_of(0)), training_on(rank_of(1, told_by_rank_0=(str(error), 5)))
    with pytest.raises(type(error)):
        first._score()
    with pytest.raises(PeerFaultError, match=f"rank 1 ends because rank 0 can't draw the validation: {error}") as told:
        second._score()
    assert told.value.exit_code == 5  # of the rank that caused it, whose reason stays in FAILED
    assert first.best == second.best == {"step": 7, "score": 0.25}


def test_a_stop_while_pictures_are_drawn_leaves_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> Iterator[object]:
        raise StoppedError("asked to stop while waiting for data")
        yield

    monkeypatch.setattr(validation, "pictures", stop)
    monkeypatch.setattr(validation, "score", lambda *_: {"mse": 0.25})
    for number in (0, 1):
        training = training_on(rank_of(number))
        assert training._score() is True
        assert training.best == {"step": 7, "score": 0.25}


def test_a_stop_on_another_rank_cuts_the_validation_of_a_rank_that_fails_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one rank would save for the error, and the others for the stop."""

    def fail(*_: object, **__: object) -> None:
        raise StoreError("damaged")

    monkeypatch.setattr(validation, "evaluate_model", fail)
    assert training_on(rank_of(1, others_stopped=True))._score() is None
    with pytest.raises(StoreError):
        training_on(rank_of(1))._score()


def test_the_best_checkpoint_is_selected_by_the_score_of_the_config(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = training_on(rank_of(0))
    training.config = make_config(
        {"data": {"context": 2, "horizon": 2}, "eval": {"thresholds": [30]}, "train": {"best_by": "csi@30"}}, "test"
    )
    found = [{"mse": 3.0, "csi@30": 0.25}, {"mse": 2.0, "csi@30": 0.125}, {"mse": 4.0, "csi@30": 0.5}, {"mse": 1.0}]
    for step, improved in ((1, True), (2, False), (3, True), (4, False)):
        training.step = step
        monkeypatch.setattr(validation, "score", lambda *_: found[training.step - 1])
        assert training._score() is improved
    assert training.best == {"step": 3, "score": 0.5}


def test_an_undefined_score_selects_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    config = {"data": {"context": 2, "horizon": 2}, "eval": {"thresholds": [30]}, "train": {"best_by": "csi@30"}}
    training = training_on(rank_of(0))
    training.config = make_config(config, "test")
    with caplog.at_level(logging.WARNING):
        assert training._score() is False  # no event at or above 30 dBZ, so no CSI
    assert "step 7: train.best_by csi@30 is undefined in this validation" in caplog.text
    assert training.best is None


def test_a_score_that_is_never_defined_does_not_switch_patience_off() -> None:
    training = training_on(rank_of(0))
    asked = {"patience": 2, "validate_every": 2, "best_by": "csi@0.5", "steps": 50}
    training.config = make_config({"train": asked}, "test")
    done = []
    for step in (2, 3, 4):
        training.step = step
        done.append(training._is_complete())
    assert done == [False, False, True]
