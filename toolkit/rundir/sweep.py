"""`runs/<sweep>/sweep.yaml`: which runs belong to a sweep, in order, and what varies between them.

    name: demo
    file: configs/sweeps/demo.yaml
    runs:
    - {dir: modernn-slots4-seed1-1a2b3c4d, name: modernn-slots4-seed1, group: modernn-slots4, seed: 1,
       settings: {model.name: modernn, model.slots: 4}}

`dir` is relative to the file's folder; `group` is what the report takes mean and std over.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from yaml import YAMLError

from shards.filelock import lock_file
from toolkit.atomic import write_atomic
from toolkit.config.tree import parse_yaml, to_yaml
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir
from toolkit.shipped import command

RECORD_NAME = "sweep.yaml"


@dataclass(frozen=True)
class RecordedRun:
    """A run as the sweep's record names it; one that no record names has its folder's name only."""

    run: RunDir
    name: str
    group: str = ""
    seed: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)


def write_record(root: Path, name: str, file: Path, runs: Sequence[RecordedRun]) -> None:
    """Write the record of the sweep that a sweep file plans, in its folder."""
    items = [
        {"dir": r.run.path.name, "name": r.name, "group": r.group, "seed": r.seed, "settings": dict(r.settings)}
        for r in runs
    ]
    write_atomic(root / RECORD_NAME, to_yaml({"name": name, "file": str(file), "runs": items}))


def _plain(name: object) -> str:
    """Return the name of a run's folder. Raises ValueError for what leads out of the sweep's."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name or len(name.encode()) > 255:
        raise ValueError(f"dir: {name!r} is no name of a folder in this one")
    return name


def read_record(root: Path) -> tuple[str, list[RecordedRun]]:
    """Return the sweep's name and its runs.

    Raises:
        ConfigError: when the record can't be read.
    """
    file = root / RECORD_NAME
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"))
        runs = [
            RecordedRun(
                RunDir(root / _plain(item["dir"])),
                str(item["name"]),
                str(item["group"]),
                int(item["seed"]),
                dict(item.get("settings") or {}),
            )
            for item in tree["runs"]
        ]
        return str(tree["name"]), runs
    except (OSError, YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file}: not a sweep's record ({error}); write it again: {command('sweep', 'FILE')} with the sweep's file"
        ) from None


def find_runs(folder: Path) -> list[RunDir]:
    """Return the run directories right below a folder, by name."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
        return [RunDir(folder / name) for name in names if (folder / name / "config.yaml").exists()]
    return []


@contextlib.contextmanager
def preparing(root: Path) -> Iterator[None]:
    """Make run directories and the record one sweep.py at a time: a second one waits, then finds them made."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".preparing", "w") as file:
        lock_file(file.fileno(), wait=True)
        yield


def in_sweep(run: Path) -> bool:
    """Whether a run directory lies in a sweep's folder: what comes next is then the sweep's business."""
    return (run.parent / RECORD_NAME).exists()


def read_runs(folder: Path) -> list[RecordedRun]:
    """Return the runs of a sweep directory in the sweep's order, then those that lie there besides.

    Raises:
        ConfigError: when the record can't be read.
    """
    recorded = read_record(folder)[1] if (folder / RECORD_NAME).exists() else []
    known = {item.run.path for item in recorded}
    return recorded + [RecordedRun(run, run.path.name) for run in find_runs(folder) if run.path not in known]
