"""The types of a sweep file's values: how each is checked, and what is accepted instead of its full form."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, ValidationInfo

from launch.slurm.profile import check_resources
from toolkit.config.renamed import new_names
from toolkit.config.tree import flatten

MOST_RUNS = 100_000


def _files(value: object) -> object:
    names = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"must be a file name or a list of them, got {value!r}")
    return names


def _seeds(value: object) -> object:
    if value is None:
        return ()
    if type(value) is int and 1 <= value <= MOST_RUNS:
        return range(1, value + 1)
    if isinstance(value, list) and value and all(type(seed) is int and seed >= 0 for seed in value):
        return value
    raise ValueError(f"must be a list of whole numbers, or n for 1 to n (at most {MOST_RUNS:,}), got {value!r}")


def _items(value: object) -> list[object]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"must be a list of at least one item, got {value!r}")
    return value


def _settings(value: object, info: ValidationInfo) -> object:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"must be a mapping such as {{train.lr: 1e-3}}, got {value!r}")
    return new_names(flatten(value), str(info.context))


def _axes(value: object, info: ValidationInfo) -> object:
    if value is None:
        return {}
    if not isinstance(value, dict) or not value:
        raise ValueError(f"must be a mapping of keys to lists, got {value!r}")
    return new_names({str(key): values for key, values in value.items()}, str(info.context))


def in_step(axes: dict[str, list[object]]) -> dict[str, list[object]]:
    if len({len(values) for values in axes.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in axes.items())
        raise ValueError(f"lists that go in step need one length; {lengths}")
    return axes


def as_entries(value: object) -> object:
    if value is None:
        return ({"where": "the base"},)
    return [
        {"where": f"list, entry {number}", **item} if isinstance(item, dict) else item
        for number, item in enumerate(_items(value), 1)
    ]


def _name(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}", value):
        raise ValueError(
            f"{value!r} can't be a folder name; use at most 100 letters, digits, '.', '_', '+' and '-', the first a "
            "letter or digit"
        )
    return value


Files = Annotated[tuple[str, ...], BeforeValidator(_files)]
Dotted = Annotated[dict[str, Any], BeforeValidator(_settings)]
Axes = Annotated[dict[str, Annotated[list[Any], BeforeValidator(_items)]], BeforeValidator(_axes)]
Name = Annotated[str, BeforeValidator(_name)]
Items = BeforeValidator(_items)
Seeds = Annotated[tuple[int, ...], BeforeValidator(_seeds)]
Resources = Annotated[dict[str, Any], BeforeValidator(check_resources)]


class _Texts(yaml.SafeLoader):
    """Reads every value as the text that is written; only `<<` keeps its meaning."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))]}  # noqa: RUF012  (of the base)


def with_texts(tree: dict[str, object], path: Path) -> dict[str, object]:
    """Return a sweep file's mapping with `resources` as they are written, since YAML reads 12:30:00 as 45000."""
    texts = yaml.load(path.read_text(encoding="utf-8"), Loader=_Texts)  # noqa: S506  (a safe one)
    items, written = tree.get("list"), texts.get("list")
    if isinstance(items, list):
        pairs = zip(items, written, strict=True)
        tree = {**tree, "list": [_with_text(item, text) if isinstance(item, dict) else item for item, text in pairs]}
    return _with_text(tree, texts)


def _with_text(tree: dict[str, object], texts: dict[str, object]) -> dict[str, object]:
    return {**tree, "resources": texts["resources"]} if "resources" in tree else tree
