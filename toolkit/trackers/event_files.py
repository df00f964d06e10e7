"""TensorBoard's event files of a run, in tb/. No training depends on them: neither on the package nor on disk space.

    tb/                 curves and pictures over optimizer steps; the config as text and as hyper-parameters
    tb/test-best/       scores of an evaluation: `score/mse`, and `lead_minutes/mse` over lead time

The HPARAMS tab has one line for each run below `--logdir`, its columns are the keys that differ between them and the
last value of every curve.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from toolkit.config import RunConfig
from toolkit.rundir import RunDir
from toolkit.trackers.base import Picture, Scored, Status, hyperparameters
from toolkit.wording import count

logger = logging.getLogger(__name__)
RETRY_S = 60.0  # after the disk has refused something


class TensorBoard:
    """Write event files; what the disk refuses is logged, and left out for a while.

    Args:
        step: that the training starts from; later steps of the run are dropped by TensorBoard. None: no training.
    """

    def __init__(self, run: RunDir, step: int | None) -> None:
        self.folder, self.step = run.tensorboard, step
        self._writer: Any = None
        self._retry_at = 0.0
        self._left_out = 0
        self._new = not any(self.folder.glob("events.*")) if self.folder.is_dir() else True
        try:
            from torch.utils.tensorboard import SummaryWriter
        except Exception as error:  # absent, or an installation that is broken in any way
            logger.warning("no TensorBoard files are written: %s: %s", type(error).__name__, error)
            self._kind: Any = None
        else:
            self._kind = SummaryWriter
            _log_once()
            if step is not None:
                self.flush()  # makes the file, and drops later steps of a run that is resumed

    def config(self, config: RunConfig) -> None:
        """Write the config as text and as hyper-parameters, once for a run."""
        if not self._new or self.step is None:
            return

        def write() -> None:
            from torch.utils.tensorboard.summary import hparams

            indented = "\n".join(f"    {line}" for line in config.to_yaml().splitlines())  # code in Markdown
            self._writer.add_text("config", indented, 0)
            # The first of three describes the keys of a sweep; without it TensorBoard finds what differs by itself.
            for summary in hparams(hyperparameters(config), {})[1:]:
                self._writer._get_file_writer().add_summary(summary)

        self._call(write)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write one curve's next point for each value."""

        def write() -> None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self.step = step

        self._call(write, len(values))

    def image(self, name: str, picture: Picture, step: int) -> None:
        """Write a picture."""
        self._call(lambda: self._writer.add_image(name, picture, step, dataformats="HWC"))

    def summary(self, values: Mapping[str, float], step: int) -> None:
        """Write the final numbers as curves of one point, which the HPARAMS tab shows."""
        self.scalars({f"final/{name}": value for name, value in values.items()}, step)

    def scores(self, scored: Scored) -> None:
        """Replace the folder of an evaluation, unless it has these very scores."""
        folder = self.folder / scored.name
        mark = folder / "sha256"
        if self._kind is None or (mark.is_file() and mark.read_text() == scored.digest):
            return
        try:
            if folder.is_dir():
                shutil.rmtree(folder)
            with contextlib.closing(self._kind(str(folder))) as writer:
                for name, value in scored.overall.items():
                    writer.add_scalar(f"score/{name}", value, scored.step)
                for lead, values in scored.by_lead():
                    for name, value in values.items():
                        writer.add_scalar(f"lead_{scored.unit}/{name}", value, lead)
            mark.write_text(scored.digest)
        except Exception as error:
            logger.warning("%s: can't be written (%s); evaluate the run again to retry", folder, error)

    def flush(self) -> None:
        """Bring what was written to the disk."""
        self._call(lambda: self._writer.flush(), 0)

    def close(self, status: Status) -> None:
        """Close the file."""
        if self._writer is not None:
            self.flush()  # a disk that refuses the last values is logged
        self._close()
        self._log_left_out()

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            if self._writer is not None:
                self._writer.close()
        self._writer = None

    def _call(self, write: Callable[[], None], values: int = 1) -> None:
        if self._kind is None:
            return
        if time.monotonic() < self._retry_at:
            self._left_out += values
            return
        try:
            if self._writer is None:
                purge = {} if self.step is None else {"purge_step": self.step + 1}
                self._writer = self._kind(str(self.folder), **purge)
            write()
        except Exception as error:  # a full disk, or an installation that is broken in any way
            logger.warning("%s: can't be written (%s); left out for %g s", self.folder, error, RETRY_S)
            self._left_out += values
            self._close()
            self._retry_at = time.monotonic() + RETRY_S
        else:
            self._log_left_out()

    def _log_left_out(self) -> None:
        if self._left_out:
            logger.warning("%s: %s left out", self.folder, count(self._left_out, "value"))
        self._left_out = 0


@functools.cache
def _log_once() -> None:
    """Keep the thread of a writer from printing its traceback: the next call raises what it met, which is logged."""
    hook = threading.excepthook

    def quiet(met: threading.ExceptHookArgs) -> None:
        if type(met.thread).__name__ != "_AsyncWriterThread":
            hook(met)

    threading.excepthook = quiet
