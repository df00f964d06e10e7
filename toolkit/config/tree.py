"""Configs as plain trees: read from YAML with their bases, merged, written. Values are not checked here.

toolkit/config/run.py describes how files, bases and `--set` are merged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from toolkit.config.renamed import with_new_names
from toolkit.errors import ConfigError
from toolkit.models.plugins import check_names_no_file, with_absolute_path
from toolkit.shipped import find_config, instead_of

# The same YAML, read and written by libyaml where PyYAML was built with it: a sweep writes a thousand of them.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MOST_VALUES = 1_000_000  # aliases can make a small file describe more than fits into memory
DEEPEST = 50
MOST_LINKS = 40  # as Linux follows
RUN_FILES = (  # one beside config.yaml: a run
    "env.json", "state.json", "events.jsonl", "metrics.jsonl", "checkpoints", "submit.sbatch", "DONE", "FAILED"
)  # fmt: skip


class _DuplicateKeyError(yaml.YAMLError):
    pass


def parse_yaml(text: str) -> Any:
    """Return the plain value that a text of YAML holds.

    Raises:
        yaml.YAMLError: not YAML; a mapping with one key twice, naming both lines; values nested or repeated endlessly.
    """
    loader = _LOADER(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node)
        value = loader.construct_document(node)
        _check_size(value, 0, [0])
        return value
    except RecursionError:
        raise yaml.YAMLError("values are nested too deeply") from None
    except (ValueError, OverflowError, AttributeError, IndexError, KeyError, TypeError) as error:
        # PyYAML of a date such as 2020-13-45, of `!!timestamp x` or `!!int ''`
        raise yaml.YAMLError(f"a value is not what its form or tag says ({error})") from None
    finally:
        loader.dispose()


def _check_keys(root: yaml.Node) -> None:
    """Check that no mapping has a key twice. PyYAML would take the last one."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            waiting += node.value
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            waiting += (key, value)
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    raise _DuplicateKeyError(f"key `{key.value}` is given twice, in lines {lines[name]} and {line}")
                lines[name] = line


def _check_size(value: object, depth: int, seen: list[int]) -> None:
    seen[0] += 1
    if depth > DEEPEST or seen[0] > MOST_VALUES:
        raise yaml.YAMLError(f"more than {DEEPEST} levels or {MOST_VALUES:,} values, aliases counted each time")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_size(item, depth + 1, seen)


def read_mapping(path: Path, what: str = "sections", missing: str = "no such file") -> dict[str, object]:
    """Return the mapping that a YAML file holds; an empty file holds an empty one.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: {missing}. {instead_of(path)}") from None
    except _DuplicateKeyError as error:
        raise ConfigError(f"{path}: {error}: remove one") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold a mapping of {what}, found {type(tree).__name__}")
    return tree


def read_tree(path: str | Path) -> dict[str, object]:
    """Return the merged mapping of a YAML file and its bases; renamed keys have their new names."""
    return _read(find_config(Path(path)), trail=())


def is_of_a_run(path: Path) -> bool:
    """Return whether a file, or any that it links to, is the config of a run directory or of an export."""
    for _ in range(MOST_LINKS):
        beside = {"config.yaml": RUN_FILES, "config.json": ("model.safetensors",)}.get(path.name, ())
        if any(os.path.lexists(path.with_name(name)) for name in beside):
            return True
        if not os.path.islink(path):
            return False
        path = path.parent / os.readlink(path)
    return True  # links without an end: nothing can be read there


def _read(path: Path, trail: tuple[Path, ...], of_a_run: bool = False) -> dict[str, object]:
    of_a_run = of_a_run or is_of_a_run(path)  # so are its bases
    path = path.resolve()
    if path in trail:
        raise ConfigError(f"{path}: `base` leads back to itself: {' -> '.join(p.name for p in (*trail, path))}")
    named_by = f" (named by {trail[-1]})" if trail else ""
    tree = read_mapping(path, missing=f"no such file{named_by}")
    bases = tree.pop("base", [])
    tree = with_new_names(tree, str(path))
    if of_a_run:
        check_names_no_file(tree, path)
    tree = with_absolute_path(tree, path.parent)
    merged: dict[str, object] = {}
    for base in [bases] if isinstance(bases, str) else bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base: must be a file name or a list of them, got {base!r}")
        merged = merge(merged, _read(find_config(Path(base), path.parent), (*trail, path), of_a_run))
    return merge(merged, tree)


def merge(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """Return `over` merged into `base`: mappings key by key, the rest replaced; so is the section of another model."""
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
    given: dict[str, object] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise ConfigError(f"--set {text}: write it as section.key=value, for example --set train.lr=1e-4")
        try:
            parsed = parse_yaml(value)
        except _DuplicateKeyError as error:
            raise ConfigError(f"--set {text}: {error}: remove one") from None
        except yaml.YAMLError:
            raise ConfigError(f"--set {text}: {value!r} is not a YAML value; quote it") from None
        given = merge(given, nested(key.strip(), parsed))
    return merge(tree, with_absolute_path(with_new_names(given, "--set"), Path.cwd()))


def lay(tree: Mapping[str, object], layers: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """Apply dotted settings to a tree, later layers over earlier ones, a choice of model before all else."""
    settings = {key: value for layer in layers for key, value in layer.items()}
    result = dict(tree)
    for key in sorted(settings, key=lambda key: key != "model.name"):
        result = merge(result, with_new_names(nested(key, settings[key]), key))
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
