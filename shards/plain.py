"""Plain data as JSON: the work of a cluster's job, written by the call that submits it and read by its jobs.

Numbers, texts, lists, tuples, paths, times and dataclasses of this package (or of the module that the source is from)
come back as they were, with their caches empty; other objects of these modules by being made again without arguments,
and those that would lose something by that are refused. Nothing else is written, and nothing that is read can do more
than make such objects.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pickle
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import UsageError

PACKAGE = "shards"


def to_plain(value: object) -> Any:
    """Return JSON for `value`. Raises UsageError for an object that it has no form for."""
    if value is None or isinstance(value, (bool, str)) or type(value) in (int, float):
        return value
    if isinstance(value, (list, tuple)):
        parts = [to_plain(part) for part in value]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, dict):
        return {"dict": [[to_plain(key), to_plain(part)] for key, part in value.items()]}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, datetime):
        return {"time": value.isoformat()}
    if isinstance(value, np.generic):
        return {"number": [value.dtype.str, value.item()]}
    kind = type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    fields = []
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
    try:
        made = kind(**{field: getattr(value, field) for field in fields})
        if _without_caches(made) != _without_caches(value):
            raise TypeError("it holds more than it is made of; caches are functools.cached_property or compare=False")
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UsageError(
            f"a {name} can't be handed to the jobs of a cluster ({error}): make it a dataclass of plain values, or use "
            "--workers"
        ) from None
    return {"class": name, "fields": {field: to_plain(getattr(value, field)) for field in fields}}


def _without_caches(value: object) -> bytes:
    """Return the pickle of an object without what it computes again when asked: the values of cached properties, and of
    a dataclass the fields that neither make it nor count in comparisons.
    """
    kind, bare = type(value), copy.copy(value)
    caches = {name for base in kind.__mro__ for name, part in vars(base).items() if isinstance(part, cached_property)}
    if dataclasses.is_dataclass(value):
        caches |= {field.name for field in dataclasses.fields(value) if not (field.init or field.compare)}
    for name in caches:
        with suppress(AttributeError):
            object.__delattr__(bare, name)
    return pickle.dumps(bare)


def from_plain(data: Any, module: str) -> Any:
    """Return what `to_plain` was given. Raises UsageError for anything that it doesn't write, and for classes that are
    neither this package's nor `module`'s.
    """
    if isinstance(data, list):
        return [from_plain(part, module) for part in data]
    if not isinstance(data, dict):
        return data
    try:
        if "class" in data:
            fields = {name: from_plain(part, module) for name, part in data["fields"].items()}
            return _class(data["class"], module)(**fields)
        ((kind, content),) = data.items()
        if kind == "tuple":
            return tuple(from_plain(part, module) for part in content)
        if kind == "dict":
            return {from_plain(key, module): from_plain(part, module) for key, part in content}
        if kind == "number":
            return np.dtype(content[0]).type(content[1])
        if kind in ("path", "time"):
            return Path(content) if kind == "path" else datetime.fromisoformat(content)
    except (TypeError, ValueError, KeyError, AttributeError, ImportError) as error:
        if isinstance(error, UsageError):
            raise
        raise _unknown(data, error) from None
    raise _unknown(data, "unknown kind")


def _unknown(data: object, why: object) -> UsageError:
    return UsageError(f"{str(data)[:200]}: not written by this version ({why}); run the same command again")


def _class(name: str, module: str) -> Any:
    where, _, qualified = name.partition(":")
    if where.partition(".")[0] != PACKAGE and where != module:
        raise UsageError(f"{name}: neither of {PACKAGE} nor of {module}; run the same command again")
    found: Any = importlib.import_module(where)
    for part in qualified.split("."):
        found = getattr(found, part)
    if not isinstance(found, type):
        raise UsageError(f"{name}: no class; run the same command again")
    return found
