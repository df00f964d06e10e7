"""Scores of an ensemble as a distribution: CRPS, spread and skill, ranks. They use all members, whichever is scored.

    crps         sum_i |x_i - y| / N - sum_{i<j} |x_i - x_j| / N^2             the N members are the forecast
    crps_fair    sum_i |x_i - y| / N - sum_{i<j} |x_i - x_j| / (N (N - 1))     they are a sample of it (Ferro 2014)

`crps` is the usual published form (pysteps, properscoring). For one member it is the absolute error, so deterministic
forecasts have it too. It decreases with N even if the forecast distribution stays the same: compare ensembles of
different sizes by `crps_fair`, whose expectation does not depend on N (infinite ensemble). Both are computed per pixel
and reduced over a frame like the absolute error, by the protocol's `error_reduction`.

    spread        square root of the mean over pixels, frames and sequences of the members' sample variance (n - 1)
    rmse_of_mean  the same for the squared error of the ensemble mean
    spread_skill  sqrt((N + 1) / N) spread / rmse_of_mean: 1 if observation and members are drawn from one distribution;
                  below 1 the ensemble is under-dispersive (Fortin et al., J. Hydrometeorology 15, 2014, equation 15)

Ranks: the number of members below the observation, 0 .. N, counted over pixels; flat for a reliable ensemble (Hamill,
Mon. Wea. Rev. 129, 2001). The observation is an integer code, so members are rounded to codes before the comparison. Of
members equal to the observation, a uniform random number counts as below (most of a radar frame is a tie of zeros),
drawn on the CPU from a generator seeded by the batch number, so it is the same on any number of ranks.

Members are compared as the protocol defines (clamped or not), in float64, over observed pixels. All of them are needed
at once, because every pair counts: N forecasts of one batch, float32, are kept in host memory, and above `HOST_BYTES`
in a temporary file. The device holds single forecasts, and `BLOCK` values of all members.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.manifest import Scale
from toolkit.data.windows import to_unit
from toolkit.errors import ToolkitError
from toolkit.evaluate import metrics
from toolkit.evaluate.protocols import Protocol
from toolkit.evaluate.scoring import Compared
from toolkit.evaluate.table import NONFINITE_MEMBERS, RANKS

HOST_BYTES = 1 << 31
BLOCK = 1 << 22  # float32 values on the device at a time; at least one frame of all members
TIES = 0x7135  # added to the batch number: a different random stream than that of the forecasts


class Members:
    """The ensemble members of one batch, added one at a time.

    Attributes:
        nonfinite: how many members are not finite in each frame, int64 [B, T].
    """

    def __init__(
        self, count: int, codes: Tensor, scale: Scale, protocol: Protocol, number: int, inflow: Tensor | None = None
    ) -> None:
        """
        Args:
            count: N, at least 2.
            codes: the observation, [B, T, C, H, W].
            number: batch number, seeds the ranks of ties.
            inflow: see `Compared`.

        Raises:
            ToolkitError: there is not enough memory or disk space.
        """
        self.count, self.codes, self.scale, self.protocol, self.number = count, codes, scale, protocol, number
        self.inflow = inflow
        frames = codes.shape[0] * codes.shape[1]
        self._kept = _room((count, frames, codes[0, 0].numel()))
        self.nonfinite = torch.zeros(codes.shape[:2], dtype=torch.int64, device=codes.device)
        self._taken = 0
        self._mask: Tensor | None = None

    def add(self, member: Tensor) -> None:
        """Add a forecast [B, T, C, H, W]."""
        compared = Compared(member, self.codes, self.scale, self.protocol, self.inflow)
        self._mask = compared.mask
        self.nonfinite += compared.nonfinite
        self._kept[self._taken] = compared.predicted.flatten(2).flatten(0, 1).cpu().numpy()
        self._taken += 1

    def scores(self) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
        """Return the columns of a `ScoreTable` with `members` N: [B, T] each, `ranks` [B, T, N + 1].

        In frames with a member that is not finite, averaged columns are NaN and ranks are 0.
        """
        assert self._taken == self.count
        shape = tuple(self.codes.shape[:2])
        parts = [self._block(at) for at in self._blocks()]
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        broken = (self.nonfinite > 0).flatten()
        for name, values in columns.items():
            values[broken] = 0 if name == RANKS else torch.nan
        found = {name: values.unflatten(0, shape).cpu().numpy() for name, values in columns.items()}
        return {**found, NONFINITE_MEMBERS: self.nonfinite.cpu().numpy()}

    def probability(self, level: float) -> Tensor:
        """Return the share of members at or above a level in 0..1, float64 of the observation's shape."""
        reached = np.zeros(self._kept.shape[1:], dtype=np.float64)
        for member in self._kept:
            reached += member >= level
        return torch.from_numpy(reached / self.count).view(self.codes.shape).to(self.codes.device)

    def _blocks(self) -> Iterator[slice]:
        count, frames, pixels = self._kept.shape
        size = max(1, BLOCK // (count * pixels))
        return (slice(at, at + size) for at in range(0, frames, size))

    def _block(self, at: slice) -> dict[str, Tensor]:
        """Compute the columns of some frames, [F] each."""
        device, codes = self.codes.device, self.codes.flatten(0, 1)[at]
        members = torch.from_numpy(self._kept[:, at]).to(device)  # [N, F, P]
        truth = to_unit(codes, self.scale).flatten(1)
        mask = None if self._mask is None else self._mask.flatten(0, 1)[at]
        standard, fair = crps(members, truth)
        variance, error = spread_and_error(members, truth)
        uniform = torch.rand(truth.shape, generator=self._ties(at), dtype=torch.float64).to(device)
        rounded = (members * self.scale.max_code).round_()
        counts = rank_counts(rounded, codes.flatten(1).float(), uniform, None if mask is None else mask.flatten(1))

        def frame(values: Tensor, reduction: metrics.Reduction) -> Tensor:
            return metrics.reduced(values.view(codes.shape)[None], reduction, None if mask is None else mask[None])[0]

        reduction = self.protocol.error_reduction
        return {
            "crps": frame(standard, reduction),
            "crps_fair": frame(fair, reduction),
            "ensemble_variance": frame(variance, "mean"),
            "ensemble_error": frame(error, "mean"),
            RANKS: counts,
        }

    def _ties(self, at: slice) -> torch.Generator:
        """Return the random stream of a block of this batch."""
        return torch.Generator().manual_seed((TIES + self.number) * (1 << 24) + at.start)


def crps(members: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the continuous ranked probability score of every pixel, standard and fair, float64 [...].

    Args:
        members: float32 [N, ...], N at least 2.
        truth: [...].
    """
    count = len(members)
    ordered, truth = members.sort(0).values, truth.double()
    away, apart = torch.zeros_like(truth), torch.zeros_like(truth)
    for place, member in enumerate(ordered):  # one at a time: the float64 copy of all would be twice the members
        away += (member.double() - truth).abs_()
        apart += (2 * place + 1 - count) * member.double()  # sum_{i<j} |x_i - x_j|, of sorted members
    return away / count - apart / count**2, away / count - apart / (count * (count - 1))


def spread_and_error(members: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sample variance of the members and the squared error of their mean, per pixel; shapes: see `crps`."""
    mean = torch.zeros_like(truth, dtype=torch.float64)
    for member in members:
        mean += member
    mean /= len(members)
    square = torch.zeros_like(mean)
    for member in members:
        square += (member.double() - mean).square_()
    return square / (len(members) - 1), (mean - truth.double()).square()


def rank_counts(members: Tensor, truth: Tensor, uniform: Tensor, mask: Tensor | None = None) -> Tensor:
    """Count the ranks of the observation among the members, int64 [F, N + 1].

    Args:
        members: [N, F, P].
        truth: [F, P].
        uniform: float64 [F, P] in 0 <= u < 1, which breaks ties.
        mask: bool [F, P]; False: the pixel is not counted.
    """
    count = len(members)
    below, ties = torch.zeros_like(truth, dtype=torch.int64), torch.zeros_like(truth, dtype=torch.int64)
    for member in members:
        below += member < truth
        ties += member == truth
    ranks = below + (uniform * (ties + 1)).long()
    bins = ranks + (count + 1) * torch.arange(len(truth), device=truth.device)[:, None]
    chosen = bins.flatten() if mask is None else bins[mask]
    return torch.bincount(chosen, minlength=len(truth) * (count + 1)).view(len(truth), count + 1)


def _room(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an array for the members: in memory, or in a temporary file that is deleted with the array."""
    needed = 4 * math.prod(shape)
    if needed <= HOST_BYTES:
        return np.empty(shape, np.float32)
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, needed)  # report a full disk here, not as a crash later
            return np.memmap(file, np.float32, mode="r+", shape=shape)
    except OSError as error:
        raise ToolkitError(
            f"eval.ensemble_size {shape[0]}: the members of a batch take {needed / 1e9:.1f} GB, which "
            f"{tempfile.gettempdir()} cannot hold ({error.strerror}): set TMPDIR to a larger file system, or reduce "
            "--batch (eval.batch)"
        ) from None
