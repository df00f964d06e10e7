"""TensorBoard's event files of a run. No training depends on them: neither on the package nor on room on the disk."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)
RETRY_S = 60.0  # after the disk has refused something


class Scalars:
    """Write scalars and images of steps after `step`; what the disk refuses is logged, and left out for a while."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder, self.step = folder, step
        self._writer: Any = None
        self._retry_at = 0.0
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as error:  # absent, or an installation that is broken in any way
            logger.warning("no TensorBoard files are written: %s: %s", type(error).__name__, error)
            self._kind: Any = None
        else:
            self._kind = SummaryWriter
            self.flush()  # makes the file, and forgets later steps of a run that is resumed

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write one number."""
        self._call("add_scalar", name, value, step)
        self.step = step

    def image(self, name: str, picture: torch.Tensor, step: int) -> None:
        """Write a picture [C, H, W] in 0..1."""
        self._call("add_image", name, picture, step)

    def flush(self) -> None:
        """Bring what was written to the disk."""
        self._call("flush")

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            if self._writer is not None:
                self._writer.close()
        self._writer = None

    def _call(self, method: str, *values: object) -> None:
        if self._kind is None or time.monotonic() < self._retry_at:
            return
        try:
            if self._writer is None:
                self._writer = self._kind(str(self.folder), purge_step=self.step + 1)
            getattr(self._writer, method)(*values)
        except OSError as error:
            logger.warning("%s: can't be written (%s); scalars are left out for %g s", self.folder, error, RETRY_S)
            self.close()
            self._retry_at = time.monotonic() + RETRY_S
