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
import fcntl
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from launch.spec import PlannedRun, SweepPlan
from launch.view import find_runs
from toolkit.errors import ConfigError
from toolkit.rundir import RunDir, write_atomic

RECORD_NAME = "sweep.yaml"
WRITERS = 16
Item = TypeVar("Item")
Result = TypeVar("Result")
# The same safe subset of YAML, read by libyaml where PyYAML was built with it: ten times faster on 1,000 runs.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@dataclass(frozen=True)
class RecordedRun:
    """A run as the sweep's record names it."""

    name: str
    run: RunDir


def place(root: Path, plan: SweepPlan) -> list[RunDir]:
    """The run directory of every planned run.

    A run that is there already under another name (the sweep has grown, and names say what differs) stays there.
    """
    present = {run.path.name[-8:]: run for run in find_runs(root)}
    return [present.get(planned.hash8) or RunDir(root / planned.folder) for planned in plan.runs]


@contextlib.contextmanager
def preparing(root: Path) -> Iterator[None]:
    """Make run directories and the record one sweep.py at a time: a second one waits, then finds them made."""
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".preparing", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Do what writes small files for each of many runs; each waits for the disk, and all of them at the same time."""
    first = [work(item) for item in items[:1]]  # alone: what it finds out about this machine is kept for the others
    with ThreadPoolExecutor(WRITERS) as pool:
        return first + list(pool.map(work, items[1:]))


def write_record(root: Path, plan: SweepPlan, runs: list[RunDir]) -> None:
    """Write sweep.yaml for a plan whose runs live in `runs`."""
    tree = {
        "name": plan.name,
        "file": str(plan.file),
        "runs": [_item(planned, run) for planned, run in zip(plan.runs, runs, strict=True)],
    }
    text = yaml.dump(tree, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)
    write_atomic(root / RECORD_NAME, text)


def _item(planned: PlannedRun, run: RunDir) -> dict[str, Any]:
    return {
        "dir": run.path.name,
        "name": planned.name,
        "group": planned.group,
        "seed": planned.seed,
        "settings": dict(planned.settings),
    }


def read_runs(folder: Path) -> list[RecordedRun]:
    """The runs of a sweep directory in the sweep's order, then those that lie there besides.

    Raises:
        ConfigError: when the record can't be read.
    """
    file = folder / RECORD_NAME
    recorded: list[RecordedRun] = []
    if file.exists():
        try:
            tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506  (a safe loader)
            recorded = [RecordedRun(str(item["name"]), RunDir(folder / str(item["dir"]))) for item in tree["runs"]]
        except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: not a sweep's record ({error}); run the sweep again to write it anew") from None
    known = {item.run.path for item in recorded}
    return recorded + [RecordedRun(run.path.name, run) for run in find_runs(folder) if run.path not in known]
