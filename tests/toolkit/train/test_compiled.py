"""train.compile: what is refused, and compiled steps beside eager ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shards.manifest import FrameSpec
from tests.support.models import config_of
from tests.support.training import Train, logged, plain_losses
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import load_config, make_config
from toolkit.errors import ConfigError
from toolkit.models.base import Noise, Sampling
from toolkit.train.compiled import compile_step


def test_what_cannot_be_compiled_is_refused() -> None:
    def config(**train: object) -> object:
        return make_config({"train": train}, "test").train

    step = untrained_model(config_of("convlstm"), FrameSpec(1, 8, 8))
    with pytest.raises(ConfigError, match=r"train\.compile: reduce-overhead is gone.* set train\.graph=auto"):
        config(compile="reduce-overhead")
    with pytest.raises(ConfigError, match="SimVP has no step"):
        compile_step(untrained_model(config_of("simvp"), FrameSpec(1, 8, 8)), config(compile="default"))
    with pytest.raises(ConfigError, match=r"train\.zero 3: .*use train\.zero 2 or less"):
        compile_step(step, config(compile="default", zero=3))
    compile_step(step, config(compile="none"))
    assert step.cell._compiled_call_impl is None


def test_how_a_run_is_compiled_is_no_other_training() -> None:
    """Another run directory, but its checkpoints fit."""
    plain, compiled = make_config({}, "test"), make_config({"train": {"compile": "default"}}, "test")
    assert plain.hash8() != compiled.hash8()
    assert plain.hash8(execution=False) == compiled.hash8(execution=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at every input's
@pytest.mark.parametrize("name", ["modernn", "modernn_released", "convlstm"])
def test_a_compiled_step_gives_the_same_gradients(name: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    results = []
    for mode in ("none", "default"):
        torch.manual_seed(0)
        model = untrained_model(config_of(name, layers=1, checkpointing="step"), FrameSpec(1, 12, 16))
        names = list(model.state_dict())
        compile_step(model, make_config({"train": {"compile": mode}}, "test").train)
        assert list(model.state_dict()) == names
        rollout = model(torch.rand(2, 5, 1, 12, 16), 3, Sampling(noise=Noise([1, 2])))
        rollout.losses["data"].backward()
        results.append((rollout.predictions, [p.grad for p in model.parameters()]))
    (eager, gradients), (compiled, others) = results
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch.allclose(compiled, eager, rtol=1e-5, atol=1e-6)
    scale = max(float(g.abs().max()) for g in gradients)
    for own, other in zip(gradients, others, strict=True):
        assert torch.allclose(own, other, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_compiled_run_trains_as_an_eager_one(tiny_config: Path, train_on: Train, tmp_path: Path) -> None:
    """Through DeepSpeed, with validation in between, on one rank of ZeRO-2."""
    settings = ["train.compile=default", "train.zero=2", "model.layers=1"]
    train_on([{"config": str(tiny_config), "set": settings, "run": str(tmp_path / "run")}], 1)
    expected = plain_losses(load_config(tiny_config, ["model.layers=1"]))
    assert logged(tmp_path / "run") == pytest.approx(expected, rel=1e-5)
