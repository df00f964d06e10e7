"""Make a damaged run directory usable again, before a training or scoring begins; each thing is logged.

Caches are rebuilt, records keep what can be read of them, and what stands in the place of a file is moved aside
(`NAME.damaged`), never deleted. Called by who holds the run's lock.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from toolkit.atomic import clear_leftovers, move_aside
from toolkit.rundir import events, heartbeat
from toolkit.rundir.layout import RunDir, environment
from toolkit.rundir.records import damaged_lines, object_fault

logger = logging.getLogger(__name__)


def mend(run: RunDir) -> None:
    """Make the records of a run usable; a run directory that is sound is left as it is.

    Raises:
        OSError: something can't be moved aside.
    """
    names = ("state.json", "env.json", "DONE", "FAILED", events.NAME, events.OLD_STARTS, events.OLD_RESTARTS)
    pointers = [run.checkpoints / name for name in ("latest", "best")]
    for path in (*(run.path / name for name in names), run.metrics_file, *pointers):
        if os.path.lexists(path) and not path.is_file():
            _move(path, "is no regular file")
    for path in (run.path / heartbeat.FOLDER, run.logs, run.checkpoints, run.tensorboard, run.eval, run.analysis):
        if os.path.lexists(path) and not path.is_dir():
            _move(path, "is no folder")
    if fault := object_fault(run.path / "state.json"):
        _move(run.path / "state.json", fault)
    if fault := object_fault(run.path / "env.json"):
        _move(run.path / "env.json", fault)
        run.note_env(**environment(), rebuilt=True)
    for path in pointers:
        if path.is_file() and not re.fullmatch(rb"step-\d+\n?", path.read_bytes()):
            _move(path, "names no checkpoint")
    if damaged := damaged_lines(run.path / events.NAME):
        logger.warning("%s: %d of its lines can't be read and are ignored", run.path / events.NAME, damaged)
    for folder in (run.path, run.eval, run.analysis, run.checkpoints):
        for leftover in clear_leftovers(folder):
            logger.info("removed %s: its writer was killed", leftover)


def _move(path: Path, fault: str) -> None:
    logger.warning("%s: %s; it is now %s, and is rebuilt", path, fault, move_aside(path).name)
