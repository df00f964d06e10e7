"""Frames in pieces: exact where the model doesn't care, without seams, and never more than a tile in memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from toolkit.errors import ConfigError
from toolkit.forecast.tiles import paste, predict_tiled, starts
from toolkit.models.baselines import Persistence


def frames(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 2, 1, height, width, generator=torch.Generator().manual_seed(height * width))


@settings(max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 40), st.data())
def test_what_is_covariant_is_the_same_to_the_last_bit(height: int, width: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile // 2))
    whole = frames(height, width)
    sizes = []

    def predict(part: torch.Tensor) -> torch.Tensor:
        sizes.append(part.shape[-2:])
        return Persistence().predict(part, 3)[0, 0]

    assert torch.equal(predict_tiled(predict, whole, tile, overlap), predict(whole))
    assert max(max(size) for size in sizes[:-1]) <= tile


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(2, 64), st.data())
def test_tiles_cover_the_frame_and_share_what_was_asked(size: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile // 2))
    first = starts(size, tile, overlap)
    assert first[0] == 0 and first[-1] == max(size - tile, 0)
    assert all(0 < two - one <= tile - overlap for one, two in pairwise(first))
    assert len(first) == 1 or len(first) == -(-(size - tile) // (tile - overlap)) + 1  # no tile too many


def test_a_local_model_is_the_same_away_from_the_edges_of_tiles() -> None:
    """A 5x5 mean sees two pixels around: with an overlap of 16 only what a tile counts for least is off."""
    whole = frames(96, 128)

    def predict(part: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(part[0], 5, 1, 2)

    error = (predict_tiled(predict, whole, 48, 16) - predict(whole)).abs()
    plain = (predict_tiled(predict, whole, 48, 0) - predict(whole)).abs()
    assert error.max() < 0.02 < 0.2 < plain.max()


def test_no_seam_where_tiles_disagree() -> None:
    """Every tile says another number: from one pixel to the next the blend moves by a small part of the difference."""
    left, right = torch.zeros(40, 40), torch.ones(40, 40)
    target = torch.empty(40, 64)
    paste(target, left, 0, 0, dim=-1)
    paste(target, right, 24, 40, dim=-1)
    steps = target[0].diff()
    assert target[0, :24].eq(0).all() and target[0, 40:].eq(1).all()
    assert (steps >= 0).all() and steps.max() < 0.1
    assert steps.diff().abs().max() < 0.02  # the slope doesn't jump either


@pytest.mark.parametrize(("tile", "overlap"), [(8, 5), (8, -1), (1, 1)])
def test_an_overlap_that_is_none_is_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=f"--tile {tile} --overlap {overlap}"):
        predict_tiled(lambda part: part, frames(9, 9), tile, overlap)
