"""Shares of pixels that are missing or clipped: small ones are neither rounded away nor printed as 0."""

import dataclasses

import numpy as np
import pytest

from shards import open_store
from shards.convert import convert
from shards.coverage import text_of
from shards.manifest import Scale, SplitInfo, rounded_share
from shards.sources import RawEvent
from tests.support.clips import Clips


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1.0, "100.0%"),
        (0.1214, "12.1%"),
        (0.001, "0.1%"),
        (0.0009, "0.09%"),
        (0.00049, "0.05%"),
        (0.00002, "0.002%"),
        (1e-6, "0.0001%"),
    ],
)
def test_shares_as_text(share, text):
    assert text_of(SplitInfo(1, 1, (), missing=share)) == f"missing {text}"


@pytest.mark.parametrize(("share", "kept"), [(0, 0), (1e-9, 1e-6), (1.4e-6, 1e-6), (0.1234567, 0.123457), (1, 1)])
def test_shares_are_not_rounded_to_nothing(share, kept):
    assert rounded_share(share) == kept


class OnePixel(Clips):
    """Of two million pixels one is missing, and the source clipped one."""

    def describe(self):
        return dataclasses.replace(super().describe(), scale=Scale("rain", "mm", 0.0, 1.0, 254, 255))

    def read(self, event):
        frames = np.zeros((event.length, *self.size), np.uint8)
        frames[0, 0, 0, 0] = 255
        return RawEvent(frames, {"clipped": rounded_share(1 / frames.size)})


def test_one_pixel_is_told(tmp_path, format):
    convert(OnePixel(lengths={"train": (8,)}, size=(1, 512, 512)), tmp_path / "s", arguments={}, format=format)
    split = open_store(tmp_path / "s").splits["train"]
    assert text_of(split) == "missing 0.0001%, clipped 0.0001%"
