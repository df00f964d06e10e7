"""Contract 4: a checkpoint, and how it is read. It is written by toolkit/checkpoint/commit.py.

    checkpoints/step-00001000/
      weights.pt      fp32 weights by parameter name
      moments.pt      the optimizer's moments by parameter name
      average.pt      (train.ema) moving average of the weights
      trainer.json    step, samples consumed, best-so-far, config identity, who wrote it, digest of the store's manifest
      manifest.json   bytes and SHA-256 of the others, written last
    checkpoints/step-00001000.old    the one that it replaces, while that is being done
    checkpoints/latest    the name of the newest complete one
    checkpoints/best      the name of the one with the best validation score

It does not depend on the world size or ZeRO stage that wrote it. No random state is in it: every random number of
training is a function of (seed, sample position), see toolkit/train/sampling.py.

A reader holds a shared lock (`flock`) on manifest.json and opens the files through the folder that it has open: while
it reads, in whichever process, the checkpoint is neither deleted nor mixed with one that replaces it. On a file system
without locks a checkpoint can be deleted under a reader, which then raises CheckpointError.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pickle
import re
import shlex
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from shards import Store
from shards.filelock import lock_file
from toolkit.errors import EXIT_USAGE, CheckpointError, StoreReplacedError
from toolkit.rundir.records import Types, keep_typed
from toolkit.shipped import command
from toolkit.wording import first_line

logger = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d{8})")
FILES = ("weights.pt", "moments.pt", "trainer.json")
AVERAGE = "average.pt"
MANIFEST = "manifest.json"
COUNTS: Types = {"skipped": int, "improved": int}
RECORD: Types = {"config": str, "step": int, "samples": int, "written_by": dict}  # of trainer.json
# What torch.load raises for files whose digest fits, and which torch.save has not written.
UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, TypeError, KeyError, IndexError),
    *(AttributeError, AssertionError, OverflowError, MemoryError, NotImplementedError, struct.error),
)
ZIP = b"PK\x03\x04"
PATIENCE_S = 5.0  # a checkpoint that is being replaced or deleted is out of reach for an instant


@dataclass(frozen=True)
class TrainState:
    """Everything the optimisation knows, whole and in fp32, on the CPU."""

    weights: dict[str, Tensor]
    moments: dict[str, dict[str, Tensor]]  # parameter name -> the optimizer's moments; empty before the first step
    step: int
    skipped: int = 0  # steps among them without an update; Adam has not counted those
    average: dict[str, Tensor] | None = None  # of the weights, under `train.ema`


@dataclass(frozen=True)
class Progress:
    """Where training stands, beside weights and optimizer."""

    step: int
    samples: int
    best: dict[str, float] | None = None  # {"step", "score"}
    improved: int = 0  # step of the last validation that was better than all before it, from which patience counts
    written_by: Mapping[str, object] = field(default_factory=dict)
    store: str | None = None  # digest of the manifest of the store; None: not recorded


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def old_name_of(step: int) -> str:
    return f"{name_of(step)}.old"


def manifest_text(files: dict[str, dict[str, object]]) -> str:
    return _canonical({"files": files})


def _canonical(tree: object) -> str:
    return json.dumps(tree, indent=1) + "\n"


class AccessError(CheckpointError):
    """This user may not read a checkpoint. It is neither damaged nor absent: nothing is skipped or written again."""

    exit_code = EXIT_USAGE

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path}: permission denied: whether this checkpoint is whole can't be known. Ask who made it to run: "
            f"chmod -R a+rX {shlex.quote(str(path.absolute().parent))}"
        )


class Held:
    """A checkpoint, opened: see `hold`."""

    def __init__(self, path: Path, folder: int) -> None:
        self.path, self._folder = path, folder

    def open(self, name: str) -> BinaryIO:
        return open(name, "rb", opener=lambda file, flags: os.open(file, flags, dir_fd=self._folder))

    def has(self, name: str) -> bool:
        """Return whether there is such a file."""
        try:
            self.open(name).close()
        except FileNotFoundError:
            return False
        return True

    def fault(self) -> str | None:
        """Return why it can't be used, or None when it is whole. Raises AccessError."""
        try:
            with self.open(MANIFEST) as file:
                text = file.read().decode()
            tree = json.loads(text)
            names = [*FILES, AVERAGE] if AVERAGE in tree["files"] else FILES
            expected = {name: (int(tree["files"][name]["bytes"]), str(tree["files"][name]["sha256"])) for name in names}
        except FileNotFoundError:
            return f"no {MANIFEST}: it was not finished"
        except PermissionError:
            raise AccessError(self.path / MANIFEST) from None
        except OSError as error:
            return f"{MANIFEST} can't be read: {error.strerror}"
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return f"{MANIFEST} is damaged"
        if text != _canonical(tree):
            return f"{MANIFEST} is damaged"
        faults = (self._fault_of(name, *facts) for name, facts in expected.items())
        return next((fault for fault in faults if fault), None)

    def _fault_of(self, name: str, size: int, sha256: str) -> str | None:
        try:
            with self.open(name) as file:
                found = os.fstat(file.fileno()).st_size
                if found != size:
                    return f"{name} has {found} bytes, the manifest says {size}"
                digest = hashlib.sha256()
                for block in iter(lambda: file.read(1 << 20), b""):
                    digest.update(block)
        except FileNotFoundError:
            return f"{name} is missing"
        except PermissionError:
            raise AccessError(self.path / name) from None
        except OSError as error:
            return f"{name} can't be read: {error.strerror}"
        return None if digest.hexdigest() == sha256 else f"{name} differs from its SHA-256 in the manifest"

    def tensors(self, name: str) -> Any:
        """Return the tree of tensors in weights.pt or moments.pt, on the CPU.

        Raises:
            CheckpointError: it holds something else, which is not unpickled, or was deleted.
        """
        try:
            with self.open(name) as file:
                # Tars, from before PyTorch 1.6, run code in torch 2.5 in spite of weights_only (CVE-2025-32434).
                if file.read(len(ZIP)) != ZIP:
                    raise pickle.UnpicklingError("no zip archive, as torch.save writes.")
                file.seek(0)
                tree = torch.load(file, map_location="cpu", weights_only=True)
                if not _is_named(tree, 2 if name == "moments.pt" else 1):
                    raise pickle.UnpicklingError("no tensors by name.")
                return tree
        except FileNotFoundError:
            raise CheckpointError(f"{self.path / name}: was deleted while it was read; try again") from None
        except UNPICKLING_ERRORS as error:
            first = first_line(error)
            raise CheckpointError(
                f"{self.path / name}: is refused, it holds more than tensors or is no file of torch.save: {first} "
                "Don't use this checkpoint unless you know who wrote it"
            ) from None

    def record(self) -> dict[str, Any]:
        """Return trainer.json. Raises CheckpointError for one that no training has written."""
        with self.open("trainer.json") as file:
            text = file.read()
        try:
            found: dict[str, Any] = {"skipped": 0, "store": None, **json.loads(text)}
            best = found["best"]
            found.setdefault("improved", best["step"] if best else 0)
            typed = keep_typed(found, {**RECORD, **COUNTS})
            score = best is None or {"step", "score"} <= set(keep_typed(best, {"step": int, "score": float}))
            fits = score and {*RECORD, *COUNTS} <= set(typed) and isinstance(found["store"], str | None)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            fits = False
        if not fits:
            raise CheckpointError(f"{self.path / 'trainer.json'}: is refused, it is not the record of a training")
        return found


def _is_named(tree: Any, levels: int = 1) -> bool:
    """Return whether it is a mapping from names to tensors, or of `levels` levels of names."""
    if levels == 0:
        return isinstance(tree, Tensor)
    return isinstance(tree, dict) and all(isinstance(k, str) and _is_named(v, levels - 1) for k, v in tree.items())


@contextlib.contextmanager
def hold(folder: Path, step: int) -> Iterator[Held]:
    """Open the checkpoint of a step, whole or not; it isn't deleted before it is let go.

    Raises:
        CheckpointError: there is none.
    """
    deadline = time.monotonic() + PATIENCE_S
    while step in steps_in(folder) and time.monotonic() < deadline:
        with contextlib.ExitStack() as stack:
            held = _try_to_hold(folder, step, stack)
            if held is not None:
                yield held
                return
        time.sleep(0.02)
    there = ", ".join(map(str, steps_in(folder))) or "none"
    raise CheckpointError(f"{folder / name_of(step)}: no such checkpoint; there are: {there}")


def _try_to_hold(folder: Path, step: int, stack: contextlib.ExitStack) -> Held | None:
    """Open a checkpoint; None if there is none or it is being deleted."""
    for name in (name_of(step), old_name_of(step)):
        path = folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            raise AccessError(path) from None
        stack.callback(os.close, descriptor)
        held = Held(path, descriptor)
        try:
            manifest = stack.enter_context(held.open(MANIFEST))
        except OSError:
            return held  # unfinished, or unreadable: `fault` will say so
        try:
            if not lock_file(manifest.fileno(), shared=True):
                return None  # it is being deleted
        except OSError:
            pass  # no locks here
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return held
        return None
    return None


def steps_in(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, oldest first, complete or not.

    Raises:
        AccessError: the folder can't be listed.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except PermissionError:
        raise AccessError(folder) from None
    found = (NAME.fullmatch(name.removesuffix(".old")) for name in names)
    return sorted({int(match.group(1)) for match in found if match})


def fault_of(folder: Path, step: int) -> str | None:
    """Return why the checkpoint of a step can't be used, or None when it is whole. Raises AccessError."""
    try:
        with hold(folder, step) as held:
            return held.fault()
    except AccessError:
        raise
    except CheckpointError:
        return "there is none"


def newest(folder: Path) -> int | None:
    """Return the step of the newest complete checkpoint, or None; skipped ones are logged with the reason.

    Raises:
        AccessError: a newer one can't be read.
    """
    for step in reversed(steps_in(folder)):
        fault = fault_of(folder, step)
        if fault is None:
            return step
        logger.warning("skipping %s: %s", folder / name_of(step), fault)
    return None


def load(folder: Path, step: int, config_hash: str) -> tuple[TrainState, Progress]:
    """Read the checkpoint of a step.

    Raises:
        CheckpointError: it isn't there, isn't whole, or belongs to a run of another config.
    """
    with hold(folder, step) as held:
        fault = held.fault()
        if fault is not None:
            raise CheckpointError(f"{held.path}: {fault}. Use --resume auto to take the newest whole one")
        record = held.record()
        if record["config"] != config_hash:
            raise CheckpointError(
                f"{held.path}: is of the run {record['config']}, this one is {config_hash}: config.yaml was "
                "changed, or the checkpoint is of another folder: put that back, or start a new run from these weights "
                "(train.init_from.path)"
            )
        weights, moments = held.tensors("weights.pt"), held.tensors("moments.pt")
        average = held.tensors(AVERAGE) if held.has(AVERAGE) else None
    state = TrainState(weights, moments, record["step"], record["skipped"], average)
    named = ("step", "samples", "best", "improved", "written_by", "store")
    return state, Progress(**{name: record[name] for name in named})


def pointed(folder: Path, pointer: str) -> int | None:
    """Return the step that `latest` or `best` names; None if the file is missing or empty. Raises AccessError."""
    try:
        match = NAME.fullmatch((folder / pointer).read_text().strip())
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    except PermissionError:
        raise AccessError(folder / pointer) from None
    return int(match.group(1)) if match else None


def check_store(recorded: str | None, store: Store, where: Path) -> None:
    """Check that a store is the one that a checkpoint was trained on.

    Args:
        recorded: the digest in the checkpoint's record; None: not recorded, by an earlier version.
        where: the checkpoint.

    Raises:
        StoreReplacedError: with both digests.
    """
    found = store.manifest.digest
    if recorded in (None, found):
        return
    raise StoreReplacedError(
        f"{store.path}: was replaced, appended to or converted again since {where} was trained on it: the digest of "
        f"its manifest was {recorded}, now it is {found}. Put that store back (data.store), or train a new run on this "
        "one: " + command("train", "--config", "FILE", "--out", "DIR")
    )
