"""Typed and bounded fields of a JSON object from a file that may be damaged, edited, or made to harm.

Every field has a type and bounds; what doesn't fit is a ManifestError that names the file and the key.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from shards.errors import ManifestError, printable

# Parts of file names below a store: those of the writers, and none that is hidden, leads out, or draws on a terminal.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,99}){0,7}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST = 10_000  # characters of a text
_GREATEST = 1 << 53  # what JSON's readers agree on
_LARGEST_NUMBER = 1e30
_DEEPEST = 30
_T = TypeVar("_T")


def parse_json(text: str, where: str) -> object:
    """Parse JSON as the standard has it: no NaN, no infinity, no key twice. Raises ManifestError that names `where`."""

    def unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for place, (key, _) in enumerate(pairs) if key in dict(pairs[:place]))
            raise ValueError(f"the key {twice!r} occurs twice")
        return found

    def constant(name: str) -> float:
        raise ValueError(f"the number {name}")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: not JSON ({error}); convert the archive again") from None


class Fields:
    """Takes typed fields out of a JSON object and, when done, says which were not expected."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise ManifestError(f"{where}: expected an object, found {type(data).__name__}; convert the archive again")
        self.data: dict[str, Any] = dict(data)
        self.where = where

    def take(self, key: str, kind: type[_T]) -> _T:
        """Return the value of a key, which is then gone from what is left; raises ManifestError if it is of another
        kind, or out of bounds.
        """
        if key not in self.data:
            raise ManifestError(f"{self.where}: the key {key!r} is missing; convert the archive again")
        value = self.data.pop(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _GREATEST:
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or not _in_bounds(value):
            raise ManifestError(
                f"{self.where}: {key} should be {kind.__name__}{_bounds(kind)}, found {_short(value)}; convert the "
                "archive again"
            )
        return value

    def optional(self, key: str, kind: type[_T]) -> _T | None:
        """Return None for null, else as `take`."""
        if key in self.data and self.data[key] is None:
            return self.data.pop(key)  # None
        return self.take(key, kind)

    def one_of(self, key: str, allowed: tuple[str, ...]) -> str:
        """Take one of some texts."""
        value = self.take(key, str)
        if value not in allowed:
            raise ManifestError(f"{self.where}: {key} is {value!r}, should be one of {', '.join(allowed)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Take a list of different texts."""
        values = self.take(key, list)
        if not all(isinstance(value, str) and _in_bounds(value) for value in values) or len(set(values)) < len(values):
            raise ManifestError(f"{self.where}: {key} should be different texts, found {_short(values)}")
        return tuple(values)

    def plain(self, key: str) -> dict[str, Any]:
        """Take an object of anything that JSON has, of bounded depth, numbers and texts."""
        value = self.take(key, dict)
        _check_plain(value, f"{self.where}: {key}", 0)
        return value

    def inner(self, key: str) -> Fields:
        """Take an object."""
        return Fields(self.take(key, dict), f"{self.where}: {key}")

    def items(self, key: str) -> list[Fields]:
        """Take a list of objects."""
        return [Fields(item, f"{self.where}: {key}[{i}]") for i, item in enumerate(self.take(key, list))]

    def each(self) -> list[tuple[str, Fields]]:
        """Return every key with its object."""
        return [(key, Fields(value, f"{self.where}.{key}")) for key, value in self.data.items()]

    def flat(self, kind: type[_T]) -> _T:
        """Take a dataclass whose fields are str, int or an optional str; files and digests are checked as such."""
        values: dict[str, Any] = {}
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            if field.type == "str | None":
                values[field.name] = self.optional(field.name, str)
            else:
                values[field.name] = self.take(field.name, int if field.type == "int" else str)
        self.done()
        if "file" in values and not _FILE.fullmatch(values["file"]):
            raise ManifestError(f"{self.where}: the file {values['file']!r} does not lie inside the store")
        for name in ("sha256", "index_sha256"):
            if values.get(name) is not None and not _DIGEST.fullmatch(values[name]):
                raise ManifestError(f"{self.where}: {name} is {_short(values[name])}, should be 64 hexadecimal digits")
        return kind(**values)

    def done(self) -> None:
        """Raise ManifestError if a key is left."""
        if self.data:
            raise ManifestError(
                f"{self.where}: unknown keys {', '.join(sorted(self.data))}; written by a newer version?"
            )


def _in_bounds(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST and printable(value) == value
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= _LARGEST_NUMBER
    return not isinstance(value, int) or 0 <= value <= _GREATEST


def _bounds(kind: type) -> str:
    return {
        str: f" of at most {_LONGEST} characters, none a control character",
        int: f" of 0..{_GREATEST}",
        float: f", finite, at most {_LARGEST_NUMBER:g}",
    }.get(kind, "")


def _short(value: object) -> str:
    text = ascii(value) if not isinstance(value, int) or abs(value) <= _GREATEST else "a greater integer"
    return text if len(text) <= 100 else f"{text[:100]}..."


def _check_plain(value: object, where: str, depth: int) -> None:
    """Refuse what can't be written to JSON again, and read by others."""
    if depth > _DEEPEST:
        raise ManifestError(f"{where}: nested deeper than {_DEEPEST}; convert the archive again")
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for part in parts:
        _check_plain(part, where, depth + 1)
    fits = not isinstance(value, (str, int, float)) or _in_bounds(abs(value) if isinstance(value, int) else value)
    if not fits:
        raise ManifestError(f"{where}: holds {_short(value)}; convert the archive again")
