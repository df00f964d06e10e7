"""What an ensemble is worth as a distribution: CRPS, spread and skill, ranks. Of all members, whichever one is scored.

    crps         sum_i |x_i - y| / N - sum_{i<j} |x_i - x_j| / N^2             the N members are the forecast
    crps_fair    sum_i |x_i - y| / N - sum_{i<j} |x_i - x_j| / (N (N - 1))     they are a sample of it (Ferro 2014)

`crps` is what others publish of ensembles (pysteps, properscoring), and of one member it is the absolute error, so a
forecast without chance has it too. It falls as N grows, though nothing got better: ensembles of different sizes are
compared by `crps_fair`, whose expectation doesn't depend on N. Both are of a pixel; over a frame they are added up like
the absolute error, by the protocol's `error_reduction`.

    spread        square root of the mean over pixels, frames and sequences of the members' sample variance (n - 1)
    rmse_of_mean  the same of the squared error of the members' mean
    spread_skill  sqrt((N + 1) / N) spread / rmse_of_mean: 1 where truth and members are draws of one distribution;
                  below, the members are too sure (Fortin et al., J. Hydrometeorology 15, 2014, equation 15)

Ranks: how many members lie below the truth, 0 .. N, counted over pixels; flat for a reliable ensemble (Hamill, Mon.
Wea. Rev. 129, 2001). The truth is known in whole codes, so members are rounded to codes before they are compared. Of
members equal to the truth a random number lies below, each number from none to all being as likely (most of a radar
frame is a tie of zeros): drawn on the CPU from a generator seeded by the batch's number, so on any number of ranks
equal.

Members are seen as the protocol has them (clamped or not), in float64, over observed pixels. They all have to be there
at once, because every pair of them counts: N forecasts of one batch, float32, lie in host memory, and above
`HOST_BYTES` in a temporary file. On the device are single forecasts, and `BLOCK` values of all members.
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
BLOCK = 1 << 22  # float32 values on the device at a time; at the least one frame of all members
TIES = 0x7135  # added to the batch's number: another stream than that of the forecasts


class Members:
    """The members of one batch's ensemble, taken in one at a time."""

    def __init__(self, count: int, codes: Tensor, scale: Scale, protocol: Protocol, number: int) -> None:
        """
        Args:
            count: N, at least 2.
            codes: the truth, uint8 [B, T, C, H, W].
            number: the batch's, for the ranks of ties.

        Raises:
            ToolkitError: there is no room for them.
        """
        self.count, self.codes, self.scale, self.protocol, self.number = count, codes, scale, protocol, number
        frames = codes.shape[0] * codes.shape[1]
        self._kept = _room((count, frames, codes[0, 0].numel()))
        self._nonfinite = torch.zeros(codes.shape[:2], dtype=torch.int64, device=codes.device)
        self._taken = 0
        self._mask: Tensor | None = None

    def add(self, member: Tensor) -> None:
        """Take in a forecast [B, T, C, H, W]."""
        compared = Compared(member, self.codes, self.scale, self.protocol)
        self._mask = compared.mask
        self._nonfinite += compared.nonfinite
        self._kept[self._taken] = compared.predicted.flatten(2).flatten(0, 1).cpu().numpy()
        self._taken += 1

    def scores(self) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
        """The columns of a `ScoreTable` of `members` N: [B, T] each, `ranks` [B, T, N + 1].

        Averaged columns are NaN, and there are no ranks, in frames of which a member isn't finite.
        """
        assert self._taken == self.count
        shape = tuple(self.codes.shape[:2])
        parts = [self._block(at) for at in self._blocks()]
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        broken = (self._nonfinite > 0).flatten()
        for name, values in columns.items():
            values[broken] = 0 if name == RANKS else torch.nan
        found = {name: values.unflatten(0, shape).cpu().numpy() for name, values in columns.items()}
        return {**found, NONFINITE_MEMBERS: self._nonfinite.cpu().numpy()}

    def _blocks(self) -> Iterator[slice]:
        count, frames, pixels = self._kept.shape
        size = max(1, BLOCK // (count * pixels))
        return (slice(at, at + size) for at in range(0, frames, size))

    def _block(self, at: slice) -> dict[str, Tensor]:
        """The columns of some frames, [F] each."""
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
        """A stream for every block of every batch."""
        return torch.Generator().manual_seed((TIES + self.number) * (1 << 24) + at.start)


def crps(members: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Continuous ranked probability scores of every pixel, standard and fair, float64 [...].

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
    """The members' sample variance and the squared error of their mean at every pixel; shapes as of `crps`."""
    mean = torch.zeros_like(truth, dtype=torch.float64)
    for member in members:
        mean += member
    mean /= len(members)
    square = torch.zeros_like(mean)
    for member in members:
        square += (member.double() - mean).square_()
    return square / (len(members) - 1), (mean - truth.double()).square()


def rank_counts(members: Tensor, truth: Tensor, uniform: Tensor, mask: Tensor | None = None) -> Tensor:
    """How often the truth has each rank among the members, int64 [F, N + 1].

    Args:
        members: [N, F, P].
        truth: [F, P].
        uniform: float64 [F, P] in 0 <= u < 1, which decides ties.
        mask: bool [F, P]; False: the pixel isn't counted.
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
    """An array for the members: in memory, or in a file that is gone when the array is."""
    needed = 4 * math.prod(shape)
    if needed <= HOST_BYTES:
        return np.empty(shape, np.float32)
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, needed)  # a full disk is an error here, not a crash in the middle
            return np.memmap(file, np.float32, mode="r+", shape=shape)
    except OSError as error:
        raise ToolkitError(
            f"eval.ensemble_size {shape[0]}: a batch's members are {needed / 1e9:.1f} GB, and {tempfile.gettempdir()} "
            f"has no room for them ({error.strerror}): name a larger folder in TMPDIR, or take a smaller --batch "
            "(eval.batch)"
        ) from None
