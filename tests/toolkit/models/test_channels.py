"""Models that read more channels than they predict (`data.inputs`, `targets`, `static`, `beyond`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from shards.manifest import FrameSpec
from tests.support.models import SMALL, TRAINED, config_of
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import RunConfig, make_config
from toolkit.errors import ConfigError
from toolkit.models.base import Noise, Rollout, Sampling, SequenceModel, build_model, mean_square
from toolkit.models.baselines import OpticalFlow
from toolkit.train.criterion import OfTargets

FRAMES = FrameSpec(4, 12, 10, names=("unused", "ir", "radar", "topography"))
IR, RADAR, TOPOGRAPHY = 0, 1, 2  # places among the inputs
CONTEXT, HORIZON = 3, 4
CHOSEN = {"inputs": ["ir", "radar", "topography"], "targets": ["radar"], "static": ["topography"]}


def config(name: str, **data: Any) -> RunConfig:
    data = {"context": CONTEXT, "horizon": HORIZON, **CHOSEN, **data}
    return make_config({"model": {"name": name, **SMALL.get(name, {})}, "data": data}, "test")


def made(name: str, **data: Any) -> SequenceModel:
    torch.manual_seed(0)
    return untrained_model(config(name, **data), FRAMES)


def sequences(length: int = CONTEXT + HORIZON) -> Tensor:
    frames = torch.rand(2, length, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    frames[:, :, TOPOGRAPHY] = frames[:, :1, TOPOGRAPHY]
    return frames


def changed(frames: Tensor, channels: tuple[int, ...], first: int = CONTEXT) -> Tensor:
    other = frames.clone()
    other[:, first:, list(channels)] = 1 - other[:, first:, list(channels)]
    return other


def loss_of(model: SequenceModel, frames: Tensor, teacher: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """The loss and its gradients."""
    sampling = Sampling(teacher, Noise([1, 2]), criterion=OfTargets(mean_square, (RADAR,)))
    loss = torch.stack(list(model(frames, CONTEXT, sampling).losses.values())).sum()
    grads = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return loss.detach(), [grad for grad in grads if grad is not None]


def same(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> bool:
    return torch.equal(one[0], other[0]) and all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.parametrize("beyond", ["hold", "zero"])
@pytest.mark.parametrize("name", TRAINED)
def test_nothing_of_the_future_but_the_targets_is_seen(name: str, beyond: str) -> None:
    model, frames = made(name, beyond=beyond), sequences()
    teacher = torch.tensor([[True, False, True]] * 2)
    for sampled in (None, teacher) if name not in ("trajgru", "simvp", "svg_lp") else (None,):
        known = loss_of(model, frames, sampled)
        assert same(loss_of(model, changed(frames, (IR, TOPOGRAPHY)), sampled), known)
        assert not same(loss_of(model, changed(frames, (RADAR,)), sampled), known)  # the observation
        assert not same(loss_of(model, changed(frames, (IR,), CONTEXT - 1), sampled), known)  # of the context: seen
    made_of = model.eval().predict(frames[:, :CONTEXT], HORIZON)
    assert made_of.shape == (1, 2, HORIZON, 1, 12, 10)
    assert torch.isfinite(made_of).all()
    seen = changed(frames, (IR,), CONTEXT - 1)
    assert not torch.equal(model.predict(seen[:, :CONTEXT], HORIZON), made_of)


@pytest.mark.parametrize("beyond", ["hold", "zero"])
@pytest.mark.parametrize("name", [name for name in TRAINED if name != "svg_lp"])
def test_training_reads_what_a_forecast_reads(name: str, beyond: str) -> None:
    """Without scheduled sampling the predictions of a training step are the forecast, whatever the store knows."""
    model, frames = made(name, beyond=beyond).eval(), sequences()
    with torch.no_grad():
        trained = model(changed(frames, (IR, TOPOGRAPHY)), CONTEXT, Sampling()).predictions[:, -HORIZON:, RADAR]
    forecast = model.predict(frames[:, :CONTEXT], HORIZON)[0, :, :, 0]
    assert torch.allclose(trained, forecast, atol=1e-6)


def test_what_is_read_beyond_the_context() -> None:
    frames = sequences()
    held = made("convlstm").known_frames(frames, CONTEXT, 7)
    last = frames[:, CONTEXT - 1]
    assert torch.equal(held[:, :CONTEXT], frames[:, :CONTEXT])
    assert torch.equal(held[:, CONTEXT:, RADAR], frames[:, CONTEXT:, RADAR])
    assert torch.equal(held[:, -1, IR], last[:, IR])
    assert torch.equal(held[:, -1, TOPOGRAPHY], last[:, TOPOGRAPHY])
    zero = made("convlstm", beyond="zero").known_frames(frames, CONTEXT, 7)
    assert not zero[:, CONTEXT:, IR].any()
    assert torch.equal(zero[:, -1, TOPOGRAPHY], last[:, TOPOGRAPHY])  # static: known
    assert (
        made("convlstm", targets=["ir", "radar"]).known_frames(frames, CONTEXT, 7)[:, -1, IR].equal(frames[:, -1, IR])
    )


def test_reverse_scheduled_sampling_reads_observed_inputs_in_the_context() -> None:
    """The context's inputs may be the model's own predictions of the targets; the other channels are observed there."""
    model, frames = made("convlstm"), sequences()
    teacher = torch.zeros(2, CONTEXT + HORIZON - 2, dtype=torch.bool)
    known = loss_of(model, frames, teacher)
    assert not same(loss_of(model, changed(frames, (IR,), 1)[:, :], teacher), known)
    assert same(loss_of(model, changed(frames, (IR, TOPOGRAPHY)), teacher), known)


def test_checkpointing_changes_nothing() -> None:
    frames = sequences()
    known = loss_of(made("modernn"), frames)
    for policy in ({"policy": "step"}, {"policy": "recursive", "per_layer": True}):
        chosen = config("modernn").model_copy(
            update={"train": config_of("modernn").train.model_validate({"activation_checkpointing": policy})}
        )
        torch.manual_seed(0)
        loss, grads = loss_of(untrained_model(chosen, FRAMES), frames)
        assert torch.equal(loss, known[0])
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(grads, known[1], strict=True))


def test_all_inputs_as_targets_in_another_order() -> None:
    model, frames = made("convlstm", targets=["topography", "radar", "ir"], static=None), sequences()
    plain = made("convlstm", targets=None, static=None)
    turned = model.predict(frames[:, :CONTEXT], HORIZON)
    assert torch.equal(turned, plain.predict(frames[:, :CONTEXT], HORIZON)[:, :, :, [2, 1, 0]])


@pytest.mark.parametrize("name", ["persistence", "optical_flow"])
def test_baselines_forecast_the_targets_from_the_targets(name: str) -> None:
    model, frames = made(name), sequences(CONTEXT)
    made_of = model.predict(frames, HORIZON)
    assert made_of.shape == (1, 2, HORIZON, 1, 12, 10)
    assert torch.equal(model.predict(changed(frames, (IR, TOPOGRAPHY), 0), HORIZON), made_of)
    alone = build_model(config(name).model, FrameSpec(1, 12, 10))
    assert torch.equal(alone.predict(frames[:, :, [RADAR]], HORIZON), made_of)
    if isinstance(model, OpticalFlow):
        forecast, inflow = model.predict_with_inflow(frames, HORIZON, observed=torch.rand(2, 3, 12, 10) > 0.1)
        assert forecast.shape == inflow.shape == made_of.shape


class Blind(SequenceModel):
    """Feeds back all that it predicts, as a model of a user's own may."""

    def __init__(self, options: object, shape: FrameSpec) -> None:
        super().__init__()

    def forward(self, frames: Tensor, context: int, sampling: Sampling) -> Rollout:
        raise NotImplementedError

    def _predict(self, context: Tensor, horizon: int, samples: int, generator: torch.Generator | None) -> Tensor:
        return context[:, -1:].expand(-1, horizon, -1, -1, -1)[None]


def test_a_model_that_feeds_back_every_channel_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolkit.models.base.model_class", lambda options: (Blind, config("persistence").model))
    with pytest.raises(ConfigError, match=r"Blind reads its own predictions .* has ir, topography"):
        made("persistence")
    assert (
        made("persistence", targets=["radar", "ir", "topography"], static=None).predict(sequences(3), 2).shape[3] == 3
    )


def test_a_target_that_depends_on_an_input_is_learnt_with_it() -> None:
    """The next frame of the target is the input's present one; without the input it is noise."""

    def trained(inputs: list[str]) -> float:
        chosen = make_config(
            {
                "model": {"name": "convlstm", "layers": 1, "hidden": 16, "kernel": 3, "patch": 1},
                "data": {"context": 3, "horizon": 1, "inputs": inputs, "targets": ["radar"]},
            },
            "test",
        )
        torch.manual_seed(0)
        model = untrained_model(chosen, FRAMES)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        generator = torch.Generator().manual_seed(2)
        place = inputs.index("radar")
        losses = []
        for _ in range(80):
            ir = torch.rand(8, 4, 8, 8, generator=generator)
            radar = torch.cat([torch.rand(8, 1, 8, 8, generator=generator), ir[:, :-1]], 1)
            frames = torch.stack([{"ir": ir, "radar": radar}[name] for name in inputs], 2)
            loss = model(frames, 3, Sampling(criterion=OfTargets(mean_square, (place,)))).losses["data"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return sum(losses[-5:]) / 5

    assert trained(["ir", "radar"]) < 0.3 * trained(["radar"])
