"""A source in a file of the user's own: `python -m shards convert my_archive.py INPUT OUTPUT`.

The file has `DESCRIPTION`, a `Description`; `events(archive)`, which yields pairs (split, PlannedEvent) for the folder
or file INPUT; and `read(archive, event)`, which returns that event's frames, uint8 [L, C, H, W], or a RawEvent with
details. docs/new-dataset.md has an example. The file is Python and runs as such: use only files that you trust. It is
run only where the user names it, `convert FILE.py` or `predict.py --source FILE.py`, never because a manifest does.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from shards.errors import NoArchiveError, UsageError
from shards.sources.base import Description, Plan, PlannedEvent, RawEvent, Source, SourceEntry

PARTS = ("DESCRIPTION", "events", "read")


@dataclass(frozen=True)
class Custom:
    """Travels to workers as two paths; each loads the file again."""

    file: Path
    archive: Path

    def describe(self) -> Description:
        """Return the file's DESCRIPTION."""
        description = _module(self.file).DESCRIPTION
        if not isinstance(description, Description):
            raise UsageError(
                f"{self.file}: DESCRIPTION is a {type(description).__name__}, should be a shards.sources.Description"
            )
        return description

    def plan(self) -> Plan:
        """Return the file's events, put in order."""
        splits: dict[str, list[PlannedEvent]] = defaultdict(list)
        for given in _module(self.file).events(self.archive):
            split, event = given if isinstance(given, tuple) and len(given) == 2 else (None, given)
            if not isinstance(split, str) or not isinstance(event, PlannedEvent):
                raise UsageError(
                    f"{self.file}: events() yielded {given!r}, should yield pairs such as "
                    '("train", PlannedEvent(key="storm-1", length=20))'
                )
            splits[split].append(event)
        return Plan({split: sorted(events, key=lambda event: event.key) for split, events in splits.items()})

    def read(self, event: PlannedEvent) -> RawEvent:
        """Return the file's frames."""
        given = _module(self.file).read(self.archive, event)
        return given if isinstance(given, RawEvent) else RawEvent(given)


@functools.lru_cache(maxsize=4)
def _module(file: Path) -> ModuleType:
    name = f"shards_custom_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise UsageError(f"{file}: no such file; a source of your own is a Python file, see docs/new-dataset.md")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look themselves up
    try:
        # Compiled from the file that was named: a .pyc in __pycache__ beside it may be of another text, or another's.
        exec(compile(file.read_bytes(), str(file), "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"{file}: can't be loaded ({error}); repair it, see docs/new-dataset.md") from None
    absent = [part for part in PARTS if not hasattr(module, part)]
    if absent:
        raise UsageError(f"{file}: has no {' and no '.join(absent)}; see docs/new-dataset.md")
    return module


def custom_entry(file: Path) -> SourceEntry:
    """Return what the command line needs. Raises UsageError for a file that is no source."""
    module = _module(file)

    def build(args: argparse.Namespace) -> Source:
        archive = Path(args.input)
        if not archive.exists():
            raise NoArchiveError(f"{archive} does not exist; give the archive that {file} reads")
        # Another version of the file is another conversion, though its arguments are the same.
        args.source_sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        return Custom(file, archive)

    return SourceEntry(
        summary=(module.__doc__ or f"the source in {file}").strip().splitlines()[0],
        example=f"python -m shards convert {file} ~/archive stores/mine",
        add_arguments=lambda parser: None,
        build=build,
        input_help=f"the folder or file that {file} reads",
    )
