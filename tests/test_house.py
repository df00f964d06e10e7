"""The walls: which room imports which, what a login node needs, and how long a file or a function may be.

A room is a module or a package right below `shards`, `toolkit` or `launch`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"shards": {"shards"}, "toolkit": {"shards", "toolkit"}, "launch": {"shards", "toolkit", "launch"}}
LAUNCH = ("cli", "jobs", "slurm", "sweeps")  # packages of launch/, each of which imports itself and those before it
TOOLKIT = (  # rooms of toolkit/, each of which imports itself and those before it
    *("errors", "wording", "atomic", "signals", "shipped", "table", "unroll"),
    *("models", "config", "distributed", "rundir", "data", "trackers"),
    *("checkpoint", "evaluate", "train", "analysis", "report", "forecast", "plan", "testing"),
)
# A store's formats are loaded when one is opened: half a second of imports that readers of the other needn't wait for.
LAZY = {"shards.store", "shards.tar_store", "shards.zarr_store"}
MOST_LINES = 400
MOST_COMPLEX = 20


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def modules(file: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in it; `from toolkit import x` counts as toolkit.x."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            inside = node.module in MAY_IMPORT
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if inside else [node.module]


def imported(file: Path) -> set[str]:
    """Top-level names that a file imports."""
    return {module.split(".")[0] for module in modules(file)}


def inside(package: str, file: Path) -> set[str]:
    """The rooms of a package that a file imports; what the package itself defines is no room."""
    found = {module.split(".")[1] for module in modules(file) if module.startswith(f"{package}.")}
    return {room for room in found if room != "__version__"}


def room_of(file: Path) -> str:
    """`toolkit.models` for toolkit/models/base.py, `shards.store` for shards/store.py."""
    package, room, *_ = file.relative_to(ROOT).with_suffix("").parts
    return f"{package}.{room}"


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of nodes of which each can be reached from each other."""

    def reached(start: str) -> set[str]:
        seen, wanted = set(), [start]
        while wanted:
            new = graph.get(wanted.pop(), set()) - seen
            seen |= new
            wanted += new
        return seen

    reach = {node: reached(node) for node in graph}
    found = [
        {other for other in reach[node] if node in reach.get(other, set())} for node in graph if node in reach[node]
    ]
    return [circle for number, circle in enumerate(found) if circle not in found[:number]]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package: str) -> None:
    for file in files(package):
        strangers = (imported(file) & set(MAY_IMPORT)) - MAY_IMPORT[package]
        assert not strangers, f"{file.relative_to(ROOT)} imports {strangers}"


def test_packages_of_launch_import_one_way() -> None:
    """Commands import packages, packages import those below them; the console script loads a command by its name."""
    assert {file.parent.name for file in (ROOT / "launch").glob("*/__init__.py")} == {*LAUNCH}
    for level, package in enumerate(LAUNCH):
        for file in (ROOT / "launch" / package).rglob("*.py"):
            strangers = inside("launch", file) - {*LAUNCH[: level + 1]}
            assert not strangers, f"{file.relative_to(ROOT)} imports {strangers} of launch"


def test_rooms_of_the_toolkit_import_one_way() -> None:
    """The package itself (`toolkit.load`) stands above its rooms."""
    below = [file for file in files("toolkit") if file != ROOT / "toolkit" / "__init__.py"]
    assert {room_of(file) for file in below} == {f"toolkit.{room}" for room in TOOLKIT}
    for file in below:
        level = TOOLKIT.index(room_of(file).split(".")[1])
        strangers = inside("toolkit", file) - {*TOOLKIT[: level + 1]}
        assert not strangers, f"{file.relative_to(ROOT)} imports {strangers} of toolkit, which stand above it"


def test_no_circle_of_rooms() -> None:
    graph: dict[str, set[str]] = {}
    for package in MAY_IMPORT:
        for file in files(package):
            if file.parent == ROOT / package and file.stem == "__init__":
                continue
            needed = {f"{other}.{room}" for other in MAY_IMPORT for room in inside(other, file)}
            graph.setdefault(room_of(file), set()).update(needed - {room_of(file)})
    assert [circle for circle in circles(graph) if circle != LAZY] == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [{"a", "b", "c"}]


def messages(tree: ast.Module) -> Iterator[str]:
    """The string constants of a module but for its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    skipped = {id(doc.value) for doc in docs if isinstance(doc, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


@pytest.mark.parametrize(("package", "above"), [("shards", "toolkit|launch"), ("toolkit", "launch")])
def test_no_string_names_a_room_above(package: str, above: str) -> None:
    """Neither a module to start (`-m launch.x`) nor a file to run (`launch/x.py`), which a wheel doesn't have."""
    named = re.compile(rf"(?<![\w-])({above})[./]\w|-m ({above})\b")
    naming = {
        file.relative_to(ROOT).as_posix()
        for file in files(package)
        if any(named.search(text) for text in messages(ast.parse(file.read_text())))
    }
    assert not naming


def test_no_module_is_long() -> None:
    long = {
        f"{file.relative_to(ROOT)}: {lines} lines"
        for package in MAY_IMPORT
        for file in files(package)
        if (lines := len(file.read_text().splitlines())) > MOST_LINES
    }
    assert not long


def test_no_function_is_complex() -> None:
    """Ruff holds it: the rule is on, its limit is low enough, and no function is excepted."""
    settings = (ROOT / "pyproject.toml").read_text()
    chosen = re.search(r"^select = \[(.*?)\]", settings, re.MULTILINE | re.DOTALL)
    limit = re.search(r"^max-complexity = (\d+)$", settings, re.MULTILINE)
    assert chosen and '"C90"' in chosen[1]
    assert limit and int(limit[1]) <= MOST_COMPLEX
    assert "C901" not in settings
    for package in MAY_IMPORT:
        for file in files(package):
            assert "C901" not in file.read_text(), file


def test_shards_knows_no_torch() -> None:
    for file in files("shards"):
        jobs = set() if file.name == "cluster.py" else {"submitit"}  # conversion as several jobs
        assert not imported(file) & ({"torch", "deepspeed"} | jobs), file


def test_no_module_bears_the_name_of_a_library_it_imports() -> None:
    """`python launch/x.py` puts launch/ first on the path, and `python launch/jobs/job.py` launch/jobs."""
    needed = set().union(*(imported(file) for package in MAY_IMPORT for file in files(package)))
    for folder in (ROOT / "launch", ROOT / "launch" / "jobs"):
        own = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
        assert len(own) > 5
        assert not own & (needed | sys.stdlib_module_names) - {"__init__"}, folder


def test_no_test_module_imports_another() -> None:
    """What several need is in tests/support or a fixture of a conftest.py, which pytest hands out by itself."""
    files = [file for folder in ("tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 150
    for file in files:
        strangers = {name for name in modules_of(file) if name.rpartition(".")[2].startswith(("test_", "conftest"))}
        assert not strangers, f"{file.relative_to(ROOT)} imports {strangers}"


def modules_of(file: Path) -> set[str]:
    """Every module that a file imports, and every name that it imports from one: it may be a module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module or ''}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("room", ["shards", "toolkit"])
def test_no_text_below_launch_names_a_file_of_it(room: str) -> None:
    """Messages, pages and cards print commands by `toolkit.shipped.command`, which knows a checkout from a wheel."""
    for file in [*(ROOT / room).rglob("*.py"), *(ROOT / room).rglob("*.html")]:
        if file != ROOT / "toolkit" / "shipped.py":
            found = re.findall(r"launch/[a-z/]*\.py|-m launch\.\w+", file.read_text())
            assert not found, f"{file.relative_to(ROOT)}: {found}"
