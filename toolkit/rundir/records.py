"""Read the small files of a run directory, whatever state they are in.

A run can be killed, its disk full and its files edited by hand: a reader gets what can be read, and asks for the fault
of what can't (`object_fault`, `damaged_lines`) in order to report it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Types = Mapping[str, type]
LARGEST = 1 << 63  # more is no step, size or number of a process
FARTHEST = 1e300  # and no time, rate or score


def read_text(path: Path) -> str:
    """Return the text of a file; empty where there is no regular file (a pipe would never end), or none to be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def read_object(path: Path, types: Types | None = None) -> dict[str, Any]:
    """Return the JSON object in a file; empty where there is no file, or none that can be read.

    Args:
        types: of known fields (`float` takes whole numbers too; both only up to LARGEST and FARTHEST); a field of
            another type is left out.
    """
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError):
        return {}
    return keep_typed(found, types or {}) if isinstance(found, dict) else {}


def object_fault(path: Path) -> str | None:
    """Return why a file that should hold a JSON object can't be used; None where it can, or where there is none."""
    if not os.path.lexists(path):
        return None
    if not path.is_file():
        return "is no regular file"
    try:
        data = path.read_bytes()
        return None if isinstance(json.loads(data), dict) else "is not a JSON object"
    except OSError as error:
        return f"can't be read ({error.strerror})"
    except (ValueError, RecursionError):
        return "is not a JSON object" if data else "is empty"


def keep_typed(values: Mapping[str, Any], types: Types) -> dict[str, Any]:
    """Return the fields whose values are of the types that are known for them, and those without a known type."""
    return {key: value for key, value in values.items() if key not in types or _is_of(value, types[key])}


def _is_of(value: object, kind: type) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FARTHEST
    return isinstance(value, kind)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, one a line; lines that hold none (`damaged_lines`) are left out."""
    for record in _parsed(path):
        if record is not None:
            yield record


def damaged_lines(path: Path) -> int:
    """Return how many lines of a file hold no JSON object: a kill leaves at most the last one half."""
    return sum(record is None for record in _parsed(path))


def _parsed(path: Path) -> Iterator[dict[str, Any] | None]:
    for line in read_text(path).split("\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        yield record if isinstance(record, dict) else None
