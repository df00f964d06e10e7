"""Which parameters have weight decay, and what an optimizer keeps of each."""

from __future__ import annotations

import fnmatch

import pytest
import torch

from shards.manifest import FrameSpec
from toolkit.checkpoint.weights import untrained_model
from toolkit.config import make_config
from toolkit.data.batches import Share
from toolkit.distributed.world import World
from toolkit.train.optimizer import make_optimizer, moments_of, state_of, trainable_groups
from toolkit.train.replicated import ReplicatedEngine

WORLD, DECAY = World(0, 1, 0, torch.device("cpu")), 0.25


@pytest.mark.parametrize("frozen", ["", "*weight", "*bias", "cell.cells.0.*"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_have_weight_decay_and_biases_none_whatever_is_trained(frozen: str, precision: str) -> None:
    train = {"weight_decay": DECAY, "precision": precision, "graph": "on"}
    config = make_config({"model": {"name": "modernn", "layers": 2, "hidden": 4}, "train": train}, "test")
    model = untrained_model(config, FrameSpec(1, 16, 16))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not fnmatch.fnmatch(name, frozen))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    expected = [0, 0]
    for name, parameter in trained:
        expected[parameter.dim() > 1 and not name.endswith("bias")] += parameter.numel()
    engine = ReplicatedEngine(model, config.train, Share(8, 8, 0, 1), WORLD)
    found = [0, 0]
    for group in engine.optimizer.param_groups:
        assert group["weight_decay"] in (0.0, DECAY)
        found[group["weight_decay"] == DECAY] += sum(held.numel() for held in group["params"])
    assert trained and found == expected


@pytest.mark.parametrize(("name", "count"), [("modernn_released", 4), ("simvp", 38)])
def test_norms_over_positions_and_scales_of_channels_have_no_weight_decay(name: str, count: int) -> None:
    """Whatever their shape: [C, H, W] and [C, 1, 1]."""
    config = make_config({"model": {"name": name, "layers": 1} if count == 4 else {"name": name}}, "test")
    model = untrained_model(config, FrameSpec(1, 16, 16))
    free = [p for name, p in model.named_parameters() if "norm" in name or "scale_" in name]
    assert len(free) >= count and any(p.dim() == 3 for p in free)
    decayed, others = trainable_groups(model, config.train.model_copy(update={"weight_decay": DECAY}))
    assert (decayed.weight_decay, others.weight_decay) == (DECAY, 0.0)
    assert {id(p) for p in free} <= {id(p) for p in others.parameters}
    assert all(p.dim() > 1 and not name.endswith("bias") for name, p in decayed.named)


@pytest.mark.parametrize(
    "train", [{}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0}]
)
@pytest.mark.parametrize("kind", ["constant", "one_cycle"])
def test_the_state_that_is_saved_is_the_one_that_torch_keeps(train: dict[str, object], kind: str) -> None:
    config = make_config({"train": {**train, "schedule": {"kind": kind}}}, "test").train
    weight = torch.nn.Parameter(torch.ones(2, 3))
    weight.grad = torch.ones_like(weight)
    optimizer = make_optimizer([(0.0, [weight])], config)
    optimizer.step()
    kept = {key for key, value in optimizer.state[weight].items() if value is not None}
    assert set(state_of(weight, 1, config)) == kept
    assert set(moments_of(config)) == kept - {"step"}
