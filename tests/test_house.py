"""The walls: which room imports which, and what a login node needs."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"shards": {"shards"}, "toolkit": {"shards", "toolkit"}, "launch": {"shards", "toolkit", "launch"}}
LAUNCH = ("cli", "jobs", "slurm", "sweeps")  # packages of launch/, each of which imports itself and those before it


def imported(file: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).split(".")[0])
    return names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room: str) -> None:
    for file in (ROOT / room).rglob("*.py"):
        strangers = (imported(file) & set(MAY_IMPORT)) - MAY_IMPORT[room]
        assert not strangers, f"{file.relative_to(ROOT)} imports {strangers}"


def test_packages_of_launch_import_one_way() -> None:
    """Commands import packages, packages import those below them; the console script loads a command by its name."""
    assert {file.parent.name for file in (ROOT / "launch").glob("*/__init__.py")} == {*LAUNCH}
    for level, package in enumerate(LAUNCH):
        for file in (ROOT / "launch" / package).rglob("*.py"):
            strangers = inside("launch", file) - {*LAUNCH[: level + 1]}
            assert not strangers, f"{file.relative_to(ROOT)} imports {strangers} of launch"


def inside(room: str, file: Path) -> set[str]:
    """The modules and packages right below `room` that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {str(node.module)} if node.module != room else {f"{room}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith(f"{room}.")}


def test_shards_knows_no_torch() -> None:
    for file in (ROOT / "shards").rglob("*.py"):
        jobs = set() if file.name == "cluster.py" else {"submitit"}  # conversion as several jobs
        assert not imported(file) & ({"torch", "deepspeed"} | jobs), file


def test_no_module_bears_the_name_of_a_library_it_imports() -> None:
    """`python launch/x.py` puts launch/ first on the path, and `python launch/jobs/job.py` launch/jobs."""
    needed = set().union(*(imported(file) for room in MAY_IMPORT for file in (ROOT / room).rglob("*.py")))
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
