"""Config keys that were renamed. Old names are accepted for one release, with a warning; identities keep the old names.

A run directory is named by the hash of its config, so the hash is computed over the names that keys had when
`CONFIG_VERSION` began: a renamed key changes no run's identity.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from toolkit.errors import ConfigError

RENAMED = {
    "data.workers": "data.num_workers",
    "train.checkpointing": "train.activation_checkpointing.policy",
    "train.checkpoint_layers": "train.activation_checkpointing.per_layer",
    "train.offload_states": "train.activation_checkpointing.offload",
    "train.checkpointing_backend": "train.activation_checkpointing.backend",
    "train.checkpoint_every": "train.checkpoint.every",
    "train.async_checkpoint": "train.checkpoint.async_save",
    "train.on_save_error": "train.checkpoint.on_error",
    "train.keep_last": "train.checkpoint.keep_last",
    "train.keep_every": "train.checkpoint.keep_every",
    "eval.samples": "eval.ensemble_size",
}
ORIGINAL = {new: old for old, new in RENAMED.items()}

logger = logging.getLogger(__name__)
_warned: set[str] = set()
Value = TypeVar("Value")


def with_new_names(tree: Mapping[str, object], origin: str) -> dict[str, object]:
    """Return a tree of values in which old keys have their new names; `origin` says in messages where it was read.

    Raises:
        ConfigError: a key is given by its old name and by its new one.
    """
    found = [old for old in RENAMED if _has(tree, old)]
    if not found:
        return dict(tree)
    result = _copy(tree)
    for old in found:
        if _has(result, RENAMED[old]):
            raise _both(old, origin)
        _move(result, old, RENAMED[old])
    _warn(found, origin)
    return result


def new_names(settings: Mapping[str, Value], origin: str) -> dict[str, Value]:
    """Return the same for dotted keys, `{"train.keep_last": 3}`; their order stays.

    Raises:
        ConfigError: a key is given by its old name and by its new one.
    """
    found = [key for key in settings if key in RENAMED]
    for old in found:
        if RENAMED[old] in settings:
            raise _both(old, origin)
    _warn(found, origin)
    return {RENAMED.get(key, key): value for key, value in settings.items()}


def original_names(tree: Mapping[str, object]) -> dict[str, object]:
    """Return a tree of values with the names that its keys had first; sections left empty are omitted."""
    result = _copy(tree)
    for new, old in ORIGINAL.items():
        if _has(result, new):
            _move(result, new, old)
    return result


def _both(old: str, origin: str) -> ConfigError:
    return ConfigError(f"{origin}: {old} is the old name of {RENAMED[old]}, and both are given: remove {old}")


def _warn(found: list[str], origin: str) -> None:
    names = [old for old in found if old not in _warned]
    if names:
        _warned.update(names)
        pairs = ", ".join(f"{old} is now {RENAMED[old]}" for old in names)
        logger.warning("%s: renamed config keys, whose old names the next release will refuse: %s", origin, pairs)


def _copy(tree: Mapping[str, object]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in tree.items()}


def _has(tree: object, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def _move(tree: dict[str, Any], source: str, target: str) -> None:
    """Move a value that is there from one dotted key to another."""
    *sections, last = source.split(".")
    passed = [tree]
    for part in sections:
        passed.append(passed[-1][part])
    value = passed[-1][last]
    *new_sections, new_last = target.split(".")
    place = tree
    for part in new_sections:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):  # `checkpoint: 5`: its own message follows when the config is checked
            return
    place[new_last] = value
    del passed[-1][last]
    for section, part in zip(reversed(passed[:-1]), reversed(sections), strict=True):
        if not section[part]:
            del section[part]
