"""Pictures of forecasts: frames in the colours of their quantity, at their places."""

from __future__ import annotations

import numpy as np
import pytest

from shards.colours import MISSING_COLOUR, code_colours, rgb
from shards.manifest import Scale
from toolkit.trackers.picture import GAP, LARGEST, SMALLEST, TEXT, draw_forecast

DBZ = Scale("reflectivity", "dBZ", -32.0, 0.5, missing_code=255)
GREY = Scale("intensity", "1", 0.0, 1 / 255)


def frames(value: int, count: int, channels: int = 1, height: int = 80, width: int = 80) -> np.ndarray:
    return np.full((count, channels, height, width), value, np.uint8)


def test_rows_are_observation_and_forecast_in_the_colours_of_the_quantity() -> None:
    codes, forecast = frames(130, 6), frames(100, 4)
    codes[:, :, :8] = 255
    picture = draw_forecast(codes, forecast, DBZ, 300.0)
    row, column = TEXT + 80 + GAP, 80 + GAP
    for place in range(6):
        x = GAP + place * column + 40
        assert (picture[TEXT + 40, x] == code_colours(DBZ)[130]).all()
        assert (picture[TEXT + 2, x] == rgb(MISSING_COLOUR)[0]).all()
        below = code_colours(DBZ)[100] if place >= 2 else [255, 255, 255]
        assert (picture[row + TEXT + 40, x] == below).all(), place


@pytest.mark.parametrize("side", [3, 16, 80, 81, 255, 700, 1500])
def test_frames_are_enlarged_or_subsampled(side: int) -> None:
    picture = draw_forecast(frames(9, 2, height=side, width=side), frames(9, 1, height=side, width=side), GREY, None)
    tall = (picture.shape[0] - 4 * TEXT - 10 - 3 * GAP) / 2
    assert SMALLEST / 2 < tall <= LARGEST


def test_long_horizons_colours_and_odd_scales_are_drawn() -> None:
    assert (
        draw_forecast(frames(9, 40), frames(9, 30), GREY, 1.0).shape
        == draw_forecast(frames(9, 11), frames(9, 8), GREY, None).shape
    )
    colour = draw_forecast(np.stack([frames(v, 2)[:, 0] for v in (10, 20, 30)], 1), frames(7, 1, 3), GREY, None)
    assert (colour[TEXT + 5, GAP + 5] == [10, 20, 30]).all()
    for scale in (Scale("x", "m", 5.0, -0.1), Scale("x", "m", 5.0, 0.0), Scale("bits", "1", 0.0, 1.0, max_code=1)):
        draw_forecast(frames(1, 2), frames(0, 1), scale, 0.0)
