"""One colour map per quantity: the same in images, in matplotlib's figures and in contact sheets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.colours import BELOW_COLOUR, DBZ_COLOURS, MISSING_COLOUR, code_colours, norm_and_colours, rgb
from shards.manifest import Scale
from shards.sheet import draw_sheet
from shards.sources import Description
from tests.support.clips import Clips, make_store

DBZ = Scale("radar reflectivity", "dBZ", offset=-10.0, gain=95 / 255, max_code=254, missing_code=255)
GREY = Scale("intensity", "1", offset=0.0, gain=1 / 255)
KELVIN = Scale("brightness temperature", "K", offset=150.0, gain=0.5, max_code=254, missing_code=255)
LEVELS = Scale("liquid", "1", offset=0.0, gain=1.0, max_code=254, missing_code=255, mapping="sevir-vil")


@dataclass(frozen=True)
class Scaled(Clips):
    """Noise of a quantity."""

    scale: Scale = DBZ

    def describe(self) -> Description:
        return replace(super().describe(), scale=self.scale)


@pytest.mark.parametrize(
    "scale",
    [DBZ, GREY, KELVIN, LEVELS, replace(KELVIN, max_code=100, missing_code=None)],
    ids=lambda scale: scale.quantity,
)
def test_matplotlib_has_the_colours_of_images(scale: Scale) -> None:
    codes = np.arange(scale.max_code + 1)
    norm, colours = norm_and_colours(scale)
    drawn = colours(norm(scale.offset + scale.gain * codes), bytes=True)[:, :3].astype(int)
    assert np.abs(drawn - code_colours(scale)[codes]).max() <= (0 if scale.unit == "dBZ" else 1)  # grey: 256 levels
    if scale.missing_code is not None:
        assert code_colours(scale)[scale.missing_code].tolist() == rgb(MISSING_COLOUR)[0].tolist()


def test_grey_reaches_from_black_to_white() -> None:
    for scale in (GREY, replace(GREY, max_code=100)):
        assert code_colours(scale)[[0, scale.max_code]].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize("scale", [DBZ, KELVIN, LEVELS], ids=lambda scale: scale.quantity)
def test_a_contact_sheet_has_the_colours_of_its_quantity(tmp_path: Path, scale: Scale) -> None:
    source = Scaled(lengths={"train": (8,)}, size=(1, 40, 60), scale=scale)
    draw_sheet(make_store(tmp_path / "s", "webdataset", source), tmp_path / "s.png")
    with Image.open(tmp_path / "s.png") as image:
        found = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    steps = {tuple(colour) for colour in rgb(BELOW_COLOUR, *(colour for _, colour in DBZ_COLOURS)).tolist()}
    if scale.unit == "dBZ":
        assert steps <= found
    else:
        assert all(max(colour) - min(colour) < 3 for colour in found)
        assert len(found) > 200
