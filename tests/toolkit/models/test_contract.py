"""Contract 2 as one table over every model: any horizon, sizes that need padding, generators, checkpoints, learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards.manifest import FrameSpec
from shards.sources.moving_mnist import SKLEARN, MovingMnist
from tests.support.models import SMALL, needing_extras
from toolkit.checkpoint import checkpoint, commit
from toolkit.checkpoint.checkpoint import TrainState
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import RunConfig, make_config
from toolkit.errors import ConfigError
from toolkit.models.base import Noise, Sampling, SequenceModel, build_model
from toolkit.models.registry import MODELS

CONTEXT, HORIZON = 10, 30
SIZES = ((33, 47), (40, 56), (8, 24))
CASES: dict[str, dict[str, Any]] = {name: {"name": name, **SMALL.get(name, {})} for name in MODELS}
CASES["svg_lp"]["size"] = 64
CASES["modernn, drawn at evaluation"] = {**CASES["modernn"], "sample_at_eval": True}
WITH_CHANCE = {"svg_lp", "modernn, drawn at evaluation", "steps"}

# Wide enough to learn two sequences by heart in seconds.
LEARNERS: dict[str, dict[str, Any]] = {
    "modernn": {"layers": 1, "hidden": 16},
    "modernn_released": {"layers": 1, "hidden": 16},
    "convlstm": {"layers": 1, "hidden": 32, "kernel": 3},
    "predrnn": {"layers": 2, "hidden": 16, "kernel": 3},
    "mim": {"layers": 2, "hidden": 16, "kernel": 3},
    "conv_tt_lstm": {"layers": 1, "hidden": 16, "kernel": 3, "rank": 4},
    "rim": {"layers": 1, "hidden": 32, "modules": 4, "active": 3, "kernel": 3, "value": 8, "heads": 2},
    "trajgru": {"hidden": [16, 16], "flows": [2, 2], "strides": [2, 2], "stem": 8, "flow_hidden": 8},
    "svg_lp": {"size": 16, "width": 8, "latent": 32, "rnn": 32, "z": 4},
    "simvp": {"frames": 3, "spatial_hidden": 16, "hidden": 32, "layers": 2, "mlp_ratio": 2},
}
STEPS = 50


def made(options: dict[str, Any], height: int, width: int, seed: int = 0) -> tuple[SequenceModel, RunConfig]:
    config = make_config({"model": options, "train": {"loss_frames": "future"}}, "test")
    torch.manual_seed(seed)
    return untrained_model(config, FrameSpec(1, height, width)), config


def forecast(model: SequenceModel, height: int, width: int, seed: int = 5) -> torch.Tensor:
    frames = torch.rand(2, CONTEXT, 1, height, width, generator=torch.Generator().manual_seed(1))
    return model.predict(frames, HORIZON, samples=2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("case", needing_extras(CASES))
def test_thirty_frames_from_ten_at_any_size(case: str, size: tuple[int, int]) -> None:
    model = made(CASES[case], *size)[0].eval()
    state = torch.get_rng_state()
    members = forecast(model, *size)
    assert members.shape == (2, 2, HORIZON, 1, *size)
    assert torch.isfinite(members).all()
    assert torch.equal(members, forecast(model, *size))
    assert torch.equal(state, torch.get_rng_state())  # the generator is the only source of chance
    assert model.stochastic == (case in WITH_CHANCE)
    if model.stochastic:
        assert not torch.allclose(members[0], members[1])
        assert not torch.allclose(members, forecast(model, *size, seed=6))
    else:
        assert torch.equal(members[0], members[1])  # though each has its own numbers


def test_as_many_frames_as_in_training_unless_told() -> None:
    model, config = made(CASES["convlstm"], 8, 8)
    frames = torch.rand(1, 3, 1, 8, 8)
    assert model.predict(frames).shape[2] == config.data.horizon
    assert torch.equal(model.predict(frames, 2), model.predict(frames)[:, :, :2])


@pytest.mark.parametrize(
    ("frames", "horizon", "message"),
    [
        (torch.rand(3, 1, 8, 8), 2, r"not torch.float32 \[3, 1, 8, 8\]: .* add what dimensions lack"),
        (torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8), 2, r"not torch.uint8 .*: normalise codes"),
        (torch.rand(1, 3, 1, 8, 8), 0, "predict with horizon 0 and 1 samples"),
    ],
)
def test_what_can_not_be_predicted_is_said(frames: torch.Tensor, horizon: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(CASES["convlstm"], 8, 8)[0].predict(frames, horizon)


@pytest.mark.parametrize("case", ["convlstm", "simvp", "persistence"])
@pytest.mark.parametrize("shape", [(1, 4, 3, 16, 16), (1, 0, 1, 16, 16), (0, 4, 1, 16, 16), (1, 4, 1, 0, 16)])
def test_frames_of_another_shape_are_refused(case: str, shape: tuple[int, ...]) -> None:
    model = build_model(make_config({"model": {"name": case}}, "test").model, FrameSpec(1, 16, 16)).eval()
    with pytest.raises(ConfigError, match=r"at least 1 frame, of 1 channel, not \[B, Tc, C, H, W\] = "):
        model.predict(torch.zeros(shape), 2)


@pytest.mark.parametrize("case", [case for case in CASES if MODELS[CASES[case]["name"]].trained])
def test_a_checkpoint_gives_back_the_model(case: str, tmp_path: Path) -> None:
    (model, config), (other, _) = (made(CASES[case], 24, 12, seed) for seed in (1, 2))
    expected = forecast(model.eval(), 24, 12)
    assert not torch.equal(forecast(other.eval(), 24, 12), expected)
    run = config.hash8(execution=False)
    commit.save(tmp_path, TrainState(model.state_dict(), {}, 1), checkpoint.Progress(1, 8), run)
    other.load_state_dict(checkpoint.load(tmp_path, 1, run)[0].weights)
    assert torch.equal(forecast(other, 24, 12), expected)


def digit_sequences() -> torch.Tensor:
    """Real digits on the move: one sequence with one of them, one with two, [2, 6, 1, 16, 16] in 0..1."""
    source = MovingMnist(
        SKLEARN, modes=(1, 2), counts=(1, 0, 0), size=16, digit_size=10, length=6, seed=0, bounce="reflect"
    )
    frames = np.stack([source.read(event).frames for event in source.plan().splits["train"]])
    return torch.from_numpy(frames).float() / 255


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].trained])
def test_one_real_batch_is_learnt_by_heart(name: str) -> None:
    """The loss of the free-running forecast falls to a small part of what the best constant image would cost."""
    frames = digit_sequences()
    model = made({"name": name, **LEARNERS[name]}, 16, 16)[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(STEPS):
        rollout = model(frames, 3, Sampling(noise=Noise([1, 2])))
        losses.append(float(rollout.losses["data"].detach()))
        optimizer.zero_grad()
        torch.stack(list(rollout.losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert min(losses[-5:]) < 0.3 * float(frames[:, 3:].var())
    assert min(losses[-5:]) < 0.3 * losses[0]
