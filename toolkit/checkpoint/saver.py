"""Save while training continues: a thread writes the snapshot that the loop took at a step. Rank 0 only.

At most one save is on its way; a second one waits for it and logs how long. What goes wrong in the thread ends the run
at the next step (`train.checkpoint.on_error: raise`), or is logged, counted and retried at the next checkpoint
(`continue`). The save that a run ends with must succeed under both.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from toolkit.checkpoint.checkpoint import Progress, TrainState
from toolkit.checkpoint.commit import point, prune, save
from toolkit.config.sections import TrainConfig
from toolkit.errors import CheckpointError
from toolkit.wording import count

logger = logging.getLogger(__name__)

LOG_WAIT_S = 0.05


class Saver:
    """Writes a run's checkpoints, keeps the ones that its config wants."""

    def __init__(self, folder: Path, config: TrainConfig, config_hash: str) -> None:
        self.folder, self.config, self.config_hash = folder, config, config_hash
        self.errors = 0  # saves that failed
        self._saved = False
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    @property
    def failed(self) -> bool:
        """A save failed, and training is to end."""
        return self._error is not None

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is None:
            return
        name, began = self._thread.name, time.perf_counter()
        self._thread.join()
        self._thread = None
        waited = time.perf_counter() - began
        if waited > LOG_WAIT_S:
            logger.info("waited %.1f s until %s was written", waited, name)

    def save(self, state: TrainState, progress: Progress, last: bool) -> None:
        """Save, in the background if the config says so; `last`: it is on the disk when this returns.

        Raises:
            CheckpointError: this save or the one before it failed, and training is to end.
        """
        self.wait()
        if not self.failed:
            name = f"the checkpoint of step {progress.step}"
            self._thread = threading.Thread(target=self._save, args=(state, progress, last), name=name)
            self._thread.start()
            if last or not self.config.checkpoint.async_save:
                self._thread.join()
                self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait for what is being written. Training has ended, maybe with an error: none is raised over that."""
        self.wait()
        if self._error is not None:
            logger.error("%s", self._error)

    def _save(self, state: TrainState, progress: Progress, last: bool) -> None:
        if self._saved and not self.folder.exists():
            logger.warning("%s: was removed while this run was training, with all its checkpoints", self.folder)
        began = time.perf_counter()
        try:
            written = save(self.folder, state, progress, self.config_hash)
            self._saved = True
            seconds = time.perf_counter() - began
            logger.info("checkpoint of step %d written in %.1f s: %s bytes", progress.step, seconds, f"{written:,}")
            if progress.best and progress.best["step"] == progress.step:
                point(self.folder, "best", progress.step)
            keep = self.config.checkpoint
            prune(self.folder, progress.step, keep.keep_last, keep.keep_every)
        except CheckpointError as error:
            self.errors += 1
            if last or self.config.checkpoint.on_error == "raise":
                self._error = error
            else:
                failed = count(self.errors, "save")
                logger.warning("%s failed, training continues without: %s", failed, error)
        except Exception as error:
            self._error = error
