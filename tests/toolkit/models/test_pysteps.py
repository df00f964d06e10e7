"""pysteps' nowcast as a model, against pysteps itself; without it, what the error says."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.support.models import blobs
from toolkit.errors import ConfigError
from toolkit.models.baselines import OpticalFlow, Persistence
from toolkit.models.pysteps_nowcast import Pysteps


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
def test_without_the_extra_the_error_names_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"needs pysteps and OpenCV .*: pip install '\.\[pysteps\]'"):
        Pysteps().predict(torch.rand(1, 3, 1, 16, 16), 2)


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
