"""Costs from the meta device: against other counts, against sizes that are no primes, and against the table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from launch.plan import shipped
from shards.manifest import FrameSpec
from tests.support.process import ROOT
from toolkit.config import RunConfig, load_config, make_config
from toolkit.models.base import count_parameters
from toolkit.models.cost import count_macs
from toolkit.plan import cost, measure
from toolkit.plan.predict import highest

SMALL: tuple[dict[str, Any], ...] = (
    {"name": "modernn", "layers": 1, "hidden": 6, "slots": 5},
    {"name": "modernn_released", "layers": 1, "hidden": 8},
    {"name": "trajgru", "hidden": [4, 6], "flows": [2, 3], "strides": [4, 2], "stem": 4},
    {"name": "svg_lp", "size": 16, "width": 4, "latent": 8, "rnn": 8, "z": 4},
    {"name": "simvp", "frames": 3, "spatial_hidden": 4, "spatial_layers": 2, "hidden": 8, "layers": 2},
)
SIDE, BATCH = 4, 2  # of the second measurement


def config_of(options: Mapping[str, Any]) -> RunConfig:
    return make_config({"model": dict(options), "data": {"context": 3, "horizon": 2}}, "test")


def measured_at(config: RunConfig, policy: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """(peak, peak without gradients) at one size, by plain sums instead of polynomials."""
    with monkeypatch.context() as patch:
        patch.setattr(measure, "split", lambda amount: (0, amount))
        patch.setattr(measure, "BATCH", BATCH)
        patch.setattr(measure, "SIDE", SIDE)
        peaks = measure.measure(config, 1, (policy,))["peaks"][policy]
    return tuple(max(line[0] for line in peaks[kind]) for kind in ("with_gradients", "without_gradients"))


@pytest.mark.parametrize("options", SMALL, ids=lambda options: str(options["name"]))
def test_one_run_gives_every_size(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the factors of primes say at a size is what a measurement at that size counts; MACs and parameters too."""
    config = config_of(options)
    found = cost.Cost.from_json(measure.measure(config, 1, ("none", "step")))
    side = config.model.tile * (1 if options["name"] == "svg_lp" else SIDE)
    shape, area = FrameSpec(1, side, side), cost.area_of(config, side, side)
    assert found.parameters.at(1, area) == count_parameters(config.model, shape)
    assert found.macs.at(1, area) == count_macs(config.model, shape, config.data.context, config.data.horizon)
    assert found.macs.at(3, area) == 3 * found.macs.at(1, area)
    for policy, peak in found.peaks.items():
        fresh, held = measured_at(config, policy, monkeypatch)
        assert highest(peak.with_gradients, BATCH, area) == pytest.approx(fresh, rel=0.02)
        assert highest(peak.without_gradients, BATCH, area) == pytest.approx(held, rel=0.02)
    none, step = found.peaks["none"], found.peaks["step"]
    assert step.macs.at(1, area) > none.macs.at(1, area) > 2.5 * found.macs.at(1, area)


def test_what_is_watched_is_what_lives() -> None:
    """A known chain: ten maps kept for the backward pass, and gradients that come and go."""
    watch = measure.MemoryTracker()
    weight = torch.ones(1, device="meta", requires_grad=True)
    with watch:
        value = torch.empty(measure.BATCH, measure.SIDE, measure.SIDE, device="meta")
        for _ in range(10):
            value = torch.sin(value * weight)  # keeps its input, and the factor's
        loss = value.sum()
        del value
        each = 4  # bytes; the term says: x B x A
        assert watch.live[3] == 21 * each - each  # the last map is not needed by anyone
        torch.autograd.backward([loss])
    highest_live = max(watch.events[3 :: 2 * measure.TERMS])
    assert 21 * each <= highest_live <= 23 * each
    assert watch.live[3] == 0


def test_attention_is_not_stored_and_convolutions_have_workspace() -> None:
    found = cost.Cost.from_json(measure.measure(config_of(SMALL[0]), 1, ("none",)))
    assert found.macs.batch_area2 > 0
    assert all(line.batch_area2 == 0 for line in found.peaks["none"].with_gradients)
    query = torch.empty(1, 8, 3, 3, device="meta")
    kernel = torch.empty(4, 8, 1, 1, device="meta")
    out = torch.empty(1, 4, 3, 3, device="meta", dtype=torch.bfloat16)
    convolution = torch.ops.aten.convolution.default
    assert measure.workspace_of(convolution, (query, kernel), out) == [4 * 9 * 4]


@pytest.mark.parametrize("file", ["demo.yaml", "models/convlstm.yaml"])
def test_the_table_follows_the_code(file: str) -> None:
    """If this fails, models or unroll changed what they cost: `python launch/plan.py --measure` renews the table."""
    config = load_config(ROOT / "configs" / file)
    known = cost.stored(config, 1)
    assert known is not None
    entry = measure.measure(config, 1, ("none", "step"))
    fresh = cost.Cost.from_json(entry)
    assert known.parameters == fresh.parameters and known.macs == fresh.macs, "python launch/plan.py --measure"
    for policy, peak in fresh.peaks.items():
        for batch, area in ((1, 64), (4, 256), (2, 9216)):
            assert highest(known.peaks[policy].with_gradients, batch, area) == pytest.approx(
                highest(peak.with_gradients, batch, area), rel=0.01
            ), "python launch/plan.py --measure"


def test_every_shipped_config_is_in_the_table() -> None:
    missing = [config.model for config in shipped() if cost.stored(config, 1) is None]
    assert not missing, "python launch/plan.py --measure"
