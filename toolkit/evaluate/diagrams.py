"""Verification diagrams of a forecast with event thresholds, by pysteps' definitions (pysteps.verification, .utils):

    reliability    frequency of the event over the forecast probability, in 10 bins of the probability
    ROC            POD over POFD if the event is forecast where its probability reaches 0, 1/9 ... 1, and the area below
    FSS            fractions skill score of the scored forecast over the side of the neighbourhood (metrics.fractions)
    spectrum       radially averaged power of the scored forecast and of the observation, mean over frames, values in
                   the store's unit; wavenumber k = 0, 1 ... cycles over the longer side L, wavelength L / k pixels

The probability is the share of members at or above the threshold; of a single forecast, the share of pixels in the
square of 15 x 15 around each pixel, as `forecast/products.py` has it. Missing and excluded pixels are not counted; in
FSS there is no event at them, and in spectra they have the lowest value in forecast and observation.

Sums of a batch are kept by its number and added up in this order, so they are the same on any number of ranks. Within a
batch counts are integers and probabilities are summed in fixed point, so a device may add in any order. With a forecast
or a member that is not finite there are no diagrams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.manifest import Scale
from toolkit.data.windows import numbers
from toolkit.evaluate.check import threshold_codes
from toolkit.evaluate.metrics import BoxSums, fractions
from toolkit.evaluate.probabilistic import Members
from toolkit.evaluate.protocols import Protocol
from toolkit.evaluate.scoring import Compared, threshold_level

NEIGHBOURHOOD = 15  # pixels, of the probability of a single forecast
EDGES = np.linspace(-1e-6, 1 + 1e-6, 11)  # of the bins of probability
LIMITS = np.linspace(0.0, 1.0, 10)  # probabilities from which on the event is forecast
MIN_COUNT = 10  # pixels, below which a bin has no frequency
SCALES = (1, 3, 7, 15, 31, 63, 127)  # sides of neighbourhoods, pixels; up to the shorter side of a frame

Sums = dict[str, NDArray[np.float64]]


@dataclass
class Diagrams:
    """Sums of the diagrams, an accumulator (contract 5).

    Attributes:
        thresholds: in the store's unit.
        members: ensemble size; 1: a single forecast.
        sums: by batch number.
    """

    thresholds: tuple[float, ...]
    members: int
    shape: tuple[int, int]
    sums: dict[int, Sums] = field(default_factory=dict)

    def merge(self, other: Diagrams) -> None:
        """Add the batches of another rank."""
        self.sums.update(other.sums)

    def compute(self) -> dict[str, object] | None:
        """Return the diagrams over all lead times as plain values; None where undefined."""
        added: Sums = {}
        for number in sorted(self.sums):
            for name, values in self.sums[number].items():
                added[name] = added[name] + values if name in added else values
        if not added or added["nonfinite"]:
            return None
        many = f"share of {self.members} members"
        one = f"share of the {NEIGHBOURHOOD} x {NEIGHBOURHOOD} pixels around each pixel"
        waves = np.arange(1, added["spectra"].shape[-1])
        return {
            "probability": many if self.members > 1 else one,
            "thresholds": list(self.thresholds),
            "scales": list(_scales(self.shape)),
            "wavelengths": (max(self.shape) / waves).tolist(),
            "overall": self._curves(added),
        }

    def _curves(self, sums: Sums) -> dict[str, object]:
        forecast, observation = (sums["spectra"][which, 1:] / sums["frames"] for which in (0, 1))
        skill = 1 - sums["fss_error"] / np.where(sums["fss_reference"] > 0, sums["fss_reference"], np.nan)
        return {
            "reliability": [_reliability(*(sums["bins"][place])) for place in range(len(self.thresholds))],
            "roc": [_roc(sums["reached"][place], sums["all"][place]) for place in range(len(self.thresholds))],
            "fss": _plain(skill),
            "frequency": _plain(sums["all"][:, 0] / sums["all"].sum(-1)),
            "spectrum": {"forecast": forecast.tolist(), "observation": observation.tolist()},
        }


def sums_of(
    prediction: Tensor,
    codes: Tensor,
    scale: Scale,
    protocol: Protocol,
    thresholds: Sequence[float],
    members: Members | None = None,
    inflow: Tensor | None = None,
) -> Sums:
    """Return the sums of a batch.

    Args:
        prediction, codes, inflow: see `Compared`.
        thresholds: in the store's unit.
        members: all of an ensemble; None: the probability is that of a neighbourhood.
    """
    compared = Compared(prediction, codes, scale, protocol, inflow)
    seen = torch.ones_like(codes, dtype=torch.bool) if compared.mask is None else compared.mask
    scales = _scales(codes.shape[-2:])
    counted = BoxSums(seen, NEIGHBOURHOOD).at(NEIGHBOURHOOD).clamp(min=1)
    found: dict[str, list[Tensor]] = {name: [] for name in ("bins", "reached", "all", "fss_error", "fss_reference")}
    for threshold, code in zip(thresholds, threshold_codes(thresholds, scale), strict=True):
        level = threshold_level(threshold, code, scale)
        forecast, event = (compared.predicted >= level) & seen, (numbers(codes) >= code) & seen
        boxes, event_boxes = (BoxSums(events, max(*scales, NEIGHBOURHOOD)) for events in (forecast, event))
        share = boxes.at(NEIGHBOURHOOD).double() / counted if members is None else members.probability(level)
        squares = zip(*(fractions(boxes, event_boxes, side) for side in scales), strict=True)
        for name, by_side in zip(("fss_error", "fss_reference"), squares, strict=True):
            sums = [square.sum().double() / side**4 for square, side in zip(by_side, scales, strict=True)]
            found[name].append(torch.stack(sums))
        for name, values in _probabilities(share[seen], event[seen]).items():
            found[name].append(values)
    made = {name: torch.stack(values).cpu().numpy().astype(np.float64) for name, values in found.items()}
    fields = (frames.masked_fill(~seen, 0.0) for frames in (compared.predicted, compared.truth))
    made["spectra"] = np.stack([_spectra(frames, scale) for frames in fields])
    made["frames"] = np.array(codes[:, :, :, 0, 0].numel(), dtype=np.float64)
    broken = compared.nonfinite if members is None else compared.nonfinite | (members.nonfinite > 0)
    made["nonfinite"] = np.array(int(broken.sum()), dtype=np.float64)
    return made


def _probabilities(chance: Tensor, happened: Tensor) -> dict[str, Tensor]:
    """Return, of pixels with a probability and whether there was an event, [P] each: of each bin the sum of
    probabilities, events and pixels [3, 10]; events and other pixels at or above each limit [10, 2]; all of them [2].
    """
    edges, limits = (torch.from_numpy(values).to(chance.device) for values in (EDGES, LIMITS))
    place = torch.bucketize(chance, edges) - 1  # (edge, next edge]
    others, events = _count_pairs(place, happened, len(EDGES) - 1).unbind(1)
    digits = 62 - chance.numel().bit_length()  # as many binary digits as the sum of all has room for
    fixed = (chance * 2.0**digits).round().long()
    chances = torch.stack([fixed.masked_fill(place != number, 0).sum() for number in range(len(others))])
    passed = torch.bucketize(chance, limits, right=True)  # how many limits it reaches
    at_least = _count_pairs(passed, happened, len(LIMITS) + 1).flip(0, 1).cumsum(0).flip(0)
    bins = torch.stack([chances.double() / 2.0**digits, events.double(), (events + others).double()])
    return {"bins": bins, "reached": at_least[1:], "all": at_least[0]}


def _count_pairs(place: Tensor, happened: Tensor, places: int) -> Tensor:
    """Count pixels [P] by their place and whether there was an event: int64 [places, 2], first without one."""
    return torch.bincount(2 * place + happened, minlength=2 * places).view(places, 2)


def _spectra(frames: Tensor, scale: Scale) -> NDArray[np.float64]:
    """Return radially averaged power spectra [R], summed over sequences, lead times and channels."""
    values = scale.offset + scale.gain * scale.max_code * frames.double()
    power = torch.fft.rfft2(values).abs().square() / values[0, 0, 0].numel()
    height, width = frames.shape[-2:]
    down, across = np.fft.fftfreq(height) * height, np.arange(width // 2 + 1)
    ring = np.sqrt(down[:, None] ** 2 + across**2).round().astype(np.int64).ravel()
    # Of a real field's transform one half is computed: columns but the first and the middle one stand for two.
    twice = np.where((across == 0) | (2 * across == width), 1.0, 2.0)
    number = np.broadcast_to(twice, (height, len(twice))).ravel()
    rings = max(height, width) // 2 + max(height, width) % 2
    total = power.sum((0, 1, 2)).flatten().cpu().numpy() * number
    sums, counts = (np.bincount(ring, weights, rings)[:rings] for weights in (total, number))
    return np.asarray(sums / np.maximum(counts, 1))


def _scales(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(side for side in SCALES if side <= max(min(shape), 1))


def _reliability(chance: NDArray[np.float64], events: NDArray[np.float64], pixels: NDArray[np.float64]) -> object:
    enough = np.where(pixels >= MIN_COUNT, pixels, np.nan)
    return {"forecast": _plain(chance / enough), "observed": _plain(events / enough), "pixels": pixels.tolist()}


def _roc(reached: NDArray[np.float64], every: NDArray[np.float64]) -> object:
    """Return POD and POFD at each limit, and the area below, by the trapezoidal rule from (1, 1) to (0, 0)."""
    pod, pofd = (reached / np.where(every > 0, every, np.nan)).T
    x, y = np.array([1.0, *pofd, 0.0]), np.array([1.0, *pod, 0.0])
    area = float(((x[:-1] - x[1:]) * (y[:-1] + y[1:])).sum() / 2)
    return {"pod": _plain(pod), "pofd": _plain(pofd), "area": None if np.isnan(area) else area}


def _plain(values: NDArray[np.float64]) -> list[object]:
    """Return nested lists, with None for NaN."""
    if values.ndim > 1:
        return [_plain(row) for row in values]
    return [None if np.isnan(value) else float(value) for value in values]
