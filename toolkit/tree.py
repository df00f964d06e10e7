"""Configs as plain trees: read from YAML with their bases, merged, written. Values are not validated here.

Precedence of files, bases and `--set`: toolkit/config.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ConfigError
from toolkit.shipped import find_config, instead_of

# The same YAML, written by libyaml where PyYAML was built with it: a sweep writes a thousand of them.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def read_tree(path: str | Path) -> dict[str, object]:
    """Return the merged mapping of a YAML file and its bases, not validated."""
    return _read(find_config(Path(path)), trail=())


def _read(path: Path, trail: tuple[Path, ...]) -> dict[str, object]:
    path = path.resolve()
    if path in trail:
        raise ConfigError(f"{path}: `base` leads back to itself: {' -> '.join(p.name for p in (*trail, path))}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        named_by = f" (named by {trail[-1]})" if trail else ""
        raise ConfigError(f"{path}: no such file{named_by}. {instead_of(path)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold a mapping of sections, found {type(tree).__name__}")
    bases = tree.pop("base", [])
    merged: dict[str, object] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merged = merge(merged, _read(find_config(Path(str(base)), path.parent), (*trail, path)))
    return merge(merged, tree)


def merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """Merge `over` into `base`: mappings key by key, other values replaced; a different model replaces the section."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            other_model = key == "model" and "name" in value and value["name"] != old.get("name", value["name"])
            result[key] = dict(value) if other_model else merge(old, value)
        else:
            result[key] = value
    return result


def with_overrides(tree: Mapping[str, object], overrides: Iterable[str]) -> dict[str, object]:
    """Apply `a.b=value` settings to a tree; the value is YAML (`1e-4`, `[a, b]`, `null`)."""
    result = dict(tree)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {text}: write it as section.key=value, for example --set train.lr=1e-4")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {text}: {value!r} is not a YAML value; quote it") from None
        result = merge(result, nested(key.strip(), parsed))
    return result


def nested(key: str, value: Any) -> dict[str, object]:
    """Return {'a': {'b': value}} for 'a.b'."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return {'a.b': value} for {'a': {'b': value}}; an empty mapping is kept as a value."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_yaml(tree: Mapping[str, object]) -> str:
    """Write plain values as YAML, keeping the order of keys."""
    return str(yaml.dump(dict(tree), Dumper=_DUMPER, sort_keys=False, allow_unicode=True))
