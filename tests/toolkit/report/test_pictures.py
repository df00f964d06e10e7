"""Codes become the right pixels."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from tests.toolkit.report.synthetic import DBZ, GREY
from toolkit.report.figures import looks
from toolkit.report.pictures import chosen_leads, columns_for, legend_svg, png_uri


def pixels(uri: str) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(image.convert("RGB"))


def test_small_frames_are_enlarged_without_smoothing() -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(1, 8, 8) * 4
    shown = pixels(png_uri(codes, GREY))
    assert shown.shape == (128, 128, 3)
    np.testing.assert_array_equal(shown[::16, ::16, 0], codes[0])
    assert set(np.unique(shown)) == set(np.unique(codes))


def test_large_frames_are_thinned() -> None:
    assert pixels(png_uri(np.zeros((1, 900, 600), np.uint8), GREY)).shape == (300, 200, 3)


def test_codes_below_255_still_reach_white() -> None:
    shown = pixels(png_uri(np.array([[[0, 50, 100]]], np.uint8), {**GREY, "max_code": 100}))
    assert [int(shown[0, x, 0]) for x in (0, 60, 127)] == [0, 127, 255]


def test_colour_frames_stay_coloured() -> None:
    codes = np.zeros((3, 200, 200), np.uint8)
    codes[1] = 200
    assert pixels(png_uri(codes, GREY))[5, 5].tolist() == [0, 200, 0]


def test_dbz_steps_and_missing_pixels() -> None:
    codes = np.array([[[0, 19, 20, 119, 120, 254, 255]]], np.uint8).repeat(200, 1).repeat(40, 2)  # quarters of a dBZ
    shown = pixels(png_uri(codes, DBZ))[0, 20::40]
    as_hex = ["#" + "".join(f"{part:02x}" for part in colour) for colour in shown.tolist()]
    assert as_hex == ["#ffffff", "#ffffff", "#deebf7", "#20609f", "#fff3a3", "#4d0a35", "#c4c4c4"]
    assert "no data" in legend_svg(DBZ)


def test_which_frames_are_shown() -> None:
    assert (columns_for(64, 64), columns_for(384, 384)) == (10, 6)
    assert chosen_leads(5, 10) == [0, 1, 2, 3, 4]
    assert chosen_leads(10, 6) == [0, 2, 4, 5, 7, 9]


def test_every_group_has_a_look_of_its_own() -> None:
    styles = looks([f"g{i}" for i in range(24)])
    assert len({(look.colour, str(look.dashes)) for look in styles.values()}) == 24
