"""`runs/<sweep>/sweep.yaml`: which runs belong to a sweep, in order, and what varies between them.

    name: demo
    file: configs/sweeps/demo.yaml
    runs:
    - {dir: modernn-slots4-seed1-1a2b3c4d, name: modernn-slots4-seed1, group: modernn-slots4, seed: 1,
       settings: {model.name: modernn, model.slots: 4}}

`dir` is relative to the file's folder; `group` is what the report takes mean and std over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from toolkit.errors import ConfigError
from toolkit.rundir import RunDir, write_atomic
from toolkit.shipped import command
from toolkit.tree import to_yaml

RECORD_NAME = "sweep.yaml"
# The same safe subset of YAML, read by libyaml where PyYAML was built with it: ten times faster on 1,000 runs.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
    """The name of a run's folder. Raises ValueError for what leads out of the sweep's."""
    if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"dir: {name!r} is no name of a folder in this one")
    return name


def read_record(root: Path) -> tuple[str, list[RecordedRun]]:
    """The sweep's name and its runs.

    Raises:
        ConfigError: when the record can't be read.
    """
    file = root / RECORD_NAME
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506  (a safe loader)
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
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{file}: not a sweep's record ({error}); write it again: {command('sweep', 'FILE')} with the sweep's file"
        ) from None
