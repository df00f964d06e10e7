"""A-distance between sets of features, and the mode collapse score derived from it. Does not import torch.

A-distance (Ben-David et al., "A theory of learning from different domains", 2010): d_A = 2 (1 - 2 e), e the held-out
error of a classifier that separates the two sets. 0: chance level; 2: no errors; it can be slightly negative by chance.
The classifier is a logistic regression (L2, C = 1) on features standardised by the training half, a random half of
each set; the larger set is subsampled, so both have the same size. The error is the mean over several splits.

Collapse score of a mode, in 0 .. 1, from the two distances of the ModeRNN paper's Figure 3(b):

    between(m)   mean over the other modes k of d_A(prediction-fed features of m, those of k)
    drift(m)     d_A(truth-fed features of m, prediction-fed features of the same sequences)
    collapse(m)  (2 - between(m) + drift(m)) / 4, each distance clipped to 0 .. 2

In the paper, modes have collapsed if `between` is much smaller than `drift`: the score is then above 1/2. It is 0 if
the modes are separable and predictions equal the observations, and 1 if the modes are not separable but predictions and
observations are.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from toolkit.errors import ToolkitError
from toolkit.evaluate.check import FEWEST

Features = NDArray[np.floating]

SPLITS = 10
MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class ADistance:
    """The mean over splits and the sample standard deviation between them."""

    value: float
    std: float
    splits: int
    rows: int  # of each set, after subsampling


def a_distance(first: Features, second: Features, *, paired: bool = False) -> ADistance:
    """Compute the A-distance of two sets of features.

    Args:
        first, second: [n, d] and [m, d].
        paired: row i of both sets belongs to the same sequence: both are put into the same half.

    Raises:
        ToolkitError: too few rows, features of different or zero length, a value that is not finite.
    """
    _check(first, second, paired)
    random = np.random.default_rng(0)
    rows = min(len(first), len(second))
    half = rows // 2
    errors = []
    for _ in range(SPLITS):
        orders = [random.permutation(len(first))[:rows]]
        orders.append(orders[0] if paired else random.permutation(len(second))[:rows])
        learn, test = (
            np.concatenate([features[order[part]] for features, order in zip((first, second), orders, strict=True)])
            for part in (slice(0, half), slice(half, rows))
        )
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            classifier.fit(learn, np.repeat([0, 1], half))
        errors.append(1.0 - float(classifier.score(test, np.repeat([0, 1], rows - half))))
    distances = 2.0 * (1.0 - 2.0 * np.array(errors))
    return ADistance(float(distances.mean()), float(distances.std(ddof=1)), SPLITS, rows)


def _check(first: Features, second: Features, paired: bool) -> None:
    shapes = f"{first.shape} and {second.shape}"
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or first.shape[1] == 0:
        raise ToolkitError(f"A-distance: features must be [n, d] and [m, d], found {shapes}")
    if paired and len(first) != len(second):
        raise ToolkitError(f"A-distance: paired features must have as many rows, found {shapes}")
    if min(len(first), len(second)) < FEWEST:
        raise ToolkitError(
            f"A-distance: at least {FEWEST} sequences are needed on both sides, found {shapes}: record more sequences"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ToolkitError("A-distance: features hold NaN or infinite values: the model's states have overflowed")


@dataclass(frozen=True)
class Collapse:
    """One mode's distances and score."""

    between: dict[str, ADistance]  # to each other mode
    drift: ADistance
    score: float


def collapse(truth_fed: Mapping[str, Features], prediction_fed: Mapping[str, Features]) -> dict[str, Collapse]:
    """Compute the collapse score of every mode.

    Args:
        truth_fed, prediction_fed: for each mode the memory states [n, d] of the same sequences, if future inputs are
            the observed frames, and if they are the model's predictions.

    Raises:
        ToolkitError: fewer than two modes, or invalid features (see `a_distance`).
    """
    modes = sorted(prediction_fed)
    if len(modes) < 2 or set(truth_fed) != set(prediction_fed):
        raise ToolkitError(f"collapse: at least two modes, the same on both sides, are needed, found {modes}")
    distances = {
        (a, b): a_distance(prediction_fed[a], prediction_fed[b]) for i, a in enumerate(modes) for b in modes[i + 1 :]
    }
    result = {}
    for mode in modes:
        between = {other: distances[min(mode, other), max(mode, other)] for other in modes if other != mode}
        drift = a_distance(truth_fed[mode], prediction_fed[mode], paired=True)
        mean = float(np.mean([_clipped(distance) for distance in between.values()]))
        result[mode] = Collapse(between, drift, (2.0 - mean + _clipped(drift)) / 4.0)
    return result


def _clipped(distance: ADistance) -> float:
    return min(max(distance.value, 0.0), 2.0)


def embed(features: Features) -> NDArray[np.float64]:
    """Compute the t-SNE (van der Maaten & Hinton 2008) of features [n, d] in two dimensions [n, 2], initialised by PCA.

    The perplexity is 30, less for fewer than 91 rows: it must be less than a third of them.
    """
    if len(features) < FEWEST:
        raise ToolkitError(
            f"t-SNE: {len(features)} rows are too few, at least {FEWEST} are needed: record more sequences"
        )
    standard = StandardScaler().fit_transform(features)
    model = TSNE(2, perplexity=min(30.0, (len(features) - 1) / 3), init="pca", random_state=0)
    placed: NDArray[np.float64] = model.fit_transform(standard).astype(np.float64)
    return placed
