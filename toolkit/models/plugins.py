"""Models that the toolkit does not have: from a Python file of the user's, or from an installed package. Without torch.

`model.name: my_model.py:ConvGRU` names a class in a file. A file runs only if the user names it: in a config, a
sweep or `--set` that is given to a command, in a `base:` of these, or by `--model-file`. In a run directory and in an
export the name stands without its path, beside the SHA-256 of the file's text (`model.sha256`): nothing that such a
folder holds makes a command run a file, and a file with another text is refused. docs/new-model.md has the rule and an
example.

Options are read without running the rest of the file: only the options class, and what it needs, is executed, so that
torch is imported only if the options need it.

An installed package registers a `ModelEntry` as an entry point of the group `modernn_toolkit.models`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pydantic import ConfigDict, Field, create_model

from toolkit.errors import ConfigError
from toolkit.models.registry import MODELS, ModelEntry, Options

GROUP = "modernn_toolkit.models"
NAME = re.compile(r"(?P<path>.*\.py):(?P<model>[A-Za-z_]\w*)", re.DOTALL)
PAGE = "see docs/new-model.md"


class FileModel(Options):
    """What the options of every model from a file have."""

    name: str = Field(description="FILE.py:CLASS; in a run directory without the file's path")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the file's text; set by the toolkit")

    @property
    def model(self) -> str:
        """The name of the model's class."""
        return self.name.rpartition(":")[2]


class UnloadedModel(FileModel):
    """Options of a model whose file was not given: values as they stand in a config, without types."""

    model_config = ConfigDict(extra="allow")

    @property
    def tile(self) -> int:
        raise not_loaded(self)


class ModelFile(NamedTuple):
    """The text of a file that the user has named."""

    name: str  # without folders
    text: bytes
    sha256: str

    @classmethod
    def of(cls, name: str, text: bytes) -> ModelFile:
        """Return a file by its text."""
        return cls(name, text, hashlib.sha256(text).hexdigest())


_FILES: dict[str, ModelFile] = {}  # by SHA-256: those that may run in this process


def read_file(path: Path) -> ModelFile:
    """Return the file of a model. It may not run yet.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        text = path.expanduser().read_bytes()
        text.decode()
    except OSError as error:
        raise ConfigError(f"{path}: the file of a model can't be read: {error.strerror}; {PAGE}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: the file of a model must be Python in UTF-8; {PAGE}") from None
    return ModelFile.of(path.name, text)


def add_file(file: ModelFile) -> None:
    """Let this process run a file: the user has named it."""
    _FILES.setdefault(file.sha256, file)


def loaded(options: FileModel) -> ModelFile:
    """Return the file of a model.

    Raises:
        ConfigError: the user has not named it.
    """
    if options.sha256 not in _FILES:
        raise not_loaded(options)
    return _FILES[options.sha256]


def not_loaded(options: FileModel) -> ConfigError:
    """Return the error of a model whose file is needed and was not given."""
    file = options.name.rpartition(":")[0]
    return ConfigError(
        f"the model is {options.name}, from a file with SHA-256 {options.sha256[:12]}..., which was not given: read "
        f"that file (a run directory keeps a copy, model.py), then add --model-file {file} to this command; it is run "
        f"only where you name it. In Python: model_file={file!r}. {PAGE}"
    )


def check_names_no_file(tree: Mapping[str, object], path: Path) -> None:
    """Check that a config of a run directory or an export names no file to run: only one that `model.sha256` pins.

    Args:
        tree: what the file at `path`, or a base of it, holds.

    Raises:
        ConfigError: it names one.
    """
    model = tree.get("model")
    if isinstance(model, Mapping) and "sha256" not in model and (match := NAME.fullmatch(str(model.get("name", "")))):
        raise ConfigError(
            f"{path}: model.name {match[0]} names a file without its SHA-256, and no config that a run directory or an "
            f"export holds makes a command run a file: read {match['path']}, then write model.sha256 (of sha256sum) "
            f"beside the name and give --model-file {match['path']}, or copy this config to a folder of yours; {PAGE}"
        )


def with_absolute_path(tree: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Return a config's tree in which the file of `model.name` is looked for in a folder; others stay as they are."""
    model = tree.get("model")
    if not isinstance(model, Mapping) or "sha256" in model:
        return dict(tree)
    match = NAME.fullmatch(str(model.get("name", "")))
    if match is None:
        return dict(tree)
    path = (folder / Path(match["path"]).expanduser()).resolve()
    return {**tree, "model": {**model, "name": f"{path}:{match['model']}"}}


def with_loaded_file(tree: Mapping[str, object]) -> dict[str, object]:
    """Load the file that a config names which the user has given; `model.sha256` is then set.

    No name from a run directory or an export gets here: `check_names_no_file` refuses it where configs are read.

    Raises:
        ConfigError: it can't be read.
    """
    model = tree.get("model")
    if isinstance(model, Mapping) and "sha256" not in model and (match := NAME.fullmatch(str(model.get("name")))):
        file = read_file(Path(match["path"]))
        add_file(file)
        return {**tree, "model": {**model, "name": f"{file.name}:{match['model']}", "sha256": file.sha256}}
    return dict(tree)


def own_options(value: object) -> Options | None:
    """Return the options of a model from a file or an installed package; None: it is one of the toolkit's.

    Raises:
        ValueError: a file that no user has named, or options that can't be used.
    """
    if isinstance(value, FileModel):
        return value
    if not isinstance(value, Mapping):
        return None
    name = str(value.get("name", ""))
    if NAME.fullmatch(name) is None:
        entry = None if name in MODELS else entry_points().get(name)
        return None if entry is None else entry.options.model_validate(value)
    if "sha256" not in value:
        raise ValueError("names a file, which a config in a run directory, an export or a library call does not run")
    if "/" in name:
        raise ValueError("has the path of a file beside its sha256: leave sha256 out, or the folders")
    return file_options(name, str(value["sha256"])).model_validate(value)


def file_options(name: str, sha256: str) -> type[Options]:
    """Return the class of the options of a model from a file, FILE.py:CLASS.

    Raises:
        ConfigError: the file has no such model, or can't be used.
    """
    return _options_class(sha256, name.rpartition(":")[2]) if sha256 in _FILES else UnloadedModel


@functools.cache
def entry_points() -> dict[str, ModelEntry]:
    """Return the models of installed packages by name; none replaces one of the toolkit's.

    Raises:
        ConfigError: an entry point can't be loaded, is no `ModelEntry`, or has the name of another model.
    """
    found: dict[str, ModelEntry] = {}
    for point in importlib.metadata.entry_points(group=GROUP):
        where = f"entry point {point.name} = {point.value} of {point.dist.name if point.dist else 'a package'}"
        try:
            entry = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"{where}: can't be loaded ({error}): repair or uninstall that package") from None
        if not isinstance(entry, ModelEntry):
            raise ConfigError(f"{where}: is a {type(entry).__name__}, should be a ModelEntry; {PAGE}")
        if point.name in MODELS or point.name in found:
            raise ConfigError(f"{where}: there is another model of that name: uninstall that package")
        found[point.name] = entry
    return found


def entry_of(options: Options) -> ModelEntry:
    """Return the entry of a model, wherever it is from."""
    if isinstance(options, FileModel):
        return ModelEntry(options.name, type(options), options.model, f"{options.name}, SHA-256 {options.sha256[:12]}")
    name = str(getattr(options, "name", ""))
    return MODELS[name] if name in MODELS else entry_points()[name]


def model_names() -> list[str]:
    """Return the names of all models but those from files."""
    return [*MODELS, *entry_points()]


def model_class(options: Options) -> tuple[Any, Options]:
    """Return the class of a model, and the options to build it with. Imports torch.

    Raises:
        ConfigError: its file was not given, can't be run, or has no such class.
    """
    if not isinstance(options, FileModel):
        module, _, name = entry_of(options).code.partition(":")
        return getattr(importlib.import_module(module), name), options
    file = loaded(options)
    module_of_file = _run(file, ast.parse(file.text), f"toolkit_model_{file.sha256[:12]}")
    made = getattr(module_of_file, options.model)
    annotation, _ = _annotation(file, options.model)
    bound = _bound(file, module_of_file, annotation)
    return made, bound.model_validate(options.model_dump())


def source_of(options: Options) -> tuple[str, str]:
    """Return the name and the text of the module that a model's class is in, without importing it."""
    if isinstance(options, FileModel):
        file = loaded(options)
        return file.name, file.text.decode("utf-8", "replace")
    module = entry_of(options).code.partition(":")[0]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(f"model.name {getattr(options, 'name', '')}: there is no module {module}: {PAGE}")
    return module, Path(spec.origin).read_text(encoding="utf-8")


@functools.lru_cache(maxsize=64)
def _options_class(sha256: str, model: str) -> type[Options]:
    """Return the options class of a model, executing no more of its file than that class needs.

    Raises:
        ConfigError: naming the file and what is wrong with it.
    """
    file = _FILES[sha256]
    annotation, tree = _annotation(file, model)
    part = ast.Module(body=[*_needed(tree, annotation)], type_ignores=[])
    return _bound(file, _run(file, part, f"toolkit_options_{file.sha256[:12]}_{model}"), annotation)


def _bound(file: ModelFile, module: ModuleType, annotation: ast.expr) -> type[Options]:
    """Return the class that an annotation names in a module, with the fields of `FileModel`."""
    text = ast.unparse(annotation)
    options = eval(text, module.__dict__)  # noqa: S307  # a name in a file that the user has named
    if not (isinstance(options, type) and issubclass(options, Options)):
        raise ConfigError(
            f"{file.name}: {text} must derive from toolkit.models.registry.StepOptions (a step model) or Options; "
            f"{PAGE}"
        )
    return create_model(options.__name__, __base__=(FileModel, options), __module__=module.__name__)


def _run(file: ModelFile, tree: ast.Module, name: str) -> ModuleType:
    """Execute statements of a file as a module, once."""
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name, ast.get_docstring(tree))
    sys.modules[name] = module  # dataclasses and pydantic look up the module of a class
    try:
        exec(compile(tree, file.name, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{file.name}: can't be run ({type(error).__name__}: {error}): repair it; {PAGE}") from error
    return module


def _annotation(file: ModelFile, model: str) -> tuple[ast.expr, ast.Module]:
    """Return the annotation of `options` in a model's `__init__(self, options: ConvGRUOptions, shape)`."""
    try:
        tree = ast.parse(file.text)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{file.name}: is no Python: {error}") from None
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if model not in classes:
        raise ConfigError(f"{file.name}: has no class {model}; there are {', '.join(classes) or 'none'}")
    waiting = [model]
    while waiting:
        node = classes[waiting.pop(0)]
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__" and len(item.args.args) > 1:
                found = item.args.args[1].annotation
                if isinstance(found, ast.Constant) and isinstance(found.value, str):
                    found = ast.parse(found.value, mode="eval").body
                if found is not None:
                    return found, tree
        waiting += [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    raise ConfigError(
        f"{file.name}: {model} must say which class its options are: "
        f"`def __init__(self, options: {model}Options, shape: FrameSpec)`; {PAGE}"
    )


def _needed(tree: ast.Module, wanted: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements, in order, that define the names which a node uses, and those which these use, and so on."""
    kept: set[int] = set()
    waiting, seen = [wanted], set[str]()
    while waiting:
        for name in _names(waiting.pop()) - seen:
            seen.add(name)
            for number, statement in enumerate(tree.body):
                if number not in kept and name in _defined(statement):
                    kept.add(number)
                    waiting.append(statement)
    for number, statement in enumerate(tree.body):
        future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        if number in kept or future or "*" in _defined(statement):
            yield statement


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _defined(statement: ast.stmt) -> set[str]:
    """Return the names that a statement at the top of a module defines."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    found: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
    return found
