"""Writing checkpoints so that a kill, a full disk or a power cut at any moment leaves a whole one. One process writes.

A checkpoint is written under a temporary name; every file is fsynced, then the manifest, then the folder; it is
renamed, and only then named by `latest`. One of the same step is renamed out of the way first, to a name that readers
know, and deleted by `prune`. Nothing older is deleted before the new one stands, and nothing that a reader holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from shards.filelock import lock_file
from shards.fsync import flush
from toolkit.atomic import free_space, remove, write_atomic
from toolkit.checkpoint.checkpoint import (
    AVERAGE,
    MANIFEST,
    Progress,
    TrainState,
    fault_of,
    manifest_text,
    name_of,
    old_name_of,
    pointed,
    steps_in,
)
from toolkit.errors import CheckpointError

logger = logging.getLogger(__name__)

SPARE_BYTES = 1 << 20  # names, headers and JSON beside the tensors


def save(folder: Path, state: TrainState, progress: Progress, config_hash: str) -> int:
    """Write one complete checkpoint and point `latest` at it; return its size in bytes.

    Raises:
        CheckpointError: the disk is full, read-only or broken. What was there before is as it was.
    """
    final = folder / name_of(progress.step)
    temporary = folder / f".{final.name}.tmp"
    needed = _bytes_of(state)
    record = {
        "step": progress.step,
        "samples": progress.samples,
        "skipped": state.skipped,
        "best": progress.best,
        "improved": progress.improved,
        "config": config_hash,
        "written_by": progress.written_by,
        "store": progress.store,
    }
    try:
        folder.mkdir(exist_ok=True)  # a run directory that was removed is not created again
        remove(temporary)
        _check_room(folder, needed)
        temporary.mkdir()
        tensors = {"weights.pt": state.weights, "moments.pt": state.moments}
        if state.average is not None:
            tensors[AVERAGE] = state.average
        files = {name: _write(temporary / name, partial(torch.save, tree)) for name, tree in tensors.items()}
        files["trainer.json"] = _write(temporary / "trainer.json", _text(json.dumps(record, indent=1) + "\n"))
        _write(temporary / MANIFEST, _text(manifest_text(files)))
        written = sum(file.stat().st_size for file in temporary.iterdir())
        flush(temporary)
        _put_in_place(temporary, folder, progress.step)
        point(folder, "latest", progress.step)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{final}: not written: {folder if folder.parent.exists() else folder.parent} was removed or renamed while "
            "this run was training. Put it back, or start the run again"
        ) from error
    except OSError as error:
        with contextlib.suppress(OSError):
            remove(temporary)
        raise CheckpointError(
            f"{final}: not written: {error.strerror or error} (needs {needed:,} bytes; {free_space(folder)}). The "
            "checkpoints before it are untouched. Free space or repair the disk, then run the same command again"
        ) from error
    return written


def _put_in_place(temporary: Path, folder: Path, step: int) -> None:
    """Rename the new one to its name. At every moment a reader finds a whole one, as `step-N` or `step-N.old`."""
    final, old = folder / name_of(step), folder / old_name_of(step)
    if final.exists():
        if old.exists() and not _delete(old):
            os.rename(old, _trash_of(old))  # its reader continues through the folder that it has open
        os.rename(final, old)
    os.rename(temporary, final)
    flush(folder)


def point(folder: Path, pointer: str, step: int | None) -> None:
    """Make `latest` or `best` name the checkpoint of a step, or none."""
    if step is None:
        (folder / pointer).unlink(missing_ok=True)
    else:
        write_atomic(folder / pointer, name_of(step) + "\n")
    flush(folder)


class _Sink:
    """A file that torch.save writes to, which counts and digests what goes by."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _write(path: Path, put: Callable[[Any], object]) -> dict[str, object]:
    """Write and fsync one file; return its size and digest for the manifest."""
    with open(path, "xb") as file:
        sink = _Sink(file)
        try:
            put(sink)
        except RuntimeError:  # torch's own complaint that its file was cut short hides the reason
            if sink.error is None:
                raise
            raise sink.error from None
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": sink.bytes, "sha256": sink.digest.hexdigest()}


def _text(text: str) -> Callable[[Any], object]:
    return lambda sink: sink.write(text.encode())


def _bytes_of(state: TrainState) -> int:
    moments = (part for parts in state.moments.values() for part in parts.values())
    tensors = [*state.weights.values(), *moments, *(state.average or {}).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + SPARE_BYTES


def _check_room(folder: Path, needed: int) -> None:
    """Raise OSError where the file system says that it has less room. A quota shows at writing only."""
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < needed:
        raise OSError(0, "not enough room")


def _delete(path: Path) -> bool:
    """Delete a checkpoint; False when a reader holds it. It is gone at once or not at all: first it is renamed."""
    with contextlib.ExitStack() as stack:
        try:
            manifest = stack.enter_context(open(path / MANIFEST, "r+b"))  # NFS wants it writable for this lock
            if not lock_file(manifest.fileno()):
                return False
        except OSError:
            pass  # unfinished, or no locks here
        trash = _trash_of(path)
        os.rename(path, trash)
        remove(trash)
    return True


def _trash_of(path: Path) -> Path:
    """Return an unused name for a folder that is no longer a checkpoint."""
    return path.with_name(f".{path.name.strip('.')}.{time.time_ns()}.trash")


def prune(
    folder: Path,
    step: int,
    keep_last: int,
    keep_every: int | None = None,
) -> list[int]:
    """Delete what need not be kept, once the checkpoint of `step` stands; returns the steps deleted.

    Kept are the newest `keep_last` up to `step`, the best, and those of every `keep_every`-th step. Those after `step`
    are of a course that training left when it went back (or damaged): they go. One that is being read stays for now.
    """
    steps = steps_in(folder)
    past = [other for other in steps if other <= step]
    kept = {step, *past[-keep_last:], *(other for other in past if keep_every and other % keep_every == 0)}
    kept |= {best for best in [pointed(folder, "best")] if best is not None}
    deleted = []
    for doomed in (other for other in steps if other not in kept):
        there = [path for path in (folder / name_of(doomed), folder / old_name_of(doomed)) if path.exists()]
        if all(_try_to_delete(path) for path in there):
            deleted.append(doomed)
    for old in folder.glob("step-*.old"):
        if old.with_suffix("").exists():
            _try_to_delete(old)
    return deleted


def _try_to_delete(path: Path) -> bool:
    try:
        if _delete(path):
            return True
        logger.info("%s: is being read, so it is kept for now", path)
    except OSError as error:
        logger.warning("%s: can't be deleted: %s. Delete it by hand", path, error.strerror)
    return False


def tidy(folder: Path) -> None:
    """Remove what a killed writer left, and log each removal. Called before training, by the process that writes."""
    for old in sorted(folder.glob("step-*.old")):
        final = old.with_suffix("")
        if not final.exists():
            os.rename(old, final)
            logger.info("%s: put back; its replacement was not finished", final)
        elif _try_to_delete(old):
            logger.info("removed %s: it was replaced", old)
    for path in sorted(folder.glob(".*.tmp")):
        remove(path)
        logger.info("removed %s: a save that was not finished", path)
    for path in sorted(folder.glob(".*.trash")):
        if _try_to_delete(path):
            logger.info("removed %s: it was being deleted", path)


def repair(folder: Path, progress: Progress) -> Progress:
    """Make `latest` and `best` agree with the checkpoint that training resumes from; a kill can come between them.

    Returns:
        The progress, without a best whose checkpoint is gone: the best so far is to be one that can be loaded.
    """
    point(folder, "latest", progress.step)
    best = progress.best
    fault = fault_of(folder, int(best["step"])) if best else None
    if best and fault:
        path = folder / name_of(int(best["step"]))
        logger.warning("%s, the best so far: %s. The next validation counts as the best", path, fault)
        best = None
    point(folder, "best", int(best["step"]) if best else None)
    later = [step for step in steps_in(folder) if step > progress.step]
    if later:
        logger.warning(
            "resuming from step %d: checkpoints of steps %s are deleted at the next save", progress.step, later
        )
    return replace(progress, best=best)
