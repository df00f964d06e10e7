"""Training, evaluation and reporting of recurrent spatiotemporal predictors.

Importing this package imports nothing heavy: config, run directories and the model registry work on a login node
without torch. See `toolkit.config` for where to start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.models.base import SequenceModel

__version__ = "0.1.0"


def load(path: str | Path) -> SequenceModel:
    """Return the model of an exported folder or a run directory (its best checkpoint); see `checkpoint.export.load`."""
    from toolkit.checkpoint import export

    return export.load(path)
