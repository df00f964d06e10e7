"""The validation score that selects the checkpoint `best`, see `train.best_by`. Does not import torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from toolkit.config import RunConfig
from toolkit.errors import ConfigError
from toolkit.evaluate.protocols import Protocol, load_protocol
from toolkit.evaluate.table import at
from toolkit.wording import nearest

logger = logging.getLogger(__name__)

LOWER_IS_BETTER = ("mse", "mae", "rmse")  # of the scores that can select; of all others higher is


def selecting_scores(protocol: Protocol, thresholds: Sequence[float]) -> list[str]:
    """Return the scores of a validation that have a better direction and can't be improved by more events alone.

    POD, FAR and bias are left out: a forecast of events everywhere has a POD of 1, one without events a FAR of 0.

    Args:
        thresholds: of events, in the store's unit.
    """
    names = ["mse", "mae", "rmse", "psnr", "ssim", *(["snr"] if protocol.snr else [])]
    for side in protocol.event_pools:
        names += [at(name, threshold, side) for name in ("csi", "hss") for threshold in thresholds]
        if len(thresholds) > 1:
            names.append("mean_csi" + (f"/{side}" if side > 1 else ""))
    return names + [at("fss", threshold, window) for threshold in thresholds for window in protocol.fss_windows]


def check_best_by(config: RunConfig) -> None:
    """Check that a validation has the score that selects the best checkpoint, and log what of `eval` it ignores.

    Raises:
        ConfigError: listing those that it has.
    """
    protocol, asked = load_protocol(config.eval.protocol), config.train.best_by
    known = selecting_scores(protocol, protocol.thresholds_for(config.eval.thresholds))
    if asked not in known:
        hint = nearest(asked, known)
        raise ConfigError(
            f"train.best_by: {asked!r} is no score of a validation that can select a checkpoint; {hint}"
            f"{' ' * bool(hint)}known with eval.protocol {protocol.name} and eval.thresholds "
            f"{list(config.eval.thresholds)}: {', '.join(known)}"
        )
    ignored = ["exclude_inflow"] if config.eval.exclude_inflow else []
    ignored += ["ensemble_size"] if config.eval.ensemble_size > 1 and config.model.stochastic else []
    if ignored:
        logger.info(
            "validations score all pixels of one forecast of each window, and so select the checkpoint best: %s holds "
            "for the scoring after training",
            " and ".join(f"eval.{name}" for name in ignored),
        )


def is_better(name: str, value: float, best: float) -> bool:
    """Return whether a score is better than the best so far; an equal one is not."""
    return value < best if name in LOWER_IS_BETTER else value > best
