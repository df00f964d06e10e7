"""Which source an archive is for: by name, by a Python file of the user's, or guessed from what the folder holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shards.errors import UsageError
from shards.manifest import MANIFEST_NAME
from shards.sources.base import SourceEntry
from shards.sources.custom import custom_entry
from shards.sources.inputs import Listing, plural

AUTO = "auto"
# Three letters of a product, year, day of the year, hour and minute: other composites than AQC.
_SWISS = re.compile(r"[A-Z]{3}\d{9}[0-9A-Z]{1,2}_\d+\.\d{3}\.gif", re.IGNORECASE)


def resolve(
    argv: Sequence[str], sources: Mapping[str, SourceEntry], report: Callable[[str], None]
) -> tuple[dict[str, SourceEntry], list[str]]:
    """Return the sources that the command line should offer, and the command line itself with `convert auto INPUT`
    replaced by what INPUT looks like. Raises ShardErrors.
    """
    entries, words = dict(sources), list(argv)
    if words[:1] != ["convert"] or len(words) < 2:
        return entries, words
    if words[1].endswith(".py"):
        entries[words[1]] = custom_entry(Path(words[1]))
    elif words[1] == AUTO and len(words) > 2 and not words[2].startswith("-"):
        name, why = guess(Path(words[2]), sources)
        report(f"{words[2]} looks like {name}: {why}")
        words[1] = name
    return entries, words


def guess(path: Path, sources: Mapping[str, SourceEntry]) -> tuple[str, str]:
    """Return the source for what lies at `path`, and why. Raises UsageError where none or several fit."""
    listing = Listing.of(path)
    if MANIFEST_NAME in listing.files:
        raise UsageError(f"{path} holds {MANIFEST_NAME}: it is a store already; see python -m shards --help")
    if any("-idx3-ubyte" in file or ".idx3-ubyte" in file for file in listing.files):
        raise UsageError(
            f"{path} holds MNIST's digits, of which sequences are made: "
            f"python -m shards convert moving-mnist OUTPUT --digits {path}"
        )
    unknown = [file for file in listing.files if _SWISS.fullmatch(file.rsplit("/", 1)[-1])]
    for generic in (False, True):
        if generic and unknown:
            raise UsageError(
                f"{path}: {plural(len(unknown), 'file')} named like a radar product of MeteoSwiss that isn't known "
                f"here, the first is {unknown[0]}: AQC is. Write a source for it (docs/new-dataset.md), or say "
                "`convert radar --reader images --dbz OFFSET,GAIN` where grey values are linear in dBZ, or `convert "
                "images`"
            )
        found = {
            name: why
            for name, entry in sources.items()
            if entry.generic is generic and entry.guess is not None and (why := entry.guess(listing)) is not None
        }
        if len(found) > 1:
            could = "; ".join(f"{name}: {why}" for name, why in found.items())
            raise UsageError(f"{path} could be several ({could}); name the source instead of {AUTO}")
        if found:
            return found.popitem()
    holds = f"it has {', '.join(listing.files[:5])}{' ...' if len(listing.files) > 5 else ''}"
    raise UsageError(
        f"{path} looks like no archive known here; {holds if listing.files else 'it is empty'}; "
        f"name one of {', '.join(sources)}, or write a source: docs/new-dataset.md"
    )
