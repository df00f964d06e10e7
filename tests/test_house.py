"""The walls: which room imports which, and what a login node needs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {"shards": {"shards"}, "toolkit": {"shards", "toolkit"}, "launch": {"shards", "toolkit", "launch"}}


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


def test_shards_knows_no_torch() -> None:
    for file in (ROOT / "shards").rglob("*.py"):
        jobs = set() if file.name == "cluster.py" else {"submitit"}  # conversion as several jobs
        assert not imported(file) & ({"torch", "deepspeed"} | jobs), file


def test_no_module_bears_the_name_of_a_library_it_imports() -> None:
    """`python launch/x.py` puts launch/ first on the path."""
    own = {file.stem for file in (ROOT / "launch").glob("*.py")}
    needed = set().union(*(imported(file) for room in MAY_IMPORT for file in (ROOT / room).rglob("*.py")))
    assert not own & needed
