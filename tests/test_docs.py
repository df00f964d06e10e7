"""README.md, slurm/README.md, docs/: links lead somewhere, commands parse, Python runs, tables are the code's."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from launch import plan
from launch.cli.parser import COMMANDS
from shards.cli import main as shards
from tests.support.markdown import JOB, NO_SHELL, Block, anchors, blocks, check, commands, links, pages
from tests.support.process import ROOT
from toolkit.errors import EXIT_MEANING
from toolkit.evaluate.protocols import known_protocols, load_protocol
from toolkit.evaluate.protocols.base import Protocol
from toolkit.plan import cost as costs

DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(ROOT)): page for page in pages(ROOT)}
TYPED = ("python", "torchrun", "toolkit", "make", "slurm/devcluster/cluster", "sbatch")
# Blocks of pages to follow, which tests of their own run.
FOLLOWED = ("file: ", "in: ", "commands")


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    for file, anchor in links(page.read_text()):
        target = page.parent / file if file else page
        assert target.exists(), f"{name}: {file}"
        assert not anchor or anchor in anchors(target.read_text()), f"{name}: {file}#{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_every_command_can_be_typed(name: str) -> None:
    for block in blocks(PAGES[name].read_text()):
        if block.language in NO_SHELL or block.mark.startswith(FOLLOWED):
            continue
        for command in commands(block.code):
            if block.language == "sh" or command.split()[0] in TYPED:
                with said(f"{name}: {command}"):
                    check(command, ROOT)


@pytest.mark.parametrize("name", sorted({*COMMANDS, JOB} - {"shards"}))
def test_help_ends_with_examples_that_can_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"launch.{name}").main(["--help"])
    assert ended.value.code == 0
    _, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    typed = [re.split(r" {2,}|  #", line.strip())[0] for line in examples.splitlines()]
    typed = [line for line in typed if line.split()[:1] and line.split()[0] in TYPED]
    assert typed
    for command in typed:
        with said(command):
            check(command, ROOT)


@contextlib.contextmanager
def said(what: str) -> Any:
    """A parser that refuses ends the process; here the words that it refused are wanted."""
    try:
        yield
    except SystemExit as error:
        raise AssertionError(f"{what}: refused ({error.code})") from None
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("name", PAGES)
def test_code_that_is_named_is_there(name: str) -> None:
    for quoted in re.findall(r"`([\w*/.-]+\.(?:py|yaml|md)(?:::?[\w.]+)?)`", PAGES[name].read_text()):
        path, _, inner = quoted.partition(":")
        if "/" not in path or "NAME" in path:
            continue
        file = next((found for folder in (ROOT, PAGES[name].parent) for found in folder.glob(path)), None)
        assert file is not None, f"{name}: {quoted}"
        assert not inner or inner.lstrip(":") in names_in(file), f"{name}: {quoted}"


@cache
def names_in(file: Path) -> set[str]:
    """Functions and classes of a module, methods as Class.method."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def python_of(name: str) -> list[Block]:
    """A page's blocks of Python that stand for themselves."""
    found = blocks(PAGES[name].read_text())
    return [block for block in found if block.language == "python" and not block.mark.startswith(FOLLOWED)]


@pytest.mark.parametrize("name", [name for name in PAGES if python_of(name)])
def test_blocks_of_python_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = ["convert", "moving-mnist", "stores/mine", "--size", "32", "--train", "4", "--val", "2", "--test", "2"]
    assert shards(made) == 0
    space: dict[str, Any] = {}
    exec("import shards, webdataset", space)
    for block in python_of(name):
        exec(compile(block.code, f"{name}: a block", "exec"), space)


@pytest.mark.timeout(600)
def test_a_new_model_by_the_page(tmp_path: Path) -> None:
    """docs/new-model.md to the letter, in a folder of one's own: the model trains a step and keeps the contract."""
    typed = []
    for block in blocks((DOCS / "new-model.md").read_text()):
        kind, _, where = block.mark.partition(": ")
        if kind == "file":
            (tmp_path / where).parent.mkdir(exist_ok=True)
            (tmp_path / where).write_text(block.code)
        elif kind == "commands":
            typed += commands(block.code)
    assert len(typed) == 3
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    contract = "python -m pytest -q -p no:cacheprovider test_my_model.py"
    for command in [*typed, contract]:
        script = command.partition(" ")[2].replace("launch/", f"{ROOT}/launch/")
        words = [sys.executable, *shlex.split(script)]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert (tmp_path / "runs" / "conv_gru" / "DONE").exists()
    assert "1 passed" in done.stdout
    package = "import my_package.registry as r, sys; print(r.CONV_GRU.options().kernel, 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", package], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "3 False\n", done.stderr


@pytest.mark.timeout(900)
def test_the_pages_on_runs_by_the_letter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their files and commands, one after the other in one folder, in this process: torch is imported once."""
    monkeypatch.chdir(tmp_path)
    typed = 0
    for name in ("configs", "sweeps", "evaluation", "mode-collapse"):
        for block in blocks((DOCS / f"{name}.md").read_text()):
            kind, _, where = block.mark.partition(": ")
            if kind == "file":
                Path(where).write_text(block.code)
            for command in commands(block.code) if kind == "commands" else ():
                with said(f"{name}: {command}"):
                    assert run_typed(shlex.split(command)) == 0, f"{name}: {command}"
                typed += 1
    assert typed == 12
    assert {path.name for path in Path("runs/one/eval").glob("*.json")} >= {"test-best.json", "val+openstl-best.json"}
    assert "Mode collapse" in Path("runs/one/report/index.html").read_text()


def run_typed(words: list[str]) -> int:
    """Run `python launch/NAME.py ...` or `python -m shards ...`; return the exit code."""
    if words[:3] == ["python", "-m", "shards"]:
        return shards(words[3:])
    assert words[0] == "python" and words[1].startswith("launch/")
    return int(importlib.import_module(f"launch.{Path(words[1]).stem}").main(words[2:]))


def test_the_table_of_extras_is_the_extras_of_setup() -> None:
    rows = re.findall(r"^\| ((?:`[\w]+`(?:, )?)+) \| ", (DOCS / "installation.md").read_text(), flags=re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    run_setup = "import setuptools, json; setuptools.setup = lambda **k: print(json.dumps(sorted(k['extras_require'])))"
    code = f"{run_setup}; exec(compile(open('setup.py').read(), 'setup.py', 'exec'))"
    done = subprocess.run(
        [sys.executable, "-c", f"__file__ = 'setup.py'; {code}"], cwd=ROOT, capture_output=True, text=True
    )
    assert sorted(names) == json.loads(done.stdout), done.stderr


def test_the_messages_of_troubleshooting_are_the_codes() -> None:
    files = [file for folder in ("launch", "shards", "toolkit") for file in (ROOT / folder).rglob("*.py")]
    said = [text for file in files for text in texts(file)]
    for script in (ROOT / "launch").rglob("*.sh"):
        said += script.read_text().splitlines()
    rows = re.findall(r"^\| `(.*?)` \| ", (DOCS / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(rows) > 40
    for message in rows:
        parts = [part for part in message.removeprefix("error: ").split("…") if part.strip(" :;,.()")]
        assert any(all(part in text for part in parts) for text in said), message


def texts(file: Path) -> list[str]:
    """The string literals of a module, what is filled in as `…`."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_exit_codes_are_the_codes() -> None:
    for name in ("README.md", "docs/troubleshooting.md"):
        rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|", PAGES[name].read_text(), flags=re.MULTILINE))
        assert set(rows) == set(map(str, EXIT_MEANING)), name
        if name != "README.md":
            assert rows == {str(code): meaning for code, meaning in EXIT_MEANING.items()}


def test_the_table_of_protocols_is_the_protocols() -> None:
    table = re.findall(r"^\| (\w+) \| (.*) \|$", (DOCS / "metrics.md").read_text(), flags=re.MULTILINE)
    head = re.search(r"^\| \| (`paper`.*) \|$", (DOCS / "metrics.md").read_text(), flags=re.MULTILINE)
    assert head is not None
    names = re.findall(r"`(\w+)`", head[1])
    assert sorted(names) == known_protocols()
    rows = {key: cells.split(" | ") for key, cells in table}
    for field in fields(Protocol):
        if field.name in ("name", "title", "source"):
            continue
        shown = [as_shown(field.name, getattr(load_protocol(name), field.name)) for name in names]
        assert rows.get(field.name) == shown, field.name


def as_shown(field: str, value: Any) -> str:
    if field == "thresholds" and not value:
        return "`eval.thresholds`"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(f"{item:g}" for item in value) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def test_the_table_of_scaling_is_the_planners(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(costs, "is_outdated", lambda *_: False)  # the table's figures, whatever has changed since
    monkeypatch.chdir(ROOT)
    text = (DOCS / "scaling.md").read_text()
    (arguments,) = re.findall(r"^<!-- plan: (.*) -->$", text, flags=re.MULTILINE)
    rows = re.findall(r"^\| ((\d+) x (\d+) \| .*) \|$", text, flags=re.MULTILINE)
    assert len(rows) >= 4
    for row, nodes, gpus in rows:
        assert plan.main([*arguments.split(), "--nodes", nodes, "--gpus-per-node", gpus, "--json"]) == 0
        assert row == scaling_row(int(nodes), int(gpus), json.loads(capsys.readouterr().out))


def scaling_row(nodes: int, gpus: int, plan: dict[str, Any]) -> str:
    best, sent = plan["recommended"], plan["sent_per_rank"]["0"]
    cells = [
        f"{nodes} x {gpus}",
        str(plan["share"]),
        f"{best['policy']}, {best['micro_batch']}: {best['total'] / 2**30:.1f}",
        f"{(sent['reduced'] + sent['gathered']) / 2**20:.1f}",
        f"{plan['exchange_s'] * 1e3:.2f}",
        f"{plan['sequences_per_s']:,.1f}",
        f"{plan['hours'] / 24:.1f}",
    ]
    return " | ".join(cells)
