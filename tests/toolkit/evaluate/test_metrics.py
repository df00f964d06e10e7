"""Metrics against scikit-image and plain float64 loops, on random and on awkward frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import uniform_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from toolkit.errors import ToolkitError
from toolkit.evaluate import metrics


def frames(
    seed: int, batch: int = 2, time: int = 3, channels: int = 1, height: int = 16, width: int = 13
) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.integers(0, 256, (batch, time, channels, height, width)).astype(np.float32))


def awkward() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs [1, 1, 1, 16, 13] of levels 0..255."""
    base, other = frames(1, 1, 1), frames(2, 1, 1)
    dot = torch.zeros_like(base)
    dot[..., 8, 6] = 255
    return {
        "random": (base, other),
        "exact": (base, base.clone()),
        "constants": (torch.full_like(base, 17), torch.full_like(base, 203)),
        "equal constants": (torch.full_like(base, 99), torch.full_like(base, 99)),
        "black and white": (torch.zeros_like(base), torch.full_like(base, 255)),
        "one pixel": (dot, torch.zeros_like(base)),
        "one level off": (base, (base + 1).clamp(max=255)),
        "negative": (base, 255 - base),
    }


@pytest.mark.parametrize("name", awkward())
def test_ssim_is_scikit_images(name: str) -> None:
    prediction, truth = awkward()[name]
    expected = structural_similarity(
        truth[0, 0, 0].numpy().astype(np.uint8), prediction[0, 0, 0].numpy().astype(np.uint8), data_range=255
    )
    found = metrics.ssim(prediction, truth, 255.0)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, abs=1e-9)
    if name in ("exact", "equal constants"):
        assert found.item() == 1.0


@pytest.mark.parametrize(("channels", "window"), [(1, 7), (3, 7), (2, 11)])
def test_ssim_of_every_frame_of_a_batch(channels: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(metrics.SSIM_BLOCK, "cpu", 5 * channels * 16 * 13)  # two blocks, the last one short
    prediction, truth = frames(3, channels=channels), frames(4, channels=channels)
    found = metrics.ssim(prediction, truth, 255.0, window)
    for b, t in np.ndindex(2, 3):
        expected = structural_similarity(
            truth[b, t].numpy().astype(np.uint8),
            prediction[b, t].numpy().astype(np.uint8),
            win_size=window,
            data_range=255,
            channel_axis=0,
        )
        assert found[b, t].item() == pytest.approx(expected, abs=1e-9)


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    small = torch.zeros(1, 1, 1, 6, 20)
    with pytest.raises(ToolkitError, match=r"6x20 are smaller than its window of 7x7"):
        metrics.ssim(small, small, 255.0)
    with pytest.raises(ToolkitError, match="odd"):
        metrics.ssim(small, small, 255.0, window=4)


def test_masked_ssim_is_the_mean_over_windows_without_missing_pixels() -> None:
    prediction, truth = frames(5, 1, 1), frames(6, 1, 1)
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[..., 3, 4] = False
    prediction[..., 3, 4] = math.nan
    _, full = structural_similarity(
        truth[0, 0, 0].numpy().astype(np.float64),
        prediction[0, 0, 0].nan_to_num().numpy().astype(np.float64),
        data_range=255,
        full=True,
    )
    kept = [full[y, x] for y in range(3, 13) for x in range(3, 10) if not (abs(y - 3) <= 3 and abs(x - 4) <= 3)]
    assert metrics.ssim(prediction, truth, 255.0, mask=mask).item() == pytest.approx(np.mean(kept), abs=1e-9)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@given(seed=st.integers(0, 2**31), channels=st.integers(1, 3), masked=st.booleans())
@settings(max_examples=20)
def test_errors_equal_plain_loops(reduction: metrics.Reduction, seed: int, channels: int, masked: bool) -> None:
    prediction, truth = frames(seed, channels=channels) / 255, frames(seed + 1, channels=channels) / 255
    mask = frames(seed + 2, channels=channels) > 100 if masked else None
    squared = metrics.mse(prediction, truth, reduction, mask)
    absolute = metrics.mae(prediction, truth, reduction, mask)
    for b, t in np.ndindex(*squared.shape):
        differences = [
            float(p) - float(q)
            for place, (p, q) in enumerate(zip(prediction[b, t].flatten(), truth[b, t].flatten(), strict=True))
            if mask is None or mask[b, t].flatten()[place]
        ]
        scale = 1 / len(differences) if reduction == "mean" else truth[b, t].numel() / len(differences)
        assert squared[b, t].item() == pytest.approx(scale * math.fsum(d * d for d in differences), rel=1e-12)
        assert absolute[b, t].item() == pytest.approx(scale * math.fsum(map(abs, differences)), rel=1e-12)


def test_psnr_is_scikit_images_and_exact_frames_are_capped() -> None:
    prediction, truth = frames(7), frames(8)
    prediction[1, 2] = truth[1, 2]
    found, exact = metrics.psnr(prediction, truth, 255.0, 100.0)
    assert exact.nonzero().tolist() == [[1, 2]]
    assert found[1, 2].item() == 100.0
    for b, t in ((0, 0), (0, 2), (1, 1)):
        pair = (truth[b, t].numpy().astype(np.float64), prediction[b, t].numpy().astype(np.float64))
        assert found[b, t].item() == pytest.approx(peak_signal_noise_ratio(*pair, data_range=255), rel=1e-12)
    almost = metrics.psnr(truth + 1e-7, truth.double(), 255.0, 100.0)[0]
    assert almost.max().item() == 100.0  # the cap holds for better than 100 dB, too


@given(seed=st.integers(0, 2**31), masked=st.booleans())
@settings(max_examples=20)
def test_contingency_equals_counting(seed: int, masked: bool) -> None:
    forecast, observed = frames(seed) > 128, frames(seed + 1) > 128
    mask = frames(seed + 2) > 60 if masked else None
    found = metrics.contingency(forecast, observed, mask)
    for b, t in np.ndindex(2, 3):
        keep = np.ones((1, 16, 13), bool) if mask is None else mask[b, t].numpy()
        f, o = forecast[b, t].numpy()[keep], observed[b, t].numpy()[keep]
        counts = (found.hits[b, t].item(), found.misses[b, t].item(), found.false_alarms[b, t].item())
        assert counts == ((f & o).sum(), (~f & o).sum(), (f & ~o).sum())
        assert found.correct_negatives[b, t].item() == (~f & ~o).sum()
    assert found.hits.dtype == torch.int64


@pytest.mark.parametrize("masked", [False, True])
def test_pooled_contingency_equals_counting_squares(masked: bool) -> None:
    forecast, observed = frames(3) > 235, frames(4) > 235
    mask = frames(5) > 40 if masked else None
    if mask is not None:
        mask[0, 0, :, :4, :4] = False  # a square of which nothing is known
    found = metrics.contingency(forecast, observed, mask, pool=4)
    for b, t in np.ndindex(2, 3):
        keep = np.ones((16, 13), bool) if mask is None else mask[b, t, 0].numpy()
        f, o = forecast[b, t, 0].numpy() & keep, observed[b, t, 0].numpy() & keep
        counts = np.zeros(4, int)
        for y in range(0, 16, 4):
            for x in range(0, 13, 4):  # the last squares are one pixel wide
                square = (slice(y, y + 4), slice(x, x + 4))
                if keep[square].any():
                    counts[2 * int(not f[square].any()) + int(not o[square].any())] += 1
        hits, alarms, misses, negatives = counts
        table = (found.hits, found.false_alarms, found.misses, found.correct_negatives)
        assert [int(part[b, t]) for part in table] == [hits, alarms, misses, negatives]


@pytest.mark.parametrize("masked", [False, True])
def test_fractions_equal_scipys_filter(masked: bool) -> None:
    """As pysteps computes it: shares by scipy's uniform filter with zeros beyond the edge."""
    forecast, observed = frames(6) > 180, frames(7) > 160
    mask = frames(8) > 30 if masked else None
    seen = (forecast, observed) if mask is None else (forecast & mask, observed & mask)
    boxes = [metrics.BoxSums(events, 7) for events in seen]
    error, reference = (terms.double() / 5**4 / forecast[0, 0].numel() for terms in metrics.fractions(*boxes, 5))
    for b, t in np.ndindex(2, 3):
        keep = 1 if mask is None else mask[b, t, 0].numpy()
        f, o = (
            uniform_filter((events[b, t, 0].numpy() * keep).astype(float), size=5, mode="constant", cval=0.0)
            for events in (forecast, observed)
        )
        assert error[b, t].item() == pytest.approx(((f - o) ** 2).mean(), rel=1e-12)
        assert reference[b, t].item() == pytest.approx((f**2).mean() + (o**2).mean(), rel=1e-12)
    with pytest.raises(ToolkitError, match="side of 4 pixels must be odd"):
        metrics.fractions(*boxes, 4)


def test_sums_over_squares_of_a_frame_that_is_all_events_are_exact_for_wide_windows() -> None:
    """Squares of the counts exceed int32 above a side of 181 pixels."""
    everywhere = torch.ones(1, 1, 1, 260, 200, dtype=torch.bool)
    boxes, nowhere = (metrics.BoxSums(events, 255) for events in (everywhere, ~everywhere))
    rows, columns = (
        [sum(0 <= place + offset < side for offset in range(-127, 128)) for place in range(side)] for side in (260, 200)
    )
    expected = sum(row**2 for row in rows) * sum(column**2 for column in columns)
    for terms in (metrics.fractions(boxes, nowhere, 255), metrics.fractions(nowhere, boxes, 255)):
        assert [int(term) for term in terms] == [expected, expected]


def test_a_frame_without_observed_pixels_has_no_value() -> None:
    prediction, truth = frames(9, 1, 2), frames(10, 1, 2)
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[:, 1] = False
    for values in (
        metrics.mse(prediction, truth, "sum", mask),
        metrics.mae(prediction, truth, "mean", mask),
        metrics.psnr(prediction, truth, 255.0, 100.0, mask)[0],
        metrics.ssim(prediction, truth, 255.0, mask=mask),
    ):
        assert torch.isnan(values).tolist() == [[False, True]]


def test_a_mask_that_hides_nothing_changes_nothing() -> None:
    prediction, truth = frames(11), frames(12)
    mask = torch.ones_like(truth, dtype=torch.bool)
    assert torch.equal(metrics.mse(prediction, truth, "mean"), metrics.mse(prediction, truth, "mean", mask))
    torch.testing.assert_close(
        metrics.ssim(prediction, truth, 255.0), metrics.ssim(prediction, truth, 255.0, mask=mask)
    )


def test_shapes_must_agree() -> None:
    with pytest.raises(ToolkitError, match=r"prediction \(2, 3, 1, 16, 13\), truth \(2, 2, 1, 16, 13\)"):
        metrics.mse(frames(1), frames(1)[:, :2], "sum")
