"""Codes become the right pixels."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
from PIL import Image

from shards.colours import DBZ_COLOURS, MISSING_COLOUR
from tests.support.synthetic import DBZ, GREY
from toolkit.report.html.animation import gif_uri
from toolkit.report.html.figures import looks
from toolkit.report.html.pictures import (
    TOO_HIGH,
    TOO_LOW,
    chosen_leads,
    columns_for,
    difference_key,
    difference_uri,
    frame_key,
    png_uri,
)


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
    shown = pixels(png_uri(np.array([[[0, 50, 100]]], np.uint8), replace(GREY, max_code=100)))
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
    assert frame_key(DBZ).missing == MISSING_COLOUR and frame_key(GREY).missing is None


def test_which_frames_are_shown() -> None:
    assert (columns_for(64, 64), columns_for(384, 384)) == (10, 6)
    assert chosen_leads(5, 10) == [0, 1, 2, 3, 4]
    assert chosen_leads(10, 6) == [0, 2, 4, 5, 7, 9]


def test_every_group_has_a_look_of_its_own() -> None:
    styles = looks([f"g{i}" for i in range(24)])
    assert len({(look.colour, str(look.dashes)) for look in styles.values()}) == 24


def test_differences_are_signed_symmetric_and_leave_out_what_is_missing() -> None:
    truth = np.full((1, 1, 7), 100, np.uint8)
    prediction = np.array([[[0, 90, 98, 100, 102, 110, 200]]], np.uint8)  # quarters of a dBZ
    truth[0, 0, 2] = 255
    frames = [codes.repeat(200, 1).repeat(40, 2) for codes in (prediction, truth)]
    shown = pixels(difference_uri(*frames, DBZ))[0, 20::40]
    as_hex = ["#" + "".join(f"{part:02x}" for part in colour) for colour in shown.tolist()]
    assert as_hex == [TOO_LOW[-1], TOO_LOW[0], MISSING_COLOUR, "#ffffff", "#ffffff", TOO_HIGH[0], TOO_HIGH[-1]]
    assert len(TOO_LOW) == len(TOO_HIGH)
    assert [text for _, text in difference_key(DBZ).ticks] == ["−25", "0", "+25"]
    assert difference_key(GREY).ticks[-1][1] == "+0.5"


def lightness(colour: str) -> float:
    """CIE L* of an sRGB colour: what is left of it in a print without colours."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * luminance ** (1 / 3) - 16


def test_neighbouring_colours_differ_in_lightness_too() -> None:
    """So they are told apart without colour vision and in grey print; grey alone is no colour of the scale."""
    scales = {
        "dBZ": ["#ffffff", *(colour for _, colour in DBZ_COLOURS)],
        "too low": ["#ffffff", *TOO_LOW],
        "too high": ["#ffffff", *TOO_HIGH],
    }
    for name, colours in scales.items():
        for first, second in pairwise(map(lightness, colours)):
            assert abs(first - second) > 5, name


def test_an_animation_shows_all_frames_of_all_models() -> None:
    context, truth = np.zeros((2, 1, 16, 16), np.uint8), np.full((3, 1, 16, 16), 120, np.uint8)
    panels = {
        "observation": truth,
        "a model with a very long name indeed": truth // 2,
        **{str(n): truth for n in range(3)},
    }
    labels = ["−5 min, 23:55 UTC", "0 min, 00:00 UTC", "+5 min", "+10 min", "+15 min"]
    uri = gif_uri(context, panels, labels, DBZ)
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert (image.n_frames, image.info["loop"]) == (5, 0)
    side, caption, margin = 128, 18, 6
    assert image.size == (margin + 4 * (side + margin), caption + margin + 2 * (side + caption + margin))
    image.seek(4)
    shown = np.asarray(image.convert("RGB"))
    first, second = shown[caption + caption + 64, margin + 64], shown[caption + caption + 64, 2 * margin + side + 64]
    assert tuple(first) == (0xFF, 0xF3, 0xA3) and tuple(second) == (0x7F, 0xB4, 0xD9)  # 30 and 15 dBZ
    image.seek(0)
    assert tuple(np.asarray(image.convert("RGB"))[caption + caption + 64, margin + 64]) == (255, 255, 255)
