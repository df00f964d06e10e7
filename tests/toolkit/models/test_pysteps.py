"""pysteps' nowcasts as models, against pysteps itself; without it, what the error says."""

from __future__ import annotations

import contextlib
import io
import logging
import sys

import numpy as np
import pytest
import torch

from tests.support.models import blobs
from tests.support.scoring import DBZ, ListedWindows, evaluate
from toolkit.errors import ConfigError
from toolkit.evaluate.ensemble import Ensemble
from toolkit.models.baselines import Advection, OpticalFlow, Persistence
from toolkit.models.pysteps_nowcast import Pysteps, Steps, _Functions
from toolkit.models.registry import StepsOptions


@pytest.fixture
def pysteps() -> None:
    pytest.importorskip("pysteps", reason="pip install '.[pysteps]'")


@pytest.mark.usefixtures("pysteps")
def test_it_beats_persistence_on_a_translation() -> None:
    sequence = blobs((1.0, 0.5), 12, 64)
    errors = {}
    for model in (Persistence(), Pysteps()):
        forecast = model.predict(sequence[:, :8], 4)[0]
        assert forecast.shape == (1, 4, 1, 64, 64)
        errors[type(model)] = float((forecast - sequence[:, 8:]).square().mean())
    assert errors[Pysteps] < 0.01 * errors[Persistence]


@pytest.mark.usefixtures("pysteps")
def test_it_is_what_pysteps_gives_for_each_sequence_and_channel() -> None:
    from pysteps import motion, nowcasts

    context = torch.cat([blobs((1.0, 0.5), 4, 40), blobs((-2.0, 0.0), 4, 40)])
    context = torch.cat([context, context.flip(-1)], 2)  # a second channel, with its own motion
    forecast = Pysteps().predict(context, 3, samples=2)
    assert forecast.shape == (2, 2, 3, 2, 40, 40)
    for sequence in range(2):
        for channel in range(2):
            fields = context[sequence, -3:, channel].numpy()
            velocity = motion.get_method("LK")(fields)
            expected = np.nan_to_num(nowcasts.get_method("extrapolation")(fields[-1], velocity, 3), nan=0.0)
            np.testing.assert_array_equal(forecast[1, sequence, :, channel].numpy(), expected)


@pytest.mark.usefixtures("pysteps")
def test_a_single_frame_persists() -> None:
    context = torch.rand(2, 1, 1, 20, 24)
    forecast = Pysteps().predict(context, 2)[0]
    assert torch.allclose(forecast, context[:, -1:].expand(-1, 2, -1, -1, -1))


@pytest.mark.parametrize("package", ["cv2", "pysteps"])
@pytest.mark.parametrize("model", [Pysteps, Steps])
def test_without_the_extra_the_error_names_it(
    package: str, model: type[Advection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    name = f"model {model.__name__.lower()} needs pysteps"
    with pytest.raises(ConfigError, match=rf"{name} and OpenCV .*: pip install '\.\[pysteps\]'"):
        model().predict(torch.rand(1, 3, 1, 16, 16), 2)


@pytest.mark.usefixtures("pysteps")
def test_inflow_is_where_pysteps_has_no_value() -> None:
    """pysteps gives NaN beyond the outermost centres of pixels, we beyond their outer edges: half a pixel further."""
    from pysteps import extrapolation, motion

    context = blobs((3.0, 1.0), 4, 48)
    made, inflow = Pysteps().predict_with_inflow(context, 5)
    fields = context[0, -3:, 0].numpy()
    theirs = np.isnan(extrapolation.get_method("semilagrangian")(fields[-1], motion.get_method("LK")(fields), 5))
    ours = inflow[0, 0, :, 0].numpy()
    assert ours[-1].sum() > 48 * 12 and not (ours & ~theirs).any()
    assert (theirs & ~ours).sum() <= 2 * 48 * 5
    assert (made.numpy()[0, 0, :, 0][theirs & ours] == 0).all()
    flow = OpticalFlow().predict_with_inflow(context, 5)[1][0, 0, :, 0].numpy()
    assert (flow != theirs).mean() < 0.05


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.usefixtures("pysteps")
def test_members_of_steps_are_those_of_pysteps_with_the_drawn_seeds() -> None:
    from pysteps import motion, nowcasts

    context = torch.cat([blobs((1.0, 0.5), 5, 40), blobs((-2.0, 0.0), 5, 40)])
    options = StepsOptions(threshold=0.2, kilometres=2.0, minutes=10.0, levels=5)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    made, inflow = Steps(options).predict_with_inflow(context, 3, samples=2, generator=seeded(7))
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002  the global generator is left as it was
    seeds = torch.randint(0, 2**31 - 1, (2, 2, 1), generator=seeded(7))
    for member, sequence in np.ndindex(2, 2):
        fields = context[sequence, -3:, 0].numpy()
        fields = np.where(fields < 0.2, np.float32(0), fields)
        with contextlib.redirect_stdout(io.StringIO()):
            expected = nowcasts.get_method("steps")(
                fields, motion.get_method("LK")(fields), 3, n_ens_members=1, n_cascade_levels=5, precip_thr=0.2,
                kmperpixel=2.0, timestep=10.0, seed=int(seeds[member, sequence, 0]),
            )[0]  # fmt: skip
        np.testing.assert_array_equal(made[member, sequence, :, 0].numpy(), np.nan_to_num(expected).astype(np.float32))
        assert inflow[member, sequence, :, 0].numpy()[np.isnan(expected)].all()
    assert inflow.any() and not inflow.all()


@pytest.mark.usefixtures("pysteps")
def test_members_do_not_depend_on_how_many_are_drawn_at_once() -> None:
    context, model, generator = blobs((1.0, 0.5), 4, 40), Steps(), seeded(3)
    one_by_one = torch.cat([model.predict(context, 2, 1, generator) for _ in range(3)])
    assert torch.equal(one_by_one, model.predict(context, 2, 3, seeded(3)))
    assert not torch.equal(one_by_one[0], one_by_one[1])
    plain = model.predict(context, 2, 2)  # S-PROG
    assert torch.equal(plain[0], plain[1]) and not torch.equal(plain[0], one_by_one[0])
    error = float((plain[0] - blobs((1.0, 0.5), 6, 40)[:, 4:]).square().mean())
    assert error < 0.5 * float((context[:, -1:] - blobs((1.0, 0.5), 6, 40)[:, 4:]).square().mean())


@pytest.mark.usefixtures("pysteps")
def test_the_motion_of_a_context_is_found_once_for_all_members(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    original = _Functions.velocity

    def velocity(self: _Functions, fields: np.ndarray) -> np.ndarray:
        found.append(fields)
        return original(self, fields)

    monkeypatch.setattr(_Functions, "velocity", velocity)
    first, second = (torch.cat([blobs((speed, 0.5), 4, 40), blobs((0.5, speed), 4, 40)]) for speed in (1.0, 2.0))
    model, generator = Steps(), seeded(3)
    members = [model.predict(first, 2, 1, generator) for _ in range(3)]
    assert len(found) == 2 and not torch.equal(members[0], members[1])
    assert torch.equal(model.predict(second, 2, 1, seeded(3)), Steps().predict(second, 2, 1, seeded(3)))
    assert len(found) == 6
    model.predict(first, 2, 1, generator)  # what other frames have replaced is found again
    assert len(found) == 8


@pytest.mark.usefixtures("pysteps")
def test_forecasts_without_perturbations_are_counted_in_few_warnings(caplog: pytest.LogCaptureFixture) -> None:
    model = Steps()
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            model.predict(torch.full((2, 3, 1, 40, 40), 0.5), 1, 1, seeded(1))
    said = [record.getMessage() for record in caplog.records]
    assert [text.split()[1] for text in said] == ["1", "10"]


@pytest.mark.usefixtures("pysteps")
@pytest.mark.parametrize("seed", [None, 1])
def test_frames_that_steps_cannot_model(seed: int | None, caplog: pytest.LogCaptureFixture) -> None:
    """Without rain, without change, a single frame, a single pixel: a finite forecast, and a warning if not STEPS'."""
    dot = torch.zeros(1, 3, 1, 40, 40)
    dot[..., 20, 20] = 0.7
    cases = {
        "dry": (torch.zeros(1, 3, 1, 40, 40), False),
        "one frame": (blobs((1.0, 0.5), 1, 40), False),
        "no change": (blobs((0.0, 0.0), 3, 40), True),
        "a dot": (dot, True),
        "constant": (torch.full((1, 3, 1, 40, 40), 0.5), True),
    }
    for name, (context, warned) in cases.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            made = Steps().predict(context, 2, 1, None if seed is None else seeded(seed))
        assert torch.isfinite(made).all(), name
        assert ("extrapolated without perturbations" in caplog.text) == warned, name
        assert torch.allclose(
            made[0, 0, :, 0, 8:-8, 8:-8],
            context[0, -1:, 0, 8:-8, 8:-8] * (context >= 0.1)[0, -1:, 0, 8:-8, 8:-8],
            atol=0.05,
        ), name


@pytest.mark.usefixtures("pysteps")
def test_steps_is_scored_as_an_ensemble() -> None:
    frames = np.concatenate([(250 * blobs((speed, 0.5), 6, 48).clamp(0, 1)).byte().numpy() for speed in (2.0, 3.0)])
    windows = ListedWindows(frames, DBZ)
    options = {"context": 3, "horizon": 3, "thresholds": (15.0,)}
    found = evaluate(Steps(), windows, ensemble=Ensemble(5, "mean"), **options).compute()
    again = evaluate(Steps(), windows, ensemble=Ensemble(5, "mean"), **options).compute()
    assert found == again  # the generator of a batch is seeded by its number
    assert found.ranks is not None and sum(found.ranks["overall"]) == frames[:, 3:].size
    assert 0 < found.overall["crps"] < evaluate(Persistence(), windows, **options).compute().overall["mae"]
